package memory

import (
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// The rings of io_uring(7) are mapped from the instance, an open file, which has their contents (package events).
//
// The kernel does not let a program choose where: it refuses every address, be it of mmap(2) or of mremap(2)
// (io_uring_get_unmapped_area in io_uring/memmap.c), and takes the first place that is large enough. So a restore fills the whole address
// space but that one.

// ringLink is what maps shows of them.
const ringLink = "anon_inode:[io_uring]"

// ringCodes are the flags of their mappings that the kernel gives them by itself: pages that it has put there (io_mmap_region in
// io_uring/memmap.c), up to Linux 6.9 by remap_pfn_range.
var ringCodes = []string{"mm", "de", "io", "pf"}

func isRing(v *procfs.VMA) bool { return v.Path == ringLink }

// ring dumps the instance that a mapping shows.
func (m *mmDump) ring(v *procfs.SmapsVMA) (mapped, error) {
	if v.Prot&procfs.ProtShared == 0 {
		return mapped{}, object.Unsupportedf("a private mapping of an io_uring instance cannot be checkpointed")
	}
	id, ok := m.files[v.Start]
	if !ok {
		return mapped{}, &object.Unsupported{What: "the mapping of an io_uring instance cannot be checkpointed without a look at the kernel's memory", Do: "run cr-dump as root on a kernel with BTF"}
	}
	holders, err := files.Holders(m.d, id)
	if err != nil {
		return mapped{}, err
	}
	if len(holders) == 0 {
		return mapped{}, object.Unsupportedf("an io_uring instance that is mapped and that no process of the tree has open any more cannot be checkpointed")
	}
	h := holders[0]
	f, err := object.Meet(h.Process, h.FD, h.File)
	if err != nil {
		return mapped{}, err
	}
	defer f.Close()
	ref, err := m.d.File(f)
	return mapped{ref: ref, open: true}, err
}

// mapRings appends the calls that map rings, when all other mappings are there. keep is the arena.
func (s *Space) mapRings(r *object.Restorer, b *tracee.Batch, keep [2]arch.Addr) error {
	if !slices.ContainsFunc(s.areas, func(v area) bool { return v.ring }) {
		return nil
	}
	nr := b.Sys()
	var gaps [][2]arch.Addr
	next := arch.Addr(s.pageSize) // the lowest address that the kernel takes by itself
	gap := func(end, after arch.Addr) {
		if next < end {
			gaps = append(gaps, [2]arch.Addr{next, end})
		}
		next = max(next, after)
	}
	arena := false
	for i := range s.areas {
		v := &s.areas[i]
		if !arena && keep[0] < v.start {
			arena = true
			gap(keep[0], keep[1])
		}
		if !v.ring {
			gap(v.start, v.end)
		}
	}
	if !arena {
		gap(keep[0], keep[1])
	}
	gap(s.arch.TaskSize, s.arch.TaskSize)
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE | unix.MAP_FIXED_NOREPLACE
	for _, g := range gaps {
		b.Call(nr.Mmap, g[0], g[1]-g[0], unix.PROT_NONE, flags, -1, 0).Expect(uint64(g[0])).Note("the place of a ring of io_uring")
	}
	for i := range s.areas {
		v := &s.areas[i]
		if !v.ring {
			continue
		}
		fd, err := v.descriptor(r)
		if err != nil {
			return err
		}
		b.Call(nr.Munmap, v.start, v.size())
		b.Call(nr.Mmap, 0, v.size(), v.prot, unix.MAP_SHARED, fd, v.offset).Expect(uint64(v.start)).Note("the ring of io_uring at %s", span(v.start, v.end))
	}
	for _, g := range gaps {
		// Only what belongs to nobody: rings lie in gaps.
		start := g[0]
		for i := s.find(g[0]); i < len(s.areas) && s.areas[i].start < g[1]; i++ {
			if start < s.areas[i].start {
				b.Call(nr.Munmap, start, s.areas[i].start-start)
			}
			start = s.areas[i].end
		}
		if start < g[1] {
			b.Call(nr.Munmap, start, g[1]-start)
		}
	}
	return nil
}
