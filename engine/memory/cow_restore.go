package memory

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Pages can be shared copy-on-write only by inheriting them. So the first task, from which all processes descend, is filled with them before it makes
// any: it is the Bank. It has mappings as the processes will have them, at the same addresses. Whoever is made takes them along; a process
// drops what neither it nor anybody that it makes needs (Prune), and lays out its own memory around what it keeps (Space.Layout). Where two
// address spaces have mappings at one address that cannot be made of each other, the first one's goes into the bank, and the others get copies.

// Bank is the memory of the first task.
type Bank struct {
	Ref    stream.Ref // of the Cow
	areas  []bankArea // ascending, disjoint
	ranges []Range    // where it has pages: ascending, joined
	space  *Space     // the same areas, as what contents are written to
}

// bankArea is a mapping of the bank.
type bankArea struct {
	start, end arch.Addr
	like       area
}

// NewBank reads what address spaces share. It returns nil when they share nothing. Errors are *object.BadImage.
func NewBank(plan *object.Plan, spaces map[stream.Ref]*Space) (*Bank, error) {
	cows := object.All[Cow](plan)
	if len(cows) > 1 {
		return nil, object.BadImagef("two objects of shared pages")
	}
	var users []*Space
	for _, f := range object.All[CowRanges](plan) {
		s := spaces[f.State.MM]
		if s == nil || len(cows) == 0 || f.State.Of != cows[0].Ref {
			return nil, object.BadImagef("shared pages of object %d in object %d", f.State.Of.ID, f.State.MM.ID)
		}
		if !slices.Contains(users, s) {
			users = append(users, s)
		}
		if err := s.addCow(f.State.Ranges); err != nil {
			return nil, object.BadImagef("address space %d: %w", s.Ref.ID, err)
		}
	}
	if len(cows) == 0 {
		return nil, nil
	}
	b := &Bank{Ref: cows[0].Ref}
	var all []Range
	for _, s := range users {
		all = append(all, s.cow...)
		for i := range s.areas {
			if v := &s.areas[i]; len(overlap(s.cow, v.start, v.end)) > 0 {
				b.add(v.start, v.end, v)
			}
		}
	}
	slices.SortFunc(all, func(x, y Range) int {
		switch {
		case x.Start < y.Start:
			return -1
		case x.Start > y.Start:
			return 1
		}
		return 0
	})
	size := uint64(0)
	for _, r := range all {
		if k := len(b.ranges); k > 0 && r.Start <= b.ranges[k-1].End {
			size += max(b.ranges[k-1].End, r.End) - b.ranges[k-1].End
			b.ranges[k-1].End = max(b.ranges[k-1].End, r.End)
			continue
		}
		b.ranges = append(b.ranges, r)
		size += r.End - r.Start
	}
	if size != cows[0].State.Size || size == 0 {
		return nil, object.BadImagef("shared pages of %d bytes, of which %d are in address spaces", cows[0].State.Size, size)
	}
	// The first task is one of a 32-bit program where all are.
	first := users[0].arch
	for _, s := range spaces {
		if s.arch != first && s.arch.Compat != nil {
			first = s.arch
		}
	}
	b.settle(users, first)
	return b, nil
}

// addCow checks and adds ranges that an address space shares.
func (s *Space) addCow(ranges []Range) error {
	for _, r := range ranges {
		last := uint64(0)
		if k := len(s.cow); k > 0 {
			last = s.cow[k-1].End
		}
		if r.Start >= r.End || r.Start < last || !pageAligned(r.Start|r.End, s.pageSize) {
			return fmt.Errorf("the shared pages %x-%x are unaligned, none or out of order", r.Start, r.End)
		}
		in := s.covered(arch.Addr(r.Start), arch.Addr(r.End))
		if in == nil {
			return fmt.Errorf("the shared pages %x-%x are in no mapping", r.Start, r.End)
		}
		for i := range in {
			if in[i].shared || in[i].part {
				return fmt.Errorf("the shared pages %x-%x are in mapping %s, which has no contents of its own", r.Start, r.End, span(in[i].start, in[i].end))
			}
		}
		s.cow = append(s.cow, r)
	}
	return nil
}

// bankFlags are those flags of a mapping that cannot be changed once it is there, or not back.
const bankFlags = flagGrowsDown | flagAccount | flagNoReserve | flagDroppable | flagHugePage | flagNoHugePage

// alike says whether one mapping can be made of another at the same address.
func (v *area) alike(w *area) bool {
	return v.of == w.of && v.flags&bankFlags == w.flags&bankFlags && (v.of.IsZero() || v.offset-uint64(v.start) == w.offset-uint64(w.start))
}

// add makes room for a mapping, or for what is left of it beside those that are there.
func (b *Bank) add(start, end arch.Addr, v *area) {
	i, _ := slices.BinarySearchFunc(b.areas, start, func(a bankArea, at arch.Addr) int {
		if a.end <= at {
			return -1
		}
		return 1
	})
	j := i
	same := true
	for j < len(b.areas) && b.areas[j].start < end {
		same = same && b.areas[j].like.alike(v)
		j++
	}
	if same { // alone, or together with those
		one := bankArea{start, end, *v}
		if i < j {
			one = bankArea{min(start, b.areas[i].start), max(end, b.areas[j-1].end), b.areas[i].like}
			one.like.flags |= v.flags & flagTHP
		}
		b.areas = slices.Replace(b.areas, i, j, one)
		return
	}
	at := start
	var rest []bankArea
	for _, a := range b.areas[i:j] {
		if at < a.start {
			rest = append(rest, bankArea{at, a.start, *v})
		}
		at = a.end
	}
	if at < end {
		rest = append(rest, bankArea{at, end, *v})
	}
	for _, r := range rest { // which are free
		k, _ := slices.BinarySearchFunc(b.areas, r.start, func(a bankArea, at arch.Addr) int {
			if a.end <= at {
				return -1
			}
			return 1
		})
		b.areas = slices.Insert(b.areas, k, r)
	}
}

// settle decides who keeps what.
func (b *Bank) settle(users []*Space, first *arch.Arch) {
	b.space = &Space{Ref: b.Ref, arch: first, pageSize: users[0].pageSize}
	for _, a := range b.areas {
		v := a.like
		if !v.of.IsZero() {
			v.offset += uint64(a.start - v.start) // wraps where the mapping begins further down: modulo 2^64 it is right
		}
		v.start, v.end = a.start, a.end
		v.flags &= bankFlags | flagTHP
		v.name, v.prot = "", unix.PROT_READ
		if v.flags&(flagAccount|flagNoReserve) != 0 {
			v.prot |= unix.PROT_WRITE
		}
		b.space.areas = append(b.space.areas, v)
	}
	for _, s := range users {
		s.bank, s.kept = b, map[int]int{}
		for i := range s.areas {
			v := &s.areas[i]
			k := b.space.find(v.start)
			if len(overlap(s.cow, v.start, v.end)) == 0 || k == len(b.areas) || b.areas[k].start > v.start || b.areas[k].end < v.end {
				continue
			}
			if b.space.areas[k].alike(v) {
				s.kept[i] = k
			}
		}
	}
}

// Copied says that the space's tasks inherit nothing of a bank: they execute a program of their own before.
func (s *Space) Copied() { clear(s.kept) }

// overlap returns those of ascending, disjoint ranges that have a part in [start, end).
func overlap(ranges []Range, start, end arch.Addr) []Range {
	i, _ := slices.BinarySearchFunc(ranges, uint64(start), func(r Range, at uint64) int {
		if r.End <= at {
			return -1
		}
		return 1
	})
	j := i
	for j < len(ranges) && ranges[j].Start < uint64(end) {
		j++
	}
	return ranges[i:j]
}

// Layout adds the calls that make a task the bank: its memory goes but for keep[0] to keep[1], the arena.
func (b *Bank) Layout(r *object.Restorer, batch *tracee.Batch, keep [2]arch.Addr) error {
	nr := batch.Sys()
	batch.Call(nr.Munmap, 0, keep[0]).Note("everything below the arena")
	batch.Call(nr.Munmap, keep[1], b.space.arch.TaskSize-keep[1]).Note("everything above the arena")
	for i := range b.space.areas {
		v := &b.space.areas[i]
		fd, err := v.descriptor(r)
		if err != nil {
			return err
		}
		batch.Call(nr.Mmap, v.start, v.size(), v.prot, v.mapFlags(), fd, v.offset).
			Expect(uint64(v.start)).Note("shared pages of mapping %s%s", span(v.start, v.end), v.showing())
		if v.flags&flagHugePage != 0 && v.flags&flagTHP != 0 { // as Space.Layout does
			batch.Call(nr.Madvise, v.start, v.size(), unix.MADV_HUGEPAGE).Note("mapping %s", span(v.start, v.end))
		}
		if v.flags&flagNoHugePage != 0 {
			batch.Call(nr.Madvise, v.start, v.size(), unix.MADV_NOHUGEPAGE).Note("mapping %s", span(v.start, v.end))
		}
	}
	return nil
}

// Needs is a set of mappings of a bank.
type Needs []bool

// Needs adds to a set, nil at first, what an address space keeps of the bank.
func (b *Bank) Needs(n Needs, s *Space) Needs {
	if n == nil {
		n = make(Needs, len(b.areas))
	}
	if s != nil {
		for _, k := range s.kept {
			n[k] = true
		}
	}
	return n
}

// Everything is what the bank itself has.
func (b *Bank) Everything() Needs {
	n := make(Needs, len(b.areas))
	for k := range n {
		n[k] = true
	}
	return n
}

// Add adds one set to another.
func (n Needs) Add(m Needs) {
	for k := range m {
		n[k] = n[k] || m[k]
	}
}

// Prune adds calls by which a task that has had is left with needed.
func (b *Bank) Prune(batch *tracee.Batch, had, needed Needs) {
	for k := range b.areas {
		if had[k] && !needed[k] {
			v := &b.space.areas[k]
			batch.Call(batch.Sys().Munmap, v.start, v.size()).Note("mapping %s", span(v.start, v.end))
		}
	}
}

// leave adds the calls that unmap everything but the arena and what is kept of the bank, and drops pages of that which belong to others.
func (s *Space) leave(b *tracee.Batch, keep [2]arch.Addr) {
	nr := b.Sys()
	at := arch.Addr(0)
	gap := func(to arch.Addr) {
		if at < to {
			b.Call(nr.Munmap, at, to-at).Note("everything in %s", span(at, to))
		}
	}
	arena := false
	for i := range s.areas {
		k, ok := s.kept[i]
		if !ok {
			continue
		}
		v := &s.areas[i]
		if !arena && keep[0] < v.start {
			arena = true
			gap(keep[0])
			at = keep[1]
		}
		gap(v.start)
		at = v.end
		from := v.start
		foreign := func(to arch.Addr) {
			if from < to && len(overlap(s.bank.ranges, from, to)) > 0 {
				b.Call(nr.Madvise, from, to-from, unix.MADV_DONTNEED).Note("pages of others in mapping %s", span(v.start, v.end))
			}
		}
		for _, r := range overlap(s.cow, v.start, v.end) {
			foreign(arch.Addr(r.Start))
			from = arch.Addr(r.End)
		}
		foreign(v.end)
		if prot := v.firstProt(); prot != s.bank.space.areas[k].prot {
			b.Call(nr.Mprotect, v.start, v.size(), prot).Note("mapping %s", span(v.start, v.end))
		}
	}
	if !arena {
		gap(keep[0])
		at = keep[1]
	}
	gap(s.arch.TaskSize) // a 32-bit program's tasks may not even name what is above theirs
}

// MapBank says which task is the bank.
func (f *Filler) MapBank(b *Bank, tid int) {
	f.targets[b.Ref.ID] = &target{space: b.space, ranges: b.ranges, tid: tid}
}

// declared says whether some address space has all of a run of shared pages.
func declared(ranges []Range, at, length uint64) bool {
	r := overlap(ranges, arch.Addr(at), arch.Addr(at+length))
	return len(r) == 1 && r[0].Start <= at && r[0].End >= at+length
}

// Copy writes to address spaces what they have of the bank's pages and could not inherit. The bank, task tid, must be filled, and all Map calls made.
func (f *Filler) Copy(b *Bank, tid int) error {
	mem, err := sys.Open(procfs.Path(tid, "mem"), unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	for _, s := range f.spaces {
		to := f.targets[s.Ref.ID]
		if s.bank == nil || to == nil {
			continue
		}
		for i := range s.areas {
			v := &s.areas[i]
			if _, kept := s.kept[i]; kept {
				continue
			}
			for _, r := range overlap(s.cow, v.start, v.end) {
				if err := f.copyRange(to, mem, max(r.Start, uint64(v.start)), min(r.End, uint64(v.end)), v.of.IsZero()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// copyRange copies one range; pages of zeros only where they hide a file.
func (f *Filler) copyRange(to *target, mem *sys.FD, at, end uint64, skipZeros bool) error {
	for at < end {
		b := buffer{data: f.buffer(int(min(end-at, maxPages)))}
		n, err := readAt(mem, b.data, at)
		if err == nil && n < len(b.data) {
			err = unix.EFAULT
		}
		if err != nil {
			return fmt.Errorf("copying shared pages at %#x: %w", at, err)
		}
		b.segs = []segment{{addr: at, length: n, zeros: !skipZeros}}
		b.dropZeros(to.space.pageSize)
		for _, s := range b.segs {
			pieces, err := to.space.pieces(s.addr, uint64(s.length))
			if err != nil {
				return err
			}
			j := job{to: to, at: s.addr, data: b.data[s.offset : s.offset+s.length], pieces: pieces}
			if err := j.write(); err != nil {
				return err
			}
		}
		f.give(b.data)
		at += uint64(n)
	}
	return nil
}
