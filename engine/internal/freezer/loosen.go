package freezer

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/sys"
)

// Loosen lets threads be continued one at a time, by whoever has stopped them, although their freezer is version 2: it is
// thawed, while every thread is in a ptrace stop. Tighten undoes it. Between the two the tree runs if this process dies, so
// calls that would return EINTR because of the stop are set back first. Both belong on the tracer's thread.
func (h *Held) Loosen() error {
	if h.st.Way != WayV2 {
		return nil
	}
	for _, g := range h.groups {
		if !g.frozen {
			continue
		}
		pids, err := h.h.members(g.dir, false)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if !slices.Contains(h.procs, pid) {
				return fmt.Errorf("cgroup %s, which somebody else froze, also holds pid %d: thaw it first", g.Path, pid)
			}
		}
	}
	for _, t := range h.threads {
		if !t.stopped || t.dead || t.before != BeforeRunning {
			continue
		}
		before, err := registers(t)
		if err != nil {
			return ignoreGone(err)
		}
		if err := h.setBack(t); err != nil {
			return ignoreGone(err)
		}
		after, err := registers(t)
		if err != nil {
			return ignoreGone(err)
		}
		if !bytes.Equal(before, after) {
			t.interrupted = before
		}
	}
	for _, g := range h.groups {
		if !g.frozen {
			continue
		}
		if err := failpoint.After("remote.loosened", h.h.setFrozen(g.dir, false)); err != nil {
			return err
		}
	}
	return nil
}

// registers reads the general registers of a thread in a ptrace stop.
func registers(t *thread) ([]byte, error) {
	var buf [1024]byte
	n, err := sys.PtraceGetRegs(t.tid, buf[:])
	if err != nil {
		return nil, fmt.Errorf("reading the registers of pid %d: %w", t.tid, err)
	}
	return bytes.Clone(buf[:n]), nil
}

// Tighten freezes again what Loosen has thawed, and gives interrupted calls their results back: whether they are to be made again is
// decided when the tree is let go. Tasks in a ptrace stop count as frozen, and enter the freezer when they leave it.
func (h *Held) Tighten() error {
	if h.st.Way != WayV2 {
		return nil
	}
	var errs []error
	for _, g := range h.groups {
		if g.frozen {
			errs = append(errs, failpoint.After("remote.tightened", h.h.setFrozen(g.dir, true)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // they run when they are let go: set back they stay right
	}
	for _, t := range h.threads {
		if t.interrupted == nil {
			continue
		}
		if err := sys.PtraceSetRegs(t.tid, t.interrupted); ignoreGone(err) != nil {
			errs = append(errs, fmt.Errorf("setting the registers of pid %d: %w", t.tid, err))
		}
		t.interrupted = nil
	}
	return errors.Join(errs...)
}

// ProcessOf returns the process of a held thread, 0 for one that is not held.
func (h *Held) ProcessOf(tid int) int {
	for _, t := range h.threads {
		if t.tid == tid && t.stopped && !t.dead {
			return t.pid
		}
	}
	return 0
}

// StopSignal returns the signal of the job control stop that a process was found in, 0 for none.
func (h *Held) StopSignal(pid int) int32 {
	if h.Before(pid) != BeforeStopped {
		return 0 // a freeze by SIGSTOP looks the same
	}
	for _, t := range h.threads {
		if t.pid == pid && t.job != 0 {
			return int32(t.job)
		}
	}
	return 0
}
