package memory

import (
	"fmt"
	"slices"

	"crpipe/arch"
	"crpipe/engine/object"
	"crpipe/stream"
)

const (
	// stubLow is above the executable of the stub and what 32-bit tasks use.
	stubLow = 8 << 30
	// compatLow is above where 32-bit programs with a fixed address usually begin, 0x8048000.
	compatLow = 256 << 20
	// holeAlign leaves the page tables of the hole to the hole.
	holeAlign = 2 << 20
	// holeMargin is kept free on both sides of the hole, so that nothing grows into it while tasks are made.
	holeMargin = 16 << 20
)

// Hole returns the lowest address at which a task of any of the address spaces can have need bytes for the restore's own use: free in
// each of them, below 4 GiB where low is asked for, and away from where the kernel puts the stub's own mappings (a static executable low, stack and vdso high).
func Hole(spaces map[stream.Ref]*Space, a *arch.Arch, need uint64, low bool) (arch.Addr, error) {
	type taken struct{ start, end arch.Addr }
	var all []taken
	// A 32-bit program's tasks reach no higher, and their calls take no other addresses. Between where such programs begin
	// and where the kernel puts what has no address of its own, even in the legacy layout (a third of the address space), there is room.
	at, limit := arch.Addr(stubLow), a.TaskSize/2
	if low {
		at, limit = compatLow, a.Compat.TaskSize
	}
	for _, s := range spaces {
		for i := range s.areas {
			all = append(all, taken{s.areas[i].start, s.areas[i].end})
		}
	}
	slices.SortFunc(all, func(x, y taken) int {
		switch {
		case x.start < y.start:
			return -1
		case x.start > y.start:
			return 1
		}
		return 0
	})
	// The kernel places stack and mmap areas in the upper part, random within up to a sixth below the top (mmap_base in
	// arch/x86/mm/mmap.c; the others keep to the top too). The lower half is free of them.
	at = min(at, limit)
	for _, t := range append(all, taken{limit, limit}) {
		if at >= limit {
			break
		}
		start := (at + holeMargin + holeAlign - 1) &^ (holeAlign - 1)
		if end := min(t.start, limit); end > start && uint64(end-start) >= need+holeMargin && need+holeMargin > need {
			return start, nil
		}
		at = max(at, t.end)
	}
	return 0, &object.Lacking{What: fmt.Sprintf("no %d bytes of address space are free in all processes for the restore's own use", need)}
}
