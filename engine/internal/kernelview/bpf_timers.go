package kernelview

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// The kinds of sigevent of timer_create(2) that matter here.
const (
	sigevNone     = 1
	sigevThreadID = 4
)

// hrtimerQueued is HRTIMER_STATE_ENQUEUED and ALARMTIMER_STATE_ENQUEUED.
const hrtimerQueued = 1

// itimers reads the three timers of setitimer(2).
func (v *bpfView) itimers(p *Process, b []byte) {
	l := v.l
	state, ok1 := l.uint(b, fSRealState)
	expires, ok2 := l.uint(b, fSRealExpires)
	incr, ok3 := l.uint(b, fSRealIncr)
	now := v.clocks.now(unix.CLOCK_MONOTONIC)
	if ok1 && ok2 && ok3 && now.Known {
		t := Itimer{Armed: state&hrtimerQueued != 0, Interval: int64(incr)}
		if t.Armed || t.Interval != 0 {
			t.Expires = Is(int64(expires))
			t.Left = int64(expires) - now.V
		}
		if !t.Armed {
			t.Left = forward(t.Left, t.Interval)
		}
		p.ItimerReal = Is(t)
	}

	both, ok := l.bytes(b, fSIt)
	element := int(l.fields[fSIt].element)
	if !ok || element == 0 || len(both) != 2*element {
		return
	}
	times := v.runningTimes(b)
	cpu := func(one []byte, now uint64) Maybe[Itimer] {
		expires, ok1 := l.uint(one, fItExpires)
		incr, ok2 := l.uint(one, fItIncr)
		switch {
		case !ok1 || !ok2:
			return Maybe[Itimer]{}
		case expires == 0:
			return Is(Itimer{Interval: int64(incr)})
		case !times.Known:
			return Maybe[Itimer]{}
		}
		return Is(Itimer{Armed: true, Left: int64(expires - now), Interval: int64(incr)})
	}
	p.ItimerProf = cpu(both[:element], times.V.utime+times.V.stime)
	p.ItimerVirtual = cpu(both[element:], times.V.utime)
}

// maxTimers bounds the walk over a process's timers.
const maxTimers = 1 << 20

// timers reads the POSIX timers of a process: newest first in the kernel, and
// a list_head before 6.12, an hlist_head since.
func (v *bpfView) timers(signal uint64, b []byte) (Maybe[[]PosixTimer], error) {
	l := v.l
	none := Maybe[[]PosixTimer]{}
	head, ok := l.bytes(b, fSTimers)
	if !ok || !l.has(fKList) || (len(head) != 8 && len(head) != 16) {
		return none, nil
	}
	end := uint64(0)
	if len(head) == 16 {
		end = signal + l.off(fSTimers)
	}
	next := binary.NativeEndian.Uint64(head)
	type timerBlock struct {
		addr uint64
		b    []byte
	}
	var blocks []timerBlock
	for next != end {
		if len(blocks) == maxTimers {
			return none, errFault
		}
		addr := next - l.off(fKList)
		b, err := v.mem.peek(addr, l.span["k_itimer"])
		if err != nil {
			return none, err
		}
		blocks = append(blocks, timerBlock{addr, b})
		list, _ := l.bytes(b, fKList)
		next = binary.NativeEndian.Uint64(list)
	}
	slices.Reverse(blocks)
	if len(blocks) == 0 {
		return Is([]PosixTimer(nil)), nil
	}

	var owners []uint64
	for _, block := range blocks {
		for _, f := range []field{fKPid, fKCPUPid} {
			if a, ok := l.uint(block.b, f); ok && kernelAddress(a) && v.meansPid(block.b, f) {
				owners = append(owners, a)
			}
		}
	}
	pids, err := v.pidBlocks(owners)
	if err != nil {
		return none, err
	}
	timers := make([]PosixTimer, 0, len(blocks))
	for _, block := range blocks {
		t, ok, err := v.timer(block.addr, signal, b, block.b, pids)
		if err != nil {
			return none, err
		}
		if !ok {
			return none, nil
		}
		timers = append(timers, t)
	}
	return Is(timers), nil
}

// meansPid tells whether a member of a timer is a struct pid: both are parts
// of unions.
func (v *bpfView) meansPid(block []byte, f field) bool {
	if f == fKPid {
		notify, _ := v.l.uint(block, fKNotify)
		return notify&sigevThreadID != 0
	}
	clock, _ := v.l.uint(block, fKClock)
	return int32(clock) < 0
}

// timer decodes one k_itimer. ok is false when this kernel lacks a member
// without which nothing sensible can be said.
func (v *bpfView) timer(addr, signal uint64, sig, b []byte, pids map[uint64][]byte) (t PosixTimer, ok bool, err error) {
	l := v.l
	id := num[int32](l, b, fKID)
	clock := num[int32](l, b, fKClock)
	notify := num[int32](l, b, fKNotify)
	interval := num[int64](l, b, fKInterval)
	overrun := num[int64](l, b, fKOverrunLast)
	missed := num[int64](l, b, fKOverrun)
	if !id.Known || !clock.Known || !notify.Known || !interval.Known || !overrun.Known || !missed.Known {
		return t, false, nil
	}
	t = PosixTimer{
		ID: id.V, Clock: clock.V, Notify: notify.V, Interval: interval.V,
		Overrun: overrun.V, Missed: missed.V,
	}
	if l.fields[fKOverrun].size == 4 { // int before 4.19
		t.Overrun, t.Missed = int64(int32(t.Overrun)), int64(int32(t.Missed))
	}
	if t.Notify&sigevThreadID != 0 {
		pid, _ := l.uint(b, fKPid)
		t.Target = v.number(pids[pid])
	}
	if ok, err := v.timerSignal(&t, addr, b); err != nil || !ok {
		return t, false, err
	}
	if t.Clock < 0 {
		if t.Clock&cpuClockThread != 0 && l.has(fKCPUPid) {
			t.ClockTID = Is(0)
			if pid, _ := l.uint(b, fKCPUPid); v.taskOf(pids[pid]) != 0 {
				t.ClockTID = Is(v.number(pids[pid]))
			}
		}
		return t, true, v.cpuTimer(&t, signal, sig, b, pids)
	}
	return t, true, v.clockTimer(&t, b)
}

// timerSignal reads the queue entry that is set aside for the timer's signal:
// inside the timer since 6.13, behind a pointer before.
func (v *bpfView) timerSignal(t *PosixTimer, timer uint64, b []byte) (bool, error) {
	l := v.l
	var q []byte
	var addr uint64
	switch l.fields[fKSigq].kind {
	case locCompound:
		q, _ = l.bytes(b, fKSigq)
		addr = timer + l.off(fKSigq)
	case locPointer:
		addr, _ = l.uint(b, fKSigq)
		var err error
		if q, err = v.mem.peek(addr, l.span["sigqueue"]); err != nil {
			return false, err
		}
	}
	signo := num[int32](l, q, fQSigno)
	value, ok := l.bytes(q, fQValue)
	if !signo.Known || !ok || len(value) != 8 {
		return false, nil
	}
	t.Signo, t.Value = signo.V, binary.NativeEndian.Uint64(value)
	if list, ok := l.bytes(q, fQList); ok && len(list) == 16 {
		// An entry that is in no queue leads to itself.
		next := binary.NativeEndian.Uint64(list)
		t.SignalPending = Is(next != 0 && next != addr+l.off(fQList))
	}
	return true, nil
}

// clockTimer computes the time left as common_timer_get does
// (kernel/time/posix-timers.c).
func (v *bpfView) clockTimer(t *PosixTimer, b []byte) error {
	l := v.l
	alarm := t.Clock == unix.CLOCK_REALTIME_ALARM || t.Clock == unix.CLOCK_BOOTTIME_ALARM
	fState, fExpires := fKRealState, fKRealExpires
	if alarm {
		fState, fExpires = fKAlarmState, fKAlarmExpire
	}
	state, ok1 := l.uint(b, fState)
	expires, ok2 := l.uint(b, fExpires)
	if !ok1 || !ok2 {
		return nil
	}
	silent := t.Notify == sigevNone // never queued, its time still runs
	t.Armed = state&hrtimerQueued != 0 || t.Interval != 0 || (silent && expires != 0)
	if !t.Armed {
		t.Left = Is(int64(0))
		return nil
	}
	t.Expires = Is(int64(expires))
	if alarm {
		t.ExpiresOn = Is(t.Clock)
	} else {
		base, _ := l.uint(b, fKRealBase)
		var err error
		if t.ExpiresOn, err = v.baseClock(base); err != nil {
			return err
		}
	}
	if !t.ExpiresOn.Known {
		return nil
	}
	left := v.clocks.until(t.ExpiresOn.V, t.Expires.V)
	if !left.Known {
		return nil
	}
	if t.Interval != 0 && (state&hrtimerQueued == 0) {
		left.V = forward(left.V, t.Interval)
	}
	if silent && left.V <= 0 {
		t.Armed, left.V = false, 0
	}
	t.Left = left
	return nil
}

// baseClock is the clock of an hrtimer base. There are eight of them a CPU.
func (v *bpfView) baseClock(base uint64) (Maybe[int32], error) {
	if base == 0 || !v.l.has(fBaseClock) {
		return Maybe[int32]{}, nil
	}
	if c, ok := v.baseClocks[base]; ok {
		return c, nil
	}
	b, err := v.mem.peek(base, v.l.span["hrtimer_clock_base"])
	if err != nil {
		return Maybe[int32]{}, err
	}
	c := num[int32](v.l, b, fBaseClock)
	v.baseClocks[base] = c
	return c, nil
}

// cpuTimer computes the time left as posix_cpu_timer_get does
// (kernel/time/posix-cpu-timers.c).
func (v *bpfView) cpuTimer(t *PosixTimer, signal uint64, sig, b []byte, pids map[uint64][]byte) error {
	l := v.l
	expires, ok1 := l.uint(b, fKCPUExpires)
	head, ok2 := l.uint(b, fKCPUHead)
	if !ok1 || !ok2 {
		return nil
	}
	if expires == 0 {
		t.Left = Is(int64(0))
		return nil
	}
	queued := head != 0
	silent := t.Notify == sigevNone
	t.Armed = queued || t.Interval != 0 || silent
	if !t.Armed {
		t.Left = Is(int64(0))
		return nil
	}
	t.Expires, t.ExpiresOn = Is(int64(expires)), Is(t.Clock)
	pid, _ := l.uint(b, fKCPUPid)
	now, err := v.cpuClock(t.Clock, pids[pid], signal, sig)
	if err != nil || !now.Known {
		return err
	}
	left := int64(expires - now.V)
	if t.Interval != 0 && !queued {
		left = forward(left, t.Interval)
	}
	if silent && left <= 0 {
		t.Armed, left = false, 0
	}
	t.Left = Is(left)
	return nil
}

// cpuClock is the CPU time of what a timer's struct pid stands for.
func (v *bpfView) cpuClock(clock int32, pid []byte, signal uint64, sig []byte) (Maybe[uint64], error) {
	none := Maybe[uint64]{}
	addr := v.taskOf(pid)
	if addr == 0 {
		return none, nil
	}
	b, err := v.mem.peek(addr, v.l.span["task_struct"])
	if err != nil {
		return none, err
	}
	times := v.timesOf(b, fTUtime, fTStime, fTExecRuntime)
	if clock&cpuClockThread == 0 {
		of, _ := v.l.uint(b, fTSignal)
		times = Maybe[cpuTimes]{}
		if of == signal {
			times = v.runningTimes(sig)
		}
		if !times.Known {
			if times, err = v.processTimes(of); err != nil {
				return none, err
			}
		}
	}
	if !times.Known {
		return none, nil
	}
	switch clock & cpuClockKind {
	case cpuClockProf:
		return Is(times.V.utime + times.V.stime), nil
	case cpuClockVirt:
		return Is(times.V.utime), nil
	case cpuClockSched:
		return Is(times.V.runtime), nil
	}
	return none, nil
}
