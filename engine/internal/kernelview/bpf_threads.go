package kernelview

import (
	"encoding/binary"
	"runtime"

	"crpipe/arch"
)

// taskLinks is where a task leads to for what is not in itself.
type taskLinks struct{ signal, cred, ioc, policy, undo, cpus, filter, parent, fs uint64 }

// related is what the tasks of one call lead to, read all at once.
type related struct {
	signal, cred, ioc, policy, undo, cpus, fs map[uint64][]byte
	tgids                                     map[uint64]int    // numbers of struct pids
	parents                                   map[uint64]uint64 // struct pids of parents, by where in the task their address is
	keyrings                                  map[uint64]Maybe[Keyrings]
	landlocked                                map[uint64]Maybe[bool]
}

// Threads is documented with View.
func (v *bpfView) Threads(tids []int) ([]Thread, error) {
	threads := make([]Thread, len(tids))
	links := make([]taskLinks, len(tids))
	err := v.eachTask(tids, func(i int, b []byte) {
		threads[i] = Thread{Tid: tids[i]}
		v.thread(&threads[i], &links[i], b)
	})
	if err != nil {
		return nil, err
	}
	r, err := v.related(links)
	if err != nil {
		return nil, err
	}
	for i := range threads {
		v.relate(&threads[i], &links[i], r)
	}
	if err := v.cpuRestarts(threads, links); err != nil {
		return nil, err
	}
	filters := make([]uint64, len(links))
	for i := range links {
		filters[i] = links[i].filter
	}
	if err := v.seccomp(threads, filters); err != nil {
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

func (v *bpfView) related(links []taskLinks) (*related, error) {
	var r related
	var err error
	addrs := make([]uint64, len(links))
	read := func(of func(*taskLinks) uint64, size int) map[uint64][]byte {
		if err != nil || size == 0 {
			return nil
		}
		for i := range links {
			addrs[i] = of(&links[i])
		}
		var m map[uint64][]byte
		m, err = v.gatherMap(addrs, size)
		return m
	}
	r.signal = read(func(l *taskLinks) uint64 { return l.signal }, v.l.span["signal_struct"])
	r.cred = read(func(l *taskLinks) uint64 { return l.cred }, v.l.span["cred"])
	r.ioc = read(func(l *taskLinks) uint64 { return l.ioc }, v.l.span["io_context"])
	r.policy = read(func(l *taskLinks) uint64 { return l.policy }, v.l.span["mempolicy"])
	r.undo = read(func(l *taskLinks) uint64 { return l.undo }, v.l.span["sem_undo_list"])
	r.fs = read(func(l *taskLinks) uint64 { return l.fs }, v.l.span["fs_struct"])
	r.cpus = read(func(l *taskLinks) uint64 { return l.cpus }, v.cpuMaskSize)
	if err != nil {
		return nil, err
	}
	if r.keyrings, err = v.keyrings(r.cred); err != nil {
		return nil, err
	}
	if r.landlocked, err = v.landlocked(r.cred); err != nil {
		return nil, err
	}
	leaders := make([]uint64, 0, len(r.signal))
	for _, s := range r.signal {
		leaders = append(leaders, v.leaderPid(s))
	}
	if v.l.has(fTRealParent) {
		pids := read(func(l *taskLinks) uint64 { return l.parent }, 8)
		if err != nil {
			return nil, err
		}
		r.parents = make(map[uint64]uint64, len(pids))
		for at, b := range pids {
			r.parents[at] = binary.NativeEndian.Uint64(b)
			leaders = append(leaders, r.parents[at])
		}
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

// thread reads what is in the task itself.
func (v *bpfView) thread(t *Thread, links *taskLinks, b []byte) {
	l := v.l
	links.signal, _ = l.uint(b, fTSignal)
	links.cred, _ = l.uint(b, fTCred)
	links.ioc, _ = l.uint(b, fTIOContext)
	links.policy, _ = l.uint(b, fTMempolicy)
	links.undo, _ = l.uint(b, fTUndoList)
	links.cpus, _ = l.uint(b, fTUserCPUs)
	links.filter, _ = l.uint(b, fTSeccompFilter)
	links.fs, _ = l.uint(b, fTFS)
	if parent, ok := l.uint(b, fTRealParent); ok && parent != 0 {
		links.parent = parent + l.off(fTThreadPid)
	}

	t.MM = v.idOf(b, fTMM)
	t.Files = v.idOf(b, fTFiles)
	t.FS = v.idOf(b, fTFS)
	t.Sighand = v.idOf(b, fTSighand)
	t.Signal = v.idOf(b, fTSignal)
	t.IOContext = v.idOf(b, fTIOContext)
	t.SysVSem = v.idOf(b, fTUndoList)
	t.Cred = v.idOf(b, fTCred)
	t.Namespaces = v.idOf(b, fTNsproxy)

	t.State = v.threadState(b)
	t.Restart = v.restart(b)
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
	t.NoNewPrivs = bitsSet(l, b, fTAtomicFlags, factNoNewPrivs)
	t.Personality = num[uint32](l, b, fTPersonality)
	set, early := bitsSet(l, b, fTFlags, factMCEProcess), bitsSet(l, b, fTFlags, factMCEEarly)
	if set.Known && early.Known {
		t.MCEKill = Is(MCEKill{Set: set.V, Early: set.V && early.V})
	}
	t.IOFlusher = bitsSet(l, b, fTFlags, factIOFlusher)
	t.LoginUID, t.SessionID = num[uint32](l, b, fTLoginUID), num[uint32](l, b, fTSessionID)
	if !l.has(fTLoginUID) && !l.has(fTSessionID) { // a kernel without CONFIG_AUDIT
		t.LoginUID, t.SessionID = Is(^uint32(0)), Is(^uint32(0))
	}
	t.SeccompMode = num[int32](l, b, fTSeccompMode)
	t.SeccompFilters = num[int32](l, b, fTSeccompCount)
	t.TSCFaults = bitsSet(l, b, fTIFlags, factTSCFaults)
	t.CPUIDFaults = bitsSet(l, b, fTIFlags, factCPUIDFaults)
	t.Speculation = v.speculationOf(b)
	t.SyscallDispatch = v.dispatchOf(b)

	t.ResetOnFork = flag(l, b, fTResetOnFork)
	t.SchedSlice = num[uint64](l, b, fTSlice)
	t.CustomSlice = flag(l, b, fTCustomSlice)
	v.hardware(t, b)
}

var (
	fTLoginUID  = want("task_struct.loginuid")
	fTSessionID = want("task_struct.sessionid")

	fFSRootMount  = want("fs_struct.root.mnt")
	fFSRootDentry = want("fs_struct.root.dentry")
	fFSCwdMount   = want("fs_struct.pwd.mnt")
	fFSCwdDentry  = want("fs_struct.pwd.dentry")
)

// placeOf reads a struct path.
func (v *bpfView) placeOf(b []byte, mount, dentry field) Maybe[Place] {
	m, d := v.idOf(b, mount), v.idOf(b, dentry)
	if !m.Known || !d.Known {
		return Maybe[Place]{}
	}
	return Is(Place{m.V, d.V})
}

// semUndo says whether the list of semaphore adjustments has entries. All threads made by pthread_create share one
// list, nearly always an empty one.
func (v *bpfView) semUndo(addr uint64, lists map[uint64][]byte) Maybe[bool] {
	if !v.l.has(fTUndoList) || !v.l.has(fUndoProc) {
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

// relate reads what the task leads to.
func (v *bpfView) relate(t *Thread, links *taskLinks, r *related) {
	l := v.l
	signal := r.signal[links.signal]
	t.Tgid = r.tgids[v.leaderPid(signal)]
	if pid, ok := r.parents[links.parent]; ok {
		t.Parent = Is(r.tgids[pid])
	}
	t.Securebits = num[uint32](l, r.cred[links.cred], fCredSecurebits)
	t.UserNS = v.idOf(r.cred[links.cred], fCredUserNS)
	t.Keyrings, t.Landlock = r.keyrings[links.cred], r.landlocked[links.cred]
	t.Root = v.placeOf(r.fs[links.fs], fFSRootMount, fFSRootDentry)
	t.Cwd = v.placeOf(r.fs[links.fs], fFSCwdMount, fFSCwdDentry)
	t.Ioprio = num[uint16](l, r.ioc[links.ioc], fIOCIoprio)
	if links.ioc == 0 && l.has(fTIOContext) {
		t.Ioprio = Is(uint16(0))
	}
	if t.SemUndo = v.semUndo(links.undo, r.undo); t.SemUndo.V {
		if v.undoLists == nil {
			v.undoLists = map[ID]uint64{}
		}
		v.undoLists[v.id(links.undo)] = links.undo
	}
	t.Mempolicy = v.mempolicyOf(links.policy, r.policy)
	if l.has(fTUserCPUs) {
		if links.cpus == 0 {
			t.UserAffinity = Is[[]uint64](nil)
		} else if mask, ok := r.cpus[links.cpus]; ok {
			t.UserAffinity = Is(words(mask))
		}
	}

	// A stop signal that the task remembers means something only in a stop.
	s := &t.State
	s.JobStopped = bitsSet(l, signal, fSFlags, factStopped)
	switch {
	case !s.JobStopped.Known:
		s.StopSignal = Maybe[int32]{}
	case !s.JobStopped.V:
		s.StopSignal = Is(int32(0))
	case s.StopSignal.V == 0:
		s.StopSignal = Maybe[int32]{}
	}
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

// threadState tells how the thread is stopped, except for what relate adds.
func (v *bpfView) threadState(b []byte) ThreadState {
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
	if jobctl, ok := l.uint(b, fTJobctl); ok {
		const stopSignal = 0xffff // JOBCTL_STOP_SIGMASK
		s.StopSignal = Is(int32(jobctl & stopSignal))
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

func (v *bpfView) mempolicyOf(addr uint64, policies map[uint64][]byte) Maybe[Mempolicy] {
	l := v.l
	if !l.has(fTMempolicy) {
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
	const local = 4 // MPOL_LOCAL takes no nodes; the kernel keeps those of the cpuset there
	if m.Mode == local {
		m.Nodes = nil
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
