package arch

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
)

// VDSO says how an architecture's kernel shows the code and data that it maps into every process.
type VDSO struct {
	// Parts are the names in /proc/PID/maps in ascending address order; those that a kernel lacks
	// are absent there. They are moved together, with their distances kept: code that has lost its
	// data crashes.
	Parts []string
	// Code is the name of the part with the code.
	Code string
	// MapOption is the arch_prctl option that maps all parts at a given address (a hint: when that
	// is taken the kernel picks another) and returns the size of the code part, or 0 for none. It
	// is EEXIST while any part is still mapped.
	MapOption int
}

// IsPart says whether a name from /proc/PID/maps is that of a part.
func (v VDSO) IsPart(name string) bool {
	for _, p := range v.Parts {
		if p == name {
			return true
		}
	}
	return false
}

// VDSOEqual says whether the code parts of two kernels, whole mappings as read from memory, are
// laid out alike: the same size and the same symbols, versions aside, at the same offsets. A
// process that holds pointers into one can then run on the other. It compares layout, not code: the
// same source built twice may differ in a byte that does not matter, while return addresses into
// the code do not occur in a task that was stopped outside of it.
func VDSOEqual(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	if bytes.Equal(a, b) {
		return true
	}
	x, errX := vdsoSymbols(a)
	y, errY := vdsoSymbols(b)
	if errX != nil || errY != nil || len(x) != len(y) {
		return false
	}
	for name, s := range x {
		if y[name] != s {
			return false
		}
	}
	return true
}

// VDSOSymbol returns the offset of a symbol in the code part.
func VDSOSymbol(image []byte, name string) (Addr, error) {
	syms, err := vdsoSymbols(image)
	if err != nil {
		return 0, err
	}
	s, ok := syms[name]
	if !ok {
		return 0, fmt.Errorf("looking up %s in the vdso: not there", name)
	}
	return s.value, nil
}

type vdsoSymbol struct {
	value Addr
	size  uint64
}

func vdsoSymbols(image []byte) (map[string]vdsoSymbol, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("reading the vdso: %w", err)
	}
	dyn, err := f.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("reading the vdso's symbols: %w", err)
	}
	m := make(map[string]vdsoSymbol, len(dyn))
	for _, s := range dyn {
		if s.Section != elf.SHN_UNDEF {
			m[s.Name] = vdsoSymbol{Addr(s.Value), s.Size}
		}
	}
	if len(m) == 0 {
		return nil, errors.New("reading the vdso's symbols: none")
	}
	return m, nil
}

// elfEnd returns where the last part of an ELF file ends.
func elfEnd(image []byte) (int, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, err
	}
	end := uint64(0)
	for _, p := range f.Progs {
		end = max(end, p.Off+p.Filesz)
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOBITS {
			end = max(end, s.Offset+s.FileSize)
		}
	}
	// debug/elf does not tell where the table of sections is: e_shoff, and e_shentsize times e_shnum, of a 64-bit file.
	const shoff, shentsize, shnum = 40, 58, 60
	if f.Class == elf.ELFCLASS64 && len(image) >= 64 {
		o := f.ByteOrder
		end = max(end, o.Uint64(image[shoff:])+uint64(o.Uint16(image[shentsize:]))*uint64(o.Uint16(image[shnum:])))
	}
	if end > uint64(len(image)) {
		return 0, errors.New("it is longer than its mapping")
	}
	return int(end), nil
}

// VDSOWordSize returns how many bytes a word has for which a vdso was made, 0 for what is no ELF file.
func VDSOWordSize(image []byte) int {
	if len(image) > elf.EI_CLASS && string(image[:4]) == elf.ELFMAG {
		switch elf.Class(image[elf.EI_CLASS]) {
		case elf.ELFCLASS32:
			return 4
		case elf.ELFCLASS64:
			return 8
		}
	}
	return 0
}

// VDSOSameCode says whether a symbol's code is, byte for byte, the same in two code parts.
func VDSOSameCode(a, b []byte, name string) bool {
	code := func(image []byte) []byte {
		syms, err := vdsoSymbols(image)
		if err != nil {
			return nil
		}
		s := syms[name]
		if end := uint64(s.value) + s.size; s.size > 0 && end <= uint64(len(image)) && end > uint64(s.value) {
			return image[s.value:end]
		}
		return nil
	}
	x, y := code(a), code(b)
	return x != nil && bytes.Equal(x, y)
}
