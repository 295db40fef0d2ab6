package engine

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// With --userns (UserNS) cr-restore starts itself again as init of a new user, pid and mount namespace, in which it may choose pids. That
// process, the inner one, restores the tree, tells the outer one through a pipe, and stays as long as any of its tasks does: a pid
// namespace ends with its init.

// innerMark is the environment variable that makes a process the inner one: the descriptor of the pipe and the supplementary
// groups of the outer one, which have no numbers inside.
const innerMark = "CRPIPE_RESTORE_INNER"

// An Inner is what the inner cr-restore knows of the outer one; nil in any other.
type Inner struct {
	Groups []uint32 // the supplementary groups of the outer one

	report *os.File
	told   atomic.Bool
}

// AdoptInner makes this process the inner one if it was started as one.
func AdoptInner() *Inner {
	mark, ok := os.LookupEnv(innerMark)
	_ = os.Unsetenv(innerMark)
	if !ok || os.Getpid() != 1 {
		return nil
	}
	var numbers []uint32
	for _, s := range strings.Split(mark, ",") {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil
		}
		numbers = append(numbers, uint32(n))
	}
	unix.CloseOnExec(int(numbers[0]))
	in := &Inner{report: os.NewFile(uintptr(numbers[0]), "report"), Groups: numbers[1:]}
	go in.watch(int32(numbers[0]))
	return in
}

// watch ends this process, and with it all in its namespace, when the outer one dies before the tree runs.
func (in *Inner) watch(fd int32) {
	poll := []unix.PollFd{{Fd: fd}} // for the error that a pipe is in when nobody can read it
	for {
		_, err := unix.Poll(poll, -1)
		if in.told.Load() {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			os.Exit(1)
		}
	}
}

// Prepare gives the namespace a /proc of its own.
func (in *Inner) Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making the mounts of the new namespace its own: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return &object.Lacking{What: "mounting /proc in the new user namespace", Err: err,
			Do: "a container that hides parts of /proc does not allow that: run cr-restore outside of it, or with CAP_CHECKPOINT_RESTORE"}
	}
	return nil
}

// Done tells the outer process that the tree runs, and lets it end without taking the tree along.
func (in *Inner) Done(root int) error {
	in.told.Store(true)
	_, err := fmt.Fprintln(in.report, root)
	return err // it stays open: its watcher waits on it
}

// Stay is the rest of the life of the inner process: it keeps nothing open, and reaps until nobody is left.
func (in *Inner) Stay() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		_ = unix.Dup3(int(null.Fd()), fd, 0) // nothing would be said there any more
	}
	for {
		_, err := unix.Wait4(-1, nil, unix.WALL, nil)
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// RunInner starts the inner process with the same arguments and descriptors, and returns its exit status: at once when the tree runs,
// or with wait when the tree has ended. pid, when not nil, is told the number by which the root process is known out here; its error
// ends the tree.
func RunInner(wait bool, pid func(int) error) (status int, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	const high = 300 // above what the user may have given to inherited descriptors
	fd, err := unix.FcntlInt(write.Fd(), unix.F_DUPFD, high)
	if err != nil {
		return 0, err
	}
	_ = write.Close() // fd is the same
	groups, err := os.Getgroups()
	if err != nil {
		return 0, err
	}
	mark := strconv.Itoa(fd)
	for _, g := range groups {
		mark += "," + strconv.Itoa(g)
	}
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   append(os.Environ(), innerMark+"="+mark),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}},
			AmbientCaps: allCapabilities(),
		},
	})
	_ = unix.Close(fd) // the inner process has it
	if err != nil {
		return 0, &object.Lacking{What: "making a user namespace", Err: err,
			Do: "this machine does not allow it to ordinary users (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone): run cr-restore with CAP_CHECKPOINT_RESTORE or as root"}
	}
	passOn := make(chan os.Signal, 8)
	signal.Notify(passOn, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for s := range passOn {
			_ = child.Signal(s) // it may have ended
		}
	}()
	var root int
	if _, err := fmt.Fscanln(read, &root); err == nil {
		if pid != nil {
			outer, err := outerPID(child.Pid, root)
			if err == nil {
				err = pid(outer)
			}
			if err != nil {
				_ = child.Kill() // and all with it: a status that says failed promises that nothing was made
				return 0, err
			}
		}
		if !wait {
			return 0, nil
		}
	}
	state, err := child.Wait()
	if err != nil {
		return 0, err
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return state.ExitCode(), nil
}

// outerPID finds the number by which the root process is known out here.
func outerPID(init, root int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", init, init))
	if err != nil {
		return 0, err
	}
	for _, pid := range strings.Fields(string(b)) {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(root) {
				return strconv.Atoi(pid)
			}
		}
	}
	return 0, fmt.Errorf("looking for process %d of the new pid namespace: it has ended", root)
}

// allCapabilities are those that this kernel knows.
func allCapabilities() []uintptr {
	last := unix.CAP_LAST_CAP
	if b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			last = n
		}
	}
	var out []uintptr
	for c := range last + 1 {
		out = append(out, uintptr(c))
	}
	return out
}
