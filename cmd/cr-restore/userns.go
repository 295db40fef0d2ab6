package main

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

	"crpipe/cmd/internal/cli"
	"crpipe/engine/object"
)

// With --userns cr-restore starts itself again as init of a new user, pid and mount namespace, in which it may choose pids. That
// process, the inner one, restores the tree, tells the outer one through a pipe, and stays as long as any of its tasks does: a pid
// namespace ends with its init.

// innerMark is the environment variable that makes a process the inner one: the descriptor of the pipe and the supplementary
// groups of the outer one, which have no numbers inside.
const innerMark = "CRPIPE_RESTORE_INNER"

// inner is what the inner cr-restore knows of the outer one; nil in any other.
type inner struct {
	report *os.File
	groups []uint32
	told   atomic.Bool
}

// adoptInner makes this process the inner one if it was started as one.
func adoptInner() *inner {
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
	in := &inner{report: os.NewFile(uintptr(numbers[0]), "report"), groups: numbers[1:]}
	go in.watch(int32(numbers[0]))
	return in
}

// watch ends this process, and with it all in its namespace, when the outer one dies before the tree runs.
func (in *inner) watch(fd int32) {
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

// prepare gives the namespace a /proc of its own.
func (in *inner) prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making the mounts of the new namespace its own: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return &object.Lacking{What: "mounting /proc in the new user namespace", Err: err,
			Do: "a container that hides parts of /proc does not allow that: run cr-restore outside of it, or with CAP_CHECKPOINT_RESTORE"}
	}
	return nil
}

// done tells the outer process that the tree runs, and lets it end without taking the tree along.
func (in *inner) done(root int) error {
	in.told.Store(true)
	_, err := fmt.Fprintln(in.report, root)
	return err // it stays open: its watcher waits on it
}

// stay is the rest of the life of the inner process: it keeps nothing open, and reaps until nobody is left.
func (in *inner) stay() error {
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

// runOuter starts the inner process with the same arguments and descriptors, and ends as it does: at once when the tree runs, or with
// --wait when the tree has ended.
func (c *restore) runOuter(app *cli.App) error {
	if c.Frozen {
		return cli.UsageError("--userns and --frozen exclude each other: a ticket means nothing outside of the new pid namespace", "")
	}
	if c.Output != "" && !c.DryRun {
		return cli.UsageError("--userns writes no ticket: it would mean nothing outside of the new pid namespace", "use --pid-file")
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	const high = 300 // above what the user may have given to inherited descriptors
	fd, err := unix.FcntlInt(write.Fd(), unix.F_DUPFD, high)
	if err != nil {
		return err
	}
	_ = write.Close() // fd is the same
	groups, err := os.Getgroups()
	if err != nil {
		return err
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
		return &object.Lacking{What: "making a user namespace", Err: err,
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
		if c.PIDFile != "" {
			if err := c.writeOuterPID(app, child.Pid, root); err != nil {
				_ = child.Kill() // and all with it: a status that says failed promises that nothing was made
				return err
			}
		}
		if !c.Wait {
			return nil
		}
	}
	state, err := child.Wait()
	if err != nil {
		return err
	}
	status := state.Sys().(syscall.WaitStatus) //nolint:forcetypeassert // of a process on Linux
	if status.Signaled() {
		return cli.ExitWith(128 + int(status.Signal()))
	}
	if status.ExitStatus() == 0 {
		return nil
	}
	return cli.ExitWith(status.ExitStatus())
}

// writeOuterPID writes the number by which the root process is known out here.
func (c *restore) writeOuterPID(app *cli.App, init, root int) error {
	file, err := app.Output(c.PIDFile, cli.Public)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", init, init))
	if err != nil {
		return err
	}
	for _, pid := range strings.Fields(string(b)) {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			continue // ended
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(root) {
				if _, err := fmt.Fprintln(file, pid); err != nil {
					return err
				}
				return file.Commit()
			}
		}
	}
	return fmt.Errorf("looking for process %d of the new pid namespace: it has ended", root)
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
