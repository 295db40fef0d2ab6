package kernelview

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// pendingTimers returns the ids of the timers of a process whose signal is queued (si_timerid).
func pendingTimers(pid int, any bool) (map[int32]bool, error) {
	out := map[int32]bool{}
	if !any {
		return out, nil
	}
	tids, err := procfs.Threads(pid)
	if err != nil {
		return nil, err
	}
	for i, tid := range tids {
		for _, shared := range []bool{false, true} {
			if shared && i > 0 {
				continue
			}
			list, err := sys.PtracePeekSiginfo(tid, shared)
			if err != nil {
				continue // a thread that has ended has no queue
			}
			for _, info := range list {
				const code, id = 8, 16
				if int32(binary.NativeEndian.Uint32(info[code:])) == siTimer {
					out[int32(binary.NativeEndian.Uint32(info[id:]))] = true
				}
			}
		}
	}
	return out, nil
}

// askTimers adds the calls that tell the interval timers and the POSIX timers; the function fills them in.
func (v *classicalView) askTimers(c *threadCalls, s RemoteVisit, p *Process, timers []procfs.Timer, known bool) (func(pending map[int32]bool) error, error) {
	const size = 32 // struct itimerval, struct itimerspec: interval, value
	n := &v.a.Sys
	most := 300 // what there is room for
	if len(timers) > most {
		known = false
	}
	if !known {
		timers = nil
	}
	at, err := s.Room((3 + len(timers)) * size)
	if err != nil {
		return nil, err
	}
	failed := make([]bool, 3+len(timers))
	overrun := make([]int64, len(timers))
	check := func(i int) func(r *RemoteCall) error {
		return func(r *RemoteCall) error { failed[i] = r.errno() != 0; return nil }
	}
	for which := range 3 {
		c.add(check(which), n.Getitimer, uint64(which), uint64(at)+uint64(which)*size)
	}
	for i := range timers {
		// Overrun first: it is that of the signal that was taken last.
		c.add(func(r *RemoteCall) error { overrun[i] = max(r.Result, 0); return nil }, n.TimerGetoverrun, uint64(timers[i].ID))
		c.add(check(3+i), n.TimerGettime, uint64(timers[i].ID), uint64(at)+uint64(3+i)*size)
	}
	return func(pending map[int32]bool) error {
		passed := v.sinceFixed()
		b := make([]byte, (3+len(timers))*size)
		if err := s.Read(at, b); err != nil {
			return err
		}
		pair := func(i int, unit int64) (interval, left int64) {
			e := b[i*size:]
			w := func(k int) int64 { return int64(v.a.Order.Uint64(e[8*k:])) }
			return w(0)*1e9 + w(1)*unit, w(2)*1e9 + w(3)*unit
		}
		for which, to := range []*Maybe[Itimer]{&p.ItimerReal, &p.ItimerVirtual, &p.ItimerProf} {
			if failed[which] {
				continue
			}
			interval, left := pair(which, 1000)
			t := Itimer{Armed: left != 0, Left: left, Interval: interval}
			if which == 0 && t.Armed {
				t.Left += passed
			}
			*to = Is(t)
		}
		if !known {
			return nil
		}
		var list []PosixTimer
		for i := range timers {
			k := &timers[i]
			t := PosixTimer{ID: int32(k.ID), Clock: int32(k.ClockID), Signo: int32(k.Signal), Value: k.Value, Overrun: overrun[i]}
			switch k.Notify {
			case "none":
				t.Notify = sigevNone
			case "thread":
				t.Notify = sigevThread
			}
			if k.ToTID {
				t.Notify |= sigevThreadID
				t.Target = k.Target
			}
			if failed[3+i] {
				return nil // unknown
			}
			interval, left := pair(3+i, 1)
			t.Interval, t.Armed = interval, left != 0
			if t.Armed && t.Clock >= 0 && t.Clock != unix.CLOCK_PROCESS_CPUTIME_ID && t.Clock != unix.CLOCK_THREAD_CPUTIME_ID {
				left += passed
			}
			t.Left = Is(left)
			t.SignalPending = Is(pending[t.ID])
			list = append(list, t)
		}
		p.Timers = Is(list)
		return nil
	}, nil
}
