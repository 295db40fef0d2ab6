package kernelview

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// The kernel knows memory that belongs to no structure of its own by struct pages, which lie one behind another in the order of
// the pages, and has all of it mapped once in the same order (Documentation/arch/x86/x86_64/mm.rst, memory-model.rst: sparsemem
// with vmemmap). Where either begins moves with every boot and is in no symbol; but from one page of which both places are known
// all others follow. That one is of our own memory: its struct page is what a pipe has into which it is put by vmsplice(2), its
// number is in /proc/self/pagemap, and of the places where the mapping may begin it is the one from which the page reads as what
// we have written into it. A second page proves it.

// fPageSize is how far two struct pages lie apart.
var fPageSize = want("page")

// mappingStep is what the beginning of the mapping of all memory is a multiple of, where it moves (CONFIG_RANDOMIZE_MEMORY: that
// of a PUD; ARM64_MEMSTART_ALIGN).
const mappingStep = 1 << 30

// maxMemory bounds the search: twice what any machine has that this may run on.
const maxMemory = 64 << 40

// pages is the one page of which all is known.
type pages struct {
	once sync.Once
	page uint64 // address of its struct page
	addr uint64 // where it is mapped
	size int64  // bytes of a struct page
	err  error
}

// errPages says that the memory behind struct pages cannot be found.
func errPages(err error) error {
	return &MissingError{What: "the place where the kernel maps all memory, to read what waits in sockets", Err: err}
}

// pageAddress returns where the kernel maps the page of a struct page.
func (v *bpfView) pageAddress(page uint64) (uint64, error) {
	p := &v.pages
	p.once.Do(func() {
		if err := v.findPages(); err != nil {
			p.err = errPages(err)
		}
	})
	if p.err != nil {
		return 0, p.err
	}
	distance := int64(page - p.page)
	if distance%p.size != 0 {
		return 0, errFault
	}
	return p.addr + uint64(distance/p.size*int64(os.Getpagesize())), nil
}

func (v *bpfView) findPages() error {
	l := v.l
	size := int64(l.fields[fPageSize].size)
	if size == 0 || !l.has(fBufPage) || !l.has(fPipeBufs) {
		return errNoField
	}
	length := os.Getpagesize()
	// Two pages that need not lie side by side.
	own, err := unix.Mmap(-1, 0, 2*length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("making memory: %w", err)
	}
	defer func() { _ = unix.Munmap(own) }()
	if _, err := rand.Read(own); err != nil {
		return err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	r, w := sys.NewFD(ends[0]), sys.NewFD(ends[1])
	defer r.Close()
	defer w.Close()
	if n, err := sys.Vmsplice(w, [][]byte{own}, sys.SpliceNonblock); err != nil || n != len(own) {
		return fmt.Errorf("putting pages into a pipe: %d bytes, %w", n, err)
	}
	structs, err := v.pipePages(w.Int(), 2)
	if err != nil {
		return err
	}
	first, err := frameNumber(own)
	if err != nil {
		return err
	}
	task, err := v.mem.current()
	if err != nil {
		return err
	}
	const check = 64
	for from := uint64(0); from < maxMemory/mappingStep; from += maxRequests {
		found := uint64(0)
		addrs := make([]uint64, maxRequests)
		for i := range addrs {
			addrs[i] = task&^(mappingStep-1) - (from+uint64(i))*mappingStep + first*uint64(length)
		}
		if err := v.mem.gather(addrs, check, func(i int, b []byte) {
			if b != nil && bytes.Equal(b, own[:check]) {
				found = addrs[i]
			}
		}); err != nil {
			return err
		}
		if found == 0 {
			continue
		}
		distance := int64(structs[1] - structs[0])
		second, err := v.mem.peek(found+uint64(distance/size*int64(length)), length)
		if distance%size != 0 || err != nil || !bytes.Equal(second, own[length:]) {
			return errFault
		}
		v.pages.page, v.pages.addr, v.pages.size = structs[0], found, size
		return nil
	}
	return errFault
}

// pipePages returns the struct pages of the first n buffers of a pipe of our own.
func (v *bpfView) pipePages(fd, n int) ([]uint64, error) {
	l := v.l
	tables, err := v.Files([]int{os.Getpid()})
	if err != nil {
		return nil, err
	}
	for _, d := range tables[0].FDs {
		if d.FD != fd {
			continue
		}
		b, _, err := v.content(d.File.ID, KindPipe, "pipe_inode_info")
		if err != nil {
			return nil, err
		}
		bufs, _ := l.uint(b, fPipeBufs)
		size := int(l.fields[fBufSize].size)
		all, err := v.mem.peek(bufs, n*size)
		if err != nil {
			return nil, err
		}
		out := make([]uint64, n)
		for i := range out {
			out[i], _ = l.uint(all[i*size:(i+1)*size], fBufPage)
			if !kernelAddress(out[i]) {
				return nil, errFault
			}
		}
		return out, nil
	}
	return nil, errFault
}

// frameNumber returns the number of the page of memory that b begins with, proc_pid_pagemap(5).
func frameNumber(b []byte) (uint64, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var entry [8]byte
	if _, err := f.ReadAt(entry[:], int64(addressOf(b))/int64(os.Getpagesize())*8); err != nil {
		return 0, fmt.Errorf("reading the number of a page: %w", err)
	}
	const present, frame = 1 << 63, 1<<55 - 1
	word := binary.NativeEndian.Uint64(entry[:])
	if word&present == 0 || word&frame == 0 {
		return 0, fmt.Errorf("reading the number of a page: %w", unix.EPERM)
	}
	return word & frame, nil
}
