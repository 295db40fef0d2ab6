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

// spawnTries is how often Spawn starts over because the kernel, at random, had put the new stack or
// vdso where the arena is to be.
const spawnTries = 8

// BlockedMask is the signal mask that Spawn gives the first task and that its children inherit:
// everything but SIGTRAP. A breakpoint with SIGTRAP blocked or ignored makes the kernel reset
// SIGTRAP's action, which would hit what a batch has set up.
const BlockedMask = ^uint64(1 << (uint64(unix.SIGTRAP) - 1))

// Spawn starts the first task: a tiny static executable, a child of this process that inherits
// every descriptor that is not close-on-exec. It returns stopped, with the arena mapped at base
// (page-aligned, a.Size bytes free of the stub's own mappings), signals blocked (BlockedMask) and
// nothing else in its address space but the stub, its stack and the vdso. It dies with the tracer's
// thread: by PR_SET_PDEATHSIG, which it keeps until told otherwise and its children do not inherit,
// and by PTRACE_O_EXITKILL, which they do.
func (t *Tracer) Spawn(a *Arena, base arch.Addr) (*Task, error) {
	var task *Task
	err := t.Do(func() error {
		for try := 1; ; try++ {
			k, err := t.spawn(a, base)
			if err == nil {
				task = k
				return nil
			}
			if !errors.Is(err, unix.EEXIST) || try == spawnTries {
				return fmt.Errorf("starting the first task: %w", err)
			}
		}
	})
	return task, err
}

// SuspendSeccomp switches the seccomp filters off in a stopped task that Spawn has made, and in those that it makes, until they
// are let go. It needs CAP_SYS_ADMIN in the initial user namespace, and a caller without filters.
func (t *Tracer) SuspendSeccomp(k *Task) error {
	return t.Do(func() error {
		err := sys.PtraceSetOptions(k.Tid, sys.PtraceOExitKill|sys.PtraceOTraceSysGood|sys.PtraceOSuspendSeccomp)
		t.suspended = err == nil
		return err
	})
}

func (t *Tracer) spawn(a *Arena, base arch.Addr) (*Task, error) {
	if uint64(base)%uint64(a.arch.PageSize) != 0 || base == 0 {
		return nil, fmt.Errorf("an arena at %v: %w", base, unix.EINVAL)
	}
	stub := a.Program.Stub()
	exe, err := memfd("crpipe-stub")
	if err != nil {
		return nil, err
	}
	defer exe.Close() //nolint:errcheck // a memfd
	if _, err := unix.Write(exe.Int(), stub.Image); err != nil {
		return nil, fmt.Errorf("writing the stub: %w", err)
	}
	slot, err := a.take(false)
	if err != nil {
		return nil, err
	}
	// The arena is the one descriptor that the stub inherits from here; it closes it again in its first batch.
	if _, err := unix.FcntlInt(uintptr(a.fd.Int()), unix.F_SETFD, 0); err != nil {
		a.give(slot)
		return nil, fmt.Errorf("making the arena inheritable: %w", err)
	}
	path := "/proc/self/fd/" + strconv.Itoa(exe.Int())
	pid, err := syscall.ForkExec(path, []string{"crpipe"}, &syscall.ProcAttr{
		Files: []uintptr{0, 1, 2},
		Env:   []string{},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if _, err := unix.FcntlInt(uintptr(a.fd.Int()), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("making the arena close-on-exec: %w", err)
	}
	if err != nil {
		a.give(slot)
		return nil, fmt.Errorf("executing the stub: %w", err)
	}
	k := &Task{Tid: pid, Pid: pid, Base: base, arena: a, slot: slot, group: &group{live: 1}, state: taskRunning}
	t.tasks[pid] = k
	if err := t.settle(k, stub); err != nil {
		return nil, errors.Join(err, t.discard(k))
	}
	return k, nil
}

// settle seizes the stub and makes it map the arena.
func (t *Tracer) settle(k *Task, stub arch.Stub) error {
	a := k.arena
	if err := sys.PtraceSeize(k.Tid, sys.PtraceOExitKill|sys.PtraceOTraceSysGood); err != nil {
		return fmt.Errorf("pid %d: seizing it: %w", k.Tid, err)
	}
	if err := sys.PtraceInterrupt(k.Tid); err != nil {
		return fmt.Errorf("pid %d: stopping it: %w", k.Tid, err)
	}
	ws, err := t.await(k)
	if err != nil {
		return err
	}
	if !ws.EventStop() {
		return fmt.Errorf("pid %d: %s, a stop was expected", k.Tid, ws)
	}
	k.state = taskAside
	if err := sys.PtraceSetSigmask(k.Tid, BlockedMask); err != nil {
		return fmt.Errorf("pid %d: blocking signals: %w", k.Tid, err)
	}
	if err := t.mapArena(k, stub, a.fd.Int(), unix.MAP_FIXED_NOREPLACE); err != nil {
		return err
	}
	b := a.NewBatch()
	b.Call(a.arch.Sys.Close, a.fd.Int())
	return t.RunOne(k, b)
}

// mapArena makes a task that is in a stub map the arena, whose descriptor in it is fd.
func (t *Tracer) mapArena(k *Task, stub arch.Stub, fd int, fixed uint64) error {
	a := k.arena
	page := uint64(a.arch.PageSize)
	flags := unix.MAP_SHARED | fixed
	maps := []struct{ addr, size, prot, offset uint64 }{
		{uint64(k.Base), page, unix.PROT_READ | unix.PROT_EXEC, 0},
		{uint64(k.Base) + page, uint64(a.Size()) - page, unix.PROT_READ | unix.PROT_WRITE, page},
	}
	for _, m := range maps {
		step := &Step{Task: k, Nr: a.arch.Sys.Mmap, Args: [6]uint64{m.addr, m.size, m.prot, flags, uint64(fd), m.offset}}
		if err := t.steps([]*Step{step}, stub.Syscall); err != nil {
			return err
		}
		if step.Result < 0 {
			return fmt.Errorf("pid %d: mapping the arena at %#x: %w", k.Tid, m.addr, unix.Errno(-step.Result))
		}
		if uint64(step.Result) != m.addr {
			return fmt.Errorf("pid %d: mapping the arena: it went to %#x instead of %#x", k.Tid, uint64(step.Result), m.addr)
		}
	}
	return nil
}

// discard kills and reaps a task that has no children.
func (t *Tracer) discard(k *Task) error {
	if k.state == taskDead {
		return nil
	}
	if err := sys.Kill(k.Pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("pid %d: killing it: %w", k.Pid, err)
	}
	for {
		ws, err := t.await(k)
		if err != nil || ws.Dead() {
			return err
		}
	}
}

// Wipe appends the calls that unmap everything but the arena: what the stub was started with, the
// vdso and the stack. The caller is the only task in its address space.
func (k *Task) Wipe(b *Batch) {
	s := b.Sys()
	end := k.Base + arch.Addr(k.arena.Size())
	b.Call(s.Munmap, 0, k.Base).Note("what is below the arena")
	b.Call(s.Munmap, end, k.arena.arch.TaskSize-end).Note("what is above the arena")
}

// Unmap is the call that removes the arena itself, for CallSteps: it must be the last one that
// anybody in the address space makes.
func (k *Task) Unmap() *Step {
	return &Step{Task: k, Nr: k.arena.arch.Sys.Munmap, Args: [6]uint64{uint64(k.Base), uint64(k.arena.Size())}}
}

// Move gives the tasks of one address space the arena at another address (page-aligned, free). The
// first of them does it; all are told.
func (t *Tracer) Move(tasks []*Task, base arch.Addr) error {
	if len(tasks) == 0 {
		return nil
	}
	return t.Do(func() error {
		k := tasks[0]
		a := k.arena
		page := arch.Addr(a.arch.PageSize)
		old := k.Base
		b := a.NewBatch()
		// An old size of 0 duplicates a shared mapping (mremap(2)). The kernel's MREMAP_FIXED
		// replaces what is there, so the place is taken first.
		reserve := b.Call(a.arch.Sys.Mmap, base, a.Size(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED_NOREPLACE, -1, 0).Expect(uint64(base))
		const mayMoveFixed = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
		b.Call(a.arch.Sys.Mremap, old, 0, page, mayMoveFixed, reserve).Expect(uint64(base))
		b.Call(a.arch.Sys.Mremap, old+page, 0, arch.Addr(a.Size())-page, mayMoveFixed, base+page).Expect(uint64(base + page))
		if err := t.RunOne(k, b); err != nil {
			return fmt.Errorf("moving the arena: %w", err)
		}
		for _, k := range tasks {
			k.Base, k.state = base, taskAside
		}
		b = a.NewBatch()
		b.Call(a.arch.Sys.Munmap, old, a.Size())
		return t.RunOne(k, b)
	})
}
