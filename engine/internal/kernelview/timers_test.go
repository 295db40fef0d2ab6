//go:build amd64

package kernelview

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestPosixTimers makes timers of every clock and manner and compares with
// timer_gettime of their own process.
func TestPosixTimers(t *testing.T) {
	const (
		second      = int64(1e9)
		absolute    = 1
		sigevSignal = 0
		thread      = int32(-2)
		process     = int32(-6)
	)
	v, c := view(t), newChild(t)
	// Signals stay pending, so that a timer that has fired stands.
	c.must(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, c.putWords(0, 1<<(40-1)), 0, 8)
	for _, x := range []struct {
		name            string
		clock           int32
		notify          int32
		flags           uint64
		value, interval int64 // ns; absolute: from now
		fired           bool
		stored, on      int32 // clock as the kernel stores it, clock that the end is measured by
	}{
		{"one shot", unix.CLOCK_MONOTONIC, sigevSignal, 0, 1000 * second, 0, false, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"periodic", unix.CLOCK_MONOTONIC, sigevSignal, 0, 1000*second + 7, 3*second + 5, false, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"to a thread", unix.CLOCK_MONOTONIC, sigevThreadID, 0, 1000 * second, 0, false, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"disarmed", unix.CLOCK_MONOTONIC, sigevSignal, 0, 0, 0, false, unix.CLOCK_MONOTONIC, 0},
		{"boot time", unix.CLOCK_BOOTTIME, sigevSignal, 0, 1000 * second, 0, false, unix.CLOCK_BOOTTIME, unix.CLOCK_BOOTTIME},
		{"TAI", unix.CLOCK_TAI, sigevSignal, absolute, 1000 * second, 0, false, unix.CLOCK_TAI, unix.CLOCK_TAI},
		{"real time absolute", unix.CLOCK_REALTIME, sigevSignal, absolute, 1000 * second, 0, false, unix.CLOCK_REALTIME, unix.CLOCK_REALTIME},
		{"real time relative", unix.CLOCK_REALTIME, sigevSignal, 0, 1000 * second, 0, false, unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC},
		{"fired one shot", unix.CLOCK_MONOTONIC, sigevSignal, 0, 1, 0, true, unix.CLOCK_MONOTONIC, 0},
		{"fired periodic", unix.CLOCK_MONOTONIC, sigevSignal, 0, 1, 500 * second, true, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"silent", unix.CLOCK_MONOTONIC, sigevNone, 0, 1000 * second, 0, false, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"silent and over", unix.CLOCK_MONOTONIC, sigevNone, 0, 1, 0, false, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"silent periodic", unix.CLOCK_MONOTONIC, sigevNone, 0, 1, 700 * second, false, unix.CLOCK_MONOTONIC, unix.CLOCK_MONOTONIC},
		{"process time", unix.CLOCK_PROCESS_CPUTIME_ID, sigevSignal, 0, 1000 * second, 2 * second, false, process, process},
		{"thread time", unix.CLOCK_THREAD_CPUTIME_ID, sigevSignal, 0, 1000 * second, 0, false, thread, thread},
		{"process time disarmed", unix.CLOCK_PROCESS_CPUTIME_ID, sigevSignal, 0, 0, 0, false, process, 0},
		{"alarm", unix.CLOCK_BOOTTIME_ALARM, sigevSignal, 0, 1000 * second, 0, false, unix.CLOCK_BOOTTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			// struct sigevent {value, signo, notify, thread}
			c.putWords(0x100, 0xdeadbeef12345678, 40|uint64(x.notify)<<32, uint64(c.pid()))
			if _, err := c.call(unix.SYS_TIMER_CREATE, uint64(x.clock), c.page+0x100, c.page+0x180); err != nil {
				t.Skipf("needs a timer on clock %d: %v", x.clock, err)
			}
			id := c.get(0x180, 1)[0] & 0xffffffff
			defer c.must(unix.SYS_TIMER_DELETE, id)
			value := x.value
			if x.flags == absolute {
				value += clockNow(t, x.clock)
			}
			c.must(unix.SYS_TIMER_SETTIME, id, x.flags,
				c.putWords(0x200, uint64(x.interval/second), uint64(x.interval%second), uint64(value/second), uint64(value%second)), 0)
			for x.fired {
				c.must(unix.SYS_RT_SIGPENDING, c.page+0x300, 8)
				if c.get(0x300, 1)[0] != 0 {
					break
				}
			}
			var p *Process
			before, after, interval := gettime(c, 1, unix.SYS_TIMER_GETTIME, id, func() { p = oneProcess(t, v, c.pid()) })
			if !p.Timers.Known || len(p.Timers.V) != 1 {
				t.Fatalf("timers %+v, want one", p.Timers)
			}
			got := p.Timers.V[0]
			if got.ID != int32(id) || got.Clock != x.stored || got.Notify != x.notify || got.Signo != 40 || got.Value != 0xdeadbeef12345678 {
				t.Errorf("got %+v", got)
			}
			if got.Interval != interval || interval != x.interval {
				t.Errorf("interval %d, its own timer_gettime says %d", got.Interval, interval)
			}
			if !got.Left.Known || got.Left.V > before || got.Left.V < after {
				t.Errorf("left %+v, its own timer_gettime says %d, then %d", got.Left, before, after)
			}
			if armed := before != 0; got.Armed != armed {
				t.Errorf("armed %v, its own timer_gettime says %d", got.Armed, before)
			}
			if got.Armed {
				same(t, "clock of the end", got.ExpiresOn, x.on)
			}
			same(t, "signal pending", got.SignalPending, x.fired)
			wantTarget := 0
			if x.notify == sigevThreadID {
				wantTarget = c.pid()
			}
			if got.Target != wantTarget {
				t.Errorf("target %d, want %d", got.Target, wantTarget)
			}
			if own := c.must(unix.SYS_TIMER_GETOVERRUN, id); got.Overrun != own {
				t.Errorf("overrun %d, its own timer_getoverrun says %d", got.Overrun, own)
			}
			// Take the signal, so that the next timer's is another one.
			if x.fired {
				c.must(unix.SYS_RT_SIGTIMEDWAIT, c.putWords(0x300, 1<<(40-1)), 0, c.putWords(0x340, 0, 0), 8)
			}
		})
	}
	c.t = t
	p := oneProcess(t, v, c.pid())
	if !p.Timers.Known || len(p.Timers.V) != 0 {
		t.Errorf("timers %+v after all were deleted", p.Timers)
	}
}

// TestManyTimers checks order, ids and the next id.
func TestManyTimers(t *testing.T) {
	v, c := view(t), newChild(t)
	const n = 300
	var ids []int32
	for i := range n {
		c.putWords(0x100, uint64(i), 40|uint64(sigevNone)<<32)
		c.must(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, c.page+0x100, c.page+0x180)
		ids = append(ids, int32(c.get(0x180, 1)[0]))
	}
	p := oneProcess(t, v, c.pid())
	if !p.Timers.Known || len(p.Timers.V) != n {
		t.Fatalf("%d timers, want %d", len(p.Timers.V), n)
	}
	for i, timer := range p.Timers.V {
		if timer.ID != ids[i] || timer.Value != uint64(i) {
			t.Fatalf("timer %d: %+v, want id %d", i, timer, ids[i])
		}
	}
	same(t, "next id", p.NextTimerID, ids[n-1]+1)
}

// TestThreadTargets checks that SIGEV_THREAD_ID names the right thread.
func TestThreadTargets(t *testing.T) {
	v, c := view(t), newChild(t)
	const flags = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_FILES | unix.CLONE_FS
	tid := c.clone(flags, 0x8000)
	c.putWords(0x100, 1, 40|uint64(sigevThreadID)<<32, uint64(tid))
	c.must(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, c.page+0x100, c.page+0x180)
	p := oneProcess(t, v, c.pid())
	if !p.Timers.Known || len(p.Timers.V) != 1 || p.Timers.V[0].Target != tid {
		t.Errorf("timers %+v, want the target %d", p.Timers, tid)
	}
}
