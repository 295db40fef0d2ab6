package memory

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"crpipe/engine/object"
	"crpipe/stream"
)

// kin are address spaces that share pages.
type kin struct {
	file   *File
	areas  [][]Area
	cow    *Cow
	ranges []*CowRanges
}

const (
	kinFile = 1
	kinMM   = 2 // and up
	kinCow  = 100
)

func newKin() *kin {
	k := &kin{
		file: &File{Path: "/bin/true", Size: 0x9000},
		areas: [][]Area{
			{{Start: 0x100000, End: 0x110000, Perms: "rw-p", Flags: "ac"}, {Start: 0x200000, End: 0x208000, Perms: "rw-p", Flags: "ac", Of: stream.Ref{ID: kinFile, Class: "mapfile"}}},
			{{Start: 0x100000, End: 0x104000, Perms: "r--p", Flags: "ac"}, {Start: 0x108000, End: 0x118000, Perms: "rw-p", Flags: "ac dc"}},
			{{Start: 0x100000, End: 0x120000, Perms: "rw-p", Flags: "ac nh"}, {Start: 0x204000, End: 0x206000, Perms: "rw-p", Flags: "ac", Of: stream.Ref{ID: kinFile, Class: "mapfile"}, Offset: 0x4000}},
		},
		cow: &Cow{Size: 0x7000},
	}
	for i, ranges := range [][]Range{
		{{0x101000, 0x103000}, {0x109000, 0x10a000}, {0x205000, 0x206000}},
		{{0x101000, 0x102000}, {0x109000, 0x10a000}, {0x111000, 0x112000}},
		{{0x109000, 0x10a000}, {0x111000, 0x112000}, {0x11e000, 0x120000}, {0x205000, 0x206000}},
	} {
		k.ranges = append(k.ranges, &CowRanges{MM: stream.Ref{ID: kinMM + uint32(i), Class: "mm"}, Of: stream.Ref{ID: kinCow, Class: "cow"}, Ranges: ranges})
	}
	return k
}

// bank sends the address spaces through an image and reads what they share.
func (k *kin) bank(t testing.TB) (*Bank, []*Space, error) {
	t.Helper()
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096})
	err = errors.Join(err, w.Put(TypeFile, kinFile, k.file, nil))
	for i := range k.areas {
		ref := stream.Ref{ID: kinMM + uint32(i), Class: "mm"}
		err = errors.Join(err, w.Put(TypeMM, ref.ID, &MM{Auxv: []uint64{}, Dumpable: 1}, nil), w.Put(TypeAreas, 0, &Areas{MM: ref, Areas: k.areas[i]}, nil))
	}
	if k.cow != nil {
		err = errors.Join(err, w.Put(TypeCow, kinCow, k.cow, nil))
	}
	for _, r := range k.ranges {
		err = errors.Join(err, w.Put(TypeCowRanges, 0, r, nil))
	}
	if err = errors.Join(err, w.End()); err != nil {
		t.Fatal(err)
	}
	r, err := stream.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	plan, _, err := object.ReadPlan(r, Kinds())
	if err != nil {
		t.Fatal(err)
	}
	spaces, err := Spaces(plan, amd64(t))
	if err != nil {
		t.Fatal(err)
	}
	var list []*Space
	for i := range k.areas {
		list = append(list, spaces[stream.Ref{ID: kinMM + uint32(i), Class: "mm"}])
	}
	b, err := NewBank(plan, spaces)
	return b, list, err
}

// TestBank: mappings that are alike are one mapping of the bank; what cannot be made of it is copied from where it has a place.
func TestBank(t *testing.T) {
	b, spaces, err := newKin().bank(t)
	if err != nil {
		t.Fatal(err)
	}
	var got []Range
	for _, a := range b.space.areas {
		got = append(got, Range{uint64(a.start), uint64(a.end)})
	}
	// What the third has is advised otherwise, so that only what is behind the others is its own.
	if want := []Range{{0x100000, 0x118000}, {0x118000, 0x120000}, {0x200000, 0x208000}}; !slices.Equal(got, want) {
		t.Fatalf("mappings %x, want %x", got, want)
	}
	if a := b.space.areas[2]; a.offset != 0 || a.of.ID != kinFile {
		t.Errorf("the mapping of the file: %+v", a)
	}
	if want := []Range{{0x101000, 0x103000}, {0x109000, 0x10a000}, {0x111000, 0x112000}, {0x11e000, 0x120000}, {0x205000, 0x206000}}; !slices.Equal(b.ranges, want) {
		t.Errorf("pages %x, want %x", b.ranges, want)
	}
	for i, want := range []map[int]int{{0: 0, 1: 2}, {0: 0, 1: 0}, {1: 2}} {
		if kept := spaces[i].kept; len(kept) != len(want) {
			t.Errorf("address space %d keeps %v, want %v", i, kept, want)
		} else {
			for k, v := range want {
				if kept[k] != v {
					t.Errorf("address space %d keeps %v, want %v", i, kept, want)
				}
			}
		}
	}
	if needs := b.Needs(nil, spaces[2]); !slices.Equal(needs, Needs{false, false, true}) {
		t.Errorf("the third needs %v", needs)
	}
	for _, r := range []struct {
		at, length uint64
		want       bool
	}{{0x101000, 0x2000, true}, {0x101000, 0x3000, false}, {0x102000, 0x1000, true}, {0x100000, 0x2000, false}, {0x110000, 0x1000, false}, {0x11f000, 0x1000, true}} {
		if got := declared(b.ranges, r.at, r.length); got != r.want {
			t.Errorf("pages at %#x, %#x bytes, are declared: %v", r.at, r.length, got)
		}
	}
}

func TestHostileBank(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(k *kin)
		want  string
	}{
		{"unaligned", func(k *kin) { k.ranges[0].Ranges[0].Start++ }, "unaligned"},
		{"empty", func(k *kin) { k.ranges[0].Ranges[0].End = k.ranges[0].Ranges[0].Start }, "unaligned"},
		{"order", func(k *kin) { k.ranges[0].Ranges[1].Start = 0x102000 }, "out of order"},
		{"no mapping", func(k *kin) { k.ranges[1].Ranges[0] = Range{0x103000, 0x105000} }, "no mapping"},
		{"wraps", func(k *kin) { k.ranges[1].Ranges[2].End = 1<<64 - 4096 }, "no mapping"},
		{"shared", func(k *kin) { k.areas[0][1].Perms, k.areas[0][1].Flags = "rw-s", "mw" }, "no contents of its own"},
		{"size", func(k *kin) { k.cow.Size++ }, "of which"},
		{"no ranges", func(k *kin) { k.ranges, k.cow.Size = nil, 0 }, "of which"},
		{"nobody's", func(k *kin) { k.ranges[0].MM = stream.Ref{ID: kinFile, Class: "mapfile"} }, "shared pages of object"},
		{"of a file", func(k *kin) { k.ranges[0].Of = stream.Ref{ID: kinFile, Class: "mapfile"} }, "shared pages of object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newKin()
			test.spoil(k)
			_, _, err := k.bank(t)
			var bad *object.BadImage
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v: no BadImage that says %q", err, test.want)
			}
		})
	}
}

// TestWithout compares cutting ranges out of parts, and cutting them to ranges, with doing so page by page.
func TestWithout(t *testing.T) {
	parts := []part{{start: 0x1000, end: 0x5000}, {start: 0x5000, end: 0x9000, zeros: true}, {start: 0xb000, end: 0xc000}, {start: 0x10000, end: 0x20000}}
	for _, ranges := range [][]Range{
		nil,
		{{0x1000, 0x2000}},
		{{0x2000, 0x3000}, {0x4000, 0x6000}, {0x8000, 0x9000}},
		{{0x1000, 0x9000}, {0xb000, 0xc000}},
		{{0x3000, 0x9000}, {0x10000, 0x11000}, {0x12000, 0x13000}, {0x1f000, 0x20000}},
		{{0x10000, 0x20000}},
		{{0x1f000, 0x20000}},
	} {
		in := func(list []part, at uint64) (n int, zeros bool) {
			for _, p := range list {
				if uint64(p.start) <= at && at < uint64(p.end) {
					n++
					zeros = p.zeros
				}
			}
			return n, zeros
		}
		left, cut := without(parts, ranges), within(parts, ranges)
		for at := uint64(0); at < 0x22000; at += 0x1000 {
			n, zeros := in(parts, at)
			wantCut := 0
			if len(overlap(ranges, addr(at), addr(at+0x1000))) > 0 {
				wantCut = n
			}
			gotLeft, z1 := in(left, at)
			gotCut, z2 := in(cut, at)
			if gotLeft != n-wantCut || gotCut != wantCut || gotLeft > 0 && z1 != zeros || gotCut > 0 && z2 != zeros {
				t.Errorf("without %x: at %#x %d parts are left and %d cut, want %d and %d", ranges, at, gotLeft, gotCut, n-wantCut, wantCut)
			}
		}
	}
}
