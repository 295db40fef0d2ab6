package tasks

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Prctls are a thread's values of prctl(2), personality(2) and ioprio_set(2), which only the task itself or the kernel
// knows.
type Prctls struct {
	TimerSlack   uint64 `msgpack:"timer_slack,omitempty"` // ns; 0: a real-time policy, which has none
	DefaultSlack uint64 `msgpack:"default_slack,omitempty"`
	Personality  uint32 `msgpack:"personality,omitempty"`
	PdeathSignal int32  `msgpack:"pdeath_signal,omitempty"`
	MCEKillSet   bool   `msgpack:"mce_kill_set,omitempty"`
	MCEKillEarly bool   `msgpack:"mce_kill_early,omitempty"`
	IOFlusher    bool   `msgpack:"io_flusher,omitempty"`
	TSCFaults    bool   `msgpack:"tsc_faults,omitempty"`
	CPUIDFaults  bool   `msgpack:"cpuid_faults,omitempty"`

	// What PR_SET_SPECULATION_CTRL is given; 0: it was not called, or this machine controls nothing.
	StoreBypass    uint32 `msgpack:"store_bypass,omitempty"`
	IndirectBranch uint32 `msgpack:"indirect_branch,omitempty"`

	Mempolicy      uint16   `msgpack:"mempolicy,omitempty"` // set_mempolicy(2): MPOL_*, 0 the default
	MempolicyFlags uint16   `msgpack:"mempolicy_flags,omitempty"`
	MempolicyNodes []uint64 `msgpack:"mempolicy_nodes,omitempty"` // the mask, lowest nodes first
}

// looker collects what the kernel view knows of a thread, and what it does not.
type looker struct {
	d *object.Dumper
	t *object.Thread
}

func look[T any](l looker, m kernelview.Maybe[T], what string) T {
	v, ok := m.Get()
	if !ok {
		l.d.Refuse(l.t.Process.Error("", &object.Lacking{
			What: fmt.Sprintf("the kernel view does not know the %s of thread %d", what, l.t.TID)}))
	}
	return v
}

func (l looker) refuse(bad bool, format string, args ...any) {
	if bad {
		l.d.Refuse(l.t.Process.Error("", object.Unsupportedf("thread %d %s", l.t.TID, fmt.Sprintf(format, args...))))
	}
}

// DumpPrctls reads these values, and refuses by name those that cannot be kept.
func DumpPrctls(d *object.Dumper, t *object.Thread) Prctls {
	l, v := looker{d, t}, t.View
	mce := look(l, v.MCEKill, "memory-error policy")
	p := Prctls{
		TimerSlack:   look(l, v.TimerSlack, "timer slack"),
		DefaultSlack: look(l, v.DefaultTimerSlack, "default timer slack"),
		Personality:  look(l, v.Personality, "personality"),
		PdeathSignal: look(l, v.PdeathSignal, "parent-death signal"),
		MCEKillSet:   mce.Set, MCEKillEarly: mce.Early,
		IOFlusher:   look(l, v.IOFlusher, "I/O flusher state"),
		TSCFaults:   look(l, v.TSCFaults, "time-stamp counter mode"),
		CPUIDFaults: look(l, v.CPUIDFaults, "permission to use CPUID"),
	}
	if i := slices.IndexFunc(t.Process.Threads, noSlack); i >= 0 && t.Process.Threads[i] == t {
		d.Warn("pid %d (%s): threads whose default timer slack is 0, because a real-time thread made them, will get that of cr-restore", t.Process.PID, t.Process.Comm())
	}
	if policy := look(l, v.Mempolicy, "memory policy"); policy.Set {
		p.Mempolicy, p.MempolicyFlags, p.MempolicyNodes = policy.Mode, policy.Flags, policy.Nodes
	}
	p.StoreBypass, p.IndirectBranch = speculation(look(l, v.Speculation, "speculation controls"))
	l.refuse(look(l, v.Landlock, "Landlock domain"), "is in a Landlock domain (landlock(7)), which no call describes")
	if on, known := v.IOPermitted.Get(); known {
		l.refuse(on, "has I/O ports open (iopl or ioperm)")
	}
	return p
}

// speculation returns the values by which PR_SET_SPECULATION_CTRL sets what is set. Without them a thread has the machine's default.
func speculation(s kernelview.Speculation) (storeBypass, indirectBranch uint32) {
	switch {
	case s.SSBForceDisable:
		storeBypass = unix.PR_SPEC_FORCE_DISABLE
	case s.SSBNoexec:
		storeBypass = unix.PR_SPEC_DISABLE_NOEXEC
	case s.SSBDisable:
		storeBypass = unix.PR_SPEC_DISABLE
	}
	switch {
	case s.IBForceDisable:
		indirectBranch = unix.PR_SPEC_FORCE_DISABLE
	case s.IBDisable:
		indirectBranch = unix.PR_SPEC_DISABLE
	}
	return storeBypass, indirectBranch
}

// noSlack says whether a thread has the default timer slack 0, which a restore cannot pass on (fork(2)).
func noSlack(t *object.Thread) bool {
	slack, known := t.View.DefaultTimerSlack.Get()
	return known && slack == 0
}

// Calls adds the calls that do not depend on credentials.
func (p *Prctls) Calls(b *tracee.Batch, a *arch.Arch) {
	n := &a.Sys
	zero := 0
	b.Call(n.Personality, uint64(p.Personality)) // returns the old one
	if p.MCEKillSet {
		how := uint64(unix.PR_MCE_KILL_LATE)
		if p.MCEKillEarly {
			how = unix.PR_MCE_KILL_EARLY
		}
		b.Call(n.Prctl, unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, how, zero, zero)
	}
	if p.IOFlusher {
		b.Call(n.Prctl, unix.PR_SET_IO_FLUSHER, 1, zero, zero, zero)
	}
	if p.TSCFaults {
		b.Call(n.Prctl, unix.PR_SET_TSC, unix.PR_TSC_SIGSEGV)
	}
	if p.CPUIDFaults {
		const setCPUID = 0x1012 // ARCH_SET_CPUID (asm/prctl.h)
		b.Call(n.ArchPrctl, setCPUID, zero).Note("faults of the CPUID instruction (ARCH_SET_CPUID)")
	}
	if p.StoreBypass != 0 {
		b.Call(n.Prctl, unix.PR_SET_SPECULATION_CTRL, unix.PR_SPEC_STORE_BYPASS, uint64(p.StoreBypass), zero, zero).
			Note("control of speculative store bypass (PR_SET_SPECULATION_CTRL)")
	}
	if p.IndirectBranch != 0 {
		b.Call(n.Prctl, unix.PR_SET_SPECULATION_CTRL, unix.PR_SPEC_INDIRECT_BRANCH, uint64(p.IndirectBranch), zero, zero).
			Note("control of indirect branch speculation (PR_SET_SPECULATION_CTRL)")
	}
	if p.Mempolicy != 0 {
		mask, bits := object.NodeMask(p.MempolicyNodes, a)
		b.Call(n.SetMempolicy, uint64(p.Mempolicy|p.MempolicyFlags), mask, bits).Note("NUMA policy")
	}
	b.Call(n.Prctl, unix.PR_SET_TIMERSLACK, p.TimerSlack) // 0: the default, until a real-time policy takes it away
}

// LateCalls adds what a change of credentials would have taken back.
func (p *Prctls) LateCalls(b *tracee.Batch, a *arch.Arch) {
	if p.PdeathSignal != 0 {
		b.Call(a.Sys.Prctl, unix.PR_SET_PDEATHSIG, uint64(p.PdeathSignal))
	}
}

// DumpPointers fills in the addresses that a thread has registered with the kernel.
func DumpPointers(d *object.Dumper, t *object.Thread, s *Thread) error {
	s.ClearTID = uint64(look(looker{d, t}, t.View.ClearChildTid, "set_tid_address"))
	var err error
	if s.Debug, err = dumpDebug(d, t); err != nil {
		return err
	}
	dumpCompat(d, t, s)
	head, length, err := sys.GetRobustList(t.TID)
	if err != nil {
		return t.Process.Error("", fmt.Errorf("reading robust list of thread %d: %w", t.TID, err))
	}
	if head != 0 {
		s.RobustList, s.RobustLen = uint64(head), length
	}
	if t.Kernel != nil {
		if r := t.Kernel.Rseq.V; r.Addr != 0 {
			s.Rseq, s.RseqLen, s.RseqSig = uint64(r.Addr), r.Len.V, r.Sig
		}
		return nil
	}
	conf, err := sys.PtraceGetRseqConfiguration(t.TID)
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) {
		return nil // a kernel without rseq
	}
	if err != nil {
		return t.Process.Error("", fmt.Errorf("reading rseq configuration of thread %d: %w", t.TID, err))
	}
	if conf.Pointer != 0 {
		s.Rseq, s.RseqLen, s.RseqSig = conf.Pointer, conf.Size, conf.Signature
	}
	return nil
}

// PointerCalls adds the calls that register these addresses again. rseq writes to its area and clears rseq_cs, so they
// come after the memory's contents; what was dumped is written over it by the caller.
func (s *Thread) PointerCalls(b *tracee.Batch, a *arch.Arch) {
	b.Call(a.Sys.SetTidAddress, s.ClearTID) // returns the tid
	if s.RobustList != 0 {
		b.Call(a.Sys.SetRobustList, s.RobustList, s.RobustLen)
	}
	s.compatCalls(b)
	if s.Rseq != 0 {
		b.Call(a.Sys.Rseq, s.Rseq, uint64(s.RseqLen), 0, uint64(s.RseqSig))
	}
	// The name ends at 15 bytes in the kernel, so a longer one in a hostile image does no harm.
	b.Call(a.Sys.Prctl, unix.PR_SET_NAME, b.Data(append([]byte(s.Comm), 0)))
}
