package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// restoreThreads measures the restore of a process of many threads beside a bare clone3 of each.
func (b *bench) restoreThreads(n int) ([]figure, error) {
	return b.restoreMany("threads", "clone-threads", n, figure{what: fmt.Sprintf("restore %d threads / clone3", n), limit: "<= 4.00"}, false)
}

// restoreMany measures the restore of a target of n tasks beside what the role bare makes of n and, with pages, a memcpy of as many bytes as the image has.
func (b *bench) restoreMany(kind, bare string, n int, f figure, pages bool) ([]figure, error) {
	t, err := b.start(kind, int64(n))
	if err != nil {
		return nil, err
	}
	defer t.end()
	return b.again(t, kind, self(bare, strconv.Itoa(n)), f, pages)
}

// again measures the restore of a target beside a bare command, which runs anew in each round.
func (b *bench) again(t *target, kind string, bare *exec.Cmd, f figure, pages bool) ([]figure, error) {
	family := append(childrenOf(t.pid), t.pid)
	image := filepath.Join(b.work, kind+".cr")
	out, err := os.Create(image)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(image) }()
	_, _, size, err := piped(b.command("cr-dump", "--kill", strconv.Itoa(t.pid)), out)
	_ = out.Close()
	if err != nil {
		return nil, fmt.Errorf("cr-dump --kill: %w", err)
	}
	reap(family)
	for i := -1; i < b.rounds; i++ {
		raw, err := timed(once(bare), (*exec.Cmd).Run)
		if err != nil {
			return nil, err
		}
		if pages {
			copied, err := timed(self("memcpy", strconv.FormatInt(size, 10)), (*exec.Cmd).Run)
			if err != nil {
				return nil, err
			}
			raw += copied
		}
		in, err := os.Open(image)
		if err != nil {
			return nil, err
		}
		cmd := b.command("cr-restore")
		cmd.Stdin = in
		begin := time.Now()
		err = cmd.Run()
		took := time.Since(begin)
		_ = in.Close()
		if err != nil {
			return nil, fmt.Errorf("cr-restore: %w", err)
		}
		for _, pid := range family {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				return nil, fmt.Errorf("killing restored pid %d: %w", pid, err)
			}
		}
		reap(family)
		if i >= 0 {
			f.raw, f.ours, f.peak = append(f.raw, raw), append(f.ours, took), max(f.peak, maxrss(cmd))
		}
	}
	t.pid = 0
	return []figure{f}, nil
}

// once is a command like another, which has not run yet.
func once(cmd *exec.Cmd) *exec.Cmd {
	return &exec.Cmd{Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Stderr: cmd.Stderr}
}

// reap waits until none of the processes is left: they are children of ours, the last ones once their parents are dead.
func reap(pids []int) {
	for _, pid := range pids {
		for end := time.Now().Add(time.Minute); syscall.Kill(pid, 0) == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // not ours yet: soon
		}
	}
}

func childrenOf(pid int) []int {
	var all []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range tasks {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(word); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// cloneArgs is struct clone_args (linux/sched.h).
type cloneArgs struct {
	//nolint:unused // as the kernel has it
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

const sizeofCloneArgs = 88

// cloneMany is the bare clone3 of n tasks that only wait. All signals are blocked in them: a handler of Go's would not know where it is.
func cloneMany(n int, args cloneArgs) error {
	runtime.LockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return err
	}
	made := make([]int64, 0, n)
	begin := time.Now()
	for range n {
		pid := cloneParked(&args, sizeofCloneArgs)
		if pid < 0 {
			return fmt.Errorf("clone3: %w", unix.Errno(-pid))
		}
		made = append(made, pid)
	}
	took := time.Since(begin)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return err
	}
	if args.flags&unix.CLONE_THREAD == 0 {
		for _, pid := range made {
			if pid > 1 {
				_ = syscall.Kill(int(pid), syscall.SIGKILL)
			}
		}
	}
	return say(took)
}

func cloneThreads(n int) error {
	const flags = unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SYSVSEM
	stack, err := fresh(4096) // of which nobody uses anything
	if err != nil {
		return err
	}
	return cloneMany(n, cloneArgs{flags: flags, stack: uint64(address(stack)), stackSize: uint64(len(stack))})
}
