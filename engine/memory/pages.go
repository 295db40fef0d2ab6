package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

func addr[T int64 | uint64](v T) arch.Addr { return arch.Addr(v) }

// scanRegions is how many regions one PAGEMAP_SCAN returns at most: 24 bytes each.
const scanRegions = 2048

// contents is where pages of one address space come from: the parts of it whose pages can differ from what a fresh mapping
// shows.
type contents struct {
	tid      int
	pageSize int
	parts    []part // ascending
	serial   bool   // never read while writing
}

// part is a mapping whose pages are kept.
type part struct {
	start, end arch.Addr
	// zeros: a page of zeros must be kept too, since there is a file below it that would show through.
	zeros bool
	// readable: process_vm_readv may read it. Else /proc/PID/mem does, which forces its way (FOLL_FORCE).
	readable bool
	apart    bool // its pages are not looked at for being shared: the kernel's own code, hugetlbfs
	// What it shows, and how far its offset there is from its address.
	of    stream.Ref
	delta uint64
}

// segment is a run of pages in a buffer.
type segment struct {
	addr   uint64
	offset int // in the buffer
	length int
	zeros  bool
	forced bool // read through /proc/PID/mem
}

// buffer is one load of pages on the way from the target to the stream.
type buffer struct {
	data  []byte // maxPages long
	used  int
	segs  []segment
	extra []segment
}

func getBuffer() *buffer { return &buffer{data: sys.TakeChunk()[:maxPages]} }

// put gives the buffer's memory back; it cannot be used any more.
func (b *buffer) put() {
	sys.GiveChunk(b.data)
	b.data = nil
}

func (b *buffer) reset() { b.used, b.segs = 0, b.segs[:0] }

// write writes what the buffer holds.
func (b *buffer) write(w *stream.Writer, ref stream.Ref) error {
	meta := Pages{Of: ref}
	for i := range b.segs {
		s := &b.segs[i]
		meta.Addr = s.addr
		if err := w.Put(object.TypePages, 0, &meta, b.data[s.offset:s.offset+s.length]); err != nil {
			return err
		}
	}
	return nil
}

var zeroPage [64 << 10]byte

func isZero(page []byte) bool {
	return page[0] == 0 && page[len(page)-1] == 0 && bytes.Equal(page, zeroPage[:len(page)])
}

// dropZeros splits the segments around pages of zeros, which it leaves out, except where these must be kept.
func (b *buffer) dropZeros(pageSize int) {
	out := b.extra[:0]
	for _, s := range b.segs {
		if s.zeros {
			out = append(out, s)
			continue
		}
		run := -1 // offset where the current run of pages begins
		for at := s.offset; at < s.offset+s.length; at += pageSize {
			switch zero := isZero(b.data[at : at+pageSize]); {
			case zero && run >= 0:
				out = append(out, segment{addr: s.addr + uint64(run-s.offset), offset: run, length: at - run})
				run = -1
			case !zero && run < 0:
				run = at
			}
		}
		if run >= 0 {
			out = append(out, segment{addr: s.addr + uint64(run-s.offset), offset: run, length: s.offset + s.length - run})
		}
	}
	b.segs, b.extra = out, b.segs
}

// reader walks the pages of an address space.
type reader struct {
	*contents
	b       *buffer
	out     *output
	mem     *sys.FD
	entries []byte // of pagemap: those of the pages from entriesAt to entriesEnd

	entriesAt, entriesEnd arch.Addr
}

// all reads all pages and hands them to out.
func (r *reader) all() error {
	err := r.run()
	if err == nil && len(r.b.segs) > 0 {
		err = r.flush()
	}
	_ = r.mem.Close() // only read from
	return err
}

// flush fills the buffer with the pages that it names, and hands it on.
func (r *reader) flush() error {
	if err := r.fill(); err != nil {
		return err
	}
	r.b.dropZeros(r.pageSize)
	var err error
	r.b, err = r.out.write(r.b)
	return err
}

// run flushes each full buffer; the last, partly filled one is left to the caller.
func (r *reader) run() error {
	if len(r.parts) == 0 {
		return nil
	}
	pagemap, err := openPageMap(r.tid)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	regions := make([]sys.PageRegion, scanRegions)
	args := sys.PagemapScanArgs{
		Inverted: sys.PageFile | sys.PagePFNZero | sys.PageGuard,
		Mask:     sys.PageFile | sys.PagePFNZero | sys.PageGuard,
		AnyOf:    sys.PagePresent | sys.PageSwapped,
		Return:   sys.PageFile, // never set in what matches: neighbours are one region
	}
	at, i := r.parts[0].start, 0
	end := r.parts[len(r.parts)-1].end
	for at < end {
		args.Start, args.End = at, end
		n, walked, err := pagemap.scan(&args, regions)
		if err != nil {
			return fmt.Errorf("scanning page tables: %w", err)
		}
		for _, region := range regions[:n] {
			for i < len(r.parts) && r.parts[i].end <= region.Start {
				i++
			}
			for j := i; j < len(r.parts) && r.parts[j].start < region.End; j++ {
				p := &r.parts[j]
				if err := r.split(pagemap, p, max(p.start, region.Start), min(p.end, region.End)); err != nil {
					return err
				}
			}
		}
		if walked <= at {
			return errors.New("scanning page tables: the kernel makes no progress")
		}
		at = walked
	}
	return nil
}

// add names pages in buffers, whole ones of which it flushes. Those that are forced are read through /proc/PID/mem.
func (r *reader) add(p *part, start, end arch.Addr, forced bool) error {
	for start < end {
		if r.b.used == maxPages || len(r.b.segs) == sys.MaxIovec {
			if err := r.flush(); err != nil {
				return err
			}
		}
		n := int(min(uint64(end-start), uint64(maxPages-r.b.used)))
		r.b.segs = append(r.b.segs, segment{addr: uint64(start), offset: r.b.used, length: n, zeros: p.zeros, forced: forced})
		r.b.used += n
		start += arch.Addr(n)
	}
	return nil
}

// fill reads the pages that the buffer's segments name.
func (r *reader) fill() error {
	b := r.b
	var remote [sys.MaxIovec]sys.RemoteRange
	for i := 0; i < len(b.segs); {
		if b.segs[i].forced {
			if err := r.force(&b.segs[i], 0); err != nil {
				return err
			}
			i++
			continue
		}
		j, length := i, 0
		for ; j < len(b.segs) && !b.segs[j].forced; j++ {
			remote[j-i] = sys.RemoteRange{Addr: arch.Addr(b.segs[j].addr), Len: b.segs[j].length}
			length += b.segs[j].length
		}
		from := b.segs[i].offset
		n, err := sys.ProcessVMReadv(r.tid, [][]byte{b.data[from : from+length]}, remote[:j-i])
		if err != nil && !errors.Is(err, unix.EFAULT) {
			return fmt.Errorf("reading pages of pid %d: %w", r.tid, err)
		}
		n = max(n, 0)
		for ; i < j; i++ {
			s := &b.segs[i]
			if n >= s.length {
				n -= s.length
				continue
			}
			if err := r.force(s, n); err != nil {
				return err
			}
			n = 0
			// The call stopped here. What is behind is read again one by one, which is rare: the page has no read permission
			// although its mapping has (a memory error, or a device's idea of it).
			for i++; i < j; i++ {
				if err := r.force(&b.segs[i], 0); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// force reads what is left of a segment, of which done bytes are there, through /proc/PID/mem.
func (r *reader) force(s *segment, done int) error {
	if r.mem == nil {
		mem, err := sys.Open(procfs.Path(r.tid, "mem"), unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		r.mem = mem
	}
	n, err := readAt(r.mem, r.b.data[s.offset+done:s.offset+s.length], s.addr+uint64(done))
	if err == nil && n < s.length-done {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("reading %d bytes at %#x of pid %d: %w", s.length-done, s.addr+uint64(done), r.tid, err)
	}
	return nil
}
