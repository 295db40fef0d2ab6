package signals

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Siginfo is one pending signal: the 128 bytes of siginfo_t as PTRACE_PEEKSIGINFO gives them.
type Siginfo []byte

const sizeofSiginfo = 128

func (s Siginfo) signo() int32 { return int32(binary.NativeEndian.Uint32(s[0:])) }
func (s Siginfo) code() int32  { return int32(binary.NativeEndian.Uint32(s[8:])) }

// Signals that the tracer itself lives on cannot be pending through a restore, nor a stop that nobody can block.
func checkPending(p *object.Process, tid int, list []Siginfo) error {
	for _, s := range list {
		if sig := unix.Signal(s.signo()); sig == unix.SIGTRAP || sig == unix.SIGSTOP {
			return p.Error("", object.Unsupportedf("thread %d has a %s pending", tid, sys.SignalName(sig)))
		}
	}
	return nil
}

// dumpQueue reads a queue of pending signals without touching it. set is what /proc/PID/status says is pending there:
// a signal may be set without an entry, when the queue was full as it came (then only its number is known).
func dumpQueue(t *object.Thread, shared bool, set uint64) ([]Siginfo, error) {
	timers := standing(t.Process)
	infos, err := queued(t, shared)
	if err != nil {
		return nil, t.Process.Error("", fmt.Errorf("reading pending signals of thread %d: %w", t.TID, err))
	}
	var out []Siginfo
	for i := range infos {
		s := Siginfo(append([]byte(nil), infos[i][:]...))
		if s.signo() < 1 || s.signo() > 64 {
			return nil, t.Process.Error("", fmt.Errorf("internal error: pending signal %d", s.signo()))
		}
		set &^= 1 << (s.signo() - 1)
		if s.code() == siTimer && timers[int32(binary.NativeEndian.Uint32(s[16:]))] {
			continue // its timer, made to fire at once, queues it again
		}
		if s.code() == siTimer {
			// si_sys_private, at byte 32, is the kernel's own note about the timer (siginfo_layout in kernel/signal.c).
			binary.NativeEndian.PutUint32(s[32:], 0)
		}
		out = append(out, s)
	}
	for sig := int32(1); sig <= 64; sig++ {
		if set&(1<<(sig-1)) != 0 {
			s := make(Siginfo, sizeofSiginfo)
			binary.NativeEndian.PutUint32(s, uint32(sig))
			out = append(out, s)
		}
	}
	return out, checkPending(t.Process, t.TID, out)
}

// queued reads a queue from the kernel's memory, or by ptrace.
func queued(t *object.Thread, shared bool) ([]kernelview.Siginfo, error) {
	switch {
	case t.Kernel != nil && shared:
		return t.Kernel.SharedQueue.V, nil
	case t.Kernel != nil:
		return t.Kernel.Queue.V, nil
	}
	return sys.PtracePeekSiginfo(t.TID, shared)
}

// siTimer is SI_TIMER.
const siTimer = -2

func checkQueue(list []Siginfo) error {
	for _, s := range list {
		if len(s) != sizeofSiginfo || s.signo() < 1 || s.signo() > 64 || s.signo() == int32(unix.SIGKILL) || s.signo() == int32(unix.SIGSTOP) || s.signo() == int32(unix.SIGTRAP) {
			return object.BadImagef("a pending signal that cannot be")
		}
	}
	return nil
}

// queueCalls adds the calls by which a task, all signals blocked, queues them to itself. Only a task itself may
// queue what the kernel or kill(2) once sent (si_code >= 0, see rt_tgsigqueueinfo(2)).
func queueCalls(b *tracee.Batch, a *arch.Arch, pid, tid int32, shared bool, list []Siginfo) {
	for _, s := range list {
		if shared {
			b.Call(a.Sys.RtSigqueueinfo, uint64(pid), uint64(s.signo()), b.Data(s)).Note("queueing signal %d", s.signo())
			continue
		}
		b.Call(a.Sys.RtTgsigqueueinfo, uint64(pid), uint64(tid), uint64(s.signo()), b.Data(s)).Note("queueing signal %d", s.signo())
	}
}
