package memory

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// After a fork parent and child have the same pages until one of them writes (copy-on-write). Nothing that a program can ask for tells such a page
// from a copy, but a tree of a hundred workers may need a hundred times the memory without. /proc/PID/pagemap shows it: the number of the page
// frame (for CAP_SYS_ADMIN; else 0, and every page is kept for each process). Pages that several address spaces have at the same address of
// mappings of the same origin are contents of one object, "cow", and each of these address spaces says which of them it has ("cow.ranges").
// Of two versions of a page that are shared in one tree (by some before a write, by others after) the one of more processes is kept so.

// Record types.
const (
	TypeCow       stream.Type = "cow"        // pages that address spaces share until they are written to
	TypeCowRanges stream.Type = "cow.ranges" // which of them an address space has
)

// Cow is the record of the memory that address spaces of the tree share copy-on-write. Its pages records, the first in the bulk, say the addresses.
type Cow struct {
	Size uint64 `msgpack:"size"` // bytes of it that any address space has
}

// CowRanges is the record of the parts of an address space whose contents are those of a Cow at the same address, some of them: up to
// rangesPerRecord, ascending; records of one address space are in ascending order too.
type CowRanges struct {
	MM     stream.Ref `msgpack:"mm"`
	Of     stream.Ref `msgpack:"of"`
	Ranges []Range    `msgpack:"ranges"`
}

// rangesPerRecord keeps the metadata of a record well below stream.MaxMeta.
const rangesPerRecord = 8192

const (
	pagemapFrame = 1<<55 - 1 // the page frame, of a present page
	pagemapFile  = 1 << 61   // a page of a file or of shared memory
	// cowWindow is how much of all address spaces is compared at a time.
	cowWindow = 2 << 20
)

// cowSpace is an address space that is compared with others.
type cowSpace struct {
	c       *contents
	mm      stream.Ref
	pagemap *pageMap
	spans   []cowSpan // ascending
	shared  []Range   // what it has of the cow
	owned   []Range   // and what of that is read from it
}

// cowSpan is a stretch of a part in which there are pages.
type cowSpan struct {
	start, end arch.Addr
	in         *part
}

// Share finds the pages that processes share. It is called once, when Dump has been called for all of them.
func Share(d *object.Dumper) error {
	var all []*cowSpace
	defer func() {
		for _, s := range all {
			if s.pagemap != nil {
				_ = s.pagemap.Close() // only read from
			}
		}
	}()
	seen := map[stream.Ref]bool{}
	for _, p := range d.Processes {
		c, ok := p.Memory.(*contents)
		if !ok || p.MM.IsZero() || seen[p.MM] {
			continue
		}
		seen[p.MM] = true
		all = append(all, &cowSpace{c: c, mm: p.MM})
	}
	if all = meeting(all); len(all) < 2 {
		return nil
	}
	for _, s := range all {
		if err := s.look(); err != nil {
			return fmt.Errorf("looking for shared pages of pid %d: %w", s.c.tid, err)
		}
	}
	if err := compare(all, d.Arch.PageSize); err != nil {
		return fmt.Errorf("looking for shared pages: %w", err)
	}
	size := uint64(0)
	for _, s := range all {
		for _, r := range s.owned {
			size += r.End - r.Start
		}
	}
	if size == 0 {
		return nil
	}
	cow := d.Add(TypeCow, &Cow{Size: size})
	for _, s := range all {
		s.c.parts = without(s.c.parts, s.shared)
		for left := s.shared; len(left) > 0; {
			n := min(len(left), rangesPerRecord)
			d.AddPlain(TypeCowRanges, &CowRanges{MM: s.mm, Of: cow, Ranges: left[:n]})
			left = left[n:]
		}
	}
	d.AddFirstBulk(cow, func(w *stream.Writer) error {
		for _, s := range all {
			c := *s.c
			if c.parts = within(s.whole(), s.owned); len(c.parts) == 0 {
				continue
			}
			if err := c.write(w, cow); err != nil {
				return fmt.Errorf("pid %d: %w", c.tid, err)
			}
		}
		return nil
	})
	return nil
}

// meeting returns the address spaces of which a part may lie where another has one, which those of programs that execve(2) has laid
// out at random mostly do not.
func meeting(all []*cowSpace) []*cowSpace {
	type stretch struct {
		start, end arch.Addr
		space      int
	}
	var stretches []stretch
	for i, s := range all {
		for j := range s.c.parts {
			if p := &s.c.parts[j]; !p.apart {
				stretches = append(stretches, stretch{p.start, p.end, i})
			}
		}
	}
	slices.SortFunc(stretches, func(a, b stretch) int { return cmp.Compare(a.start, b.start) })
	meets := make([]bool, len(all))
	for i := 0; i < len(stretches); {
		// All up to j lie without a gap.
		end, several, j := stretches[i].end, false, i+1
		for ; j < len(stretches) && stretches[j].start < end; j++ {
			end = max(end, stretches[j].end)
			several = several || stretches[j].space != stretches[i].space
		}
		for ; i < j; i++ {
			meets[stretches[i].space] = meets[stretches[i].space] || several
		}
	}
	var out []*cowSpace
	for i, s := range all {
		if meets[i] {
			out = append(out, s)
		}
	}
	return out
}

// whole returns the parts as they were before anything was taken out.
func (s *cowSpace) whole() []part {
	var parts []part
	for i := range s.spans {
		if p := s.spans[i].in; len(parts) == 0 || parts[len(parts)-1] != *p {
			parts = append(parts, *p)
		}
	}
	return parts
}

// look finds the stretches in which there are anonymous pages.
func (s *cowSpace) look() error {
	parts := s.c.parts
	if len(parts) == 0 {
		return nil
	}
	var err error
	if s.pagemap, err = openPageMap(s.c.tid); err != nil {
		return err
	}
	args := sys.PagemapScanArgs{
		Start: parts[0].start, End: parts[len(parts)-1].end,
		Inverted: sys.PageFile | sys.PagePFNZero, Mask: sys.PageFile | sys.PagePFNZero | sys.PagePresent, Return: sys.PagePresent,
	}
	i := 0
	return eachRegion(s.pagemap, args, func(r sys.PageRegion) {
		for i < len(parts) && parts[i].end <= r.Start {
			i++
		}
		for j := i; j < len(parts) && parts[j].start < r.End; j++ {
			if !parts[j].apart {
				s.spans = append(s.spans, cowSpan{max(parts[j].start, r.Start), min(parts[j].end, r.End), &parts[j]})
			}
		}
	})
}

// compare goes through all address spaces side by side.
func compare(all []*cowSpace, pageSize int) error {
	type visit struct {
		window arch.Addr
		space  *cowSpace
		order  int
		spans  []cowSpan
	}
	var visits []visit
	for order, s := range all {
		for i := 0; i < len(s.spans); {
			window := s.spans[i].start / cowWindow
			j := i
			for j < len(s.spans) && s.spans[j].start/cowWindow == window {
				j++
			}
			visits = append(visits, visit{window, s, order, s.spans[i:j]})
			// One that reaches into later windows is visited there too.
			for last := s.spans[j-1]; (last.end-1)/cowWindow > window; {
				window++
				k := j
				for k < len(s.spans) && s.spans[k].start/cowWindow == window {
					k++
				}
				visits = append(visits, visit{window, s, order, s.spans[j-1 : k]})
				if k > j {
					last, j = s.spans[k-1], k
				}
			}
			i = j
		}
	}
	sort.Slice(visits, func(i, j int) bool {
		if visits[i].window != visits[j].window {
			return visits[i].window < visits[j].window
		}
		return visits[i].order < visits[j].order
	})
	var tables []cowTable
	for i := 0; i < len(visits); {
		j := i
		for j < len(visits) && visits[j].window == visits[i].window {
			j++
		}
		group := visits[i:j]
		i = j
		if len(group) < 2 {
			continue
		}
		for len(tables) < len(group) {
			tables = append(tables, cowTable{frames: make([]uint64, cowWindow/pageSize), in: make([]*part, cowWindow/pageSize), raw: make([]byte, cowWindow/pageSize*8)})
		}
		start := group[0].window * cowWindow
		candidates := 0
		for k := range group {
			tables[k].space = group[k].space
			n, err := tables[k].read(group[k].spans, start, pageSize)
			if err != nil {
				return err
			}
			if n > 0 {
				candidates++
			}
		}
		if candidates < 2 {
			continue
		}
		// A page can be moved to another frame at any time, and another page into its own. Who has the same frame as somebody else
		// in two rounds has the same page: else the two would have changed places three times in between.
		for k := range group {
			if err := tables[k].confirm(group[k].spans, start, pageSize); err != nil {
				return err
			}
		}
		pick(tables[:len(group)], start, pageSize)
	}
	return nil
}

// cowTable is what pagemap says of one window of one address space.
type cowTable struct {
	space  *cowSpace
	frames []uint64 // 0: nothing that could be shared
	in     []*part
	raw    []byte
}

// entries reads the window's entries as far as there are pages; f gets each with its index.
func (t *cowTable) entries(spans []cowSpan, start arch.Addr, pageSize int, f func(i int, entry uint64, in *part)) error {
	page := arch.Addr(pageSize)
	from := max(spans[0].start, start)
	to := min(spans[len(spans)-1].end, start+cowWindow)
	b := t.raw[:(to-from)/page*8]
	n, err := readAt(t.space.pagemap.FD, b, uint64(from/page)*8)
	if err == nil && n < len(b) {
		err = fmt.Errorf("it ends before %v", to)
	}
	if err != nil {
		return fmt.Errorf("reading page tables of pid %d: %w", t.space.c.tid, err)
	}
	for i := range spans {
		for at := max(spans[i].start, from); at < min(spans[i].end, to); at += page {
			f(int((at-start)/page), binary.NativeEndian.Uint64(b[(at-from)/page*8:]), spans[i].in)
		}
	}
	return nil
}

// frameOf returns the frame of a page that others may have too, else 0.
func frameOf(entry uint64) uint64 {
	if entry&(pagemapPresent|pagemapExclusive|pagemapFile) != pagemapPresent {
		return 0
	}
	return entry & pagemapFrame
}

// read fills the table, and returns how many pages could be shared.
func (t *cowTable) read(spans []cowSpan, start arch.Addr, pageSize int) (int, error) {
	clear(t.frames)
	n := 0
	err := t.entries(spans, start, pageSize, func(i int, entry uint64, in *part) {
		if frame := frameOf(entry); frame != 0 {
			t.frames[i], t.in[i] = frame, in
			n++
		}
	})
	return n, err
}

// confirm leaves only what is as it was.
func (t *cowTable) confirm(spans []cowSpan, start arch.Addr, pageSize int) error {
	return t.entries(spans, start, pageSize, func(i int, entry uint64, _ *part) {
		if t.frames[i] != frameOf(entry) {
			t.frames[i] = 0
		}
	})
}

// pick chooses for each page of a window the version that most address spaces have, the first of equals.
func pick(tables []cowTable, start arch.Addr, pageSize int) {
	var best, group []*cowTable
	for i := range tables[0].frames {
		best = best[:0]
		for k := range tables {
			first := &tables[k]
			if first.frames[i] == 0 {
				continue
			}
			group = append(group[:0], first)
			for m := k + 1; m < len(tables); m++ {
				if t := &tables[m]; t.frames[i] == first.frames[i] && t.in[i].sameOrigin(first.in[i]) {
					group = append(group, t)
				}
			}
			for _, t := range group {
				t.frames[i] = 0 // its own group will not be larger
			}
			if len(group) > max(len(best), 1) {
				best, group = group, best
			}
		}
		if len(best) == 0 {
			continue
		}
		at := start + arch.Addr(i*pageSize)
		r := sys.PageRegion{Start: at, End: at + arch.Addr(pageSize)}
		for _, t := range best {
			t.space.shared = join(t.space.shared, r)
		}
		best[0].space.owned = join(best[0].space.owned, r)
	}
}

// sameOrigin says that two mappings at the same address show the same thing.
func (p *part) sameOrigin(q *part) bool { return p.of == q.of && p.delta == q.delta }

// without returns what is left of parts when ranges, which lie in them, are taken out.
func without(parts []part, ranges []Range) []part {
	out := make([]part, 0, len(parts))
	for _, p := range parts {
		for len(ranges) > 0 && ranges[0].Start < uint64(p.end) {
			r := ranges[0]
			if before := p; r.Start > uint64(p.start) {
				before.end = arch.Addr(r.Start)
				out = append(out, before)
			}
			if r.End >= uint64(p.end) { // it may go on in the next part
				p.start = p.end
				if r.End > uint64(p.end) {
					break
				}
			} else {
				p.start = arch.Addr(r.End)
			}
			ranges = ranges[1:]
		}
		for len(ranges) > 0 && ranges[0].End <= uint64(p.end) {
			ranges = ranges[1:]
		}
		if p.start < p.end {
			out = append(out, p)
		}
	}
	return out
}

// within returns the pieces of parts that ranges cover.
func within(parts []part, ranges []Range) []part {
	var out []part
	for _, p := range parts {
		i, _ := slices.BinarySearchFunc(ranges, uint64(p.start), func(r Range, at uint64) int {
			if r.End <= at {
				return -1
			}
			return 1
		})
		for ; i < len(ranges) && ranges[i].Start < uint64(p.end); i++ {
			piece := p
			piece.start, piece.end = max(p.start, arch.Addr(ranges[i].Start)), min(p.end, arch.Addr(ranges[i].End))
			out = append(out, piece)
		}
	}
	return out
}
