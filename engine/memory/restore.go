package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// The engine calls, in this order:
//
//	spaces, err := Spaces(plan, a)        // pure; also for cr-restore -n
//	err = CheckHost(spaces, a)            // can this kernel have these address spaces?
//	base, err := Hole(spaces, a, need)    // for the arena
//	r.MakeObjects()                       // opens mapped files, makes shared memory (Kinds)
//	... tasks are made, all processes forked before any memory is filled ...
//	space.Layout(r, batch, keep)          // one task a process, while the pool's descriptors are open in it
//	... run ...
//	f := NewFiller(r, spaces); f.Map(ref, tid) each; reader.SetBuffers(f.Buffer); f.Put(rec) each pages record; f.Wait()
//	... data records go to r.Content as for every other object ...
//	space.Finish(r, batch)                // the same tasks, still with the pool's descriptors and the caller's privileges
//	... run; descriptors, signals, credentials (which reset dumpable) ...
//	space.Settle(batch)                   // after credentials
//	... run; WriteFilter(pid) before or after ...
//	... the arena is unmapped by the tracer's last calls ...

// Constants of mmap(2), madvise(2) and prctl(2) that x/sys lacks.
const (
	mapDroppable        = 0x08 // MAP_DROPPABLE, Linux 6.11
	madvCollapse        = 25   // Linux 6.1
	madvGuardInstall    = 102  // Linux 6.13
	prSetVMA            = 0x53564d41
	prSetVMAAnonName    = 0
	mlockOnFault        = 1  // MLOCK_ONFAULT
	prSetMemoryMerge    = 67 // Linux 6.4
	prFutexHash         = 78 // Linux 6.16
	prFutexHashSetSlots = 1
	prTHPExceptAdvised  = 2 // PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18
	mclFutureAndOnFault = unix.MCL_FUTURE | 4
)

// Layout adds calls that give a task this address space instead of its own, except for the range keep[0] to keep[1] (the
// arena). Contents come afterwards. Mappings that were writable once are writable until Finish.
func (s *Space) Layout(r *object.Restorer, b *tracee.Batch, keep [2]arch.Addr) error {
	nr := b.Sys()
	if i := s.find(keep[0]); i < len(s.areas) && s.areas[i].start < keep[1] {
		return fmt.Errorf("laying out memory: internal error: the arena at %v is in the way", keep[0])
	}
	s.leave(b, keep)
	for bit := uint32(1); bit <= s.MM.Membarrier; bit <<= 1 {
		if s.MM.Membarrier&bit != 0 {
			b.Call(nr.Membarrier, bit, 0, 0)
		}
	}
	if err := s.mapVDSO(b); err != nil {
		return err
	}
	names, attached := false, map[attachment]bool{}
	for i := range s.areas {
		v := &s.areas[i]
		if v.part {
			continue
		}
		if v.seg != nil {
			if err := s.attach(b, i, attached, keep); err != nil {
				return err
			}
		} else if v.ring {
			continue // when all else is there
		} else if _, kept := s.kept[i]; !kept {
			fd, err := v.descriptor(r)
			if err != nil {
				return err
			}
			c := b.Call(nr.Mmap, v.start, v.size(), v.firstProt(), v.mapFlags(), fd, v.offset)
			c.Expect(uint64(v.start)).Note("mapping %s%s", span(v.start, v.end), v.showing())
			if v.flags&flagDroppable != 0 {
				c.Since("6.11")
			}
		}
		for _, advice := range v.advice(true) {
			b.Call(nr.Madvise, v.start, v.size(), advice).Note("mapping %s", span(v.start, v.end))
		}
		if v.name != "" {
			names = true
			if keepsNames() {
				label := v.name[strings.IndexByte(v.name, ':')+1 : len(v.name)-1]
				b.Call(nr.Prctl, prSetVMA, prSetVMAAnonName, v.start, v.size(), label).Note("name of mapping %s", span(v.start, v.end))
			}
		}
	}
	if err := s.mapRings(r, b, keep); err != nil {
		return err
	}
	s.policyCalls(b)
	if names && !keepsNames() {
		r.Warn("this kernel does not keep the names of anonymous mappings (CONFIG_ANON_VMA_NAME)")
	}
	return nil
}

// mapVDSO adds the calls that have the kernel map its vdso where the old one was.
func (s *Space) mapVDSO(b *tracee.Batch) error {
	if s.VDSO == nil {
		return nil
	}
	nr := b.Sys()
	if s.arch.VDSO.MapOption == 0 {
		return &object.Lacking{What: "placing the vdso on " + s.arch.Name}
	}
	var start, end arch.Addr
	for i := range s.areas {
		if v := &s.areas[i]; v.part {
			if end == 0 {
				start = v.start
			}
			end = v.end
		}
	}
	// A 32-bit program's is looked at when it is there (CheckVDSO).
	call := b.Call(nr.ArchPrctl, s.arch.VDSO.MapOption, start).Note("vdso")
	if !s.MM.Compat {
		call.Expect(uint64(len(s.VDSO.Image)))
	}
	// The address is only a hint. msync(2) tells whether the range is mapped and, asked for so little, does nothing else.
	b.Call(nr.Msync, start, end-start, unix.MS_ASYNC).Note("vdso at %v", start)
	return nil
}

// descriptor returns the pool's descriptor of what a mapping shows, -1 for nothing.
func (v *area) descriptor(r *object.Restorer) (int, error) {
	switch {
	case v.file != nil:
		h, err := object.Recall[fileHandle](r, v.of)
		if err != nil {
			return -1, err
		}
		if v.flags&flagMayWrite != 0 {
			return h.shared, nil
		}
		return h.fd, nil
	case v.open:
		return r.File(v.of)
	case v.shm != nil:
		h, err := object.Recall[shmHandle](r, v.of)
		if err != nil {
			return -1, err
		}
		return h.fd, nil
	}
	return -1, nil
}

// firstProt is the protection until Finish. A private mapping that was writable once counts as committed memory; made
// writable at first the new one does so too, and does not merge with a neighbour that never was.
func (v *area) firstProt() int {
	// Memory of hugetlbfs cannot be written to from outside while it is not writable.
	if v.flags&(flagAccount|flagHugeTLB) != 0 && !v.shared {
		return v.prot | unix.PROT_READ | unix.PROT_WRITE
	}
	return v.prot
}

func (v *area) mapFlags() int {
	flags := unix.MAP_FIXED_NOREPLACE
	switch {
	case v.shared:
		flags |= unix.MAP_SHARED
	case v.flags&flagDroppable != 0:
		flags |= mapDroppable
	default:
		flags |= unix.MAP_PRIVATE
	}
	if v.of.IsZero() {
		flags |= unix.MAP_ANONYMOUS
	}
	if v.flags&flagNoReserve != 0 {
		flags |= unix.MAP_NORESERVE
	}
	if v.flags&flagGrowsDown != 0 {
		flags |= unix.MAP_GROWSDOWN
	}
	if v.flags&flagHugeTLB != 0 {
		flags |= unix.MAP_HUGETLB | bits.TrailingZeros64(v.pageSize)<<unix.MAP_HUGE_SHIFT
	}
	return flags
}

// advice returns the madvise(2) calls for a mapping: those before it is filled, or those after. Huge pages are allowed before
// where they were in use, since they are faster to fill; after, where they were allowed and not used.
func (v *area) advice(before bool) []int {
	var list []int
	add := func(f flag, advice int) {
		if v.flags&f != 0 {
			list = append(list, advice)
		}
	}
	if before == (v.flags&flagTHP != 0) {
		add(flagHugePage, unix.MADV_HUGEPAGE)
	}
	if !before {
		return list
	}
	add(flagNoHugePage, unix.MADV_NOHUGEPAGE)
	add(flagDontFork, unix.MADV_DONTFORK)
	add(flagSequential, unix.MADV_SEQUENTIAL)
	add(flagRandom, unix.MADV_RANDOM)
	add(flagMergeable, unix.MADV_MERGEABLE)
	if v.flags&flagDroppable == 0 { // has these two by itself
		add(flagDontDump, unix.MADV_DONTDUMP)
		add(flagWipeOnFork, unix.MADV_WIPEONFORK)
	}
	return list
}

func (v *area) showing() string {
	if v.file != nil {
		return " of " + v.file.Path
	}
	return ""
}

// Finish adds calls that give all mappings their final protection and advice, lock what was locked, and mark the parts of the
// address space (PR_SET_MM_MAP), the executable included.
func (s *Space) Finish(r *object.Restorer, b *tracee.Batch) error {
	nr := b.Sys()
	for i := range s.areas {
		v := &s.areas[i]
		if v.file != nil && v.file.Deleted {
			if err := closeWriter(r, v.of); err != nil {
				return err
			}
		}
		where := span(v.start, v.end)
		if !v.part && v.firstProt() != v.prot {
			b.Call(nr.Mprotect, v.start, v.size(), v.prot).Note("mapping %s", where)
		}
		for _, advice := range v.advice(false) {
			b.Call(nr.Madvise, v.start, v.size(), advice).Note("mapping %s", where)
		}
	}
	for _, h := range s.MM.Huge {
		// Best effort: what others share stays shared, and a kernel without room for huge pages, or too old (6.1), has small ones.
		if len(overlap(s.cow, arch.Addr(h.Start), arch.Addr(h.End))) == 0 {
			b.Call(nr.Madvise, h.Start, h.End-h.Start, madvCollapse).Ignore()
		}
	}
	for _, g := range s.MM.Guards {
		b.Call(nr.Madvise, g.Start, g.End-g.Start, madvGuardInstall).Note("guard region %x-%x", g.Start, g.End).Since("6.13")
	}
	for i := range s.areas {
		v := &s.areas[i]
		if v.flags&flagLocked == 0 {
			continue
		}
		how := 0
		if v.flags&flagLockOnFault != 0 {
			how = mlockOnFault
		}
		c := b.Call(nr.Mlock2, v.start, v.size(), how).Note("mapping %s", span(v.start, v.end))
		if v.prot == unix.PROT_NONE || v.file != nil || v.open || len(s.MM.Guards) > 0 {
			c.Allow(unix.ENOMEM) // it is locked all the same; pages that nobody can reach are not brought in, nor those behind the end of a file
		}
	}
	if err := s.aioCalls(r, b); err != nil {
		return err
	}
	if err := s.mark(r, b); err != nil {
		return err
	}
	if s.MM.THPDisable || s.MM.THPAdvised {
		flags := 0
		if s.MM.THPAdvised {
			flags = prTHPExceptAdvised
		}
		c := b.Call(nr.Prctl, unix.PR_SET_THP_DISABLE, 1, flags, 0, 0).Note("PR_SET_THP_DISABLE")
		if flags != 0 {
			c.Since("6.18")
		}
	}
	if s.MM.FutexHash {
		b.Call(nr.Prctl, prFutexHash, prFutexHashSetSlots, s.MM.FutexSlots, 0, 0).Note("PR_FUTEX_HASH, %d slots", s.MM.FutexSlots).Since("6.16")
	}
	s.ldtCalls(b)
	if s.MM.KSMMerge {
		b.Call(nr.Prctl, prSetMemoryMerge, 1, 0, 0, 0).Note("PR_SET_MEMORY_MERGE").Since("6.4")
	}
	switch {
	case s.MM.LockOnFault:
		b.Call(nr.Mlockall, mclFutureAndOnFault)
	case s.MM.LockFuture:
		b.Call(nr.Mlockall, unix.MCL_FUTURE)
	}
	return nil
}

// mark adds PR_SET_MM_MAP.
func (s *Space) mark(r *object.Restorer, b *tracee.Batch) error {
	m := s.MM
	args := sys.PrctlMMMap{
		StartCode: m.StartCode, EndCode: m.EndCode, StartData: m.StartData, EndData: m.EndData,
		StartBrk: m.StartBrk, Brk: m.Brk, StartStack: m.StartStack,
		ArgStart: m.ArgStart, ArgEnd: m.ArgEnd, EnvStart: m.EnvStart, EnvEnd: m.EnvEnd,
		AuxvSize: uint32(len(m.Auxv) * s.native.WordSize), ExeFD: sys.NoExeFD,
	}
	if !m.Exe.IsZero() {
		h, err := object.Recall[fileHandle](r, m.Exe)
		if err != nil {
			return err
		}
		if err := closeWriter(r, m.Exe); err != nil {
			return err
		}
		args.ExeFD = uint32(h.fd)
	}
	buf := b.Data(args.Append(nil, binary.NativeEndian))
	if len(m.Auxv) > 0 {
		var auxv []byte
		for _, w := range m.Auxv {
			if s.native.WordSize == 4 {
				auxv = binary.NativeEndian.AppendUint32(auxv, uint32(w))
				continue
			}
			auxv = binary.NativeEndian.AppendUint64(auxv, w)
		}
		buf.Pointer(auxvOffset, b.Data(auxv))
	}
	b.Call(b.Sys().Prctl, unix.PR_SET_MM, unix.PR_SET_MM_MAP, buf, sys.SizeofPrctlMMMap, 0).Note("PR_SET_MM_MAP")
	return nil
}

// auxvOffset is where struct prctl_mm_map has the address of the vector.
const auxvOffset = 11 * 8

// UnsettleCalls adds, where it is needed, a change of credentials that is taken back: it makes a process dump core for root
// only, if fs.suid_dumpable says so (proc_sys_fs(5)). No call asks for that by itself. fsuid is what the task has.
func (s *Space) UnsettleCalls(b *tracee.Batch, fsuid uint32) {
	if s.MM.Dumpable == suidDumpRoot && hostSuidDumpable() == suidDumpRoot {
		b.Call(b.Sys().Setfsuid, fsuid^1)
		b.Call(b.Sys().Setfsuid, fsuid)
	}
}

const suidDumpRoot = 2 // SUID_DUMP_ROOT, linux/sched/coredump.h

// hostSuidDumpable is fs.suid_dumpable, 0 where it cannot be read.
var hostSuidDumpable = sync.OnceValue(func() int {
	text, err := os.ReadFile("/proc/sys/fs/suid_dumpable")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text))) // 0 if it is no number
	return n
})

// Settle adds the calls that must come after the last change of credentials and of memory.
func (s *Space) Settle(r *object.Restorer, b *tracee.Batch) {
	nr := b.Sys()
	switch {
	case s.MM.Dumpable != suidDumpRoot:
		b.Call(nr.Prctl, unix.PR_SET_DUMPABLE, s.MM.Dumpable, 0, 0, 0).Note("PR_SET_DUMPABLE")
	case hostSuidDumpable() == suidDumpRoot:
		b.Call(nr.Prctl, unix.PR_GET_DUMPABLE, 0, 0, 0, 0).Expect(suidDumpRoot).Note("a process that dumps core for root only, which needs CAP_SETUID")
	default: // 0 is the stricter of the two others
		r.Warn("a process that could dump core only for root will not dump core, because fs.suid_dumpable is not 2 here")
		b.Call(nr.Prctl, unix.PR_SET_DUMPABLE, 0, 0, 0, 0).Note("PR_SET_DUMPABLE")
	}
	for i := range s.areas {
		if v := &s.areas[i]; v.flags&flagSealed != 0 {
			b.Call(nr.Mseal, v.start, v.size(), 0).Note("mapping %s", span(v.start, v.end)).Since("6.10")
		}
	}
	if s.MM.MDWE != 0 {
		b.Call(nr.Prctl, unix.PR_SET_MDWE, s.MM.MDWE, 0, 0, 0).Note("PR_SET_MDWE, %d", s.MM.MDWE).Since([...]string{1: "6.3", 3: "6.6"}[s.MM.MDWE])
	}
}

// WriteFilter sets /proc/PID/coredump_filter.
func (s *Space) WriteFilter(pid int) error {
	path := procfs.Path(pid, "coredump_filter")
	return os.WriteFile(path, []byte("0x"+strconv.FormatUint(uint64(s.MM.CoreFilter), 16)), 0)
}

// CheckHost says whether the running kernel can have these address spaces: the same page size, and a vdso laid out like
// theirs.
func CheckHost(spaces map[stream.Ref]*Space, a *arch.Arch) error {
	for _, s := range spaces {
		if s.pageSize != os.Getpagesize() {
			return &object.Lacking{What: fmt.Sprintf("pages of %d bytes (this kernel's have %d)", s.pageSize, os.Getpagesize())}
		}
		if s.VDSO == nil || s.MM.Compat {
			continue // that of 32-bit programs cannot be seen from here: CheckVDSO
		}
		host, err := hostVDSO()
		if err != nil {
			return err
		}
		if why := s.sameVDSO(host); why != "" {
			return s.lacksVDSO(why)
		}
	}
	return nil
}

// vdsoLayout is how this kernel maps its vdso: names and sizes of the parts, and the code.
type vdsoLayout struct {
	parts []Area
	image []byte
}

// hostVDSO looks at this process's own vdso.
var hostVDSO = sync.OnceValues(func() (*vdsoLayout, error) {
	a, err := arch.Native()
	if err != nil {
		return nil, err
	}
	return vdsoOf(os.Getpid(), a)
})

// vdsoOf looks at a process's vdso.
func vdsoOf(pid int, a *arch.Arch) (*vdsoLayout, error) {
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		return nil, err
	}
	l := &vdsoLayout{}
	for i := range maps {
		if !a.VDSO.IsPart(maps[i].Path) {
			continue
		}
		l.parts = append(l.parts, Area{Start: uint64(maps[i].Start), End: uint64(maps[i].End), Name: maps[i].Path})
		if maps[i].Path == a.VDSO.Code {
			l.image = make([]byte, maps[i].Size())
			if err := sys.Read(pid, maps[i].Start, l.image); err != nil {
				return nil, fmt.Errorf("reading the vdso: %w", err)
			}
		}
	}
	if l.image == nil {
		return nil, &object.Lacking{What: "a vdso of this kernel", Err: errors.New("it is not mapped")}
	}
	return l, nil
}

// CheckVDSO says, once Layout has run in a task, whether the vdso of a 32-bit program is like that of the image. (That of
// this process's own architecture was compared beforehand.)
func (s *Space) CheckVDSO(tid int) error {
	if s.VDSO == nil || !s.MM.Compat {
		return nil
	}
	host, err := vdsoOf(tid, s.arch)
	if err != nil {
		return err
	}
	why := s.sameVDSO(host)
	for _, name := range []string{"__kernel_vsyscall", "__kernel_sigreturn", "__kernel_rt_sigreturn"} {
		// A task that sleeps stands in the first one's code, and pending handlers return to the others'.
		if why == "" && !arch.VDSOSameCode(s.VDSO.Image, host.image, name) {
			why = name + " differs"
		}
	}
	if why != "" {
		return s.lacksVDSO(why)
	}
	return nil
}

func (s *Space) lacksVDSO(why string) error {
	return &object.Lacking{
		What: "the vdso of this kernel (" + kernelRelease() + ") is not laid out like that of the image: " + why,
		Do:   "restore on the kernel of the dump",
	}
}

// sameVDSO compares the parts of the vdso; the result says what differs.
func (s *Space) sameVDSO(host *vdsoLayout) string {
	i := 0
	for j := range s.areas {
		v := &s.areas[j]
		if !v.part {
			continue
		}
		if i == len(host.parts) {
			return v.name + " is missing here"
		}
		if h := &host.parts[i]; h.Name != v.name || h.End-h.Start != v.size() {
			return fmt.Sprintf("%s of %d bytes there, %s of %d bytes here", v.name, v.size(), h.Name, h.End-h.Start)
		}
		i++
	}
	if i < len(host.parts) {
		return host.parts[i].Name + " is missing there"
	}
	if !arch.VDSOEqual(s.VDSO.Image, host.image) {
		return "its functions are at other places"
	}
	return ""
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown release"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// keepsNames says whether this kernel keeps names of anonymous mappings: naming nothing is right where it does.
var keepsNames = sync.OnceValue(func() bool {
	return unix.Prctl(prSetVMA, prSetVMAAnonName, 0, 0, 0) == nil
})
