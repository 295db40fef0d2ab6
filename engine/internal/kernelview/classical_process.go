package kernelview

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// prctl(2) and membarrier(2) values that golang.org/x/sys/unix lacks on some architecture.
const (
	prGetChildSubreaper  = 37
	prGetTHPDisable      = 42
	prGetMDWE            = 66
	prGetMemoryMerge     = 68
	prTimerRestoreIDs    = 77
	timerRestoreIDsGet   = 2
	membarrierRegistered = 1 << 9 // MEMBARRIER_CMD_GET_REGISTRATIONS, Linux 6.3
	sigevThread          = 2
	siTimer              = -2 // SI_TIMER
)

// Processes implements View.
func (v *classicalView) Processes(tids []int) ([]Process, error) {
	out := make([]Process, len(tids))
	err := v.do(func() error {
		for i, tid := range tids {
			if err := v.process(&out[i], tid); err != nil {
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

func (v *classicalView) process(p *Process, tid int) error {
	*p = Process{Tid: tid}
	var err error
	if p.Sighand, err = v.identify(sys.KcmpSighand, tid); err != nil {
		return err
	}
	st, err := procfs.ReadStatus(tid)
	if err != nil {
		return err
	}
	p.NThreads = Is(int32(st.Threads))
	p.Stopped = Is(v.remote.StopSignal(st.Tgid) != 0)
	var r procfs.Reader
	b, err := r.Task(tid, "oom_score_adj")
	if err != nil {
		return err
	}
	oom, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 16)
	if err != nil {
		return fmt.Errorf("reading oom_score_adj: %w", err)
	}
	p.OOMScoreAdj = Is(int16(oom))
	p.AutogroupNice = autogroupNice(tid)
	limits, err := procfs.ReadLimits(tid)
	if err != nil {
		return err
	}
	var rlimits [16]Rlimit
	for i := range rlimits {
		rlimits[i] = Rlimit{Cur: limits[i].Soft, Max: limits[i].Hard}
	}
	p.Rlimits = Is(rlimits)
	mm := AddressSpace{}
	id, err := v.identify(sys.KcmpVM, tid)
	if err != nil {
		return err
	}
	mm.ID = id.V
	if err := v.spaceFromOutside(&mm, tid); err != nil {
		return err
	}
	if err := v.visitProcess(p, &mm, tid, st); err != nil {
		return err
	}
	p.MM = Is(mm)
	return nil
}

// spaceFromOutside fills in what /proc says of the address space.
func (v *classicalView) spaceFromOutside(mm *AddressSpace, tid int) error {
	var r procfs.Reader
	b, err := r.Task(tid, "coredump_filter")
	switch {
	case errors.Is(err, unix.ENOENT): // a kernel without core dumps
		mm.CoreFilter = Is[uint32](0)
	case err != nil:
		return err
	default:
		filter, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 16, 32)
		if err != nil {
			return fmt.Errorf("reading coredump_filter: %w", err)
		}
		mm.CoreFilter = Is(uint32(filter))
	}
	if b, err = r.Task(tid, "auxv"); err != nil {
		return err
	}
	var words []uint64
	for ; len(b) >= v.a.WordSize; b = b[v.a.WordSize:] {
		if v.a.WordSize == 8 {
			words = append(words, v.a.Order.Uint64(b))
		} else {
			words = append(words, uint64(v.a.Order.Uint32(b)))
		}
	}
	for i := 0; i+1 < len(words); i += 2 {
		if words[i] == 0 { // AT_NULL
			words = words[:i+2]
			break
		}
	}
	mm.Auxv = Is(words)
	maps, err := procfs.ReadMaps(tid)
	if err != nil {
		return err
	}
	rings := 0
	for i := range maps {
		if strings.HasPrefix(maps[i].Path, "/[aio]") {
			rings++
		}
	}
	mm.AIOContexts = Is(rings)
	return nil
}

// visitProcess asks a thread for what only it is told.
func (v *classicalView) visitProcess(p *Process, mm *AddressSpace, tid int, st *procfs.Status) error {
	if st.Seccomp != 0 {
		return nil // Threads has refused it
	}
	timers, err := procfs.ReadTimers(tid)
	if err != nil && !procfs.IsGone(err) && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	timersKnown := err == nil
	slices.Reverse(timers) // the kernel lists the newest first
	pending, err := pendingTimers(st.Tgid, len(timers) > 0)
	if err != nil {
		return err
	}
	stat, err := procfs.ReadStat(tid)
	if err != nil {
		return err
	}
	locked := lockedKB(st)
	n := &v.a.Sys
	return v.remote.Visit(tid, func(s RemoteVisit) error {
		if err := futureLocks(mm, tid, s.Base(), locked); err != nil {
			return err
		}
		var c threadCalls
		actions, err := v.askActions(&c, s, p)
		if err != nil {
			return err
		}
		times, err := v.askTimers(&c, s, p, timers, timersKnown)
		if err != nil {
			return err
		}
		sub, err := s.Room(8)
		if err != nil {
			return err
		}
		ldt, err := s.Room(4096)
		if err != nil {
			return err
		}
		ldtSize, subOK := 0, false
		var layout Layout
		c.add(func(r *RemoteCall) error { subOK = r.errno() == 0; return nil }, n.Prctl, prGetChildSubreaper, uint64(sub))
		c.add(value(&mm.Dumpable, func(r int64) uint8 { return uint8(r) }), n.Prctl, unix.PR_GET_DUMPABLE)
		c.add(func(r *RemoteCall) error {
			if r.errno() == 0 {
				mm.THPDisable, mm.THPAdvised = Is(r.Result == 1), Is(r.Result == 3)
			}
			return nil
		}, n.Prctl, prGetTHPDisable)
		mm.FutexSlots = Is[int32](-1) // whether the program or the kernel has chosen the size is not told
		absent := func(to *Maybe[bool]) func(r *RemoteCall) error {
			return func(r *RemoteCall) error {
				switch {
				case r.errno() == 0:
					*to = Is(r.Result != 0)
				case r.errno() == unix.EINVAL: // a kernel that has no such thing
					*to = Is(false)
				}
				return nil
			}
		}
		c.add(absent(&mm.KSMMerge), n.Prctl, prGetMemoryMerge)
		c.add(func(r *RemoteCall) error {
			bits := r.Result
			if r.errno() == unix.EINVAL {
				bits = 0
			} else if r.errno() != 0 {
				return nil
			}
			mm.MDWE, mm.MDWENoInherit = Is(bits&unix.PR_MDWE_REFUSE_EXEC_GAIN != 0), Is(bits&unix.PR_MDWE_NO_INHERIT != 0)
			return nil
		}, n.Prctl, prGetMDWE)
		c.add(value(&p.RestoreIDs, func(r int64) bool { return r == 1 }), n.Prctl, prTimerRestoreIDs, timerRestoreIDsGet)
		c.add(func(r *RemoteCall) error {
			switch r.errno() {
			case 0:
				mm.Membarrier = Is(uint32(r.Result))
			case unix.ENOSYS:
				mm.Membarrier = Is[uint32](0)
			}
			return nil
		}, n.Membarrier, membarrierRegistered)
		if n.ModifyLdt != arch.NoSyscall {
			c.add(func(r *RemoteCall) error { ldtSize = int(int32(r.Result)); return nil }, n.ModifyLdt, 0, uint64(ldt), 4096)
		}
		c.add(func(r *RemoteCall) error { layout.Brk = arch.Addr(uint64(r.Result)); return nil }, n.Brk, 0)
		if err := c.run(s); err != nil {
			return err
		}
		if err := actions(); err != nil {
			return err
		}
		if err := times(pending); err != nil {
			return err
		}
		if subOK {
			b := make([]byte, 4)
			if err := s.Read(sub, b); err != nil {
				return err
			}
			p.Subreaper = Is(v.a.Order.Uint32(b) != 0)
		}
		switch {
		case ldtSize > 0:
			b := make([]byte, min(ldtSize, 4096))
			if err := s.Read(ldt, b); err != nil {
				return err
			}
			mm.LDT = Is(b)
		case ldtSize == 0, unix.Errno(-ldtSize) == unix.ENOSYS:
			mm.LDT = Is[[]byte](nil)
		}
		layout.StartCode, layout.EndCode = arch.Addr(stat.StartCode), arch.Addr(stat.EndCode)
		layout.StartData, layout.EndData = arch.Addr(stat.StartData), arch.Addr(stat.EndData)
		layout.StartBrk, layout.StartStack = arch.Addr(stat.StartBrk), arch.Addr(stat.StartStack)
		layout.ArgStart, layout.ArgEnd = arch.Addr(stat.ArgStart), arch.Addr(stat.ArgEnd)
		layout.EnvStart, layout.EnvEnd = arch.Addr(stat.EnvStart), arch.Addr(stat.EnvEnd)
		mm.Layout = Is(layout)
		return nil
	})
}

// lockedKB is VmLck of status.
func lockedKB(st *procfs.Status) string {
	for _, l := range st.Memory {
		if l.Key == "VmLck" {
			return l.Value
		}
	}
	return ""
}

// futureLocks tells mlockall(MCL_FUTURE), for which there is no getter, by what it does to the mapping that the visit has
// just made: it is locked, which VmLck shows, and unless MCL_ONFAULT was given its pages are there although nobody has touched
// them.
func futureLocks(mm *AddressSpace, tid int, at arch.Addr, before string) error {
	st, err := procfs.ReadStatus(tid)
	if err != nil {
		return err
	}
	mm.LockFuture, mm.LockOnFault = Is(false), Is(false)
	if lockedKB(st) == before {
		return nil
	}
	list, err := procfs.ReadSmaps(tid)
	if err != nil {
		return err
	}
	for i := range list {
		if v := &list[i]; at >= v.Start && at < v.End {
			there, err := present(tid, at+untouchedPage)
			if err != nil {
				return err
			}
			mm.LockFuture, mm.LockOnFault = Is(v.Flags.Has("lo")), Is(v.Flags.Has("lo") && !there)
			return nil
		}
	}
	return fmt.Errorf("looking for locked memory: no mapping at %v", at)
}

// untouchedPage is the offset of a page in the room of a visit that nothing has been written to when the visit begins.
const untouchedPage = 0x6000

// present says whether there is a page at an address (/proc/PID/pagemap: bit 63, or swapped out, bit 62).
func present(tid int, at arch.Addr) (bool, error) {
	f, err := os.Open(procfs.Path(tid, "pagemap"))
	if err != nil {
		return false, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(uint64(at)/uint64(os.Getpagesize())*8)); err != nil {
		return false, fmt.Errorf("reading pagemap: %w", err)
	}
	return binary.NativeEndian.Uint64(b[:])>>62 != 0, nil
}

// askActions adds the calls that tell the signal actions; the function fills them in.
func (v *classicalView) askActions(c *threadCalls, s RemoteVisit, p *Process) (func() error, error) {
	const size = 32 // struct kernel_sigaction with SA_RESTORER: handler, flags, restorer, mask
	at, err := s.Room(64 * size)
	if err != nil {
		return nil, err
	}
	failed := error(nil)
	for sig := uint64(1); sig <= 64; sig++ {
		c.add(func(r *RemoteCall) error {
			if e := r.errno(); e != 0 {
				failed = e
			}
			return nil
		}, v.a.Sys.RtSigaction, sig, 0, uint64(at)+(sig-1)*size, 8)
	}
	return func() error {
		if failed != nil {
			return fmt.Errorf("asking for its signal actions: %w", failed)
		}
		b := make([]byte, 64*size)
		if err := s.Read(at, b); err != nil {
			return err
		}
		var actions [64]Action
		for i := range actions {
			e := b[i*size:]
			w := func(k int) uint64 { return v.a.Order.Uint64(e[8*k:]) }
			actions[i] = Action{Handler: arch.Addr(w(0)), Flags: w(1), Restorer: arch.Addr(w(2)), Mask: w(3)}
		}
		p.Actions = Is(actions)
		return nil
	}, nil
}
