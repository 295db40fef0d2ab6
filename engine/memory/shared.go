package memory

import (
	"encoding/binary"
	"fmt"

	"crpipe/arch"
)

// Reading must not change what is read. After a fork parent and child have the same pages until one of them writes. process_vm_readv(2)
// pins what it reads, and before the kernel pins an anonymous page that it does not know to be of one address space alone it gives the one that
// is read a copy of its own (gup_must_unshare in mm/internal.h): a dump would use up the memory that the tree had saved, pages that KSM had
// merged included. /proc/PID/mem does not pin. So pages that may be shared are read through that, and only the others in the faster way.

// The bits of an entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapExclusive = 1 << 56 // mapped once in the whole system, Linux 4.2
	pagemapPresent   = 1 << 63
)

// pagemapChunk is how many entries are read at a time.
const pagemapChunk = 4096

// split names pages that PAGEMAP_SCAN has found, those that somebody else may have too apart from the others.
func (r *reader) split(pagemap *pageMap, p *part, start, end arch.Addr) error {
	if !p.readable {
		return r.add(p, start, end, !p.readable)
	}
	page := arch.Addr(r.pageSize)
	for start < end {
		n := min(int((end-start)/page), pagemapChunk)
		entries, err := r.pagemapEntries(pagemap, start, n, p.end)
		if err != nil {
			return fmt.Errorf("reading page tables: %w", err)
		}
		alone := func(i int) bool { return mappedOnce(binary.NativeEndian.Uint64(entries[i*8:])) }
		for from, i := 0, 1; i <= n; i++ {
			if i < n && alone(i) == alone(from) {
				continue
			}
			if err := r.add(p, start+arch.Addr(from)*page, start+arch.Addr(i)*page, !alone(from)); err != nil {
				return err
			}
			from = i
		}
		start += arch.Addr(n) * page
	}
	return nil
}

// pagemapAhead is how many entries are read where fewer are wanted: the next few pages are wanted soon.
const pagemapAhead = 128

// pagemapEntries returns n entries of pagemap from an address on. end is that of the mapping.
func (r *reader) pagemapEntries(pagemap *pageMap, start arch.Addr, n int, end arch.Addr) ([]byte, error) {
	page := arch.Addr(r.pageSize)
	if r.entries == nil {
		r.entries = make([]byte, pagemapChunk*8)
	}
	if start < r.entriesAt || start+arch.Addr(n)*page > r.entriesEnd {
		ahead := max(n, min(pagemapAhead, int((end-start)/page)))
		r.entriesAt, r.entriesEnd = start, start
		got, err := readAt(pagemap.FD, r.entries[:ahead*8], uint64(start/page)*8)
		if err == nil && got < n*8 {
			err = fmt.Errorf("it ends before %v", start+arch.Addr(n)*page)
		}
		if err != nil {
			return nil, err
		}
		r.entriesEnd += arch.Addr(got/8) * page
	}
	at := int((start - r.entriesAt) / page * 8)
	return r.entries[at : at+n*8], nil
}

// mappedOnce says that reading the page by process_vm_readv(2) changes nothing. One that is swapped out is brought in by
// whatever reads it; it may be shared as well.
func mappedOnce(entry uint64) bool {
	return entry&(pagemapPresent|pagemapExclusive) == pagemapPresent|pagemapExclusive
}
