package signals

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Restart says how an interrupted call goes on, where its registers alone do not: a call whose result register holds
// -516 (ERESTART_RESTARTBLOCK) goes on from the task's restart block, which no register shows. The time is what was
// left at the dump, so a sleep sleeps as long as it would have, not counting the time between dump and restore. A wait until a
// moment ends at that moment; where the clock says that it is further away than it was (CLOCK_MONOTONIC after another boot), when
// the time that was left is over.
type Restart struct {
	Kind  uint8 `msgpack:"kind,omitempty"`  // 0: none; 1 nanosleep, 2 poll, 3 futex
	Clock int32 `msgpack:"clock,omitempty"` // of a nanosleep or a futex wait
	Left  int64 `msgpack:"left,omitempty"`  // ns
	// Expires is the end in ns of the clock, as the tree's time namespace has it, for a futex wait until a moment (FUTEX_WAIT_BITSET of futex(2)).
	Expires int64  `msgpack:"expires,omitempty"`
	Remain  uint64 `msgpack:"remain,omitempty"` // where nanosleep writes the time left, when it is interrupted by a signal
	Addr    uint64 `msgpack:"addr,omitempty"`   // struct pollfd[] or the futex word
	Count   uint32 `msgpack:"count,omitempty"`  // of struct pollfd
	Val     uint32 `msgpack:"val,omitempty"`    // futex
	Bitset  uint32 `msgpack:"bitset,omitempty"`
	Shared  bool   `msgpack:"shared,omitempty"` // not FUTEX_PRIVATE_FLAG
	// Endless: the call had no end, so it is just made again.
	Endless bool `msgpack:"endless,omitempty"`
	// Compat: the call is one of 32-bit code, and goes on as such.
	Compat bool `msgpack:"compat,omitempty"`
	// Time32: what is at Remain is struct old_timespec32.
	Time32 bool `msgpack:"time32,omitempty"`
}

// Kinds of Restart.
const (
	RestartNone      = 0
	RestartNanosleep = 1
	RestartPoll      = 2
	RestartFutex     = 3
)

const erestartRestartblock = -516 // linux/errno.h, never seen by a program

func dumpRestart(t *object.Thread, native *arch.Arch, offsets procfs.TimeOffsets) (Restart, error) {
	a := t.ABI
	nr, in := a.SyscallNr(t.Regs)
	if !in || a.Result(t.Regs) != erestartRestartblock {
		return Restart{}, nil
	}
	v := t.View.Restart
	r := Restart{Endless: v.Infinite, Compat: a != native}
	if left, ok := v.Left.Get(); ok {
		r.Left = max(left, 1)
	} else if !v.Infinite {
		v.Kind = kernelview.RestartUnknown
	}
	switch v.Kind {
	case kernelview.RestartNanosleep:
		if v.Alarm || v.Compat && !r.Compat {
			break
		}
		r.Kind, r.Clock, r.Remain, r.Time32 = RestartNanosleep, v.Clock, uint64(v.Remain), v.Compat
		return r, nil
	case kernelview.RestartPoll:
		r.Kind, r.Addr, r.Count = RestartPoll, uint64(v.Pollfds), v.NPollfds
		return r, nil
	case kernelview.RestartFutex:
		shared, ok := v.Shared.Get()
		r.Kind, r.Addr, r.Val, r.Bitset, r.Shared = RestartFutex, uint64(v.Uaddr), v.Val, v.Bitset, shared || !ok
		// A restart_syscall too has the arguments in their registers. FUTEX_WAIT takes a time, CLOCK_REALTIME or not.
		if op := a.SyscallArg(t.Regs, 1) & futexCommand; op == futexWaitBitset || v.Clock == unix.CLOCK_REALTIME {
			r.Clock, r.Expires = v.Clock, v.Expires+offsets.Of(v.Clock) // the kernel counts without
		}
		return r, nil
	}
	// Nobody knows the time left. The call is made again from its start, with its whole time: late, but never an
	// error that the program did not earn. That needs its number, which a restart_syscall has hidden.
	if nr == a.Sys.RestartSyscall {
		nr = restarted(t, a)
	}
	if nr < 0 {
		return Restart{}, t.Process.Error("", object.Unsupportedf("thread %d is in a restarted system call that the kernel view cannot tell", t.TID))
	}
	t.Regs = append([]byte(nil), t.Regs...)
	a.RewindSyscall(t.Regs, nr)
	return Restart{}, nil
}

// restarted returns the number of the call that a thread in restart_syscall(2) once made, as the code there says, -1 where it does
// not. The kernel has left the arguments in their registers.
func restarted(t *object.Thread, a *arch.Arch) int {
	if a.CallBefore == nil {
		return -1
	}
	code := make([]byte, a.CallBeforeLen)
	if err := sys.Read(t.TID, a.PC(t.Regs)-arch.Addr(len(code)), code); err != nil {
		return -1
	}
	nr, ok := a.CallBefore(code)
	if !ok || !slices.Contains([]int{a.Sys.Nanosleep, a.Sys.ClockNanosleep, a.Sys.Poll, a.Sys.Futex}, nr) {
		return -1 // no other call is restarted so
	}
	return nr
}

// Issue adds the call that goes on with the wait for the time that was left; monotonic is the present CLOCK_MONOTONIC in
// ns. The program's own memory and arguments stay as they are: the time is in the batch's.
func (r *Restart) Issue(b *tracee.Batch, monotonic int64) *tracee.Call {
	if r.Compat {
		return r.issueCompat(b, monotonic)
	}
	n := b.Sys()
	switch r.Kind {
	case RestartNanosleep:
		return b.Call(n.ClockNanosleep, r.Clock, 0, timespec(nil, r.Left), r.Remain)
	case RestartPoll:
		return b.Call(n.Poll, r.Addr, r.Count, r.pollTime())
	case RestartFutex:
		op, end := r.futex(monotonic)
		return b.Call(n.Futex, r.Addr, op, r.Val, timespec(nil, end), 0, r.Bitset)
	}
	return nil
}

// issueCompat is Issue for a call of 32-bit code: the restart block remembers that it was one (arch_set_restart_data in
// arch/x86/include/asm/thread_info.h), and with that how the kernel names restart_syscall to it.
func (r *Restart) issueCompat(b *tracee.Batch, monotonic int64) *tracee.Call {
	n := &b.Arch().Compat.Sys
	switch r.Kind {
	case RestartNanosleep:
		if r.Time32 {
			// What is left was a time of 32 bits once.
			var ts []byte
			for _, v := range [2]int64{min(r.Left/1e9, 1<<31-1), r.Left % 1e9} {
				ts = binary.NativeEndian.AppendUint32(ts, uint32(v))
			}
			return b.CompatCall(n.ClockNanosleep, r.Clock, 0, ts, r.Remain)
		}
		return b.CompatCall(n.ClockNanosleepTime64, r.Clock, 0, timespec(nil, r.Left), r.Remain)
	case RestartPoll:
		return b.CompatCall(n.Poll, r.Addr, r.Count, r.pollTime())
	case RestartFutex:
		op, end := r.futex(monotonic)
		return b.CompatCall(n.FutexTime64, r.Addr, op, r.Val, timespec(nil, end), 0, r.Bitset)
	}
	return nil
}

// pollTime is the time left in ms, as poll(2) takes it.
func (r *Restart) pollTime() int64 {
	if r.Endless {
		return -1
	}
	return min((r.Left+1e6-1)/1e6, 1<<31-1)
}

// Of futex(2), linux/futex.h.
const (
	futexWaitBitset = 9
	futexPrivate    = 128
	futexRealtime   = 256
	futexCommand    = ^uint64(futexPrivate | futexRealtime)
)

// futex returns operation and absolute end of FUTEX_WAIT_BITSET, which serves for all: it alone takes a bitset.
func (r *Restart) futex(monotonic int64) (op uint64, end int64) {
	op, end = futexWaitBitset, monotonic+r.Left
	if !r.Shared {
		op |= futexPrivate
	}
	switch {
	case r.Expires == 0:
	case r.Clock == unix.CLOCK_REALTIME:
		op |= futexRealtime
		end = r.Expires
	default:
		end = min(end, r.Expires)
	}
	return op, end
}

// Check refuses what cannot be of a thread with these registers.
func (r *Restart) Check(a *arch.Arch, regs []byte) error {
	if r.Kind > RestartFutex || r.Left < 0 || r.Expires < 0 {
		return object.BadImagef("interrupted call of kind %d with %d ns left", r.Kind, r.Left)
	}
	if r.Compat {
		if a = a.Compat; a == nil {
			return object.BadImagef("an interrupted call of 32-bit code on an architecture without any")
		}
	}
	if r.Time32 && (!r.Compat || r.Kind != RestartNanosleep) {
		return object.BadImagef("a time of 32 bits in a call that has none")
	}
	if _, in := a.SyscallNr(regs); r.Kind != RestartNone && !(in && a.Result(regs) == erestartRestartblock) {
		return object.BadImagef("an interrupted call of kind %d that no register shows", r.Kind)
	}
	return nil
}
