package memory

import (
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Space is an address space of an image: a pure value, every number of which has been checked.
type Space struct {
	Ref  stream.Ref
	MM   *MM
	VDSO *VDSO // nil when none is mapped

	areas    []area
	native   *arch.Arch // the image's
	arch     *arch.Arch // of the program: native, or its 32-bit companion
	pageSize int

	cow  []Range     // pages that it shares with others (cow_restore.go)
	bank *Bank       // who has them, nil for none
	kept map[int]int // which of the areas it inherits from which area of the bank
}

// area is a checked Area.
type area struct {
	start, end arch.Addr
	prot       int // PROT_*
	shared     bool
	part       bool // of the vdso
	flags      flag
	of         stream.Ref
	file       *File    // at most one of
	shm        *Shm     // these
	seg        *Segment // four:
	open       bool     // of is an open file
	ring       bool     // namely an io_uring instance
	offset     uint64
	pageSize   uint64 // of flagHugeTLB
	name       string
}

func (v *area) size() uint64 { return uint64(v.end - v.start) }

// Limits of what an image may say.
const (
	maxAuxv    = 128 // words
	maxOffset  = 1 << 62
	maxBuildID = 256
	maxName    = 80 // ANON_VMA_NAME_MAX_LEN with the terminating zero
	coreBits   = 0x1ff
	// The registrations of membarrier(2): MEMBARRIER_CMD_REGISTER_*.
	membarrierBits = 1<<2 | 1<<4 | 1<<6 | 1<<8
)

// Spaces returns the address spaces of an image, having checked them as hostile input: mappings in order, aligned, disjoint and
// inside the address space, references to what they may refer to. Errors are *object.BadImage.
func Spaces(plan *object.Plan, a *arch.Arch) (map[stream.Ref]*Space, error) {
	pageSize := plan.Header.PageSize
	if pageSize < 4096 || pageSize > 64<<10 || pageSize&(pageSize-1) != 0 {
		return nil, object.BadImagef("pages of %d bytes", pageSize)
	}
	spaces := map[stream.Ref]*Space{}
	for _, f := range object.All[File](plan) {
		if err := f.State.check(); err != nil {
			return nil, object.BadImagef("mapped file %d: %w", f.Ref.ID, err)
		}
	}
	for _, s := range object.All[Shm](plan) {
		if s.State.Size == 0 || s.State.Size > uint64(a.TaskSize) {
			return nil, object.BadImagef("shared memory %d: a size of %d bytes", s.Ref.ID, s.State.Size)
		}
	}
	for _, s := range object.All[Segment](plan) {
		if err := s.State.Check(uint64(a.TaskSize)); err != nil {
			return nil, err
		}
	}
	for _, m := range object.All[MM](plan) {
		s := &Space{Ref: m.Ref, MM: m.State, native: a, arch: a, pageSize: pageSize}
		if m.State.Compat {
			if s.arch = a.Compat; s.arch == nil {
				return nil, object.BadImagef("address space %d is of a 32-bit program, which %s does not have", m.Ref.ID, a.Name)
			}
		}
		if m.Ref.IsZero() {
			return nil, object.BadImagef("an address space that nothing can refer to")
		}
		if err := s.checkMM(plan); err != nil {
			return nil, object.BadImagef("address space %d: %w", m.Ref.ID, err)
		}
		spaces[m.Ref] = s
	}
	for _, r := range object.All[Areas](plan) {
		s := spaces[r.State.MM]
		if s == nil {
			return nil, object.BadImagef("mappings of object %d, which is no address space", r.State.MM.ID)
		}
		for i := range r.State.Areas {
			if err := s.add(plan, &r.State.Areas[i]); err != nil {
				in := &r.State.Areas[i]
				return nil, object.BadImagef("address space %d: mapping %x-%x: %w", s.Ref.ID, in.Start, in.End, err)
			}
		}
	}
	for _, s := range spaces {
		if err := s.addAIO(); err != nil {
			return nil, object.BadImagef("address space %d: %w", s.Ref.ID, err)
		}
		if err := s.checkWhole(); err != nil {
			return nil, object.BadImagef("address space %d: %w", s.Ref.ID, err)
		}
	}
	return spaces, nil
}

func (f *File) check() error {
	switch {
	case !strings.HasPrefix(f.Path, "/") || len(f.Path) >= unix.PathMax || strings.IndexByte(f.Path, 0) >= 0:
		return fmt.Errorf("the path %q", f.Path)
	case f.Size > maxOffset:
		return fmt.Errorf("a size of %d bytes", f.Size)
	case len(f.BuildID) > maxBuildID:
		return fmt.Errorf("a build id of %d bytes", len(f.BuildID))
	case f.Mode > 0o7777:
		return fmt.Errorf("the permissions %#o", f.Mode)
	case f.Flock != "" && f.Flock != flockShared && f.Flock != flockExclusive || f.Flock != "" && (f.Zero || f.Deleted):
		return fmt.Errorf("a lock of the kind %q", f.Flock)
	case f.Zero && f.Deleted:
		return fmt.Errorf("a device that is deleted")
	}
	return nil
}

func (s *Space) checkMM(plan *object.Plan) error {
	m := s.MM
	for i, v := range m.layoutFields() {
		if v > uint64(s.arch.TaskSize) {
			return fmt.Errorf("field %d of its layout is %#x", i, v)
		}
	}
	if m.StartCode > m.EndCode || m.StartData > m.EndData || m.StartBrk > m.Brk || m.ArgStart > m.ArgEnd || m.EnvStart > m.EnvEnd {
		return fmt.Errorf("a part of its layout ends before it begins")
	}
	if n := len(m.Auxv); n > maxAuxv || n%2 != 0 || n > 0 && m.Auxv[n-2] != 0 {
		return fmt.Errorf("an auxiliary vector of %d words without an end", n)
	}
	if m.Dumpable > 2 || m.CoreFilter&^coreBits != 0 || m.MDWE > 3 || m.MDWE == unix.PR_MDWE_NO_INHERIT || m.Membarrier&^membarrierBits != 0 {
		return fmt.Errorf("a mode that does not exist: dumpable %d, coredump_filter %#x, mdwe %d, membarrier %#x", m.Dumpable, m.CoreFilter, m.MDWE, m.Membarrier)
	}
	if m.THPDisable && m.THPAdvised || m.FutexSlots != 0 && !m.FutexHash || m.FutexSlots&(m.FutexSlots-1) != 0 {
		return fmt.Errorf("a mode that does not exist: %d futex slots, or two kinds of PR_SET_THP_DISABLE", m.FutexSlots)
	}
	if len(m.LDT)%8 != 0 || len(m.LDT) > maxLDT*8 || len(m.LDT) > 0 && s.arch.UserDesc == nil {
		return fmt.Errorf("a local descriptor table of %d bytes", len(m.LDT))
	}
	if m.LockOnFault && !m.LockFuture {
		return fmt.Errorf("MCL_ONFAULT without MCL_FUTURE")
	}
	if !m.Exe.IsZero() {
		f, err := object.State[File](plan, m.Exe)
		if err != nil {
			return err
		}
		if f.Zero {
			return fmt.Errorf("a device as its executable")
		}
	}
	if !m.VDSO.IsZero() {
		v, err := object.State[VDSO](plan, m.VDSO)
		if err != nil {
			return err
		}
		s.VDSO = v
	}
	return nil
}

// add checks a mapping that follows those added before.
func (s *Space) add(plan *object.Plan, in *Area) error {
	v := area{start: arch.Addr(in.Start), end: arch.Addr(in.End), of: in.Of, offset: in.Offset, pageSize: in.PageSize, name: in.Name}
	switch {
	case !pageAligned(in.Start|in.End|in.Offset, s.pageSize):
		return fmt.Errorf("it is not aligned to pages")
	case in.Start >= in.End || in.End > uint64(s.arch.TaskSize):
		return fmt.Errorf("it is outside of the address space")
	case len(s.areas) > 0 && v.start < s.areas[len(s.areas)-1].end:
		return fmt.Errorf("it overlaps the one before or is out of order")
	case len(s.areas) == MaxAreas:
		return fmt.Errorf("there are more than %d mappings", MaxAreas)
	case in.Offset > maxOffset-v.size():
		return fmt.Errorf("offset %#x", in.Offset)
	}
	var ok bool
	if v.prot, v.shared, ok = parsePerms(in.Perms); !ok {
		return fmt.Errorf("permissions %q", in.Perms)
	}
	if v.flags, ok = parseFlags(in.Flags); !ok {
		return fmt.Errorf("flags %q", in.Flags)
	}
	var err error
	switch in.Of.Class {
	case "":
	case string(TypeFile):
		v.file, err = object.State[File](plan, in.Of)
	case string(TypeShm):
		v.shm, err = object.State[Shm](plan, in.Of)
	case TypeSegment.Class():
		v.seg, err = object.State[Segment](plan, in.Of)
	case "file":
		v.open, err = true, files.Mappable(plan, in.Of)
		if o, found := plan.Lookup(in.Of); found == nil {
			v.ring = o.Type == files.URingType
		}
	default:
		err = fmt.Errorf("it shows an object of class %q", in.Of.Class)
	}
	if err != nil {
		return err
	}
	v.part = s.arch.VDSO.IsPart(in.Name)
	if err := v.check(s.pageSize); err != nil {
		return err
	}
	s.areas = append(s.areas, v)
	return nil
}

// check says whether the pieces of a mapping fit together.
func (v *area) check(pageSize int) error {
	private := v.of.IsZero() && !v.shared // memory of nobody else
	has := func(f flag) bool { return v.flags&f != 0 }
	switch {
	case v.part && (!private || v.offset != 0 || v.flags != 0):
		return fmt.Errorf("a part of the vdso with flags, offset or object")
	case v.of.IsZero() && v.shared:
		return fmt.Errorf("it is shared and shows no object")
	case v.of.IsZero() && v.offset != 0:
		return fmt.Errorf("an offset in no object")
	case v.shm != nil && !v.shared:
		return fmt.Errorf("a private mapping of shared memory")
	case v.file != nil && v.shared && (v.file.Deleted || v.file.Zero):
		return fmt.Errorf("a shared mapping of a deleted file or of a device")
	case v.ring && !v.shared:
		return fmt.Errorf("a private mapping of an io_uring instance")
	case v.seg != nil && !v.shared:
		return fmt.Errorf("a private mapping of System V shared memory")
	case v.seg != nil && (!v.seg.Attached || v.offset+v.size() > pageCeil(v.seg.Size, pageSize)):
		return fmt.Errorf("it shows more of System V shared memory than there is, or nobody ever attached that")
	case has(flagMayWrite) && (v.file == nil && v.seg == nil && !v.open || !v.shared):
		return fmt.Errorf("the flag mw, which is only for shared mappings of files")
	case (v.file != nil || v.seg != nil || v.open) && v.shared && v.prot&unix.PROT_WRITE != 0 && !has(flagMayWrite):
		return fmt.Errorf("it is writable and shows a file that is not")
	case has(flagGrowsDown|flagDroppable|flagWipeOnFork) && !private:
		return fmt.Errorf("the flags %v, which are only for private anonymous memory", v.flags)
	case has(flagDroppable) && has(flagGrowsDown|flagLocked), has(flagLockOnFault) && !has(flagLocked),
		has(flagHugePage) && has(flagNoHugePage), has(flagSequential) && has(flagRandom):
		return fmt.Errorf("the flags %v exclude each other", v.flags)
	case has(flagHugeTLB) && (!private || has(flagGrowsDown|flagDroppable|flagHugePage|flagNoHugePage|flagTHP|flagMergeable)),
		has(flagHugeTLB) != (v.pageSize != 0), v.pageSize&(v.pageSize-1) != 0, v.pageSize != 0 && v.pageSize < 64<<10,
		has(flagHugeTLB) && !pageAligned(uint64(v.start|v.end), int(v.pageSize)):
		return fmt.Errorf("pages of %d bytes where there can be none of them", v.pageSize)
	case v.name == "" || v.part:
		return nil
	}
	prefix := "[anon:"
	if v.shm != nil {
		prefix = "[anon_shmem:"
	}
	label, ok := strings.CutPrefix(v.name, prefix)
	label, closed := strings.CutSuffix(label, "]")
	if !ok || !closed || label == "" || len(label) >= maxName || strings.IndexByte(label, 0) >= 0 || !private && v.shm == nil {
		return fmt.Errorf("the name %q", v.name)
	}
	return nil
}

// checkWhole checks what can be said only of all mappings together.
func (s *Space) checkWhole() error {
	var parts []Area
	for i := range s.areas {
		v := &s.areas[i]
		if !v.part {
			continue
		}
		parts = append(parts, Area{Start: uint64(v.start), End: uint64(v.end), Name: v.name})
		if v.name == s.arch.VDSO.Code && (s.VDSO == nil || v.size() != uint64(len(s.VDSO.Image))) {
			return fmt.Errorf("the vdso's code and its mapping differ in size")
		}
	}
	if err := checkVDSO(s.arch, parts); err != nil {
		return fmt.Errorf("vdso: %w", err)
	}
	if s.VDSO != nil && len(parts) == 0 {
		return fmt.Errorf("a vdso that is not mapped")
	}
	if err := s.checkPolicies(); err != nil {
		return err
	}
	last := uint64(0)
	for _, h := range s.MM.Huge {
		if h.Start >= h.End || h.Start < last || !pageAligned(h.Start|h.End, s.pageSize) || s.covered(arch.Addr(h.Start), arch.Addr(h.End)) == nil {
			return fmt.Errorf("the huge pages %x-%x are unaligned, none, out of order or in no mapping", h.Start, h.End)
		}
		last = h.End
	}
	last = 0
	for _, g := range s.MM.Guards {
		if g.Start >= g.End || g.Start < last || !pageAligned(g.Start|g.End, s.pageSize) {
			return fmt.Errorf("guard region %x-%x is unaligned, empty or out of order", g.Start, g.End)
		}
		last = g.End
		if s.covered(arch.Addr(g.Start), arch.Addr(g.End)) == nil {
			return fmt.Errorf("guard region %x-%x is in no mapping", g.Start, g.End)
		}
	}
	return nil
}

// find returns the index of the first mapping that ends behind at; len(s.areas) for none.
func (s *Space) find(at arch.Addr) int {
	return sort.Search(len(s.areas), func(i int) bool { return s.areas[i].end > at })
}

// covered returns the mappings that together hold every byte of a range; nil when there is a gap.
func (s *Space) covered(start, end arch.Addr) []area {
	i := s.find(start)
	for j := i; j < len(s.areas) && s.areas[j].start <= start; j++ {
		if s.areas[j].end >= end {
			return s.areas[i : j+1]
		}
		start = s.areas[j].end
	}
	return nil
}

func parsePerms(p string) (prot int, shared, ok bool) {
	if len(p) != 4 {
		return 0, false, false
	}
	for i, bit := range [...]int{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		switch p[i] {
		case "rwx"[i]:
			prot |= bit
		case '-':
		default:
			return 0, false, false
		}
	}
	return prot, p[3] == 's', p[3] == 's' || p[3] == 'p'
}
