package freezer

import (
	"errors"
	"time"

	"crpipe/engine/internal/procfs"
)

// AwaitFrozen waits until every task of a state whose tasks were put into a
// freezer while a tracer held them (Options.Held) stands still there: when the
// tracer lets go they run, inside the kernel, the last few steps into it.
func (s *State) AwaitFrozen(timeout time.Duration) error {
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	deadline := time.Now().Add(timeout)
	if s.Way != WayV1 && s.Way != WayV2 {
		return s.awaitStopped(deadline)
	}
	h, err := openHierarchy(s.Way)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, g := range s.Groups {
		dir, err := h.dir(g.Path)
		if err != nil {
			return err
		}
		for pause := 20 * time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
			frozen, err := h.isFrozen(dir)
			if err == nil && !frozen && time.Now().After(deadline) {
				err = &TimeoutError{After: timeout, Tasks: s.Tasks}
			}
			if err != nil {
				return errors.Join(err, dir.Close())
			}
			if frozen {
				break
			}
			time.Sleep(pause)
		}
		if err := dir.Close(); err != nil {
			return err
		}
	}
	return nil
}

// awaitStopped is AwaitFrozen for the way by signals.
func (s *State) awaitStopped(deadline time.Time) error {
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		running := 0
		for i := range s.Tasks {
			t := &s.Tasks[i]
			if t.Before == BeforeZombie || t.Before == BeforeFrozen { // dead, or in a freezer of somebody else
				continue
			}
			stopped, err := standsStopped(t)
			if err != nil {
				return err
			}
			if !stopped {
				running++
			}
		}
		if running == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return &TimeoutError{Tasks: s.Tasks}
		}
		time.Sleep(pause)
	}
}

func standsStopped(t *Task) (bool, error) {
	st, err := procfs.ReadThreadStat(t.PID, t.TID)
	if procfs.IsGone(err) {
		return true, nil // killed meanwhile: it does not run either
	}
	return st.State == 'T' || st.State == 'Z' || st.State == 'X', err
}
