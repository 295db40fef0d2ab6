package freezer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// Interrupted tells which of these threads, of a tree that version 2 has
// frozen, have to be held while it is thawed: those whose call has returned
// EINTR because of the freeze alone, and those of which that cannot be told.
// It attaches to nobody. An error: it can tell of none.
type Interrupted func(tids []int) ([]int, error)

// A detached hold is one of a tree that version 2 has frozen: its threads
// stand still without a ptrace stop, and nobody attaches to them but, at the
// thaw, to the few that Interrupted names. Unlike a ptrace stop it does not
// keep others from thawing the tree: whoever looks at it makes sure in the end
// that nothing has run.

// Detached reports whether the threads are held by the freezer alone.
func (h *Held) Detached() bool { return h.detached }

// Attach brings every thread into a ptrace stop after all.
func (h *Held) Attach(timeout time.Duration) error {
	if !h.detached {
		return nil
	}
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	// Found before anybody is attached to: who has been and has not stopped could not be let go as if nothing had been.
	for _, pid := range h.procs {
		tids, err := h.TIDs(pid)
		if err != nil && !procfs.IsGone(err) {
			return err
		}
		for _, tid := range tids {
			t := &thread{pid: pid, tid: tid}
			if st, err := procfs.ReadThreadStat(pid, tid); err == nil && inVfork(t, &st) {
				return vforkError(t, &st)
			}
		}
	}
	if err := h.tr.Do(func() error { return h.seizeAll(time.Now().Add(timeout)) }); err != nil {
		return err
	}
	h.detached = false
	return nil
}

// Threads lists the live threads of the held processes.
func (h *Held) Threads() ([]int, error) {
	var out []int
	for _, pid := range h.procs {
		tids, err := h.TIDs(pid)
		if err != nil && !procfs.IsGone(err) {
			return nil, err
		}
		out = append(out, tids...)
	}
	return out, nil
}

// TIDs lists the threads of one held process.
func (h *Held) TIDs(pid int) ([]int, error) {
	if !h.fresh || !h.detached {
		return procfs.Threads(pid)
	}
	if h.tids == nil {
		h.tids = map[int][]int{}
		for i := range h.st.Tasks {
			t := &h.st.Tasks[i]
			h.tids[t.PID] = append(h.tids[t.PID], t.TID)
		}
	}
	return slices.Clone(h.tids[pid]), nil
}

// Stat is what /proc/PID/stat says of a held process, which the freeze may have read already.
func (h *Held) Stat(pid int) (procfs.Stat, error) {
	if st, ok := h.st.Stats[pid]; ok && h.fresh && h.detached {
		return st, nil
	}
	return procfs.ReadStat(pid)
}

// canDetach reports whether the freezer alone can hold the tree.
func (h *Held) canDetach() bool { return h.st.Way == WayV2 && h.interrupted != nil }

// holdInterrupted attaches to the threads that must not run into the thaw as
// they are. Where nobody can tell which those are it attaches to all.
func (h *Held) holdInterrupted(deadline time.Time) error {
	if !h.needed() {
		h.detached = false
		return nil
	}
	h.leaving = true
	before := h.befores()
	processOf := map[int]int{}
	var ask []int
	for _, pid := range h.procs {
		tids, err := h.TIDs(pid)
		if err != nil && !procfs.IsGone(err) {
			return err
		}
		for _, tid := range tids {
			if before(pid, tid) == BeforeRunning {
				processOf[tid] = pid
				ask = append(ask, tid)
			}
		}
	}
	h.detached = false
	tids, err := h.interrupted(ask)
	if err != nil {
		return h.seizeAll(deadline)
	}
	for _, tid := range tids {
		if err := h.seize(&thread{pid: processOf[tid], tid: tid, before: BeforeRunning}); err != nil {
			return err
		}
	}
	for _, t := range h.threads {
		if err := h.awaitStop(t, deadline); err != nil {
			return err
		}
	}
	return failpoint.Hit("release.held")
}

// befores returns what tells the state that a thread had before the freeze.
func (h *Held) befores() func(pid, tid int) Before {
	known := map[int]Before{}
	for _, t := range h.st.Tasks {
		known[t.TID] = t.Before
	}
	return func(pid, tid int) Before {
		if b, ok := known[tid]; ok {
			return b
		}
		if b, ok := known[pid]; ok && b != BeforeZombie {
			return b
		}
		return BeforeRunning
	}
}

// watch opens the files in which the kernel says that a cgroup has been thawed
// and frozen again, and reads their present state.
func (h *Held) watch() error {
	for _, g := range h.groups {
		fd, err := sys.OpenAt(g.dir.Int(), "cgroup.events", unix.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("watching cgroup %s: %w", g.Path, err)
		}
		h.events = append(h.events, fd)
		if _, err := unix.Read(fd.Int(), make([]byte, 256)); err != nil {
			return fmt.Errorf("watching cgroup %s: %w", g.Path, err)
		}
	}
	return nil
}

// notifyInterval is longer than the kernel keeps back the news that a cgroup's
// state has changed when another change was told just before
// (CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c, 10 ms, and a tick).
const notifyInterval = 30 * time.Millisecond

// Stirred reports whether any task of the held cgroups has left the frozen
// state since the hold began, if only for a moment. It takes a while.
func (h *Held) Stirred() (bool, error) {
	time.Sleep(notifyInterval)
	for i, fd := range h.events {
		// cgroup-v2.rst: cgroup.events generates a modified event, which poll(2)
		// shows as POLLPRI until it is read again.
		p := []unix.PollFd{{Fd: int32(fd.Int()), Events: unix.POLLPRI}}
		for {
			if _, err := unix.Poll(p, 0); err == nil {
				break
			} else if !errors.Is(err, unix.EINTR) {
				return false, fmt.Errorf("watching cgroup %s: %w", h.groups[i].Path, err)
			}
		}
		if p[0].Revents&(unix.POLLPRI|unix.POLLNVAL) != 0 {
			return true, nil
		}
	}
	return false, nil
}
