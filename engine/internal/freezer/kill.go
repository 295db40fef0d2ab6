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

// victim is one process to be ended, pinned by a pidfd so that its number
// cannot come to mean another one.
type victim struct {
	pid   int
	start uint64
	comm  string
	pidfd *sys.FD
}

// Kill ends every process of the state with SIGKILL and waits until each is
// gone, or a zombie that only a parent outside of the tree can reap. A state
// of a running tree is frozen first, so that nothing escapes by forking.
func Kill(st *State, o ThawOptions) error {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if err := st.check(); err != nil {
		return err
	}
	if !st.Frozen() {
		live, _ := st.living()
		if len(live) == 0 {
			return fmt.Errorf("%w: its tasks are gone", ErrStale)
		}
		var roots []int
		for _, t := range live {
			if t.PID == t.TID && (len(st.Roots) == 0 || slices.Contains(st.Roots, t.PID)) {
				roots = append(roots, t.PID)
			}
		}
		frozen, err := Freeze(Options{Roots: roots, Timeout: o.Timeout})
		if err != nil {
			return err
		}
		st = frozen
	}
	h := &Held{st: st, warn: func(string) {}}
	defer h.close()
	if err := h.open(o.Partial); err != nil {
		return err
	}
	if o.Locked != nil {
		if err := o.Locked(st); err != nil {
			return err
		}
	}
	if err := h.findProcesses(o.Partial); err != nil {
		return err
	}
	return h.kill(o.Timeout)
}

// Kill ends the tree instead of releasing it.
func (h *Held) Kill() error {
	defer h.close()
	return h.kill(DefaultTimeout)
}

func (h *Held) kill(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	victims, err := h.victims()
	defer func() {
		for _, v := range victims {
			_ = v.pidfd.Close()
		}
	}()
	if err != nil {
		return err
	}
	for _, v := range victims {
		if err := sys.PidfdSendSignal(v.pidfd, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing pid %d (%s): %w", v.pid, v.comm, err)
		}
		if err := failpoint.Hit("kill.sent"); err != nil {
			return err
		}
	}
	// A task in the v1 freezer dies only when that lets it go; and an own
	// cgroup is not left frozen when it is empty.
	for _, g := range h.groups {
		if g.frozen && !g.Already {
			if err := failpoint.After("kill.thawed", h.h.setFrozen(g.dir, false)); err != nil {
				return err
			}
		}
	}
	if h.tr != nil {
		if err := h.tr.Do(func() error { return h.bury(deadline) }); err != nil {
			return err
		}
	}
	for _, v := range victims {
		for {
			left := time.Until(deadline)
			if left <= 0 {
				return fmt.Errorf("pid %d (%s) does not die", v.pid, v.comm)
			}
			done, err := sys.PidfdWaitExit(v.pidfd, int(left/time.Millisecond)+1)
			if err != nil {
				return err
			}
			if done {
				break
			}
		}
	}
	if err := failpoint.After("kill.reaped", awaitReaped(victims, deadline)); err != nil {
		return err
	}
	for _, g := range h.groups {
		if g.Transient {
			if err := failpoint.After("kill.dissolved", h.h.dissolve(g)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *Held) victims() ([]victim, error) {
	start := map[int]uint64{}
	for _, t := range h.st.Tasks {
		if t.PID == t.TID {
			start[t.PID] = t.Start
		}
	}
	var out []victim
	for _, pid := range h.procs {
		fd, err := sys.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("opening pid %d: %w", pid, err)
		}
		// Read behind the open: if this is the right process now, the pidfd is it.
		st, err := procfs.ReadStat(pid)
		if want, known := start[pid]; err != nil || (known && want != st.Starttime) {
			_ = fd.Close()
			continue
		}
		out = append(out, victim{pid, st.Starttime, st.Comm, fd})
	}
	return out, nil
}

// bury waits for the deaths of the held threads, as their tracer: the kernel
// tells the real parent only afterwards, and a leader only behind its threads.
func (h *Held) bury(deadline time.Time) error {
	order := slices.Clone(h.threads)
	slices.SortStableFunc(order, func(a, b *thread) int {
		return map[bool]int{true: 1}[a.pid == a.tid] - map[bool]int{true: 1}[b.pid == b.tid]
	})
	left := len(order)
	for left > 0 {
		progress := false
		for _, t := range order {
			if t.dead {
				continue
			}
			tid, status, err := sys.Wait(t.tid, unix.WNOHANG)
			if errors.Is(err, unix.ECHILD) || (err == nil && tid != 0 && status.Dead()) {
				t.dead, progress = true, true
			} else if err != nil {
				return err
			}
		}
		left = 0
		for _, t := range order {
			if !t.dead {
				left++
			}
		}
		if left > 0 && !progress {
			if time.Now().After(deadline) {
				return fmt.Errorf("%d threads do not die", left)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return nil
}

// awaitReaped waits until no victim is left but zombies whose parent is not a
// victim itself.
func awaitReaped(victims []victim, deadline time.Time) error {
	pause := 100 * time.Microsecond
	for {
		waiting := ""
		for _, v := range victims {
			st, err := procfs.ReadStat(v.pid)
			if err != nil || st.Starttime != v.start {
				continue
			}
			inTree := slices.ContainsFunc(victims, func(p victim) bool { return p.pid == st.PPID })
			if (st.State != 'Z' && st.State != 'X') || (inTree && alive(victims, st.PPID)) {
				waiting = fmt.Sprintf("pid %d (%s)", v.pid, v.comm)
				break
			}
		}
		if waiting == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not go away", waiting)
		}
		time.Sleep(pause)
		pause = min(2*pause, 5*time.Millisecond)
	}
}

func alive(victims []victim, pid int) bool {
	st, err := procfs.ReadStat(pid)
	if err != nil {
		return false
	}
	for _, v := range victims {
		if v.pid == pid {
			return v.start == st.Starttime && st.State != 'Z'
		}
	}
	return false
}
