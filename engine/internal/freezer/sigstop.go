package freezer

import (
	"encoding/binary"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

func bit(s unix.Signal) uint64 { return 1 << (s - 1) }

// byProcess groups the threads that are in a stop.
func (h *Held) byProcess() map[int][]*thread {
	out := map[int][]*thread{}
	for _, t := range h.threads {
		if t.stopped && !t.dead {
			out[t.pid] = append(out[t.pid], t)
		}
	}
	return out
}

// continueAll ends the stops that the freeze made with SIGSTOP.
func (h *Held) continueAll() error {
	threads := h.byProcess()
	var errs []error
	for _, pid := range h.procs {
		list := threads[pid]
		if len(list) == 0 {
			errs = append(errs, ignoreGone(h.dropPending(pid)))
			continue
		}
		if list[0].before != BeforeRunning {
			continue
		}
		errs = append(errs, ignoreGone(h.continueOne(pid, list[0])))
	}
	// Each child has told its parent that it goes on.
	errs = append(errs, h.dropStopSignals())
	return errors.Join(errs...)
}

// dropPending takes back a SIGSTOP that a process has not come to yet, which nobody could stop: one that waits in vfork, or for a disk. It
// would stop at it much later. The SIGCONT for that runs a handler, if the program has one.
func (h *Held) dropPending(pid int) error {
	if h.Before(pid) != BeforeRunning {
		return nil
	}
	st, err := procfs.ReadStatus(pid)
	if err != nil || (st.SigPnd|st.ShdPnd)&bit(unix.SIGSTOP) == 0 {
		return err
	}
	return sys.Kill(pid, unix.SIGCONT)
}

// continueOne ends the group stop of one process. The SIGCONT that does it
// would run a handler of the program, and stay pending where it is blocked, so
// it is taken away again.
func (h *Held) continueOne(pid int, t *thread) error {
	st, err := procfs.ReadThreadStatus(t.pid, t.tid)
	if err != nil {
		return err
	}
	if (st.SigPnd|st.ShdPnd)&bit(unix.SIGCONT) != 0 {
		return sys.Kill(pid, unix.SIGCONT) // one of somebody else is pending: it has to arrive
	}
	if err := sys.Kill(pid, unix.SIGCONT); err != nil {
		return err
	}
	return h.take(t, unix.SIGCONT)
}

// take removes a pending signal from a held process: one thread is let run
// just far enough to take it, with all other signals blocked, and is stopped
// in the act. Its detach, or the next continuation, drops the signal. Nothing
// of the program runs.
func (h *Held) take(t *thread, sig unix.Signal) error {
	mask, err := sys.PtraceGetSigmask(t.tid)
	if err != nil {
		return err
	}
	if err := sys.PtraceSetSigmask(t.tid, ^bit(sig)); err != nil {
		return err
	}
	const stops = 8 // it takes at most two: a change of the group stop is told first, then the signal
	for range stops {
		st, err := procfs.ReadThreadStatus(t.pid, t.tid)
		if err != nil {
			return err
		}
		// Only a signal that is pending for certain stops the thread before
		// it gets to the program.
		if (st.SigPnd|st.ShdPnd)&bit(sig) == 0 {
			break
		}
		if err := sys.PtraceCont(t.tid, 0); err != nil {
			return err
		}
		_, status, err := sys.Wait(t.tid, 0)
		if err != nil {
			return err
		}
		if status.Dead() {
			t.dead = true
			return nil
		}
		if status.SignalStop() && status.Signal() == sig {
			break
		}
	}
	return sys.PtraceSetSigmask(t.tid, mask)
}

// dropStopSignals takes away the SIGCHLD by which the processes of the tree
// tell their parents, if those are in the tree too, that our SIGSTOP and
// SIGCONT have stopped and continued them. Parents outside have got theirs.
func (h *Held) dropStopSignals() error {
	if h.st.Way != WaySigstop {
		return nil
	}
	var errs []error
	for pid, threads := range h.byProcess() {
		t := threads[0]
		pending, err := sys.PtracePeekSiginfo(t.tid, true)
		if err != nil {
			errs = append(errs, ignoreGone(err))
			continue
		}
		for i := range pending {
			if h.isStopSignal(&pending[i]) && !hasZombieChild(pid) {
				errs = append(errs, ignoreGone(h.take(t, unix.SIGCHLD)))
				break
			}
		}
	}
	return errors.Join(errs...)
}

// isStopSignal recognises a SIGCHLD about a stop or a continuation by us.
func (h *Held) isStopSignal(info *[sys.SizeofSiginfo]byte) bool {
	// siginfo_t: si_signo, si_errno, si_code, then aligned to a pointer si_pid,
	// si_uid, si_status (sigaction(2)).
	const cldStopped, cldContinued = 5, 6
	fields := 12
	if strconv.IntSize == 64 {
		fields = 16
	}
	word := func(at int) int { return int(int32(binary.NativeEndian.Uint32(info[at:]))) }
	if word(0) != int(unix.SIGCHLD) || (word(8) != cldStopped && word(8) != cldContinued) {
		return false
	}
	child := word(fields)
	for _, t := range h.st.Tasks {
		if t.PID == child && t.Before == BeforeRunning {
			return true
		}
	}
	return false
}

// hasZombieChild reports whether a child waits to be reaped: then the pending
// SIGCHLD also stands for its death, of which no second one is queued.
func hasZombieChild(pid int) bool {
	tids, err := procfs.Threads(pid)
	if err != nil {
		return true
	}
	for _, tid := range tids {
		children, err := procfs.ReadChildren(pid, tid)
		if err != nil {
			return true // not known: leave the signal
		}
		for _, c := range children {
			if st, err := procfs.ReadStat(c); err == nil && st.State == 'Z' {
				return true
			}
		}
	}
	return false
}
