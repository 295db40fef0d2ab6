package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HugePage is the size of a huge page in bytes, as most processors have it.
const HugePage = 2 << 20

// Huge is memory of huge pages where there are any: the first touch of 512 small ones takes many times as long.
type Huge struct {
	Bytes  []byte // zeroed
	mapped []byte
}

// NewHuge maps at least n bytes, of which none is there before it is touched. Without memory it is ordinary memory of Go's.
func NewHuge(n int) Huge {
	n = (n + HugePage - 1) &^ (HugePage - 1)
	mem, err := unix.Mmap(-1, 0, n+HugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return Huge{Bytes: make([]byte, n)}
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // only for speed
	at := int(-uintptr(unsafe.Pointer(unsafe.SliceData(mem))) & (HugePage - 1))
	return Huge{Bytes: mem[at : at+n : at+n], mapped: mem}
}

// Free unmaps it.
func (h *Huge) Free() {
	if h.mapped != nil {
		_ = unix.Munmap(h.mapped) // our own
	}
	*h = Huge{}
}

// HugeHeap makes Go's heap grow by n bytes of huge pages, all free, for a program that is going to need some of that at once.
func HugeHeap(n int) {
	b := make([]byte, n)
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // only for speed
	runtime.KeepAlive(b)
	runtime.GC() // b is free from here on: what is allocated next finds its place there
}

// PopulateHeap has n bytes of what Go's heap is going to grow into next there at once (MADV_POPULATE_WRITE, Linux 5.14), at a fraction of
// what a fault for each page costs.
func PopulateHeap(n int) {
	const chunk = 4 << 20 // the heap grows by multiples of this (pallocChunkBytes in runtime/mpagealloc.go)
	page := uintptr(unix.Getpagesize())
	b := make([]byte, 40<<10) // has pages of its own, which are the first free ones
	at := (uintptr(unsafe.Pointer(unsafe.SliceData(b))) + uintptr(len(b)) + page - 1) &^ (page - 1)
	end := min(at+uintptr(n), (at+chunk-1)&^(chunk-1)) &^ (page - 1)
	if at < end {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, at, end-at, unix.MADV_POPULATE_WRITE) // only for speed
	}
	runtime.KeepAlive(b)
}
