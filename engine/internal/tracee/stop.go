package tracee

import (
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// StopState is how a seized task was found.
type StopState int

// The states.
const (
	StopPending StopState = iota // not stopped yet
	Interrupted                  // it ran, or slept in a system call, and is now in a ptrace-stop
	JobStopped                   // its process is in job control stop; it stays in it when let go
	Gone                         // it ended first, or is a zombie
)

// String names the state.
func (s StopState) String() string {
	switch s {
	case Interrupted:
		return "interrupted"
	case JobStopped:
		return "stopped by job control"
	case Gone:
		return "gone"
	}
	return "running"
}

// Stop is what became of one task that was to be stopped.
type Stop struct {
	Tid    int
	State  StopState
	Signal unix.Signal // with JobStopped: which
	// Delivered is how many signals it took between being attached to and being stopped.
	Delivered int
}

type seized struct{ stop Stop }

// ErrTraced is the error for a task that somebody else traces already.
var ErrTraced = errors.New("is being traced already")

// Seize attaches to existing tasks (thread ids) and asks each to stop, without waiting for it: a
// task in a frozen v1 cgroup cannot stop before it is thawed. Tasks that are attached already are
// passed over. WaitStopped collects the stops.
//
// Attached without any option, a task goes on when the tracer dies, at whatever moment.
func (t *Tracer) Seize(tids []int) error {
	return t.Do(func() error {
		for _, tid := range tids {
			if t.seized[tid] != nil {
				continue
			}
			s := &seized{stop: Stop{Tid: tid}}
			switch err := seize(tid); {
			case err == nil:
			case errors.Is(err, unix.ESRCH):
				s.stop.State = Gone
			default:
				return err
			}
			t.seized[tid] = s
		}
		return nil
	})
}

func seize(tid int) error {
	err := sys.PtraceSeize(tid, 0)
	if errors.Is(err, unix.EPERM) {
		// Also the kernel's answer for a task that is dead or traced.
		st, e := procfs.ReadStatus(tid)
		switch {
		case e != nil:
			return fmt.Errorf("pid %d: attaching to it: %w", tid, err)
		case st.State == 'Z' || st.State == 'X':
			return unix.ESRCH
		case st.TracerPID != 0:
			return fmt.Errorf("pid %d (%s): %w, by pid %d", tid, st.Name, ErrTraced, st.TracerPID)
		case st.Kthread:
			return fmt.Errorf("pid %d (%s): a thread of the kernel: %w", tid, st.Name, err)
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return err
	}
	if err != nil {
		return fmt.Errorf("pid %d: attaching to it: %w", tid, err)
	}
	// ESRCH: it is dead by now, which the wait will report.
	if err := sys.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pid %d: stopping it: %w", tid, err)
	}
	return nil
}

// WaitStopped waits until every seized task has stopped or gone and returns them all, by ascending
// id. The error after the timeout names those that have not; they stay seized. A signal that a task
// was about to take is delivered to it, and it is then stopped again.
func (t *Tracer) WaitStopped(timeout time.Duration) ([]Stop, error) {
	var stops []Stop
	err := t.Do(func() error {
		var waiting []*seized
		for _, s := range t.seized {
			if s.stop.State == StopPending {
				waiting = append(waiting, s)
			}
		}
		sort.Slice(waiting, func(i, j int) bool { return waiting[i].stop.Tid < waiting[j].stop.Tid })
		err := t.waitSeized(waiting, timeout)
		for _, s := range t.seized {
			stops = append(stops, s.stop)
		}
		sort.Slice(stops, func(i, j int) bool { return stops[i].Tid < stops[j].Tid })
		return err
	})
	return stops, err
}

// waitSeized polls: wait4 has no timeout, and a task that sleeps uninterruptibly (in vfork, or on a
// dead disk) does not stop.
func (t *Tracer) waitSeized(waiting []*seized, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	const yields = 20
	pause := 20 * time.Microsecond
	for idle := 0; ; {
		left := waiting[:0]
		for _, s := range waiting {
			if err := t.pollSeized(s); err != nil {
				return err
			}
			if s.stop.State == StopPending {
				left = append(left, s)
			}
		}
		progress := len(left) < len(waiting)
		waiting = left
		switch {
		case len(waiting) == 0:
			return nil
		case time.Now().After(deadline):
			return notStopping(waiting, timeout)
		case progress:
			idle, pause = 0, 20*time.Microsecond
		case idle < yields:
			idle++
			runtime.Gosched()
		default:
			time.Sleep(pause)
			pause = min(2*pause, time.Millisecond)
		}
	}
}

func (t *Tracer) pollSeized(s *seized) error {
	tid := s.stop.Tid
	ws, ok := t.events[tid]
	delete(t.events, tid)
	if !ok {
		id, status, err := sys.Wait(tid, unix.WNOHANG)
		switch {
		case errors.Is(err, unix.ECHILD):
			// Its process has called execve in another thread, or somebody else has reaped it.
			s.stop.State = Gone
			return nil
		case err != nil:
			return fmt.Errorf("pid %d: waiting for it: %w", tid, err)
		case id == 0:
			return nil
		}
		ws = status
	}
	switch {
	case ws.Dead():
		s.stop.State = Gone
	case ws.GroupStop():
		s.stop.State, s.stop.Signal = JobStopped, ws.Signal()
	case ws.EventStop():
		s.stop.State = Interrupted
	default:
		// On the way to a signal. That stop has used up the request; asked again, the task stops
		// after it has taken the signal.
		if err := sys.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pid %d: stopping it: %w", tid, err)
		}
		sig := ws.Signal()
		if ws.SignalStop() {
			s.stop.Delivered++
		} else {
			sig = 0
		}
		if err := sys.PtraceCont(tid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pid %d: delivering %s to it: %w", tid, sys.SignalName(sig), err)
		}
	}
	return nil
}

func notStopping(waiting []*seized, timeout time.Duration) error {
	const show = 5
	var names []string
	for _, s := range waiting[:min(show, len(waiting))] {
		name := fmt.Sprint(s.stop.Tid)
		if st, err := procfs.ReadStat(s.stop.Tid); err == nil {
			name = fmt.Sprintf("%d (%s, state %c)", s.stop.Tid, st.Comm, st.State)
		}
		names = append(names, name)
	}
	if len(waiting) > show {
		names = append(names, fmt.Sprintf("and %d more", len(waiting)-show))
	}
	return fmt.Errorf("not stopped after %v: pid %s: %w", timeout, strings.Join(names, ", "), unix.ETIMEDOUT)
}

// StopAll is Seize and WaitStopped; it returns what became of the given tasks, in their order.
func (t *Tracer) StopAll(tids []int, timeout time.Duration) ([]Stop, error) {
	var out []Stop
	err := t.Do(func() error {
		if err := t.Seize(tids); err != nil {
			return err
		}
		_, err := t.WaitStopped(timeout)
		for _, tid := range tids {
			out = append(out, t.seized[tid].stop)
		}
		return err
	})
	return out, err
}

// StopTree stops tasks until scan, which returns all that are wanted at that moment (thread ids),
// names none that is not stopped already. All are returned, by ascending id. A tree that grows
// while it is stopped is caught up with: a stopped task makes no new ones.
func (t *Tracer) StopTree(scan func() ([]int, error), timeout time.Duration) ([]Stop, error) {
	deadline := time.Now().Add(timeout)
	for {
		tids, err := scan()
		if err != nil {
			return nil, err
		}
		fresh := 0
		err = t.Do(func() error {
			for _, tid := range tids {
				if t.seized[tid] == nil {
					fresh++
				}
			}
			return t.Seize(tids)
		})
		if err != nil {
			return nil, err
		}
		stops, err := t.WaitStopped(time.Until(deadline))
		if err != nil {
			return stops, err
		}
		if fresh == 0 && t.allStopped() {
			return stops, nil
		}
	}
}

// allStopped asks each task that was seen to stop something that only a stopped one answers, and
// marks those that do not: a thread's execve that was under way makes it take the place, and the
// id, of its process's leader, which had been stopped.
func (t *Tracer) allStopped() bool {
	all := true
	_ = t.Do(func() error {
		for tid, s := range t.seized {
			if s.stop.State != Interrupted && s.stop.State != JobStopped {
				continue
			}
			if _, err := sys.PtraceGetSigmask(tid); errors.Is(err, unix.ESRCH) {
				s.stop.State, all = StopPending, false
			}
		}
		return nil
	})
	return all
}

// Detach lets all seized tasks go on in the state that they had: running, or in job control stop.
// Tasks that have not stopped are let go as soon as they do, or at the latest by Close. Errors are
// joined; a task that is gone is none.
func (t *Tracer) Detach() error {
	return t.Do(func() error {
		var errs []error
		for tid, s := range t.seized {
			switch s.stop.State {
			case Gone:
				delete(t.seized, tid)
				continue
			case StopPending:
				// PTRACE_DETACH needs a stopped task. A short wait for one that is on its way; the
				// thread's end lets go of the others.
				if err := t.waitSeized([]*seized{s}, 100*time.Millisecond); err != nil {
					errs = append(errs, err)
					continue
				}
			}
			if err := sys.PtraceDetach(tid, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("pid %d: letting it go: %w", tid, err))
				continue
			}
			delete(t.seized, tid)
		}
		return errors.Join(errs...)
	})
}

// Seized returns the ids of the tasks that are attached and not gone, ascending.
func (t *Tracer) Seized() []int {
	var tids []int
	_ = t.Do(func() error {
		for tid, s := range t.seized {
			if s.stop.State != Gone {
				tids = append(tids, tid)
			}
		}
		return nil
	})
	sort.Ints(tids)
	return tids
}
