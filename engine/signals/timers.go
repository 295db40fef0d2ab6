package signals

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Itimer is one timer of setitimer(2), in ns; all zero when it is not armed.
type Itimer struct {
	Left     int64 `msgpack:"left,omitempty"`
	Interval int64 `msgpack:"interval,omitempty"`
}

// Timer is one timer of timer_create(2).
type Timer struct {
	ID     int32  `msgpack:"id"`
	Clock  int32  `msgpack:"clock,omitempty"`
	Notify int32  `msgpack:"notify,omitempty"` // SIGEV_*
	Signal int32  `msgpack:"signal,omitempty"`
	Value  uint64 `msgpack:"value,omitempty"`  // sigev_value
	Target int32  `msgpack:"target,omitempty"` // thread of SIGEV_THREAD_ID

	// Of is the thread whose CPU time Clock counts, where it is another one than the first of the process.
	Of int32 `msgpack:"of,omitempty"`

	Armed    bool  `msgpack:"armed,omitempty"`
	Left     int64 `msgpack:"left,omitempty"`     // ns
	Expires  int64 `msgpack:"expires,omitempty"`  // ns of CLOCK_REALTIME, where the timer was set to an absolute time of day
	Interval int64 `msgpack:"interval,omitempty"` // ns
	// Fired says how long ago, in ns, a periodic timer fired whose signal is pending. It stands still until that is taken,
	// and the time since then becomes its overrun count.
	Fired int64 `msgpack:"fired,omitempty"`
}

const (
	sigevSignal   = 0 // SIGEV_*, asm-generic/siginfo.h
	sigevNone     = 1
	sigevThreadID = 4

	// A clock below 0 is of CPU time: the complement of a pid, 0 for the caller, above three bits (linux/posix-timers_types.h).
	cpuClockThread = 4 // that pid is one of a thread
	cpuClockBits   = 3
)

func dumpItimers(p *object.Process) ([]Itimer, error) {
	var out []Itimer
	armed := false
	for _, m := range []kernelview.Maybe[kernelview.Itimer]{p.View.ItimerReal, p.View.ItimerVirtual, p.View.ItimerProf} {
		v, ok := m.Get()
		if !ok {
			return nil, p.Error("", &object.Lacking{What: "the kernel view does not know its interval timers"})
		}
		var it Itimer
		// A periodic real timer whose SIGALRM is pending stands still until that is taken (kernel/signal.c): it is made
		// to fire at once, and the signal then pending is the one that was.
		if v.Armed || v.Interval != 0 {
			armed = true
			it = Itimer{Left: 1, Interval: v.Interval}
			if v.Armed {
				it.Left = max(v.Left, 1)
			}
		}
		out = append(out, it)
	}
	if !armed {
		return nil, nil
	}
	return out, nil
}

// standsStill says whether a timer waits for its own signal to be taken before it goes on.
func standsStill(v *kernelview.PosixTimer) bool {
	pending, ok := v.SignalPending.Get()
	return ok && pending && v.Interval != 0
}

// since returns how long ago, in ns, a timer that stands still fired; at least 1.
func since(view kernelview.View, v *kernelview.PosixTimer) int64 {
	on, ok1 := v.ExpiresOn.Get()
	expires, ok2 := v.Expires.Get()
	now, ok3 := view.Now(on).Get()
	if !ok1 || !ok2 || !ok3 {
		return 1 // a CPU clock, which stands still with the process
	}
	return max(now-expires, 1)
}

// standing returns the ids of the timers of p whose pending signal is made by the timer itself at restore.
func standing(p *object.Process) map[int32]bool {
	out := map[int32]bool{}
	timers, _ := p.View.Timers.Get()
	for i := range timers {
		if standsStill(&timers[i]) {
			out[timers[i].ID] = true
		}
	}
	return out
}

func dumpTimers(view kernelview.View, p *object.Process) ([]Timer, error) {
	timers, ok := p.View.Timers.Get()
	if !ok {
		return nil, p.Error("", &object.Lacking{What: "the kernel view does not know its POSIX timers"})
	}
	var out []Timer
	for _, v := range timers {
		t := Timer{ID: v.ID, Clock: v.Clock, Notify: v.Notify, Signal: v.Signo, Value: v.Value, Armed: v.Armed, Interval: v.Interval}
		name := fmt.Sprintf("timer %d", v.ID)
		var err error
		if t.Of, err = clockOf(p, &v); err != nil {
			return nil, p.Error(name, err)
		}
		if v.Notify == sigevThreadID {
			for _, th := range p.Threads {
				if th.TID == v.Target {
					t.Target = int32(th.ID)
				}
			}
			if t.Target == 0 {
				return nil, p.Error(name, object.Unsupportedf("the thread that it signals has ended"))
			}
		}
		if v.Armed {
			left, ok := v.Left.Get()
			if !ok {
				return nil, p.Error(name, &object.Lacking{What: "the kernel view does not know the time left"})
			}
			t.Left = max(left, 1)
			if standsStill(&v) {
				t.Fired = since(view, &v)
			}
			if on, ok := v.ExpiresOn.Get(); ok && on == unix.CLOCK_REALTIME && v.Clock == unix.CLOCK_REALTIME {
				t.Expires = v.Expires.V
			}
		}
		out = append(out, t)
	}
	return out, nil
}

// clockOf returns the thread whose CPU time a timer counts, 0 for the first of the process, or for all of it.
func clockOf(p *object.Process, v *kernelview.PosixTimer) (int32, error) {
	if v.Clock >= 0 {
		return 0, nil
	}
	pid := int(^(v.Clock >> cpuClockBits))
	if v.Clock&cpuClockThread == 0 {
		if pid != 0 && pid != p.ID {
			return 0, object.Unsupportedf("a timer on the CPU clock of process %d cannot be checkpointed", pid)
		}
		return 0, nil
	}
	tid, known := v.ClockTID.Get()
	for i, t := range p.Threads {
		switch {
		case known && t.TID != tid, !known && pid != 0 && t.ID != pid, !known && pid == 0 && len(p.Threads) > 1:
		case i == 0:
			return 0, nil
		default:
			return int32(t.ID), nil
		}
	}
	if !known && pid == 0 {
		return 0, &object.Lacking{What: "the kernel view does not know of which thread a timer counts the CPU time"}
	}
	return 0, object.Unsupportedf("the thread whose CPU time it counts has ended")
}

func checkTimers(its []Itimer, timers []Timer) error {
	if len(its) != 0 && len(its) != 3 {
		return object.BadImagef("%d interval timers", len(its))
	}
	for _, it := range its {
		if it.Left < 0 || it.Interval < 0 {
			return object.BadImagef("an interval timer with a negative time")
		}
	}
	seen := map[int32]bool{}
	for _, t := range timers {
		if t.ID < 0 || seen[t.ID] || t.Left < 0 || t.Interval < 0 || t.Expires < 0 || t.Fired < 0 {
			return object.BadImagef("timer %d: twice, or with a negative time", t.ID)
		}
		seen[t.ID] = true
	}
	return nil
}

func timespec(b []byte, ns int64) []byte {
	b = binary.NativeEndian.AppendUint64(b, uint64(ns/1e9))
	return binary.NativeEndian.AppendUint64(b, uint64(ns%1e9))
}

// itimerCalls arms the interval timers. Their clock is the caller's own process, so they go last of all.
func itimerCalls(b *tracee.Batch, a *arch.Arch, its []Itimer) {
	for which, it := range its {
		if it.Left == 0 {
			continue
		}
		var v []byte
		for _, ns := range []int64{it.Interval, max(it.Left, 1000)} { // struct itimerval, µs: 0 would disarm
			v = binary.NativeEndian.AppendUint64(v, uint64(ns/1e9))
			v = binary.NativeEndian.AppendUint64(v, uint64(ns%1e9/1000))
		}
		b.Call(a.Sys.Setitimer, uint64(which), b.Data(v), 0)
	}
}

// timerCalls makes the POSIX timers with their ids, unless MakeTimers does so, and arms them. They go last: they tick from here.
// stays says that the process has chosen ids itself.
func timerCalls(b *tracee.Batch, a *arch.Arch, timers []Timer, stays bool, now func(clock int32) (int64, error)) {
	zero := 0
	choose := len(timers) > 0 && !needMaking(timers)
	if choose || stays {
		b.Call(a.Sys.Prctl, prTimerCreateRestoreIDs, 1, zero, zero, zero).Note("prctl(PR_TIMER_CREATE_RESTORE_IDS)")
	}
	if choose {
		for i := range timers {
			createTimer(b, &timers[i], b.Data(binary.NativeEndian.AppendUint32(nil, uint32(timers[i].ID))))
		}
	}
	if choose && !stays {
		b.Call(a.Sys.Prctl, prTimerCreateRestoreIDs, zero, zero, zero, zero)
	}
	for i := range timers {
		t := &timers[i]
		if !t.Armed {
			continue
		}
		const abstime = 1 // TIMER_ABSTIME
		flags, first := uint64(0), max(t.Left, 1)
		switch {
		case t.Fired != 0:
			// A relative timer on the time of day runs by the monotonic clock, which an absolute time would change.
			first = 1
			if t.Clock >= 0 && (t.Clock != unix.CLOCK_REALTIME || t.Expires != 0) {
				if at, err := now(t.Clock); err == nil {
					flags, first = abstime, max(at-t.Fired, 1)
				}
			}
		case t.Expires != 0:
			flags, first = abstime, t.Expires
		}
		v := timespec(timespec(nil, t.Interval), first)
		b.Call(a.Sys.TimerSettime, uint64(t.ID), flags, b.Data(v), zero).Note("arming timer %d", t.ID)
	}
}
