package freezer

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
)

// ThawOptions are the options of Thaw.
type ThawOptions struct {
	Partial bool          // see HoldOptions
	Timeout time.Duration // 0: DefaultTimeout
	Warn    func(string)
	// Locked, when not nil, is called when the lock has been taken and before
	// anything is changed; an error stops the thaw.
	Locked func(*State) error
	// Interrupted, when not nil, is asked who has to be held through the thaw of
	// a tree that version 2 has frozen: nobody else is attached to.
	Interrupted Interrupted
}

// Thaw lets a frozen tree go on as it was before the freeze.
func Thaw(st *State, o ThawOptions) error {
	if !st.Frozen() {
		return nil
	}
	tr := tracee.NewTracer()
	defer tr.Close()
	h, err := Hold(tr, st, HoldOptions{Lenient: true, Partial: o.Partial, Timeout: o.Timeout, Warn: o.Warn, Locked: o.Locked,
		Interrupted: o.Interrupted})
	if err != nil {
		return err
	}
	return h.Release(false)
}

// Release ends the hold. With keepFrozen the tree is frozen as it was before
// the hold, otherwise each task goes on in the state that it had before the
// freeze: running, stopped, or frozen by somebody else.
//
// The order makes the tree survive the death of the caller at any point: all
// calls are set back first, while nothing can run; then the freezer lets go;
// then the ptrace stops end, by detaching or by the caller's death.
func (h *Held) Release(keepFrozen bool) error {
	untouched := h.detached
	if err := h.letGo(keepFrozen); err != nil || !keepFrozen || untouched {
		return err
	}
	// A task that is let go of runs the last few steps into its freezer by itself.
	return h.st.AwaitFrozen(0)
}

func (h *Held) letGo(keepFrozen bool) error {
	defer h.close()
	return h.tr.Do(func() error {
		errs := []error{failpoint.Hit("release.begin")}
		if keepFrozen {
			errs = append(errs, failpoint.After("release.refrozen", h.freezeAgain()))
		} else {
			errs = append(errs, h.dropStopSignals())
			if h.detached {
				errs = append(errs, h.holdInterrupted(time.Now().Add(DefaultTimeout)))
			}
			for _, t := range h.threads {
				if t.stopped && !t.dead && t.before == BeforeRunning {
					errs = append(errs, ignoreGone(h.setBack(t)))
				}
			}
			errs = append(errs, failpoint.Hit("release.setback"), h.unfreeze(), failpoint.Hit("release.thawed"))
		}
		for _, t := range h.threads {
			if t.stopped && !t.dead {
				errs = append(errs, failpoint.After("release.detached", ignoreGone(sys.PtraceDetach(t.tid, t.sig))))
			}
		}
		return errors.Join(errs...)
	})
}

func (h *Held) close() {
	for _, g := range h.groups {
		_ = g.dir.Close()
	}
	for _, fd := range h.events {
		_ = fd.Close()
	}
	h.groups, h.threads, h.events = nil, nil, nil
	if h.h != nil {
		h.h.Close()
		h.h = nil
	}
	h.lock.Unlock()
	h.lock = nil
}

// ignoreGone drops the error of a task that was killed meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) || procfs.IsGone(err) {
		return nil
	}
	return err
}

// freezeAgain undoes thawForStop: tasks in a ptrace stop count as frozen, and
// enter the freezer when they leave it.
func (h *Held) freezeAgain() error {
	if h.st.Way != WayV1 {
		return nil
	}
	var errs []error
	for _, g := range h.groups {
		if g.frozen {
			errs = append(errs, h.h.setFrozen(g.dir, true))
		}
	}
	return errors.Join(errs...)
}

// unfreeze lets the freezer go. Everything is held, so that nothing runs yet.
func (h *Held) unfreeze() error {
	if h.st.Way == WaySigstop {
		return h.continueAll()
	}
	var errs []error
	for _, g := range h.groups {
		if g.Already {
			if h.st.Way == WayV1 && g.frozen {
				errs = append(errs, h.h.setFrozen(g.dir, true))
			}
			continue
		}
		if g.frozen {
			errs = append(errs, failpoint.After("release.unfrozen", h.h.setFrozen(g.dir, false)))
		}
	}
	for _, g := range h.groups {
		if g.Transient {
			errs = append(errs, h.h.dissolve(g))
		}
	}
	return errors.Join(errs...)
}

// dissolve brings everything in a transient cgroup back into its parent and
// removes it.
func (h *hierarchy) dissolve(g *openGroup) error {
	parent, err := h.dir(parentOf(g.Path))
	if err != nil {
		return err
	}
	defer parent.Close()
	base := g.Path[len(parentOf(g.Path)):]
	for base != "" && base[0] == '/' {
		base = base[1:]
	}
	list, threads := "cgroup.procs", h.way == WayV1
	if threads {
		list = "tasks"
	}
	const tries = 200
	for i := range tries {
		ids, err := h.members(g.dir, threads)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
			return nil // removed by somebody else
		}
		if err != nil {
			return err
		}
		for _, id := range ids {
			err := writeAt(parent, list, strconv.Itoa(id))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("moving pid %d back into cgroup %s: %w", id, parentOf(g.Path), err)
			}
		}
		if err := failpoint.Hit("release.movedback"); err != nil {
			return err
		}
		err = unix.Unlinkat(parent.Int(), base, unix.AT_REMOVEDIR)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || i == tries-1 {
			return fmt.Errorf("removing cgroup %s: %w", g.Path, err)
		}
		// A task that is just dying still counts. A process with a dead leader is found, and moved, by its threads.
		threads = true
		time.Sleep(time.Duration(min(i, 10)) * time.Millisecond)
	}
	return nil
}

// Refreeze freezes again what a hold that died has left thawed: a tree frozen
// by version 1. Other trees are frozen still.
func Refreeze(st *State) error {
	if st.Way != WayV1 {
		return nil
	}
	h := &Held{st: st, warn: func(string) {}}
	defer h.close()
	if err := h.open(true); err != nil {
		return err
	}
	for _, g := range h.groups {
		g.frozen = true
	}
	return h.freezeAgain()
}
