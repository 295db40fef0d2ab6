package freezer

import (
	"errors"
	"fmt"
	"slices"
)

// Loosen lets threads be continued one at a time, by whoever has stopped them, although their freezer is version 2: it is
// thawed, while every thread is in a ptrace stop. Tighten undoes it. Between the two the tree runs if this process dies.
func (h *Held) Loosen() error {
	for _, g := range h.groups {
		if h.st.Way != WayV2 || !g.frozen {
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
		if err := h.h.setFrozen(g.dir, false); err != nil {
			return err
		}
	}
	return nil
}

// Tighten freezes again what Loosen has thawed. Tasks in a ptrace stop count as frozen, and enter the freezer when they
// leave it.
func (h *Held) Tighten() error {
	var errs []error
	for _, g := range h.groups {
		if h.st.Way == WayV2 && g.frozen {
			errs = append(errs, h.h.setFrozen(g.dir, true))
		}
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
