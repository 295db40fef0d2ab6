package kernelview

import (
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// What this file needs and x/sys lacks on some architectures.
const (
	mapDroppable     = 0x8
	mlockOnFault     = 1
	madvGuardInstall = 102
)

// areas finds the bits of vm_area_struct.vm_flags. They are macros whose
// numbers differ between kernels and architectures, but the kernel itself
// shows them as codes, in the order of the bits (fs/proc/task_mmu.c,
// show_smap_vma_flags): a helper makes mappings of many kinds, and the words of
// these are compared with the VmFlags lines in its smaps. There are bits
// without a code; a mapping with one of these says nothing here.
func (c *calibration) areas() error {
	c.makeMappings()
	if _, err := c.asleep(); err != nil {
		return err
	}
	areas, err := c.v.Areas(c.h.pid())
	if err != nil {
		return err
	}
	if !areas.Known {
		return errNoField
	}
	list, err := procfs.ReadSmaps(c.h.pid())
	if err != nil {
		return err
	}
	type sample struct {
		word  uint64
		flags procfs.VMFlags
	}
	var samples []sample
	for _, s := range list {
		k := len(samples)
		if k < len(areas.V) && areas.V[k].Start == s.Start && areas.V[k].End == s.End {
			samples = append(samples, sample{areas.V[k].word, s.Flags})
		}
	}
	if len(samples) != len(areas.V) {
		return nil // this kernel keeps its mappings another way
	}
	bit := make(map[string]uint64)
	wrong := make(map[string]bool)
	for _, s := range samples {
		codes := s.flags.Codes()
		if len(codes) != bits.OnesCount64(s.word) {
			continue
		}
		rest := s.word
		for _, code := range codes {
			lowest := rest & -rest
			rest &^= lowest
			if b, seen := bit[code]; seen && b != lowest {
				wrong[code] = true
			}
			bit[code] = lowest
		}
	}
	for code, b := range bit {
		for _, s := range samples {
			if s.flags.Has(code) != (s.word&b != 0) {
				wrong[code] = true
			}
		}
	}
	for i, code := range vmCodes {
		if b := bit[code]; b != 0 && !wrong[code] {
			c.v.l.facts[firstVMCode+factName(i)] = fact{known: true, value: b}
		}
	}
	return nil
}

// makeMappings makes the helper map memory of every kind that is not rare. What
// this kernel does not know, or this user may not, is left out: its codes stay
// unknown. The helper brings a stack, a vdso and its data along.
func (c *calibration) makeMappings() {
	const (
		none  = unix.PROT_NONE
		read  = unix.PROT_READ
		write = unix.PROT_READ | unix.PROT_WRITE
		exec  = unix.PROT_READ | unix.PROT_EXEC
		anon  = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
		size  = 1 << 16
	)
	// From here on what is new differs in the soft-dirty bit, where there is one.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.h.pid()), []byte("4"), 0)
	noFile := ^uint64(0)
	for _, m := range []struct {
		prot, flags uint64
		then        []uint64 // a call: its number and what follows address and size
	}{
		{none, anon | unix.MAP_NORESERVE, nil},
		{read, anon, nil},
		{exec, anon, nil},
		{write, anon, nil},
		{write, unix.MAP_SHARED | unix.MAP_ANONYMOUS, nil},
		{write, anon | unix.MAP_GROWSDOWN, nil},
		{write, mapDroppable | unix.MAP_ANONYMOUS, nil},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_DONTFORK}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_DONTDUMP}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_WIPEONFORK}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_MERGEABLE}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_HUGEPAGE}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_NOHUGEPAGE}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_SEQUENTIAL}},
		{write, anon, []uint64{unix.SYS_MADVISE, unix.MADV_RANDOM}},
		{write, anon, []uint64{unix.SYS_MADVISE, madvGuardInstall}},
		{write, anon, []uint64{unix.SYS_MLOCK2, 0}},
		{write, anon, []uint64{unix.SYS_MLOCK2, mlockOnFault}},
		{write, anon, []uint64{unix.SYS_MSEAL, 0}},
	} {
		if at, err := c.h.call(unix.SYS_MMAP, 0, size, m.prot, m.flags, noFile, 0); err == nil && m.then != nil {
			_, _ = c.h.call(uintptr(m.then[0]), append([]uint64{uint64(at), size}, m.then[1:]...)...)
		}
	}
	// A file that is open for reading only.
	at, err := c.h.call(unix.SYS_MMAP, 0, size, write, anon, noFile, 0)
	if err == nil {
		err = c.h.write(uint64(at), []byte("/proc/self/exe\x00"))
	}
	var fd int64
	if err == nil {
		fd, err = c.h.call(unix.SYS_OPENAT, noFile, uint64(at), unix.O_RDONLY, 0)
	}
	if err != nil {
		return
	}
	for _, flags := range []uint64{unix.MAP_SHARED, unix.MAP_PRIVATE} {
		_, _ = c.h.call(unix.SYS_MMAP, 0, uint64(unix.Getpagesize()), read, flags, uint64(fd), 0)
	}
}
