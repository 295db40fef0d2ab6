package kernelview

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// An address space keeps its mappings (vm_area_struct) in a maple tree, a
// B-tree of ranges (lib/maple_tree.c, include/linux/maple_tree.h). A node is
// 256 bytes aligned to as many; a pointer to one has its type in bits 3 to 6.
// Slot i holds what lies behind pivot i-1 up to and with pivot i. A pivot of 0
// behind the first slot, or one that is the node's own last index, ends the
// node.
const (
	mapleNodeMask  = 0xff
	mapleTypeShift = 3
	mapleTypeMask  = 15

	mapleLeaf64   = 1 // as mapleRange64, but its slots are entries
	mapleRange64  = 2
	mapleArange64 = 3

	mapleMaxHeight = 31      // MAPLE_HEIGHT_MAX
	mapleMaxSlots  = 1 << 22 // four times as many mappings as an image may have
)

// vmCodes are the codes of show_smap_vma_flags (fs/proc/task_mmu.c) of all
// kernels, for calibration to find the bit of each: fact firstVMCode+i.
var vmCodes = [...]string{
	"rd", "wr", "ex", "sh", "mr", "mw", "me", "ms", "gd", "pf", "lo", "io", "sr", "rr", "dc", "de", "lf", "ac", "nr",
	"ht", "sf", "ar", "wf", "dd", "sd", "mm", "hg", "nh", "mg", "bt", "mt", "um", "uw", "ui", "ss", "sl", "dp", "gu",
}

// mapleRef is a slot: an entry and the indices that it is for, both inclusive.
type mapleRef struct{ entry, first, last uint64 }

// Areas is documented with View.
func (v *bpfView) Areas(tid int) (Maybe[[]Area], error) {
	if areas, ok := v.ahead[tid]; ok {
		delete(v.ahead, tid)
		return areas, nil
	}
	all, err := v.areasOf([]int{tid})
	if err != nil {
		return Maybe[[]Area]{}, err
	}
	return all[0], nil
}

// AreasAhead is documented with RegisterView.
func (v *bpfView) AreasAhead(tids []int) {
	v.ahead = make(map[int]Maybe[[]Area], len(tids))
	all, err := v.areasOf(tids)
	if err != nil {
		return // whoever asks for one of them hears of it
	}
	for i, tid := range tids {
		v.ahead[tid] = all[i]
	}
}

// areasOf tells the mappings of many threads with as few calls of the kernel as one takes.
func (v *bpfView) areasOf(tids []int) ([]Maybe[[]Area], error) {
	out := make([]Maybe[[]Area], len(tids))
	l := v.l
	for _, f := range []field{
		fTMM, fMRoot, fMMapCount, fRange64Pivot, fRange64Slot, fArange64Pivot, fArange64Slot,
		fVStart, fVEnd, fVMM, fVFlags, fVPgoff, fVFile,
	} {
		if !l.has(f) {
			return out, nil
		}
	}
	mms := make([]uint64, len(tids))
	if err := v.eachTask(tids, func(i int, b []byte) { mms[i], _ = l.uint(b, fTMM) }); err != nil {
		return nil, err
	}
	spaces, err := v.gatherMap(mms, l.span["mm_struct"])
	if err != nil {
		return nil, err
	}
	roots := make([]uint64, len(tids))
	for i, mm := range mms {
		if mm != 0 && spaces[mm] == nil {
			return nil, errFault
		}
		roots[i], _ = l.uint(spaces[mm], fMRoot)
	}
	trees, err := v.mapleEntries(roots)
	if err != nil {
		return nil, err
	}
	var entries []mapleRef
	var owners []uint64
	for i, mm := range mms {
		if count, _ := l.uint(spaces[mm], fMMapCount); uint64(len(trees[i])) != count {
			return nil, errFault
		}
		entries = append(entries, trees[i]...)
		for range trees[i] {
			owners = append(owners, mm)
		}
	}
	areas, err := v.areas(owners, entries)
	if err != nil {
		return nil, err
	}
	for i := range trees {
		n := len(trees[i])
		out[i], areas = Is(areas[:n:n]), areas[n:]
	}
	return out, nil
}

// mapleEntries lists the entries of maple trees in ascending order.
func (v *bpfView) mapleEntries(roots []uint64) ([][]mapleRef, error) {
	out := make([][]mapleRef, len(roots))
	type node struct {
		mapleRef
		tree int
	}
	var level []node
	for i, root := range roots {
		switch {
		case root == 0:
		case !isNode(root):
			return nil, errFault // only an entry for index 0 alone can be without a node, which no mapping is
		default:
			level = append(level, node{mapleRef{root, 0, math.MaxUint64}, i})
		}
	}
	size := max(v.l.span["maple_range_64"], v.l.span["maple_arange_64"])
	for range mapleMaxHeight {
		if len(level) == 0 {
			return out, nil
		}
		var next []node
		var slots []mapleRef
		good := true
		err := v.mem.gatherEach(len(level),
			func(i int) (uint64, int) { return level[i].entry &^ mapleNodeMask, size },
			func(i int, b []byte) {
				if !good {
					return
				}
				n := level[i]
				kind := n.entry >> mapleTypeShift & mapleTypeMask
				slots, good = v.mapleSlots(slots[:0], kind, n.mapleRef, b)
				// All leaves of a B-tree are equally deep.
				inner := len(next) > 0 && next[len(next)-1].tree == n.tree
				if kind == mapleLeaf64 {
					out[n.tree] = append(out[n.tree], slots...)
					good = good && !inner && len(out[n.tree]) <= mapleMaxSlots
					return
				}
				good = good && len(out[n.tree]) == 0 && len(next) <= mapleMaxSlots
				for _, s := range slots {
					next = append(next, node{s, n.tree})
				}
			})
		if err != nil {
			return nil, err
		}
		if !good {
			return nil, errFault
		}
		level = next
	}
	return nil, errFault
}

// mapleSlots appends the slots in use of a node. False: it cannot be one.
func (v *bpfView) mapleSlots(out []mapleRef, kind uint64, at mapleRef, b []byte) ([]mapleRef, bool) {
	pivotField, slotField := fRange64Pivot, fRange64Slot
	switch kind {
	case mapleLeaf64, mapleRange64:
	case mapleArange64:
		pivotField, slotField = fArange64Pivot, fArange64Slot
	default:
		return out, false
	}
	pivots, ok1 := v.l.bytes(b, pivotField)
	slots, ok2 := v.l.bytes(b, slotField)
	if !ok1 || !ok2 {
		return out, false
	}
	first := at.first
	for i := 0; i*8+8 <= len(slots); i++ {
		last := at.last
		if i*8+8 <= len(pivots) {
			if p := binary.NativeEndian.Uint64(pivots[i*8:]); p != 0 || i == 0 {
				last = p
			}
		}
		if last < first || last > at.last {
			return out, false
		}
		entry := binary.NativeEndian.Uint64(slots[i*8:])
		switch {
		case entry == 0 && kind != mapleLeaf64:
			return out, false
		case entry != 0:
			out = append(out, mapleRef{entry, first, last})
		}
		if last == at.last {
			return out, true
		}
		first = last + 1
	}
	return out, false
}

// areas reads mappings, each of the address space that owners says.
func (v *bpfView) areas(owners []uint64, entries []mapleRef) ([]Area, error) {
	l := v.l
	names := v.vmNames()
	lines := make(map[uint64]Maybe[string])
	areas := make([]Area, len(entries))
	ops := make([]uint64, len(entries))
	files := make([]uint64, len(entries))
	policies := make([]uint64, len(entries))
	good := true
	err := v.mem.gatherEach(len(entries),
		func(i int) (uint64, int) { return entries[i].entry, l.span["vm_area_struct"] },
		func(i int, b []byte) {
			a := &areas[i]
			start, _ := l.uint(b, fVStart)
			end, _ := l.uint(b, fVEnd)
			owner, ok := l.uint(b, fVMM)
			if !ok || owner != owners[i] || start != entries[i].first || end-1 != entries[i].last {
				good = false
				return
			}
			flags, _ := l.uint(b, fVFlags)
			line, seen := lines[flags]
			if !seen {
				line = vmLine(flags, &names)
				lines[flags] = line
			}
			pgoff, _ := l.uint(b, fVPgoff)
			files[i], _ = l.uint(b, fVFile)
			a.Start, a.End, a.Flags, a.Offset = arch.Addr(start), arch.Addr(end), line, pgoff*uint64(unix.Getpagesize())
			a.word = flags
			a.Policy = flag(l, b, fVPolicy)
			policies[i], _ = l.uint(b, fVPolicy)
			a.Named = flag(l, b, fVName)
			a.Userfault = flag(l, b, fVUserfault)
			if ops[i], ok = l.uint(b, fVOps); !ok {
				a.Policy = Maybe[bool]{}
			}
		})
	if err == nil && !good {
		err = errFault
	}
	if err != nil {
		return nil, err
	}
	own, err := v.gatherMap(policies, l.span["mempolicy"])
	if err != nil {
		return nil, err
	}
	for i := range areas {
		areas[i].File = v.id(files[i])
		if policies[i] != 0 {
			areas[i].Mempolicy = v.mempolicyOf(policies[i], own)
		}
	}
	if err := v.lockedAreas(areas, files); err != nil {
		return nil, err
	}
	return areas, v.sharedPolicies(areas, ops, files)
}

// vmNames are the codes by bit, as far as calibration has found them.
func (v *bpfView) vmNames() (names [64]string) {
	for i, code := range vmCodes {
		if x := v.l.facts[firstVMCode+factName(i)]; x.known && bits.OnesCount64(x.value) == 1 {
			names[bits.TrailingZeros64(x.value)] = code
		}
	}
	// Before Linux 6.18 some had no code (??); the bit is known from def_flags all the same.
	if x := v.l.facts[factLockOnFault]; x.known && bits.OnesCount64(x.value) == 1 && !slices.Contains(names[:], "lf") {
		names[bits.TrailingZeros64(x.value)] = "lf"
	}
	return names
}

// vmLine is the VmFlags line for a vm_flags word, unknown with a bit in it that
// has no name.
func vmLine(flags uint64, names *[64]string) Maybe[string] {
	var codes []string
	for ; flags != 0; flags &= flags - 1 {
		name := names[bits.TrailingZeros64(flags)]
		if name == "" {
			return Maybe[string]{}
		}
		codes = append(codes, name)
	}
	return Is(strings.Join(codes, " "))
}

// sharedPolicies adds the policies that belong not to a mapping but to what it
// shows. Memory of a kind that can have such (vm_operations_struct.get_policy)
// is that of tmpfs, whose policies are read here, or of another kind, for which
// nobody but the kernel can tell.
func (v *bpfView) sharedPolicies(areas []Area, ops, files []uint64) error {
	l := v.l
	tables, err := v.gatherMap(ops, l.span["vm_operations_struct"])
	if err != nil {
		return err
	}
	var asked []int
	var of []uint64
	for i := range areas {
		if ops[i] == 0 || areas[i].Policy != Is(false) {
			continue
		}
		get, ok := l.uint(tables[ops[i]], fVOpsPolicy)
		if ok && get == 0 {
			continue
		}
		areas[i].Policy = Maybe[bool]{}
		if ok {
			asked, of = append(asked, i), append(of, files[i])
		}
	}
	if len(asked) == 0 || !l.has(fShmInode) || !l.has(fShmPolicy) {
		return nil
	}
	heads, err := v.gatherMap(of, l.span["file"])
	if err != nil {
		return err
	}
	inodes, err := v.gatherMap(v.follow(heads, fFInode), l.span["inode"])
	if err != nil {
		return err
	}
	supers, err := v.gatherMap(v.follow(inodes, fISB), l.span["super_block"])
	if err != nil {
		return err
	}
	var roots []uint64
	for addr, b := range inodes {
		sb, _ := l.uint(b, fISB)
		if magic, ok := l.uint(supers[sb], fSBMagic); ok && magic == unix.TMPFS_MAGIC {
			roots = append(roots, addr-l.off(fShmInode)+l.off(fShmPolicy))
		}
	}
	trees, err := v.gatherMap(roots, 8)
	if err != nil {
		return err
	}
	for k, i := range asked {
		inode, _ := l.uint(heads[of[k]], fFInode)
		if b := trees[inode-l.off(fShmInode)+l.off(fShmPolicy)]; b != nil {
			areas[i].Policy = Is(binary.NativeEndian.Uint64(b) != 0)
		}
	}
	return nil
}

// follow lists where one pointer field of all blocks leads.
func (v *bpfView) follow(blocks map[uint64][]byte, f field) []uint64 {
	addrs := make([]uint64, 0, len(blocks))
	for _, b := range blocks {
		if a, ok := v.l.uint(b, f); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
