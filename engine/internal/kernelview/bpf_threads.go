package kernelview

import (
	"encoding/binary"
	"runtime"

	"crpipe/arch"
)

// related is what the tasks of one call point to, read all at once.
type related struct {
	signal, cred, ioc, policy, undo map[uint64][]byte
	cpumasks                        map[uint64][]byte
	tgids                           map[uint64]int // numbers of struct pids
}

// Threads is documented with View.
func (v *bpfView) Threads(tids []int) ([]Thread, error) {
	tasks, err := v.tasks(tids)
	if err != nil {
		return nil, err
	}
	r, err := v.related(tasks)
	if err != nil {
		return nil, err
	}
	threads := make([]Thread, len(tasks))
	for i := range tasks {
		v.thread(&threads[i], &tasks[i], r)
	}
	if err := v.restarts(tasks, threads); err != nil {
		return nil, err
	}
	return threads, nil
}

// pointers collects one pointer field of all tasks.
func (v *bpfView) pointers(tasks []task, f field) []uint64 {
	addrs := make([]uint64, len(tasks))
	for i := range tasks {
		addrs[i], _ = v.l.uint(tasks[i].b, f)
	}
	return addrs
}

func (v *bpfView) related(tasks []task) (*related, error) {
	var r related
	var err error
	read := func(f field, structure string) map[uint64][]byte {
		if err != nil || !v.l.has(f) {
			return nil
		}
		var m map[uint64][]byte
		m, err = v.gatherMap(v.pointers(tasks, f), v.l.span[structure])
		return m
	}
	r.signal = read(fTSignal, "signal_struct")
	r.cred = read(fTCred, "cred")
	r.ioc = read(fTIOContext, "io_context")
	r.policy = read(fTMempolicy, "mempolicy")
	r.undo = read(fTUndoList, "sem_undo_list")
	if err != nil {
		return nil, err
	}
	if v.l.has(fTUserCPUs) && v.l.has(fTCPUsMask) {
		r.cpumasks, err = v.gatherMap(v.pointers(tasks, fTUserCPUs), int(v.l.fields[fTCPUsMask].size))
		if err != nil {
			return nil, err
		}
	}
	leaders := make([]uint64, 0, len(r.signal))
	for _, s := range r.signal {
		leaders = append(leaders, v.leaderPid(s))
	}
	r.tgids, err = v.numbers(leaders)
	return &r, err
}

// leaderPid is the struct pid of a process.
func (v *bpfView) leaderPid(signal []byte) uint64 {
	pids, ok := v.l.bytes(signal, fSPids)
	if !ok || len(pids) < (pidTypeTgid+1)*8 {
		return 0
	}
	return binary.NativeEndian.Uint64(pids[pidTypeTgid*8:])
}

func (v *bpfView) thread(t *Thread, k *task, r *related) {
	l, b := v.l, k.b
	t.Tid = k.tid
	signalAddr, _ := l.uint(b, fTSignal)
	signal := r.signal[signalAddr]
	t.Tgid = r.tgids[v.leaderPid(signal)]

	t.MM = v.idOf(b, fTMM)
	t.Files = v.idOf(b, fTFiles)
	t.FS = v.idOf(b, fTFS)
	t.Sighand = v.idOf(b, fTSighand)
	t.Signal = v.idOf(b, fTSignal)
	t.IOContext = v.idOf(b, fTIOContext)
	t.SysVSem = v.idOf(b, fTUndoList)
	t.SemUndo = v.semUndo(b, r.undo)
	t.Cred = v.idOf(b, fTCred)

	t.State = v.threadState(b, signal)
	t.ExitSignal = num[int32](l, b, fTExitSignal)
	t.PdeathSignal = num[int32](l, b, fTPdeath)

	sp, ok1 := l.uint(b, fTAltSP)
	size, ok2 := l.uint(b, fTAltSize)
	flags, ok3 := l.uint(b, fTAltFlags)
	if ok1 && ok2 && ok3 {
		t.Altstack = Is(Altstack{arch.Addr(sp), size, uint32(flags)})
	}

	t.Blocked = num[uint64](l, b, fTBlocked)
	t.RealBlocked = num[uint64](l, b, fTRealBlocked)
	t.HasSavedMask = flag(l, b, fTRestoreMask)
	if t.HasSavedMask.V {
		t.SavedMask = num[uint64](l, b, fTSavedMask)
	}

	t.ClearChildTid = num[arch.Addr](l, b, fTClearChild)
	t.SetChildTid = num[arch.Addr](l, b, fTSetChild)
	t.RobustList = num[arch.Addr](l, b, fTRobust)
	t.CompatRobust = num[arch.Addr](l, b, fTCompatRobust)
	if addr, ok := l.uint(b, fTRseq); ok {
		sig, _ := l.uint(b, fTRseqSig)
		t.Rseq = Is(Rseq{Addr: arch.Addr(addr), Len: num[uint32](l, b, fTRseqLen), Sig: uint32(sig)})
		if !l.has(fTRseqSig) {
			t.Rseq = Maybe[Rseq]{}
		}
	}

	t.TimerSlack = num[uint64](l, b, fTSlack)
	t.DefaultTimerSlack = num[uint64](l, b, fTDefaultSlack)
	if cred, ok := l.uint(b, fTCred); ok {
		t.Securebits = num[uint32](l, r.cred[cred], fCredSecurebits)
	}
	t.NoNewPrivs = bitsSet(l, b, fTAtomicFlags, factNoNewPrivs)
	t.Personality = num[uint32](l, b, fTPersonality)
	if ioc, ok := l.uint(b, fTIOContext); ok {
		t.Ioprio = num[uint16](l, r.ioc[ioc], fIOCIoprio)
		if ioc == 0 {
			t.Ioprio = Is(uint16(0))
		}
	}
	set, early := bitsSet(l, b, fTFlags, factMCEProcess), bitsSet(l, b, fTFlags, factMCEEarly)
	if set.Known && early.Known {
		t.MCEKill = Is(MCEKill{Set: set.V, Early: set.V && early.V})
	}
	t.IOFlusher = bitsSet(l, b, fTFlags, factIOFlusher)
	t.SeccompMode = num[int32](l, b, fTSeccompMode)
	t.SeccompFilters = num[int32](l, b, fTSeccompCount)
	t.TSCFaults = bitsSet(l, b, fTIFlags, factTSCFaults)
	t.Speculation = v.speculationOf(b)
	t.SyscallDispatch = v.dispatchOf(b)
	t.Mempolicy = v.mempolicyOf(b, r.policy)

	t.ResetOnFork = flag(l, b, fTResetOnFork)
	t.SchedSlice = num[uint64](l, b, fTSlice)
	t.CustomSlice = flag(l, b, fTCustomSlice)
	if p, ok := l.uint(b, fTUserCPUs); ok {
		if p == 0 {
			t.UserAffinity = Is[[]uint64](nil)
		} else if mask, ok := r.cpumasks[p]; ok {
			t.UserAffinity = Is(words(mask))
		}
	}
	v.hardware(t, b)
}

// semUndo says whether the list of semaphore adjustments has entries. All threads made by pthread_create share one
// list, nearly always an empty one.
func (v *bpfView) semUndo(task []byte, lists map[uint64][]byte) Maybe[bool] {
	addr, ok := v.l.uint(task, fTUndoList)
	if !ok || !v.l.has(fUndoProc) {
		return Maybe[bool]{}
	}
	if addr == 0 {
		return Is(false)
	}
	head, ok := v.l.bytes(lists[addr], fUndoProc)
	if !ok {
		return Maybe[bool]{}
	}
	return Is(binary.NativeEndian.Uint64(head) != addr+v.l.off(fUndoProc))
}

// hardware reads what only x86 has. On other machines there is none of it.
func (v *bpfView) hardware(t *Thread, b []byte) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "386" {
		t.IOPermitted, t.TLS = Is(false), Is([3]uint64{})
		return
	}
	if bps, ok := v.l.bytes(b, fTBreakpoints); ok {
		t.Breakpoints = Is(!allZero(bps))
	}
	bitmap, ok1 := v.l.uint(b, fTIOBitmap)
	iopl, ok2 := v.l.uint(b, fTIOPL)
	if ok1 && ok2 {
		t.IOPermitted = Is(bitmap != 0 || iopl != 0)
	}
	if tls, ok := v.l.bytes(b, fTTLS); ok && len(tls) == 24 {
		t.TLS = Is([3]uint64(words(tls)))
	}
}

// threadState tells how the thread is stopped. The bits of signal_struct.flags
// have been the same for as long as they have existed; calibration has looked
// at the two that say stopped and continued.
func (v *bpfView) threadState(b, signal []byte) ThreadState {
	l := v.l
	var s ThreadState
	if exit, ok := l.uint(b, fTExitState); ok {
		s.Zombie = Is(exit != 0)
		if exit != 0 {
			s.ExitCode = num[int32](l, b, fTExitCode)
		}
	}
	s.Frozen = flag(l, b, fTFrozen)
	s.OnCPU = flag(l, b, fTOnCPU)
	s.VforkChild = flag(l, b, fTVforkDone)
	s.JobStopped = bitsSet(l, signal, fSFlags, factStopped)
	if s.JobStopped.Known {
		// JOBCTL_STOP_SIGMASK: the low 16 bits, stale when nothing is stopped.
		const stopSignal = 0xffff
		jobctl, ok := l.uint(b, fTJobctl)
		switch {
		case !s.JobStopped.V:
			s.StopSignal = Is(int32(0))
		case ok && jobctl&stopSignal != 0:
			s.StopSignal = Is(int32(jobctl & stopSignal))
		}
	}
	return s
}

func (v *bpfView) speculationOf(b []byte) Maybe[Speculation] {
	if !v.speculation {
		return Is(Speculation{})
	}
	get := func(x factName) Maybe[bool] { return bitsSet(v.l, b, fTAtomicFlags, x) }
	sd, sf, sn := get(factSSBDisable), get(factSSBForce), get(factSSBNoexec)
	id, ifo := get(factIBDisable), get(factIBForce)
	if !sd.Known || !sf.Known || !sn.Known || !id.Known || !ifo.Known {
		return Maybe[Speculation]{}
	}
	return Is(Speculation{
		SSBDisable: sd.V, SSBForceDisable: sf.V, SSBNoexec: sn.V,
		IBDisable: id.V, IBForceDisable: ifo.V,
	})
}

func (v *bpfView) dispatchOf(b []byte) Maybe[SyscallDispatch] {
	l := v.l
	on := bitsSet(l, b, fTSyscallWork, factDispatch)
	sel, ok1 := l.uint(b, fTDispatchSel)
	off, ok2 := l.uint(b, fTDispatchOff)
	n, ok3 := l.uint(b, fTDispatchLen)
	if !on.Known || !ok1 || !ok2 || !ok3 {
		return Maybe[SyscallDispatch]{}
	}
	if !on.V {
		return Is(SyscallDispatch{})
	}
	return Is(SyscallDispatch{On: true, Selector: arch.Addr(sel), Offset: arch.Addr(off), Len: n})
}

func (v *bpfView) mempolicyOf(b []byte, policies map[uint64][]byte) Maybe[Mempolicy] {
	l := v.l
	addr, ok := l.uint(b, fTMempolicy)
	if !ok {
		return Maybe[Mempolicy]{}
	}
	if addr == 0 {
		return Is(Mempolicy{Home: -1})
	}
	p := policies[addr]
	// uapi/linux/mempolicy.h: the flags that a program can give, and the two that
	// say that its own mask is kept beside the one in force.
	const userFlags, keepsUserMask = 0xe000, 0xc000
	mode, ok1 := l.uint(p, fPolMode)
	flags, ok2 := l.uint(p, fPolFlags)
	nodes, ok3 := l.bytes(p, fPolNodes)
	if ok2 && flags&keepsUserMask != 0 {
		nodes, ok3 = l.bytes(p, fPolUserNodes)
	}
	home := num[int32](l, p, fPolHome)
	if !ok1 || !ok2 || !ok3 {
		return Maybe[Mempolicy]{}
	}
	m := Mempolicy{Set: true, Mode: uint16(mode), Flags: uint16(flags & userFlags), Nodes: words(nodes), Home: -1}
	if home.Known {
		m.Home = home.V
	}
	for len(m.Nodes) > 0 && m.Nodes[len(m.Nodes)-1] == 0 {
		m.Nodes = m.Nodes[:len(m.Nodes)-1]
	}
	return Is(m)
}

func words(b []byte) []uint64 {
	w := make([]uint64, len(b)/8)
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return w
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
