package kernelview

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"

	"crpipe/arch"
)

// Fields of registers and of queues of signals, and what shows that a thread
// has run.
var (
	fTaskSize     = want("task_struct")
	fTStack       = want("task_struct.stack")
	fTIStatus     = want("task_struct.thread_info.status")
	fTNsproxy     = want("task_struct.nsproxy")
	fCredUserNS   = want("cred.user_ns")
	fTComm        = want("task_struct.comm")
	fTPtrace      = want("task_struct.ptrace")
	fTNvcsw       = want("task_struct.nvcsw")
	fTNivcsw      = want("task_struct.nivcsw")
	fTCgroups     = want("task_struct.cgroups")
	fTFSBase      = want("task_struct.thread.fsbase")
	fTGSBase      = want("task_struct.thread.gsbase")
	fTFSIndex     = want("task_struct.thread.fsindex")
	fTGSIndex     = want("task_struct.thread.gsindex")
	fTDS          = want("task_struct.thread.ds")
	fTES          = want("task_struct.thread.es")
	fTPKRU        = want("task_struct.thread.pkru")
	fTFpstate     = want("task_struct.thread.fpu.fpstate") // to 6.15; then the struct lies behind the task
	fFpuFpstate   = want("fpu.fpstate")
	fFpSize       = want("fpstate.size")
	fFpUser       = want("fpstate.user_xfeatures")
	fFpRegs       = want("fpstate.regs")
	fTPendingList = want("task_struct.pending.list")
	fTPendingSet  = want("task_struct.pending.signal")
	fSPendingList = want("signal_struct.shared_pending.list")
	fSPendingSet  = want("signal_struct.shared_pending.signal")
	fQInfo        = want("sigqueue.info")
)

// A rawTask is a thread as far as its registers need it.
type rawTask struct {
	task   []byte // task_struct
	addr   uint64 // where that is
	frame  []byte // struct pt_regs
	fp     []byte // struct fpstate up to the end of its registers
	signal uint64 // address of the signal_struct
}

// raws reads the tasks and their frames. What it returns holds until it is called again.
func (v *bpfView) raws(tids []int) ([]rawTask, error) {
	out := make([]rawTask, len(tids))
	span := v.l.span["task_struct"]
	arena := v.taskArena.take(len(tids) * span)
	frames := make([]uint64, len(tids))
	top := v.l.facts[factStackTop]
	err := v.eachTaskAt(tids, func(i int, addr uint64, b []byte) {
		r := &out[i]
		r.addr = addr
		r.task = arena[i*span : (i+1)*span : (i+1)*span]
		copy(r.task, b)
		r.signal, _ = v.l.uint(b, fTSignal)
		if stack, ok := v.l.uint(b, fTStack); ok && stack != 0 && top.known {
			frames[i] = stack + top.value - frameSize
		}
	})
	if err != nil || !top.known {
		return out, err
	}
	store := v.frameArena.take(len(tids) * frameSize)
	err = v.mem.gather(frames, frameSize, func(i int, b []byte) {
		if b != nil {
			out[i].frame = store[i*frameSize : (i+1)*frameSize : (i+1)*frameSize]
			copy(out[i].frame, b)
		}
	})
	return out, err
}

// Calls is documented with RegisterView.
func (v *bpfView) Calls(tids []int) ([]Call, error) {
	raws, err := v.raws(tids)
	if err != nil {
		return nil, err
	}
	calls := make([]Call, len(tids))
	err = v.calls(raws, tids, func(i int) *Call { return &calls[i] })
	return calls, err
}

// calls fills in the calls of raws.
func (v *bpfView) calls(raws []rawTask, tids []int, call func(i int) *Call) error {
	l := v.l
	signals := make([]uint64, len(raws))
	hands := make([]uint64, len(raws))
	for i := range raws {
		signals[i] = raws[i].signal
		hands[i], _ = l.uint(raws[i].task, fTSighand)
	}
	processes, err := v.gatherMap(signals, l.span["signal_struct"])
	if err != nil {
		return err
	}
	tables, err := v.gatherMap(hands, l.span["sighand_struct"])
	if err != nil {
		return err
	}
	type sets struct{ ignored, caught Maybe[uint64] }
	acts := make(map[uint64]sets, len(tables))
	for a, b := range tables {
		ignored, caught := v.ignoredAndCaught(b)
		acts[a] = sets{ignored, caught}
	}
	for i := range raws {
		b, c := raws[i].task, call(i)
		c.Tid = tids[i]
		c.Frozen = flag(l, b, fTFrozen)
		if raws[i].frame != nil && v.still(b) {
			c.PRStatus = v.prstatus(&raws[i])
		}
		c.Ignored, c.Caught = acts[hands[i]].ignored, acts[hands[i]].caught
		if !l.facts[factQueues].known {
			continue
		}
		c.Blocked = num[uint64](l, b, fTBlocked)
		c.Mask = c.Blocked
		if swapped := flag(l, b, fTRestoreMask); !swapped.Known {
			c.Mask = Maybe[uint64]{}
		} else if swapped.V {
			c.Mask = num[uint64](l, b, fTSavedMask)
		}
		c.Pending = num[uint64](l, b, fTPendingSet)
		c.SharedPending = num[uint64](l, processes[signals[i]], fSPendingSet)
	}
	return nil
}

// still says that a task is not on a processor, where its registers would be.
func (v *bpfView) still(task []byte) bool {
	on, ok := v.l.uint(task, fTOnCPU)
	return ok && on == 0
}

func (v *bpfView) ignoredAndCaught(hand []byte) (ignored, caught Maybe[uint64]) {
	l := v.l
	all, ok := l.bytes(hand, fHandAction)
	size := int(l.fields[fActSize].size)
	if !ok || size == 0 || len(all) != 64*size {
		return ignored, caught
	}
	ignored, caught = Is(uint64(0)), Is(uint64(0))
	for i := range 64 {
		handler, ok := l.uint(all[i*size:(i+1)*size], fActHandler)
		switch {
		case !ok:
			return Maybe[uint64]{}, Maybe[uint64]{}
		case handler == 1: // SIG_IGN
			ignored.V |= 1 << i
		case handler != 0:
			caught.V |= 1 << i
		}
	}
	return ignored, caught
}

// Registers is documented with RegisterView.
func (v *bpfView) Registers(tids []int) ([]Registers, error) {
	raws, err := v.raws(tids)
	if err != nil {
		return nil, err
	}
	out := make([]Registers, len(tids))
	if err := v.calls(raws, tids, func(i int) *Call { return &out[i].Call }); err != nil {
		return nil, err
	}
	if err := v.readFP(raws); err != nil {
		return nil, err
	}
	shared := make(map[uint64]Maybe[[]Siginfo])
	for i := range raws {
		r := &raws[i]
		if out[i].PRStatus.Known {
			out[i].Sets = v.regsets(r)
		}
		out[i].Rseq = v.rseq(r.task)
		if !v.l.facts[factQueues].known {
			continue
		}
		own := func(f field, base uint64, b []byte) (Maybe[[]Siginfo], error) {
			head, ok := v.l.bytes(b, f)
			if !ok || len(head) < 8 {
				return Maybe[[]Siginfo]{}, nil
			}
			return v.queue(base+v.l.off(f), binary.NativeEndian.Uint64(head))
		}
		if out[i].Queue, err = own(fTPendingList, r.addr, r.task); err != nil {
			return nil, err
		}
		queue, seen := shared[r.signal]
		if !seen && r.signal != 0 && v.l.has(fSPendingList) {
			b, err := v.mem.peek(r.signal, v.l.span["signal_struct"])
			if err != nil {
				return nil, err
			}
			if queue, err = own(fSPendingList, r.signal, b); err != nil {
				return nil, err
			}
			shared[r.signal] = queue
		}
		out[i].SharedQueue = queue
	}
	return out, nil
}

// maxQueue bounds a queue of signals, far above what RLIMIT_SIGPENDING is anywhere.
const maxQueue = 1 << 20

// queue follows the list of struct sigqueue whose head lies at an address. What
// changes under the walk makes it unknown.
func (v *bpfView) queue(head, first uint64) (Maybe[[]Siginfo], error) {
	none := Maybe[[]Siginfo]{}
	l := v.l
	info := int(l.fields[fQInfo].size)
	if !l.has(fQInfo) || !l.has(fQList) || info > len(Siginfo{}) {
		return none, nil
	}
	out := []Siginfo(nil)
	for at := first; at != head; {
		if len(out) == maxQueue || !kernelAddress(at) {
			return none, nil
		}
		var s Siginfo
		next, ok := uint64(0), false
		err := v.mem.gather([]uint64{at - l.off(fQList)}, l.span["sigqueue"], func(_ int, b []byte) {
			list, ok1 := l.bytes(b, fQList)
			data, ok2 := l.bytes(b, fQInfo)
			if ok = ok1 && ok2; ok {
				next = binary.NativeEndian.Uint64(list)
				copy(s[:], data)
			}
		})
		if err != nil || !ok {
			return none, err
		}
		out = append(out, s)
		at = next
	}
	return Is(out), nil
}

// rseq is the registration with its length.
func (v *bpfView) rseq(task []byte) Maybe[Rseq] {
	l := v.l
	addr, ok1 := l.uint(task, fTRseq)
	sig, ok2 := l.uint(task, fTRseqSig)
	fixed := l.facts[factRseqLen]
	if !ok1 || !ok2 || !fixed.known {
		return Maybe[Rseq]{}
	}
	r := Rseq{Addr: arch.Addr(addr), Sig: uint32(sig), Len: num[uint32](l, task, fTRseqLen)}
	if fixed.value != 0 {
		r.Len = Is(uint32(fixed.value))
	}
	if !r.Len.Known {
		return Maybe[Rseq]{}
	}
	return Is(r)
}

var markSeed = maphash.MakeSeed()

// Marks is documented with RegisterView.
func (v *bpfView) Marks(tids []int) ([]Mark, error) {
	raws, err := v.raws(tids)
	if err != nil {
		return nil, err
	}
	l := v.l
	since, err := v.frozenSince(raws)
	if err != nil {
		return nil, err
	}
	out := make([]Mark, len(tids))
	for i := range raws {
		b := raws[i].task
		voluntary, ok1 := l.uint(b, fTNvcsw)
		forced, ok2 := l.uint(b, fTNivcsw)
		runtime, ok3 := l.uint(b, fTExecRuntime)
		groups, ok4 := l.uint(b, fTCgroups)
		frozen, ok5 := l.uint(b, fTFrozen)
		traced, ok6 := l.uint(b, fTPtrace)
		exit, ok7 := l.uint(b, fTExitState)
		out[i] = Mark{
			Switches: voluntary + forced, Runtime: runtime, Group: v.id(groups), Frozen: frozen != 0,
			Traced: traced != 0, Dead: exit != 0, Regs: maphash.Bytes(markSeed, raws[i].frame),
			Known:       ok1 && ok2 && ok3 && ok4 && ok5 && ok6 && ok7 && raws[i].frame != nil && v.still(b),
			FrozenSince: since[groups],
		}
	}
	return out, nil
}

// frozenSince reads when the cgroups of tasks were frozen, by the address of the css_set.
func (v *bpfView) frozenSince(raws []rawTask) (map[uint64]Maybe[uint64], error) {
	l := v.l
	if !l.has(fCSSCgroup) || !l.has(fCgroupFrozen) {
		return nil, nil
	}
	var sets []uint64
	for i := range raws {
		if a, ok := l.uint(raws[i].task, fTCgroups); ok {
			sets = append(sets, a)
		}
	}
	heads, err := v.gatherMap(sets, l.span["css_set"])
	if err != nil {
		return nil, err
	}
	groups, err := v.gatherMap(v.follow(heads, fCSSCgroup), l.span["cgroup"])
	if err != nil {
		return nil, err
	}
	out := make(map[uint64]Maybe[uint64], len(heads))
	for a, b := range heads {
		g, _ := l.uint(b, fCSSCgroup)
		out[a] = num[uint64](l, groups[g], fCgroupFrozen)
	}
	return out, nil
}

// Siblings is documented with RegisterView.
func (v *bpfView) Siblings(tids []int) ([]Sibling, error) {
	l := v.l
	out := make([]Sibling, len(tids))
	err := v.eachTask(tids, func(i int, b []byte) {
		comm, ok1 := l.bytes(b, fTComm)
		cred, ok2 := l.uint(b, fTCred)
		fs, ok3 := l.uint(b, fTFS)
		pending, ok4 := l.uint(b, fTPendingSet)
		blocked, ok5 := l.uint(b, fTBlocked)
		mode, ok6 := l.uint(b, fTSeccompMode)
		filters, ok7 := l.uint(b, fTSeccompCount)
		exit, ok8 := l.uint(b, fTExitState)
		nnp := bitsSet(l, b, fTAtomicFlags, factNoNewPrivs)
		name, _, _ := bytes.Cut(comm, []byte{0})
		out[i] = Sibling{
			Tid: tids[i], Comm: string(name), Cred: v.id(cred), FS: v.id(fs), Pending: pending, Blocked: blocked,
			Seccomp: int32(mode), Filters: int32(filters), NoNewPrivs: nnp.V, Dead: exit != 0,
			Known: ok1 && ok2 && ok3 && ok4 && ok5 && ok6 && ok7 && ok8 && nnp.Known,
		}
	})
	return out, err
}
