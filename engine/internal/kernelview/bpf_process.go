package kernelview

import "crpipe/arch"

// Registrations as membarrier(2) numbers them.
const (
	barrierGlobal  = 1 << 2
	barrierPrivate = 1 << 4
	barrierSync    = 1 << 6
	barrierRseq    = 1 << 8
)

// The bits of signal_struct.flags beside those that calibration finds. They
// are in one header with these (include/linux/sched/signal.h) and as old.
const signalGroupExit = 4

// Processes is documented with View.
func (v *bpfView) Processes(tids []int) ([]Process, error) {
	tasks, err := v.tasks(tids)
	if err != nil {
		return nil, err
	}
	signals, err := v.gatherMap(v.pointers(tasks, fTSignal), v.l.span["signal_struct"])
	if err != nil {
		return nil, err
	}
	hands, err := v.gatherMap(v.pointers(tasks, fTSighand), v.l.span["sighand_struct"])
	if err != nil {
		return nil, err
	}
	mms, err := v.gatherMap(v.pointers(tasks, fTMM), v.l.span["mm_struct"])
	if err != nil {
		return nil, err
	}
	timers := make(map[uint64]Maybe[[]PosixTimer])
	spaces := make(map[uint64]Maybe[AddressSpace])
	processes := make([]Process, len(tasks))
	for i := range tasks {
		b, p := tasks[i].b, &processes[i]
		p.Tid = tasks[i].tid
		p.Sighand = v.idOf(b, fTSighand)
		hand, _ := v.l.uint(b, fTSighand)
		p.Actions = v.actions(hands[hand])
		p.Signal = v.idOf(b, fTSignal)
		signal, _ := v.l.uint(b, fTSignal)
		v.process(p, signals[signal])
		if _, done := timers[signal]; !done {
			if timers[signal], err = v.timers(signal, signals[signal]); err != nil {
				return nil, err
			}
		}
		p.Timers = timers[signal]
		if p.AutogroupNice, err = v.autogroup(signals[signal]); err != nil {
			return nil, err
		}
		mm, ok := v.l.uint(b, fTMM)
		if _, done := spaces[mm]; !done && ok {
			if spaces[mm], err = v.addressSpace(mm, mms[mm]); err != nil {
				return nil, err
			}
		}
		p.MM = spaces[mm]
	}
	return processes, nil
}

func (v *bpfView) actions(hand []byte) Maybe[[64]Action] {
	l := v.l
	none := Maybe[[64]Action]{}
	all, ok := l.bytes(hand, fHandAction)
	size := int(l.fields[fActSize].size)
	var actions [64]Action
	if !ok || size == 0 || len(all) != len(actions)*size {
		return none
	}
	for i := range actions {
		b := all[i*size : (i+1)*size]
		handler, ok1 := l.uint(b, fActHandler)
		flags, ok2 := l.uint(b, fActFlags)
		mask, ok3 := l.uint(b, fActMask)
		if !ok1 || !ok2 || !ok3 {
			return none
		}
		restorer, _ := l.uint(b, fActRestorer) // not every architecture has one
		actions[i] = Action{
			Handler: arch.Addr(handler), Flags: flags, Restorer: arch.Addr(restorer), Mask: mask,
		}
	}
	return Is(actions)
}

// process reads a signal_struct.
func (v *bpfView) process(p *Process, b []byte) {
	l := v.l
	v.itimers(p, b)
	p.NextTimerID = num[int32](l, b, fSNextTimer)
	p.RestoreIDs = flag(l, b, fSRestoreIDs)
	p.Rlimits = v.rlimits(b)
	p.Subreaper = flag(l, b, fSSubreaper)
	p.HasSubreaper = flag(l, b, fSHasSub)
	p.OOMScoreAdj = num[int16](l, b, fSOOM)
	p.OOMScoreAdjMin = num[int16](l, b, fSOOMMin)
	p.NThreads = num[int32](l, b, fSNThreads)

	stopped := bitsSet(l, b, fSFlags, factStopped)
	continued := bitsSet(l, b, fSFlags, factContinued)
	code := num[int32](l, b, fSExitCode)
	flags, ok := l.uint(b, fSFlags)
	if !ok || !stopped.Known || !code.Known {
		return
	}
	exiting := flags&signalGroupExit != 0
	p.GroupExit = Is(exiting)
	p.GroupExitCode = Is(int32(0))
	p.Stopped = stopped
	p.StopUnwaited = Is(int32(0))
	p.ContUnwaited = continued
	switch {
	case exiting:
		p.GroupExitCode = code
	case stopped.V:
		// The parent's wait takes the code and leaves 0.
		p.StopUnwaited = code
	}
}

func (v *bpfView) rlimits(b []byte) Maybe[[16]Rlimit] {
	var limits [16]Rlimit
	all, ok := v.l.bytes(b, fSRlim)
	element := int(v.l.fields[fSRlim].element)
	if !ok || element == 0 || len(all) != len(limits)*element {
		return Maybe[[16]Rlimit]{}
	}
	for i := range limits {
		one := all[i*element : (i+1)*element]
		cur, ok1 := v.l.uint(one, fRlimCur)
		hard, ok2 := v.l.uint(one, fRlimMax)
		if !ok1 || !ok2 {
			return Maybe[[16]Rlimit]{}
		}
		limits[i] = Rlimit{Cur: cur, Max: hard}
	}
	return Is(limits)
}

// addressSpace reads an mm_struct and what hangs on it.
func (v *bpfView) addressSpace(addr uint64, b []byte) (Maybe[AddressSpace], error) {
	l := v.l
	m := AddressSpace{ID: v.id(addr)}
	if addr == 0 {
		return Is(m), nil
	}
	if b == nil {
		return Maybe[AddressSpace]{}, nil
	}
	m.Users = num[int32](l, b, fMUsers)
	flags, ok := l.uint(b, fMFlags)
	if mask := l.facts[factDumpable]; ok && mask.known {
		m.Dumpable = Is(uint8(flags & mask.value))
	}
	if mask := l.facts[factCoreFilter]; ok && mask.known {
		low := mask.value & -mask.value
		m.CoreFilter = Is(uint32(flags & mask.value / low))
	}
	m.THPDisable = bitsSet(l, b, fMFlags, factTHPDisable)
	m.THPAdvised = bitsSet(l, b, fMFlags, factTHPAdvised)
	m.FutexSlots = v.futexSlots(b)
	m.KSMMerge = bitsSet(l, b, fMFlags, factKSMMerge)
	m.MDWE = bitsSet(l, b, fMFlags, factMDWE)
	m.MDWENoInherit = bitsSet(l, b, fMFlags, factMDWENoInherit)
	m.LockFuture = bitsSet(l, b, fMDefFlags, factLockFuture)
	m.LockOnFault = bitsSet(l, b, fMDefFlags, factLockOnFault)
	m.Membarrier = v.membarrier(b)
	m.ExeFile = v.idOf(b, fMExe)
	if auxv, ok := l.bytes(b, fMAuxv); ok {
		m.Auxv = Is(trimAuxv(words(auxv)))
	}
	m.Layout = v.marks(b)
	m.TaskSize = num[arch.Addr](l, b, fMTaskSize)

	var err error
	if m.AIO, m.AIOContexts, err = v.aioContexts(b); err != nil {
		return Maybe[AddressSpace]{}, err
	}
	if m.LDT, err = v.ldt(b); err != nil {
		return Maybe[AddressSpace]{}, err
	}
	return Is(m), nil
}

// futexSlots reads the size of the hash of private futexes (kernel/futex/core.c).
// A kernel without that member has no such hash, one with a part of it missing
// is unknown.
func (v *bpfView) futexSlots(b []byte) Maybe[int32] {
	addr, ok := v.l.uint(b, fMFutexHash)
	if !ok || addr == 0 {
		return Is(int32(-1))
	}
	h, err := v.mem.peek(addr, v.l.span["futex_private_hash"])
	if err != nil {
		return Maybe[int32]{}
	}
	mask, ok1 := v.l.uint(h, fFutexMask)
	custom, ok2 := v.l.uint(h, fFutexCustom)
	switch {
	case !ok1 || !ok2 || mask >= 1<<30:
		return Maybe[int32]{}
	case custom == 0:
		return Is(int32(-1))
	case mask == 0:
		return Is(int32(0))
	}
	return Is(int32(mask) + 1)
}

// autogroup reads the nice value of the process's autogroup, sched(7).
func (v *bpfView) autogroup(b []byte) (Maybe[int32], error) {
	addr, ok := v.l.uint(b, fSAutogroup)
	if !ok || addr == 0 {
		return Is(int32(0)), nil
	}
	if !v.l.has(fAutoNice) {
		return Maybe[int32]{}, nil
	}
	ag, err := v.mem.peek(addr, v.l.span["autogroup"])
	if err != nil {
		return Maybe[int32]{}, err
	}
	return num[int32](v.l, ag, fAutoNice), nil
}

var (
	fMFutexHash  = want("mm_struct.futex_phash")
	fFutexMask   = want("futex_private_hash.hash_mask")
	fFutexCustom = want("futex_private_hash.custom")
	fSAutogroup  = want("signal_struct.autogroup")
	fAutoNice    = want("autogroup.nice")
)

// membarrier translates the registrations to the numbers of membarrier(2).
func (v *bpfView) membarrier(b []byte) Maybe[uint32] {
	var mask uint32
	for _, r := range []struct {
		name    factName
		command uint32
	}{
		{factBarrierGlobal, barrierGlobal},
		{factBarrierPrivate, barrierPrivate},
		{factBarrierSync, barrierSync},
		{factBarrierRseq, barrierRseq},
	} {
		set := bitsSet(v.l, b, fMMembarrier, r.name)
		if !set.Known {
			return Maybe[uint32]{}
		}
		if set.V {
			mask |= r.command
		}
	}
	return Is(mask)
}

// trimAuxv cuts the vector behind its AT_NULL pair.
func trimAuxv(w []uint64) []uint64 {
	for i := 0; i+1 < len(w); i += 2 {
		if w[i] == 0 {
			return w[:i+2]
		}
	}
	return w
}

func (v *bpfView) marks(b []byte) Maybe[Layout] {
	var m Layout
	for _, f := range []struct {
		to *arch.Addr
		f  field
	}{
		{&m.StartCode, fMStartCode},
		{&m.EndCode, fMEndCode},
		{&m.StartData, fMStartData},
		{&m.EndData, fMEndData},
		{&m.StartBrk, fMStartBrk},
		{&m.Brk, fMBrk},
		{&m.StartStack, fMStartStack},
		{&m.ArgStart, fMArgStart},
		{&m.ArgEnd, fMArgEnd},
		{&m.EnvStart, fMEnvStart},
		{&m.EnvEnd, fMEnvEnd},
	} {
		a := num[arch.Addr](v.l, b, f.f)
		if !a.Known {
			return Maybe[Layout]{}
		}
		*f.to = a.V
	}
	return Is(m)
}

// ldt reads the entries of modify_ldt(2). A kernel without them has no member.
func (v *bpfView) ldt(b []byte) (Maybe[[]byte], error) {
	none := Maybe[[]byte]{}
	addr, ok := v.l.uint(b, fMLDT)
	if !ok || !v.l.has(fLDTCount) || !v.l.has(fLDTEntries) {
		return none, nil
	}
	if addr == 0 {
		return Is[[]byte](nil), nil
	}
	head, err := v.mem.peek(addr, v.l.span["ldt_struct"])
	if err != nil {
		return none, err
	}
	n, _ := v.l.uint(head, fLDTCount)
	entries, _ := v.l.uint(head, fLDTEntries)
	const most = 8192 // LDT_ENTRIES
	if n > most {
		return none, errFault
	}
	data, err := v.mem.peek(entries, int(n)*8)
	if err != nil {
		return none, err
	}
	return Is(data), nil
}
