package tracee

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// ErrNoCompat says that this kernel does not execute 32-bit programs.
var ErrNoCompat = errors.New("this kernel does not execute 32-bit programs")

// A StubFile is a stub that a task can execute: a memfd.
type StubFile struct {
	arch *arch.Arch
	stub arch.Stub
	fd   *sys.FD
}

// NewStubFile writes the stub of an architecture: the machine's own, or its 32-bit companion.
func NewStubFile(a *arch.Arch) (*StubFile, error) {
	fd, err := memfd("crpipe-stub")
	if err != nil {
		return nil, err
	}
	s := &StubFile{arch: a, stub: a.Stub(), fd: fd}
	if _, err := unix.Write(fd.Int(), s.stub.Image); err != nil {
		return nil, errors.Join(fmt.Errorf("writing the stub: %w", err), fd.Close())
	}
	return s, nil
}

// Close closes the memfd.
func (s *StubFile) Close() error { return s.fd.Close() }

// Program is the architecture whose stub it is.
func (s *StubFile) Program() *arch.Arch { return s.arch }

// Descriptor is the memfd's descriptor.
func (s *StubFile) Descriptor() int { return s.fd.Int() }

// Try finds out whether this kernel executes the stub. The error is ErrNoCompat where it does not know its format.
func (s *StubFile) Try() error {
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(s.fd.Int()), []string{"crpipe"}, &syscall.ProcAttr{
		Env: []string{}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}})
	if errors.Is(err, unix.ENOEXEC) {
		return ErrNoCompat
	}
	if err != nil {
		return fmt.Errorf("executing a stub: %w", err)
	}
	err = sys.Kill(pid, unix.SIGKILL)
	if _, e := syscall.Wait4(pid, nil, 0, nil); e != nil {
		err = errors.Join(err, e)
	}
	return err
}

// Descriptor is the arena's descriptor in this process.
func (a *Arena) Descriptor() int { return a.fd.Int() }

// Exec makes a process of one thread execute a stub and map the arena again at the same place. What the kernel fixes when
// a program is executed, its mode above all, is then as that stub has it; and what execve(2) resets is reset. stubFD and
// arenaFD are the descriptors of the two in the task, not close-on-exec.
func (t *Tracer) Exec(k *Task, s *StubFile, stubFD, arenaFD int) error {
	return t.Do(func() error {
		// The slot is free between batches.
		mem := k.slotMem()
		const name, argv, envp = arch.SlotEntries, arch.SlotEntries + 16, arch.SlotEntries + 32
		copy(mem[name:], "crpipe\x00")
		clear(mem[argv : argv+64])
		hostOrder.PutUint64(mem[argv:], uint64(k.SlotAddr())+name)
		const empty = argv + 56 // a zero
		at := func(off int) uint64 { return uint64(k.SlotAddr()) + uint64(off) }
		step := &Step{Task: k, Nr: k.arena.arch.Sys.Execveat, Args: [6]uint64{uint64(stubFD), at(empty), at(argv), at(envp), unix.AT_EMPTY_PATH}}
		if err := t.steps([]*Step{step}, 0); err != nil {
			return err
		}
		if step.Result < 0 {
			err := error(unix.Errno(-step.Result))
			if errors.Is(err, unix.ENOEXEC) {
				err = ErrNoCompat
			}
			return fmt.Errorf("pid %d: executing a stub: %w", k.Tid, err)
		}
		// Anything of the stub's own that is in the way, but for its code, is not needed.
		return t.mapArena(k, s.stub, arenaFD, unix.MAP_FIXED)
	})
}
