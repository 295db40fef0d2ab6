package freezer

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
)

// catcher stops a tree from growing. It seizes every thread without stopping
// it, with the options that attach and stop each child at its birth, and the
// parent with it: from then on nobody forks unseen. No call is interrupted by
// that, so that the death of this process at any moment only lets them go on.
//
// It is for trees that fork faster than they can be moved into a cgroup or
// told to stop; the freezer holds what the catcher has caught, and then the
// catcher lets go.
type catcher struct {
	f    *freeze
	tr   *tracee.Tracer
	seen map[int]bool // tasks, living and dead
}

const catchOptions = unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE

// catch seizes until a whole pass over the tree finds nothing new.
func (f *freeze) catch() (*catcher, error) {
	c := &catcher{f: f, tr: tracee.NewTracer(), seen: map[int]bool{}}
	err := c.tr.Do(func() error {
		// The tree may be using every processor there is. It is in vain
		// without the privilege; the thread ends with the tracer.
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
		for {
			caught, err := c.pass()
			if err != nil || caught == 0 {
				return failpoint.After("freeze.caught", err)
			}
			if err := f.late(); err != nil {
				return err
			}
		}
	})
	if err != nil {
		c.release()
		return nil, err
	}
	return c, nil
}

// pass looks once at every process that lives and returns how many tasks were
// new. What descends from a process that was just seized is looked at at once,
// the youngest first: it may not live long, and the dead children of a parent
// that stands still are many.
func (c *catcher) pass() (int, error) {
	fresh := 0
	work := slices.DeleteFunc(c.f.tree.live(), func(pid int) bool {
		c.seize(pid)
		return c.dead(pid)
	})
	for len(work) > 0 {
		pid := work[len(work)-1]
		work = work[:len(work)-1]
		tids, err := procfs.Threads(pid)
		if err != nil && !procfs.IsGone(err) {
			return fresh, err
		}
		for _, tid := range tids {
			if c.seize(tid) {
				fresh++
			}
			children, err := procfs.ReadChildren(pid, tid)
			if err != nil && !procfs.IsGone(err) {
				return fresh, err
			}
			for i := len(children) - 1; i >= 0; i-- {
				if child := children[i]; c.seize(child) {
					c.f.tree.addLive(child)
					fresh++
					work = append(work, child)
				}
			}
		}
	}
	c.reap()
	return fresh, nil
}

// seize attaches to a task that has not been seen and reports whether it is a
// new one that lives.
func (c *catcher) seize(tid int) bool {
	if c.seen[tid] {
		return false
	}
	c.seen[tid] = true
	err := sys.PtraceSeize(tid, catchOptions)
	// EPERM: attached at its birth, or a zombie, or one that may not be
	// traced: then the freezer catches it, or the time runs out and it is named.
	return err == nil || (errors.Is(err, unix.EPERM) && !c.dead(tid))
}

func (c *catcher) dead(pid int) bool {
	st, err := procfs.ReadStat(pid)
	return err != nil || (st.State == 'Z' && st.NumThreads <= 1) || st.State == 'X'
}

// reap takes the news of the seized. The dead are buried, so that their parents
// hear of it; a signal is delivered; who forked, or was born, stays stopped.
func (c *catcher) reap() {
	for {
		tid, status, err := sys.WaitAny(unix.WNOHANG)
		if err != nil || tid == 0 {
			return
		}
		switch {
		case status.Dead():
			// Its number stays seen: it is a zombie now, and no pid comes again
			// so soon.
		case status.SignalStop():
			_ = sys.PtraceCont(tid, status.Signal()) // an error: it was killed
		case status.GroupStop():
			_ = sys.PtraceListen(tid)
		}
	}
}

// release lets go of everything that was caught: the tracer's end detaches.
func (c *catcher) release() {
	if c != nil {
		c.tr.Close()
	}
}
