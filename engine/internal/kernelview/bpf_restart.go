package kernelview

import (
	"crpipe/arch"

	"golang.org/x/sys/unix"
)

// The clocks of CPU time as the kernel stores them (include/linux/posix-timers.h):
// the complement of the pid, and below it three bits for the kind.
const (
	cpuClockKind   = 3
	cpuClockProf   = 0
	cpuClockVirt   = 1
	cpuClockSched  = 2
	cpuClockThread = 4
)

// cpuRestarts fills in the time left of sleeps on the CPU time of a process,
// which is computed once for all threads that wait for it. Such a sleep on a
// clock of another process stays unknown: its pid is one of the moment of the
// call.
func (v *bpfView) cpuRestarts(threads []Thread, links []taskLinks) error {
	runtimes := make(map[uint64]Maybe[cpuTimes])
	for i := range threads {
		r := &threads[i].Restart
		const ownProcess = ^0<<3 | cpuClockSched
		if r.Kind != RestartNanosleep || r.Clock != ownProcess {
			continue
		}
		times, ok := runtimes[links[i].signal]
		if !ok {
			var err error
			if times, err = v.processTimes(links[i].signal); err != nil {
				return err
			}
			runtimes[links[i].signal] = times
		}
		if times.Known {
			r.Left = Is(r.Expires - int64(times.V.runtime))
		}
	}
	return nil
}

// restart reads a restart block. Which members are meant is told by the
// function that goes on with the call.
func (v *bpfView) restart(b []byte) Restart {
	fn, ok := v.l.uint(b, fRBFn)
	if !ok {
		return Restart{}
	}
	which, ok := v.fnNames[fn]
	if !ok {
		return Restart{}
	}
	switch which {
	case symNoRestart:
		return Restart{Kind: RestartNone}
	case symNanosleep, symCPUNanosleep, symAlarmNanosleep:
		return v.restartSleep(b, which)
	case symPoll:
		return v.restartPoll(b)
	case symFutex:
		return v.restartFutex(b)
	}
	return Restart{}
}

func (v *bpfView) restartSleep(b []byte, which symbol) Restart {
	l := v.l
	clock, ok1 := l.uint(b, fRBSleepClock)
	kind, ok2 := l.uint(b, fRBSleepType)
	remain, ok3 := l.uint(b, fRBSleepRemain)
	expires, ok4 := l.uint(b, fRBSleepExpires)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return Restart{}
	}
	r := Restart{Kind: RestartNanosleep, Clock: int32(clock), Expires: int64(expires)}
	// enum timespec_type: none, native, compat.
	switch kind {
	case 0:
	case 1:
		r.Remain = arch.Addr(remain)
	case 2:
		r.Remain, r.Compat = arch.Addr(remain), true
	default:
		return Restart{}
	}
	if which == symAlarmNanosleep {
		// Here the member holds an enum alarmtimer_type: realtime, boottime.
		r.Alarm = true
		switch clock {
		case 0:
			r.Clock = unix.CLOCK_REALTIME_ALARM
		case 1:
			r.Clock = unix.CLOCK_BOOTTIME_ALARM
		default:
			return Restart{}
		}
	}
	if which != symCPUNanosleep {
		r.Left = v.clocks.until(r.Clock, r.Expires)
	}
	return r
}

func (v *bpfView) restartPoll(b []byte) Restart {
	l := v.l
	fds, ok1 := l.uint(b, fRBPollFds)
	n, ok2 := l.uint(b, fRBPollN)
	has, ok3 := l.uint(b, fRBPollHas)
	sec, ok4 := l.uint(b, fRBPollSec)
	nsec, ok5 := l.uint(b, fRBPollNsec)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return Restart{}
	}
	r := Restart{Kind: RestartPoll, Pollfds: arch.Addr(fds), NPollfds: uint32(n)}
	if has == 0 {
		r.Infinite = true
		return r
	}
	r.Clock = unix.CLOCK_MONOTONIC
	r.Expires = int64(sec)*1e9 + int64(nsec)
	r.Left = v.clocks.until(r.Clock, r.Expires)
	return r
}

func (v *bpfView) restartFutex(b []byte) Restart {
	l := v.l
	addr, ok1 := l.uint(b, fRBFutexAddr)
	val, ok2 := l.uint(b, fRBFutexVal)
	flags, ok3 := l.uint(b, fRBFutexFlags)
	bitset, ok4 := l.uint(b, fRBFutexBitset)
	expires, ok5 := l.uint(b, fRBFutexTime)
	rt := l.facts[factFutexRealtime]
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !rt.known {
		return Restart{}
	}
	r := Restart{
		Kind: RestartFutex, Uaddr: arch.Addr(addr), Val: uint32(val), Bitset: uint32(bitset),
		Clock: unix.CLOCK_MONOTONIC, Expires: int64(expires),
		Shared: bitsSet(l, b, fRBFutexFlags, factFutexShared),
	}
	if flags&rt.value != 0 {
		r.Clock = unix.CLOCK_REALTIME
	}
	r.Left = v.clocks.until(r.Clock, r.Expires)
	return r
}
