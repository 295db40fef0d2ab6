package memory

import (
	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// OpenSegment takes hold of a segment that a task has made, for its contents. It runs on a thread in the tree's IPC namespace.
func OpenSegment(r *object.Restorer, ref stream.Ref, s *Segment) error {
	h := &shmHandle{fd: -1, size: s.Size}
	if s.Attached {
		fd, err := attachAndOpen(s.Perm.ID, 0, unix.O_RDWR)
		if err != nil {
			return err
		}
		if h.fd, err = r.Pool(fd.Disown()); err != nil {
			return err
		}
	}
	r.Remember(ref, h)
	return nil
}

// attachment is one shmat(2): what is left of it lies in mappings whose place in the segment says where its beginning was.
type attachment struct {
	of    stream.Ref
	base  arch.Addr
	write bool
}

func (v *area) attachment() attachment {
	return attachment{v.of, v.start - arch.Addr(v.offset), v.flags&flagMayWrite != 0}
}

// attach adds the calls by which a task attaches a segment as the mapping at index i and those that belong to it show it. done are the
// attachments that have been made.
func (s *Space) attach(b *tracee.Batch, i int, done map[attachment]bool, keep [2]arch.Addr) error {
	v := &s.areas[i]
	a := v.attachment()
	if done[a] {
		return nil
	}
	done[a] = true
	nr := b.Sys()
	flags, prot := 0, unix.PROT_READ|unix.PROT_WRITE
	if !a.write {
		flags, prot = sys.ShmRdonly, unix.PROT_READ
	}
	size := pageCeil(v.seg.Size, s.pageSize)
	id := v.seg.Perm.ID
	if v.offset == 0 && v.size() == size {
		b.Call(nr.Shmat, id, v.start, flags).Expect(uint64(v.start)).Note("System V shared memory %d at %s", id, span(v.start, v.end))
		if v.prot != prot {
			b.Call(nr.Mprotect, v.start, v.size(), v.prot).Note("mapping %s", span(v.start, v.end))
		}
		return nil
	}
	// Only parts are left: they are moved to their places from where nothing else is to be.
	at, err := s.gap(size, keep)
	if err != nil {
		return err
	}
	b.Call(nr.Shmat, id, at, flags).Expect(uint64(at)).Note("System V shared memory %d", id)
	for j := i; j < len(s.areas); j++ {
		p := &s.areas[j]
		if p.seg == nil || p.attachment() != a {
			continue
		}
		const mayMove, fixed = 1, 2 // MREMAP_MAYMOVE, MREMAP_FIXED
		where := span(p.start, p.end)
		b.Call(nr.Mremap, at+arch.Addr(p.offset), p.size(), p.size(), mayMove|fixed, p.start).Expect(uint64(p.start)).Note("part of System V shared memory %d at %s", id, where)
		if p.prot != prot {
			b.Call(nr.Mprotect, p.start, p.size(), p.prot).Note("mapping %s", where)
		}
	}
	b.Call(nr.Munmap, at, size)
	return nil
}

// gap finds size bytes that no mapping of the address space and not the arena will ever take.
func (s *Space) gap(size uint64, keep [2]arch.Addr) (arch.Addr, error) {
	const lowest = 16 << 20
	at := arch.Addr(lowest)
	fits := func(end arch.Addr) bool { return end > at && uint64(end-at) >= size }
	step := func(start, end arch.Addr) bool {
		if fits(start) {
			return true
		}
		at = max(at, end)
		return false
	}
	kept := false
	for i := range s.areas {
		v := &s.areas[i]
		if !kept && keep[0] < v.start {
			kept = true
			if step(keep[0], keep[1]) {
				return at, nil
			}
		}
		if step(v.start, v.end) {
			return at, nil
		}
	}
	if !kept && step(keep[0], keep[1]) || fits(s.arch.TaskSize) {
		return at, nil
	}
	return 0, &object.Lacking{What: "room in an address space for the whole of a segment of System V shared memory of which it had parts"}
}
