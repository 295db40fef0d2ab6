package kernelview

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// Bits of task->flags, which /proc/PID/stat shows (include/linux/sched.h): what PR_SET_IO_FLUSHER sets.
const (
	pfMemallocNoIO  = 0x00080000
	pfLocalThrottle = 0x00100000
)

// prctl(2) options that golang.org/x/sys/unix lacks or names otherwise.
const (
	prGetTIDAddress  = 40
	prGetIOFlusher   = 58
	prGetSpeculation = 52
	mceKillDefault   = 2 // PR_MCE_KILL_DEFAULT
	mceKillEarly     = 1
)

// Threads implements View.
func (v *classicalView) Threads(tids []int) ([]Thread, error) {
	out := make([]Thread, len(tids))
	err := v.do(func() error {
		ours, err := sys.SchedGetattr(os.Getpid())
		if err != nil {
			return fmt.Errorf("reading the own scheduling: %w", err)
		}
		sets := usedSemaphores(tids)
		for i, tid := range tids {
			t := &out[i]
			*t = Thread{Tid: tid}
			st, err := procfs.ReadStatus(tid)
			if err != nil {
				return err
			}
			t.Tgid = st.Tgid
			if err := v.identities(t, tids[0]); err != nil {
				return err
			}
			if t.SysVSem.Known && t.SysVSem.V == 0 || sets.Known && !slices.ContainsFunc(sets.V, func(s semaphores) bool { return s.mayBeOf(st) }) {
				t.SemUndo = Is(false)
			}
			if err := v.fromOutside(t, st, &ours); err != nil {
				return err
			}
			if err := v.login(t, st); err != nil {
				return err
			}
			if st.Tgid == os.Getpid() {
				t.Keyrings = ownSession()
			}
			if st.State == 'Z' || st.State == 'X' || st.Tgid == os.Getpid() {
				continue // ended, or a thread of this process: nobody holds it
			}
			if err := v.mayVisit(t, st); err != nil {
				return err
			}
			if err := v.visitThread(t, st); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// identities fills in which objects the thread uses.
func (v *classicalView) identities(t *Thread, _ int) error {
	for _, o := range []struct {
		typ sys.KcmpType
		to  *Maybe[ID]
	}{
		{sys.KcmpVM, &t.MM}, {sys.KcmpFiles, &t.Files}, {sys.KcmpFS, &t.FS}, {sys.KcmpSighand, &t.Sighand},
		{sys.KcmpIO, &t.IOContext}, {sys.KcmpSysvsem, &t.SysVSem},
	} {
		var err error
		if *o.to, err = v.identify(o.typ, t.Tid); err != nil {
			return err
		}
	}
	return nil
}

// fromOutside fills in what needs nothing of the thread.
func (v *classicalView) fromOutside(t *Thread, st *procfs.Status, ours *sys.SchedAttr) error {
	stat, err := procfs.ReadThreadStat(t.Tgid, t.Tid)
	if err != nil {
		return err
	}
	t.State.Zombie = Is(st.State == 'Z')
	t.State.StopSignal = Is(v.remote.StopSignal(t.Tgid))
	t.State.JobStopped = Is(t.State.StopSignal.V != 0)
	t.NoNewPrivs = Is(st.NoNewPrivs)
	t.SeccompMode = Is(int32(st.Seccomp))
	t.SeccompFilters = Is(int32(st.SeccompFilters))
	t.IOFlusher = Is(stat.Flags&(pfMemallocNoIO|pfLocalThrottle) == pfMemallocNoIO|pfLocalThrottle)
	t.ExitSignal = Is(stat.ExitSignal)
	if t.Tid != t.Tgid {
		t.ExitSignal = Is[int32](-1)
	}
	if p, err := sys.IoprioGet(t.Tid); err == nil {
		t.Ioprio = Is(uint16(p))
	}
	a, err := sys.SchedGetattr(t.Tid)
	if err != nil {
		return fmt.Errorf("reading the scheduling of thread %d: %w", t.Tid, err)
	}
	t.ResetOnFork = Is(a.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0)
	if a.Policy == unix.SCHED_NORMAL || a.Policy == unix.SCHED_BATCH {
		// The slice that everybody has is that of this process too.
		t.SchedSlice = Is(a.Runtime)
		t.CustomSlice = Is(a.Runtime != ours.Runtime && ours.Policy == a.Policy)
	}
	fillProcessor(t)
	return nil
}

// mode32 says whether a thread executes the code of the 32-bit companion of this machine's architecture.
func mode32(tid int) (bool, error) {
	a, err := arch.Native()
	if err != nil || a.Compat == nil {
		return false, err
	}
	regs := make([]byte, a.PRStatusSize)
	if _, err := sys.PtraceGetRegs(tid, regs); err != nil {
		return false, err
	}
	return a.CompatMode(regs), nil
}

// mayVisit refuses threads that system calls would harm, or that would not get what they ask for.
func (v *classicalView) mayVisit(t *Thread, st *procfs.Status) error {
	if n, err := sys.PtraceGetRegset(t.Tid, arch.NTPRStatus, make([]byte, 1024)); err != nil || n != v.a.PRStatusSize {
		return &RefusedError{
			What: fmt.Sprintf("pid %d (%s): thread %d runs in another mode than this cr-dump (registers of %d bytes), so that it cannot be asked to execute system calls", t.Tgid, st.Name, t.Tid, n),
			Fix:  "dump it as root on a kernel with BTF, where nothing is executed in it (--source bpf)",
		}
	}
	if st.Seccomp != 0 {
		return &RefusedError{
			What: fmt.Sprintf("pid %d (%s): thread %d is in seccomp mode %d, so that it cannot be asked to execute the system calls by which it tells its state", t.Tgid, st.Name, t.Tid, st.Seccomp),
			Fix:  "dump it as root on a kernel with BTF, where nothing is executed in it (--source bpf)",
		}
	}
	if mode, err := mode32(t.Tid); err != nil {
		return fmt.Errorf("reading registers of thread %d: %w", t.Tid, err)
	} else if mode {
		return &RefusedError{
			What: fmt.Sprintf("pid %d (%s): thread %d executes 32-bit code, and cannot be asked to execute the system calls by which it tells its state", t.Tgid, st.Name, t.Tid),
			Fix:  "dump it as root on a kernel with BTF, where nothing is executed in it (--source bpf)",
		}
	}
	on, err := sys.PtraceGetSyscallUserDispatch(t.Tid)
	switch {
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EINVAL): // before Linux 6.4
	case err != nil:
		return fmt.Errorf("asking for the system call dispatch of thread %d: %w", t.Tid, err)
	default:
		t.SyscallDispatch = Is(SyscallDispatch{On: on.Mode != 0, Selector: arch.Addr(on.Selector), Offset: arch.Addr(on.Offset), Len: on.Len})
		if on.Mode != 0 {
			return &RefusedError{
				What: fmt.Sprintf("pid %d (%s): thread %d has system call user dispatch on, so that it cannot be asked to execute system calls", t.Tgid, st.Name, t.Tid),
				Fix:  "dump it as root on a kernel with BTF, where nothing is executed in it (--source bpf)",
			}
		}
	}
	if strings.Contains(st.X86Features, "shstk") {
		return &RefusedError{What: fmt.Sprintf("pid %d (%s): thread %d has a shadow stack, which cannot be checkpointed", t.Tgid, st.Name, t.Tid)}
	}
	return nil
}

// threadCalls are the getters of a thread and what they fill in.
type threadCalls struct {
	calls []RemoteCall
	after []func(r *RemoteCall) error
}

func (c *threadCalls) add(f func(r *RemoteCall) error, nr int, args ...uint64) {
	call := RemoteCall{Nr: nr}
	copy(call.Args[:], args)
	c.calls = append(c.calls, call)
	c.after = append(c.after, f)
}

func (c *threadCalls) run(s RemoteVisit) error {
	if err := s.Run(c.calls); err != nil {
		return err
	}
	for i, f := range c.after {
		if f == nil {
			continue
		}
		if err := f(&c.calls[i]); err != nil {
			return err
		}
	}
	return nil
}

// errno returns the failure of a call, 0 for none.
func (c *RemoteCall) errno() unix.Errno {
	if c.Result < 0 && c.Result >= -4095 {
		return unix.Errno(-c.Result)
	}
	return 0
}

// value keeps a result that is no failure.
func value[T any](to *Maybe[T], f func(r int64) T) func(r *RemoteCall) error {
	return func(r *RemoteCall) error {
		if r.errno() == 0 {
			*to = Is(f(r.Result))
		}
		return nil
	}
}

// visitThread asks the thread for what only it is told.
func (v *classicalView) visitThread(t *Thread, st *procfs.Status) error {
	n, order := &v.a.Sys, v.a.Order
	return v.remote.Visit(t.Tid, func(s RemoteVisit) error {
		const nodesBits, room = 1024, 512
		at, err := s.Room(room)
		if err != nil {
			return err
		}
		buf := make([]byte, room)
		// What calls write: the stack_t at 0, words from 32, the mask of nodes from 128.
		word := func(i int) (uint64, int) { return uint64(at) + 32 + 8*uint64(i), 32 + 8*i }
		word32 := func(i int) uint32 { _, o := word(i); return order.Uint32(buf[o:]) }
		addr := func(i int) uint64 { a, _ := word(i); return a }
		var c threadCalls
		written := func(ok *bool) func(r *RemoteCall) error {
			return func(r *RemoteCall) error { *ok = r.errno() == 0; return nil }
		}
		var altOK, deathOK, tscOK, tidOK, policyOK, noPolicy bool
		c.add(written(&altOK), n.Sigaltstack, 0, uint64(at))
		c.add(written(&deathOK), n.Prctl, unix.PR_GET_PDEATHSIG, addr(0))
		c.add(written(&tscOK), n.Prctl, unix.PR_GET_TSC, addr(1))
		c.add(written(&tidOK), n.Prctl, prGetTIDAddress, addr(2))
		c.add(func(r *RemoteCall) error {
			policyOK, noPolicy = r.errno() == 0, r.errno() == unix.ENOSYS
			return nil
		}, n.GetMempolicy, addr(3), uint64(at)+128, nodesBits, 0, 0)
		c.add(value(&t.TimerSlack, func(r int64) uint64 { return uint64(r) }), n.Prctl, unix.PR_GET_TIMERSLACK)
		c.add(value(&t.Securebits, func(r int64) uint32 { return uint32(r) }), n.Prctl, unix.PR_GET_SECUREBITS)
		c.add(value(&t.Personality, func(r int64) uint32 { return uint32(r) }), n.Personality, 0xffffffff)
		c.add(value(&t.MCEKill, func(r int64) MCEKill { return MCEKill{Set: r != mceKillDefault, Early: r == mceKillEarly} }), n.Prctl, unix.PR_MCE_KILL_GET)
		c.add(value(&t.IOFlusher, func(r int64) bool { return r != 0 }), n.Prctl, prGetIOFlusher) // EPERM without CAP_SYS_RESOURCE
		if n.ArchPrctl != arch.NoSyscall {
			c.add(value(&t.CPUIDFaults, func(r int64) bool { return r == 0 }), n.ArchPrctl, getCPUID, 0)
		} else {
			t.CPUIDFaults = Is(false)
		}
		var spec [2]int64
		for which := range spec {
			c.add(func(r *RemoteCall) error { spec[which] = r.Result; return nil }, n.Prctl, prGetSpeculation, uint64(which))
		}
		if err := c.run(s); err != nil {
			return err
		}
		if err := s.Read(at, buf); err != nil {
			return err
		}
		if altOK {
			const flags, size = 8, 16
			t.Altstack = Is(Altstack{SP: arch.Addr(order.Uint64(buf)), Flags: order.Uint32(buf[flags:]) &^ ssOnStack, Size: order.Uint64(buf[size:])})
		}
		if deathOK {
			t.PdeathSignal = Is(int32(word32(0)))
		}
		if tscOK {
			t.TSCFaults = Is(word32(1) == unix.PR_TSC_SIGSEGV)
		} else if v.a.Name != "amd64" && v.a.Name != "386" {
			t.TSCFaults = Is(false)
		}
		if tidOK {
			_, o := word(2)
			t.ClearChildTid = Is(arch.Addr(order.Uint64(buf[o:])))
		}
		switch {
		case policyOK:
			t.Mempolicy = Is(mempolicyOf(word32(3), buf[128:128+nodesBits/8]))
		case noPolicy:
			t.Mempolicy = Is(Mempolicy{Home: -1})
		}
		t.Speculation = speculationOf(spec)
		if err := v.keyrings(s, t); err != nil {
			return err
		}
		return v.defaultSlack(s, t)
	})
}

const ssOnStack = 1 // SS_ONSTACK: is set while the thread is on it

func mempolicyOf(mode uint32, mask []byte) Mempolicy {
	const modeFlags = 0xe000 // MPOL_MODE_FLAGS and those that later kernels may add
	p := Mempolicy{Mode: uint16(mode &^ modeFlags), Flags: uint16(mode & modeFlags), Home: -1}
	p.Set = mode != 0
	for i := 0; i+8 <= len(mask); i += 8 {
		var w uint64
		for k := range 8 {
			w |= uint64(mask[i+k]) << (8 * k)
		}
		p.Nodes = append(p.Nodes, w)
	}
	for len(p.Nodes) > 0 && p.Nodes[len(p.Nodes)-1] == 0 {
		p.Nodes = p.Nodes[:len(p.Nodes)-1]
	}
	return p
}

// speculationOf reads PR_GET_SPECULATION_CTRL of store bypass and of indirect branches. Without PR_SPEC_PRCTL it is the
// machine's own choice.
func speculationOf(got [2]int64) Maybe[Speculation] {
	const prctl, disable, force, noexec = 1, 4, 8, 16
	var s Speculation
	for i, r := range got {
		if r < 0 || r&prctl == 0 {
			continue
		}
		if i == 0 {
			s.SSBDisable, s.SSBForceDisable, s.SSBNoexec = r&disable != 0, r&force != 0, r&noexec != 0
		} else {
			s.IBDisable, s.IBForceDisable = r&disable != 0, r&force != 0
		}
	}
	return Is(s)
}

// defaultSlack finds out what PR_SET_TIMERSLACK with 0 goes back to, by going there and back in one batch, which the
// thread finishes whatever happens. A real-time thread has none that could be asked for.
func (v *classicalView) defaultSlack(s RemoteVisit, t *Thread) error {
	old, ok := t.TimerSlack.Get()
	if !ok || old == 0 {
		return nil
	}
	n := &v.a.Sys
	var c threadCalls
	c.add(nil, n.Prctl, unix.PR_SET_TIMERSLACK, 0)
	c.add(value(&t.DefaultTimerSlack, func(r int64) uint64 { return uint64(r) }), n.Prctl, unix.PR_GET_TIMERSLACK)
	c.add(func(r *RemoteCall) error {
		if e := r.errno(); e != 0 {
			return fmt.Errorf("setting its timer slack back: %w", e)
		}
		return nil
	}, n.Prctl, unix.PR_SET_TIMERSLACK, old)
	return c.run(s)
}
