package memory

import (
	"slices"
	"testing"

	"crpipe/arch"
)

// TestMeeting: of address spaces whose private mappings lie apart from all others' nothing is compared.
func TestMeeting(t *testing.T) {
	space := func(ranges ...arch.Addr) *cowSpace {
		c := &contents{}
		for i := 0; i < len(ranges); i += 2 {
			c.parts = append(c.parts, part{start: ranges[i], end: ranges[i+1]})
		}
		return &cowSpace{c: c}
	}
	vdso := space(0x1000, 0x2000)
	vdso.c.parts[0].apart = true
	for _, tt := range []struct {
		name string
		all  []*cowSpace
		want []int
	}{
		{"apart", []*cowSpace{space(0x1000, 0x2000, 0x5000, 0x6000), space(0x2000, 0x3000), space(0x7000, 0x8000)}, nil},
		{"the same", []*cowSpace{space(0x1000, 0x2000), space(0x1000, 0x2000)}, []int{0, 1}},
		{"own neighbours", []*cowSpace{space(0x1000, 0x3000, 0x2000, 0x4000), space(0x4000, 0x5000)}, nil},
		{"one in another", []*cowSpace{space(0x1000, 0x9000), space(0x3000, 0x4000), space(0x9000, 0xa000)}, []int{0, 1}},
		{"a chain", []*cowSpace{space(0x1000, 0x9000), space(0x8000, 0xa000), space(0x9000, 0xb000), space(0xc000, 0xd000)}, []int{0, 1, 2}},
		{"the kernel's own", []*cowSpace{vdso, space(0x1000, 0x2000)}, nil},
		{"none", []*cowSpace{space(), space(0x1000, 0x2000)}, nil},
	} {
		var got []int
		for _, s := range meeting(tt.all) {
			got = append(got, slices.Index(tt.all, s))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
