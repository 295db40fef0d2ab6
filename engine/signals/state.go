package signals

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Process is what a process as a whole has of signals and timers; a part of its record.
type Process struct {
	Pending []Siginfo `msgpack:"pending,omitempty"` // shared queue, oldest first
	Itimers []Itimer  `msgpack:"itimers,omitempty"` // real, virtual, prof; empty when none is armed
	Timers  []Timer   `msgpack:"timers,omitempty"`  // oldest first

	ChoosesIDs bool `msgpack:"chooses_ids,omitempty"` // of timers that it makes: PR_TIMER_CREATE_RESTORE_IDS is on
}

// Thread is what one thread has; a part of its record.
type Thread struct {
	Mask      uint64    `msgpack:"mask,omitempty"` // as the program set it: bit n-1 is signal n
	StackSP   uint64    `msgpack:"altstack_sp,omitempty"`
	StackSize uint64    `msgpack:"altstack_size,omitempty"`
	StackMode uint32    `msgpack:"altstack_flags,omitempty"`
	Pending   []Siginfo `msgpack:"pending,omitempty"`
	Restart   Restart   `msgpack:"restart"`
}

// DumpProcess looks at the signals of p.
func DumpProcess(view kernelview.View, p *object.Process) (s Process, err error) {
	if s.Pending, err = dumpQueue(p.Leader(), true, p.Leader().Status.ShdPnd); err != nil {
		return s, err
	}
	if s.Itimers, err = dumpItimers(p); err != nil {
		return s, err
	}
	s.ChoosesIDs, _ = p.View.RestoreIDs.Get() // unknown: before Linux 6.16, which has no such thing
	s.Timers, err = dumpTimers(view, p)
	return s, err
}

// DumpThread looks at the signals of t. offsets are those of its time namespace.
func DumpThread(t *object.Thread, a *arch.Arch, offsets procfs.TimeOffsets) (s Thread, err error) {
	// While a call such as sigsuspend has put another mask in force this is the saved one (ptrace_request in
	// kernel/ptrace.c): the call, made again, swaps it again.
	if t.Kernel != nil {
		s.Mask = t.Kernel.Mask.V
	} else if s.Mask, err = sys.PtraceGetSigmask(t.TID); err != nil {
		return s, t.Process.Error("", fmt.Errorf("reading signal mask of thread %d: %w", t.TID, err))
	}
	stack, ok := t.View.Altstack.Get()
	if !ok {
		return s, t.Process.Error("", &object.Lacking{What: fmt.Sprintf("the kernel view does not know the alternate signal stack of thread %d", t.TID)})
	}
	if stack.Size != 0 {
		s.StackSP, s.StackSize, s.StackMode = uint64(stack.SP), stack.Size, stack.Flags
	}
	if s.Pending, err = dumpQueue(t, false, t.Status.SigPnd); err != nil {
		return s, err
	}
	s.Restart, err = dumpRestart(t, a, offsets)
	return s, err
}

// Check refuses what no kernel would have given.
func (s *Process) Check() error {
	if err := checkQueue(s.Pending); err != nil {
		return err
	}
	return checkTimers(s.Itimers, s.Timers)
}

// Check refuses what no kernel would have given.
func (s *Thread) Check() error { return checkQueue(s.Pending) }

// Has says whether a signal is pending for the process as a whole.
func (s *Process) Has(sig unix.Signal) bool { return has(s.Pending, sig) }

// Has says whether a signal is pending for the thread alone.
func (s *Thread) Has(sig unix.Signal) bool { return has(s.Pending, sig) }

func has(list []Siginfo, sig unix.Signal) bool {
	return slices.ContainsFunc(list, func(s Siginfo) bool { return len(s) == sizeofSiginfo && s.signo() == int32(sig) })
}

// StackCalls adds the call that sets a thread's alternate signal stack.
func (s *Thread) StackCalls(b *tracee.Batch, a *arch.Arch) {
	if s.StackSize != 0 {
		// stack_t: sp, flags and padding, size. The kernel keeps SS_ONSTACK out of the flags it is given.
		st := binary.NativeEndian.AppendUint64(nil, s.StackSP)
		st = binary.NativeEndian.AppendUint32(st, s.StackMode&ssAutodisarm)
		st = binary.NativeEndian.AppendUint32(st, 0)
		st = binary.NativeEndian.AppendUint64(st, s.StackSize)
		b.Call(a.Sys.Sigaltstack, b.Data(st), 0)
	}
}

// Calls adds what a thread does about its own pending signals, all of them blocked.
func (s *Thread) Calls(b *tracee.Batch, a *arch.Arch, pid, tid int32) {
	queueCalls(b, a, pid, tid, false, s.Pending)
}

const ssAutodisarm = 1 << 31 // SS_AUTODISARM

// Calls adds what the leader does about the signals of the whole process: last of all, for timers tick from here. now reads a clock as
// the process sees it.
func (s *Process) Calls(b *tracee.Batch, a *arch.Arch, pid int32, now func(clock int32) (int64, error)) {
	queueCalls(b, a, pid, pid, true, s.Pending)
	timerCalls(b, a, s.Timers, s.ChoosesIDs, now)
	itimerCalls(b, a, s.Itimers)
}
