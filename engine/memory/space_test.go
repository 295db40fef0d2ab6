package memory

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/object"
	"crpipe/stream"
)

func TestFlags(t *testing.T) {
	for f := flag(0); f < 1<<len(flagCodes); f += 77 {
		got, ok := parseFlags(f.String())
		if !ok || got != f {
			t.Fatalf("%q is %#x, want %#x", f.String(), got, f)
		}
	}
	for _, bad := range []string{" ", "gd ", " gd", "gd  ac", "ac gd", "gd gd", "xx", "g", "thp x"} {
		if f, ok := parseFlags(bad); ok {
			t.Errorf("%q is accepted as %v", bad, f)
		}
	}
}

// sample is what an image says of an address space: a program's text from a file, heap, shared memory, a deleted file, a vdso.
type sample struct {
	pageSize int
	file     *File
	gone     *File
	shm      *Shm
	vdso     *VDSO
	mm       *MM
	areas    []*Areas
}

func newSample() *sample {
	file, shm, gone := stream.Ref{ID: 1, Class: "mapfile"}, stream.Ref{ID: 3, Class: "shm"}, stream.Ref{ID: 2, Class: "mapfile"}
	return &sample{
		pageSize: 4096,
		file:     &File{Path: "/bin/true", Size: 0x5123, BuildID: []byte{1, 2, 3}},
		gone:     &File{Path: "/tmp/gone", Size: 0x1000, Deleted: true, Mode: 0o644},
		shm:      &Shm{Size: 0x8000},
		vdso:     &VDSO{Image: make([]byte, 0x2000)},
		mm: &MM{
			Exe: file, VDSO: stream.Ref{ID: 4, Class: "vdso"},
			StartCode: 0x401000, EndCode: 0x402000, StartBrk: 0x500000, Brk: 0x510000,
			Auxv: []uint64{6, 4096, 0, 0}, Dumpable: 1, CoreFilter: 0x33,
			Guards: []Range{{0x7ff000002000, 0x7ff000003000}},
		},
		areas: []*Areas{{Areas: []Area{
			{Start: 0x400000, End: 0x401000, Perms: "r--p", Of: file},
			{Start: 0x401000, End: 0x402000, Perms: "r-xp", Of: file, Offset: 0x1000},
			{Start: 0x500000, End: 0x510000, Perms: "rw-p", Flags: "ac"},
			{Start: 0x10000000000, End: 0x20000000000, Perms: "---p", Flags: "nr"},
			{Start: 0x7f0000000000, End: 0x7f0000008000, Perms: "rw-s", Of: shm},
			{Start: 0x7f0000010000, End: 0x7f0000011000, Perms: "rw-p", Flags: "ac", Of: gone},
		}}, {Areas: []Area{
			{Start: 0x7f0000020000, End: 0x7f0000021000, Perms: "rw-s", Flags: "mw", Of: file, Offset: 0x2000},
			{Start: 0x7f0000030000, End: 0x7f0000034000, Perms: "r--p", Name: "[vvar]"},
			{Start: 0x7f0000034000, End: 0x7f0000036000, Perms: "r--p", Name: "[vvar_vclock]"},
			{Start: 0x7f0000036000, End: 0x7f0000038000, Perms: "r-xp", Name: "[vdso]"},
			{Start: 0x7f0000040000, End: 0x7f0000041000, Perms: "rw-p", Flags: "ac", Name: "[anon:stack of a thread]"},
			{Start: 0x7ff000000000, End: 0x7ff000010000, Perms: "rw-p", Flags: "gd ac"},
		}}},
	}
}

// plan sends the sample through an image, so that Spaces sees what a reader gives it.
func (s *sample) plan(t testing.TB) *object.Plan {
	t.Helper()
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: s.pageSize})
	if err != nil {
		t.Fatal(err)
	}
	const mmID = 5
	err = errors.Join(
		w.Put(TypeFile, 1, s.file, nil), w.Put(TypeFile, 2, s.gone, nil), w.Put(TypeShm, 3, s.shm, nil),
		w.Put(TypeVDSO, 4, s.vdso, nil), w.Put(TypeMM, mmID, s.mm, nil), w.Put("file.eventfd", 6, &otherFile{}, nil))
	for _, a := range s.areas {
		if a.MM.IsZero() {
			a.MM = stream.Ref{ID: mmID, Class: "mm"}
		}
		err = errors.Join(err, w.Put(TypeAreas, 0, a, nil))
	}
	if err = errors.Join(err, w.End()); err != nil {
		t.Fatal(err)
	}
	r, err := stream.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	plan, _, err := object.ReadPlan(r, append(Kinds(), object.NewKind[otherFile]("file.eventfd", nil)))
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// otherFile stands for an open file that has no memory.
type otherFile struct{}

func amd64(t testing.TB) *arch.Arch {
	t.Helper()
	a, err := arch.For("amd64")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSpaces(t *testing.T) {
	spaces, err := Spaces(newSample().plan(t), amd64(t))
	if err != nil {
		t.Fatal(err)
	}
	s := spaces[stream.Ref{ID: 5, Class: "mm"}]
	if s == nil || len(s.areas) != 12 || s.VDSO == nil {
		t.Fatalf("space %+v", s)
	}
	for at, want := range map[arch.Addr]int{0: 0, 0x400fff: 0, 0x401000: 1, 0x402000: 2, 0x7ff000010000: 12} {
		if got := s.find(at); got != want {
			t.Errorf("the mapping at or behind %v is %d, want %d", at, got, want)
		}
	}
	if got := s.covered(0x400000, 0x402000); len(got) != 2 {
		t.Errorf("two neighbours cover a range: %d", len(got))
	}
	if got := s.covered(0x401000, 0x500001); got != nil {
		t.Errorf("%d mappings cover a gap", len(got))
	}
}

// TestHostileSpaces has one image for each rule that it breaks.
func TestHostileSpaces(t *testing.T) {
	area := func(s *sample, i int) *Area {
		if i < 6 {
			return &s.areas[0].Areas[i]
		}
		return &s.areas[1].Areas[i-6]
	}
	ring := func(spoil func(a *AIO)) func(s *sample) {
		return func(s *sample) {
			a := AIO{Ring: 0x10000000, Size: 4096, MaxReq: 10, Slots: 127}
			spoil(&a)
			s.mm.AIO = []AIO{a}
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(s *sample)
		want  string
	}{
		{"overlap", func(s *sample) { area(s, 1).Start = 0x400000 }, "overlaps"},
		{"order", func(s *sample) { area(s, 6).Start, area(s, 6).End = 0x1000, 0x2000 }, "overlaps"},
		{"empty", func(s *sample) { area(s, 2).End = area(s, 2).Start }, "outside"},
		{"backwards", func(s *sample) { area(s, 2).End = 0x4ff000 }, "outside"},
		{"unaligned start", func(s *sample) { area(s, 2).Start++ }, "aligned"},
		{"unaligned end", func(s *sample) { area(s, 2).End-- }, "aligned"},
		{"unaligned offset", func(s *sample) { area(s, 1).Offset = 0x1001 }, "aligned"},
		{"beyond", func(s *sample) { area(s, 11).End = 0x800000000000 }, "outside"},
		{"wraps", func(s *sample) { area(s, 11).End = 1<<64 - 4096 }, "outside"},
		{"offset overflows", func(s *sample) { area(s, 1).Offset = 1<<64 - 4096 }, "offset"},
		{"permissions", func(s *sample) { area(s, 2).Perms = "wr-p" }, "permissions"},
		{"short permissions", func(s *sample) { area(s, 2).Perms = "rw-" }, "permissions"},
		{"flags", func(s *sample) { area(s, 2).Flags = "ac zz" }, "flags"},
		{"shared nothing", func(s *sample) { area(s, 2).Perms = "rw-s" }, "shows no object"},
		{"offset in nothing", func(s *sample) { area(s, 2).Offset = 0x1000 }, "no object"},
		{"private shm", func(s *sample) { area(s, 4).Perms = "rw-p" }, "private mapping of shared"},
		{"shared deleted", func(s *sample) { area(s, 5).Perms, area(s, 5).Flags = "r--s", "" }, "shared mapping of a deleted"},
		{"writable read-only file", func(s *sample) { area(s, 6).Flags = "" }, "writable"},
		{"mw private", func(s *sample) { area(s, 0).Flags = "mw" }, "mw"},
		{"growing file", func(s *sample) { area(s, 0).Flags = "gd" }, "only for private anonymous"},
		{"growing droppable", func(s *sample) { area(s, 2).Flags = "gd dp" }, "exclude"},
		{"locked on fault only", func(s *sample) { area(s, 2).Flags = "lf" }, "exclude"},
		{"huge and not", func(s *sample) { area(s, 2).Flags = "hg nh" }, "exclude"},
		{"of a file that has no memory", func(s *sample) { area(s, 2).Of = stream.Ref{ID: 6, Class: "file"} }, "a mapping of a file.eventfd"},
		{"of an mm", func(s *sample) { area(s, 2).Of = stream.Ref{ID: 5, Class: "mm"} }, `class "mm"`},
		{"name of a file", func(s *sample) { area(s, 0).Name = "[anon:x]" }, "name"},
		{"name without end", func(s *sample) { area(s, 2).Name = "[anon:x" }, "name"},
		{"long name", func(s *sample) { area(s, 2).Name = "[anon:" + strings.Repeat("x", 80) + "]" }, "name"},
		{"name with zero", func(s *sample) { area(s, 2).Name = "[anon:a\x00b]" }, "name"},
		{"name of the heap", func(s *sample) { area(s, 2).Name = "[heap]" }, "name"},
		{"vdso apart", func(s *sample) { area(s, 7).Start, area(s, 7).End = 0x7f000002e000, 0x7f0000032000 }, "vdso"},
		{"vdso without code", func(s *sample) { area(s, 9).Name = "" }, "vdso"},
		{"vdso with flags", func(s *sample) { area(s, 9).Flags = "ac" }, "vdso"},
		{"vdso too short", func(s *sample) { s.vdso.Image = s.vdso.Image[:0x1000] }, "size"},
		{"vdso not declared", func(s *sample) { s.mm.VDSO = stream.Ref{} }, "size"},
		{"vdso is a file", func(s *sample) { s.mm.VDSO = s.mm.Exe }, "does not belong"},
		{"exe is a vdso", func(s *sample) { s.mm.Exe = s.mm.VDSO }, "does not belong"},
		{"exe is a device", func(s *sample) { s.file.Zero = true; area(s, 6).Perms, area(s, 6).Flags = "rw-p", "" }, "device"},
		{"relative path", func(s *sample) { s.file.Path = "bin/true" }, "path"},
		{"path with zero", func(s *sample) { s.file.Path = "/bin/\x00true" }, "path"},
		{"endless path", func(s *sample) { s.file.Path = "/" + strings.Repeat("x", unix.PathMax) }, "path"},
		{"mode", func(s *sample) { s.gone.Mode = 0o104755 }, "permissions"},
		{"file size", func(s *sample) { s.gone.Size = 1 << 63 }, "size"},
		{"lock", func(s *sample) { s.file.Flock = "posix" }, "lock of the kind"},
		{"lock of a deleted file", func(s *sample) { s.gone.Flock = flockShared }, "lock of the kind"},
		{"shm size", func(s *sample) { s.shm.Size = 1 << 60 }, "size"},
		{"no shm size", func(s *sample) { s.shm.Size = 0 }, "size"},
		{"layout", func(s *sample) { s.mm.EnvEnd = 1 << 63 }, "layout"},
		{"ring unaligned", ring(func(a *AIO) { a.Ring++ }), "ring of asynchronous I/O"},
		{"ring of nothing", ring(func(a *AIO) { a.Size = 0 }), "ring of asynchronous I/O"},
		{"ring too large", ring(func(a *AIO) { a.Size = 1 << 40 }), "ring of asynchronous I/O"},
		{"ring wraps", ring(func(a *AIO) { a.Ring = 1<<64 - 4096 }), "ring of asynchronous I/O"},
		{"ring outside", ring(func(a *AIO) { a.Ring = 1 << 60 }), "outside of the address space"},
		{"ring over a mapping", ring(func(a *AIO) { a.Ring = 0x400000 }), "overlaps"},
		{"ring of other slots", ring(func(a *AIO) { a.Slots++ }), "slots"},
		{"ring's head", ring(func(a *AIO) { a.Head = 127 }), "head 127"},
		{"ring's tail", ring(func(a *AIO) { a.Tail = 1 << 31 }), "tail"},
		{"ring for nobody", ring(func(a *AIO) { a.MaxReq = 0 }), "for 0 requests"},
		{"ring's index", ring(func(a *AIO) { a.Index = 1 << 31 }), "index"},
		{"ring's events", ring(func(a *AIO) { a.Tail, a.Events = 3, make([]byte, 64) }), "64 bytes of events"},
		{"ring twice", func(s *sample) {
			ring(func(*AIO) {})(s)
			s.mm.AIO = append(s.mm.AIO, s.mm.AIO[0])
			s.mm.AIO[1].Ring += 4096
		}, "out of order"},
		{"too many slots", func(s *sample) {
			for i := range uint32(3) {
				s.mm.AIO = append(s.mm.AIO, AIO{Ring: 0x100000000 + uint64(i)<<24, Size: 16 << 20, Index: i, MaxReq: 1, Slots: 16<<20/32 - 1})
			}
		}, "more than"},
		{"brk", func(s *sample) { s.mm.Brk = 0x4fffff }, "layout"},
		{"auxv", func(s *sample) { s.mm.Auxv = []uint64{6, 4096} }, "auxiliary"},
		{"long auxv", func(s *sample) { s.mm.Auxv = make([]uint64, 1000) }, "auxiliary"},
		{"dumpable", func(s *sample) { s.mm.Dumpable = 3 }, "mode"},
		{"coredump_filter", func(s *sample) { s.mm.CoreFilter = 1 << 30 }, "mode"},
		{"mdwe", func(s *sample) { s.mm.MDWE = 2 }, "mode"},
		{"membarrier", func(s *sample) { s.mm.Membarrier = 1 }, "mode"},
		{"mlockall", func(s *sample) { s.mm.LockOnFault = true }, "MCL_ONFAULT"},
		{"policy for nothing", func(s *sample) { s.mm.Policies = []Policy{{Start: 0x1000, End: 0x2000, Mode: 1}} }, "NUMA"},
		{"policy unaligned", func(s *sample) { s.mm.Policies = []Policy{{Start: 0x500000, End: 0x500800, Mode: 1}} }, "NUMA"},
		{"no policy", func(s *sample) { s.mm.Policies = []Policy{{Start: 0x500000, End: 0x501000, Mode: 7}} }, "NUMA"},
		{"flags of a policy", func(s *sample) { s.mm.Policies = []Policy{{Start: 0x500000, End: 0x501000, Mode: 1, Flags: 1}} }, "NUMA"},
		{"many nodes", func(s *sample) {
			s.mm.Policies = []Policy{{Start: 0x500000, End: 0x501000, Mode: 1, Nodes: make([]uint64, 17)}}
		}, "NUMA"},
		{"home", func(s *sample) {
			s.mm.Policies = []Policy{{Start: 0x500000, End: 0x501000, Mode: 2, HasHome: true, Home: -1}}
		}, "NUMA"},
		{"hugetlb of no size", func(s *sample) { area(s, 2).Flags = "ht" }, "pages of"},
		{"hugetlb without the flag", func(s *sample) { area(s, 2).PageSize = 2 << 20 }, "pages of"},
		{"hugetlb unaligned", func(s *sample) { area(s, 2).Flags, area(s, 2).PageSize = "ht", 2<<20 }, "pages of"},
		{"hugetlb of odd size", func(s *sample) { area(s, 3).Flags, area(s, 3).PageSize = "ht", 3<<20 }, "pages of"},
		{"hugetlb of a file", func(s *sample) { area(s, 0).Flags, area(s, 0).PageSize = "ht", 1<<20 }, "pages of"},
		{"huge outside", func(s *sample) { s.mm.Huge = []Range{{0x1000, 0x2000}} }, "huge pages"},
		{"huge order", func(s *sample) { s.mm.Huge = []Range{{0x500000, 0x502000}, {0x501000, 0x503000}} }, "huge pages"},
		{"huge unaligned", func(s *sample) { s.mm.Huge = []Range{{0x500001, 0x502000}} }, "huge pages"},
		{"guard outside", func(s *sample) { s.mm.Guards[0] = Range{0x1000, 0x2000} }, "guard"},
		{"guard order", func(s *sample) { s.mm.Guards = append(s.mm.Guards, s.mm.Guards[0]) }, "guard"},
		{"guard unaligned", func(s *sample) { s.mm.Guards[0].End++ }, "guard"},
		{"areas of a file", func(s *sample) { s.areas[1].MM = s.mm.Exe }, "no address space"},
		{"page size", func(s *sample) { s.pageSize = 512 }, "pages"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSample()
			test.spoil(s)
			_, err := Spaces(s.plan(t), amd64(t))
			var bad *object.BadImage
			if !errors.As(err, &bad) {
				t.Fatalf("it is accepted, or the error is no BadImage: %v", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v: does not say %q", err, test.want)
			}
		})
	}
}

func TestHole(t *testing.T) {
	a := amd64(t)
	spaces, err := Spaces(newSample().plan(t), a)
	if err != nil {
		t.Fatal(err)
	}
	second := &Space{arch: a, pageSize: 4096, areas: []area{{start: 8 << 30, end: 100 << 30}, {start: 0x300000000000, end: 0x7fff00000000}}}
	spaces[stream.Ref{ID: 6, Class: "mm"}] = second
	for _, need := range []uint64{4096, 1 << 20, 1 << 30, 700 << 30, 4 << 40, 20 << 40} {
		at, err := Hole(spaces, a, need, false)
		if err != nil {
			t.Fatal(err)
		}
		end := at + arch.Addr(need)
		if at < stubLow || end > a.TaskSize/2 || at%holeAlign != 0 {
			t.Errorf("hole of %#x bytes at %v", need, at)
		}
		for _, s := range spaces {
			for _, v := range s.areas {
				if v.start < end+holeMargin && at < v.end+holeMargin {
					t.Errorf("hole %v-%v is too near to %s", at, end, span(v.start, v.end))
				}
			}
		}
	}
	second.areas = []area{{start: 4096, end: a.TaskSize}}
	var lacking *object.Lacking
	for _, need := range []uint64{1, 1 << 63, 1<<64 - 1} {
		if at, err := Hole(spaces, a, need, false); !errors.As(err, &lacking) {
			t.Errorf("a hole of %d bytes in a full address space: %v, %v", need, at, err)
		}
	}
}

func TestPieces(t *testing.T) {
	spaces, err := Spaces(newSample().plan(t), amd64(t))
	if err != nil {
		t.Fatal(err)
	}
	s := spaces[stream.Ref{ID: 5, Class: "mm"}]
	for _, test := range []struct {
		at, length uint64
		want       string
	}{
		{0x500000, 0x10000, "[{65536 false}]"},
		{0x400000, 0x2000, "[{8192 true}]"}, // read-only from the start
		{0x10000000000, 0x1000, "[{4096 true}]"},
		{0x7f0000036000, 0x2000, "[{8192 true}]"}, // a breakpoint in the vdso
		{0x7f0000034000, 0x1000, "error"},         // the kernel's data
		{0x7f0000000000, 0x1000, "error"},         // shared
		{0x402000, 0x1000, "error"},               // nothing there
		{0x50f000, 0x2000, "error"},               // partly
		{0x500001, 0x1000, "error"},
		{0x500000, 0x1001, "error"},
		{1<<64 - 4096, 0x2000, "error"},
	} {
		got, err := s.pieces(test.at, test.length)
		text := fmt.Sprint(got)
		if err != nil {
			text = "error"
		}
		if text != test.want {
			t.Errorf("pieces of %#x+%#x: %s (%v), want %s", test.at, test.length, text, err, test.want)
		}
	}
	head, tail := cut([]piece{{4096, true}, {8192, false}, {4096, true}}, 8192)
	if fmt.Sprint(head, tail) != "[{4096 true} {4096 false}] [{4096 false} {4096 true}]" {
		t.Errorf("cut into %v and %v", head, tail)
	}
	h := shmHandle{size: 0x1800}
	if err := h.holds(0x1000, 0x1000, 4096); err != nil {
		t.Error(err)
	}
	for _, bad := range [][2]uint64{{0x2000, 0x1000}, {0x1000, 0x2000}, {1<<64 - 4096, 4096}, {0x800, 0x800}} {
		if h.holds(bad[0], bad[1], 4096) == nil {
			t.Errorf("pages at %#x+%#x fit into %#x bytes", bad[0], bad[1], h.size)
		}
	}
}

func TestDropZeros(t *testing.T) {
	b := &buffer{data: make([]byte, maxPages)}
	for _, p := range []int{0, 1, 3, 7} {
		b.data[p*page+17] = 1
	}
	b.segs = []segment{
		{addr: 0x10000, offset: 0, length: 5 * page},
		{addr: 0x90000, offset: 5 * page, length: page, zeros: true},
		{addr: 0xa0000, offset: 6 * page, length: 2 * page},
	}
	b.dropZeros(page)
	var got []string
	for _, s := range b.segs {
		got = append(got, fmt.Sprintf("%x:%d+%d", s.addr, s.offset/page, s.length/page))
	}
	if want := "10000:0+2 13000:3+1 90000:5+1 a1000:7+1"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestBuildID(t *testing.T) {
	note := func(name, desc string, typ uint32) []byte {
		b := []byte{byte(len(name)), 0, 0, 0, byte(len(desc)), 0, 0, 0, byte(typ), 0, 0, 0}
		b = append(b, name...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		b = append(b, desc...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	file := func(notes []byte) []byte {
		b := make([]byte, 64+56)
		copy(b, "\x7fELF\x02\x01\x01")
		b[32], b[54], b[56] = 64, 56, 1
		b[64] = 4 // PT_NOTE
		b[64+8] = 120
		b[64+32] = byte(len(notes))
		b[64+48] = 4
		return append(b, notes...)
	}
	gnu := note("GNU\x00", "0123456789", 3)
	for _, test := range []struct {
		name string
		data []byte
		want string
	}{
		{"gnu", file(gnu), "0123456789"},
		{"other first", file(append(note("GNU\x00", "abcd", 1), gnu...)), "0123456789"},
		{"go", file(note("Go\x00\x00", "xyz", 4)), "xyz"},
		{"both", file(append(note("Go\x00\x00", "xyz", 4), gnu...)), "0123456789"},
		{"none", file(note("GNU\x00", "abcd", 1)), ""},
		{"cut", file(gnu)[:130], ""},
		{"headers cut", file(gnu)[:100], ""},
		{"no ELF", bytes.Repeat([]byte("x"), 200), ""},
		{"empty", nil, ""},
		{"hostile length", file([]byte{4, 0, 0, 0, 255, 255, 255, 255, 3, 0, 0, 0, 'G', 'N', 'U', 0}), ""},
	} {
		if got := string(buildID(bytes.NewReader(test.data))); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
