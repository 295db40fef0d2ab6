package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// pageMap is an open /proc/PID/pagemap.
type pageMap struct {
	*sys.FD
	tid   int
	plain bool    // this kernel has no PAGEMAP_SCAN (Linux 6.7): entries are read one by one
	there []Range // if plain: the mappings in which there are pages
	raw   []byte
}

func openPageMap(tid int) (*pageMap, error) {
	fd, err := sys.Open(procfs.Path(tid, "pagemap"), unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return &pageMap{FD: fd, tid: tid, plain: plainPageMap}, nil
}

// plainPageMap has tests do without PAGEMAP_SCAN.
var plainPageMap = false

const (
	pagemapSwapped = 1 << 62
	pagemapGuard   = 1 << 58 // Linux 6.15
)

// scan is PAGEMAP_SCAN, or what comes to the same.
func (p *pageMap) scan(args *sys.PagemapScanArgs, out []sys.PageRegion) (int, arch.Addr, error) {
	if p.plain {
		return p.scanPlain(args, out)
	}
	n, end, err := sys.PagemapScan(p.FD, *args, out)
	// A kernel that does not know guard regions (before Linux 6.15) is asked again without them.
	if errors.Is(err, unix.EINVAL) && (args.Mask|args.AnyOf|args.Return)&sys.PageGuard != 0 {
		args.Mask &^= sys.PageGuard
		args.Inverted &^= sys.PageGuard
		args.AnyOf &^= sys.PageGuard
		args.Return &^= sys.PageGuard
		if args.Mask|args.AnyOf == 0 {
			return 0, args.End, nil
		}
		n, end, err = sys.PagemapScan(p.FD, *args, out)
	}
	if errors.Is(err, unix.ENOTTY) {
		p.plain = true
		return p.scanPlain(args, out)
	}
	return n, end, err
}

// scanPlain looks at every page of the mappings that have any (Rss and Swap of smaps: a reservation of terabytes must cost nothing; pages of hugetlbfs
// count in neither). That pages are huge does not show.
func (p *pageMap) scanPlain(args *sys.PagemapScanArgs, out []sys.PageRegion) (n int, end arch.Addr, err error) {
	if p.raw == nil {
		list, err := procfs.ReadSmaps(p.tid)
		if err != nil {
			return 0, 0, err
		}
		for i := range list {
			// Guard regions count as no memory. They exist only where pagemap shows them, and VmFlags that there may be some.
			if v := &list[i]; v.Rss != 0 || v.Swap != 0 || v.Flags.Has("gu") || v.Flags.Has("ht") {
				p.there = append(p.there, Range{uint64(v.Start), uint64(v.End)})
			}
		}
		p.raw = make([]byte, pagemapChunk*8)
	}
	page := arch.Addr(os.Getpagesize())
	for _, r := range overlap(p.there, args.Start, args.End) {
		at, last := max(arch.Addr(r.Start), args.Start), min(arch.Addr(r.End), args.End)
		for at < last {
			b := p.raw[:min((last-at)/page, pagemapChunk)*8]
			got, err := readAt(p.FD, b, uint64(at/page)*8)
			if err == nil && got < len(b) {
				err = fmt.Errorf("it ends before %v", last)
			}
			if err != nil {
				return n, at, fmt.Errorf("reading page tables: %w", err)
			}
			for ; len(b) > 0; at, b = at+page, b[8:] {
				is := categories(binary.NativeEndian.Uint64(b))
				test := is ^ args.Inverted
				if test&args.Mask != args.Mask || args.AnyOf != 0 && test&args.AnyOf == 0 {
					continue
				}
				if n > 0 && out[n-1].End == at && out[n-1].Categories == is&args.Return {
					out[n-1].End += page
					continue
				}
				if n == len(out) {
					return n, at, nil
				}
				out[n] = sys.PageRegion{Start: at, End: at + page, Categories: is & args.Return}
				n++
			}
		}
	}
	return n, args.End, nil
}

// categories is what PAGEMAP_SCAN would say of an entry.
func categories(entry uint64) (c sys.PageCategory) {
	if entry&pagemapPresent != 0 {
		c |= sys.PagePresent
		if frame := entry & pagemapFrame; frame != 0 && frame == zeroFrame() {
			c |= sys.PagePFNZero
		}
	}
	if entry&pagemapSwapped != 0 {
		c |= sys.PageSwapped
	}
	if entry&pagemapFile != 0 {
		c |= sys.PageFile
	}
	if entry&pagemapGuard != 0 {
		c |= sys.PageGuard
	}
	return c
}

// zeroFrame is the frame of the page of zeros that the kernel shows where nobody has written yet: 0 if it cannot be known. Then such pages are
// read like others, and found to be zeros.
var zeroFrame = sync.OnceValue(func() uint64 {
	size := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0
	}
	defer unix.Munmap(mem) //nolint:errcheck // of our own
	f, err := sys.Open("/proc/self/pagemap", unix.O_RDONLY, 0)
	if err != nil || !isZero(mem) { // which reads it
		return 0
	}
	defer f.Close()
	var b [8]byte
	if n, err := readAt(f, b[:], address(mem)/uint64(size)*8); err != nil || n < len(b) {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:]) & pagemapFrame
})
