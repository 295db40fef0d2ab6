package kernelview

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// kernelSpec reads the BTF of the running kernel.
func kernelSpec() (*btf.Spec, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, &MissingError{
			What: "BTF of the running kernel (/sys/kernel/btf/vmlinux)",
			Fix:  "use a kernel built with CONFIG_DEBUG_INFO_BTF",
			Err:  err,
		}
	}
	return spec, nil
}

// resolveFields looks every field up. What the kernel lacks stays locMissing.
func resolveFields(spec *btf.Spec) []location {
	found := make([]location, len(fieldPaths))
	types := make(map[string]btf.Type)
	unnamed := unnamedConstants(spec)
	for i, path := range fieldPaths {
		name, rest, isMember := strings.Cut(path, ".")
		if enum, ok := strings.CutPrefix(name, "enum "); ok {
			if enum == "" {
				found[i] = unnamed[rest]
			} else {
				found[i] = enumerator(spec, enum, rest)
			}
			continue
		}
		t, seen := types[name]
		if !seen {
			t = structByName(spec, name)
			types[name] = t
		}
		if t == nil {
			continue
		}
		if !isMember {
			found[i] = locate(btf.Member{Type: t}, 0)
			continue
		}
		found[i] = member(t, rest)
	}
	return found
}

// unnamedConstants looks up the wanted constants of enumerations without a name.
// It walks all types, so nothing is looked for twice. A name that is there with
// different values stays unknown.
func unnamedConstants(spec *btf.Spec) map[string]location {
	found := make(map[string]location)
	for _, path := range fieldPaths {
		if name, ok := strings.CutPrefix(path, "enum ."); ok {
			found[name] = location{}
		}
	}
	for t, err := range spec.All() {
		if err != nil {
			return nil
		}
		e, ok := t.(*btf.Enum)
		if !ok || e.Name != "" {
			continue
		}
		for _, v := range e.Values {
			old, wanted := found[v.Name]
			if !wanted || v.Value >= maxStructSize {
				continue
			}
			now := location{kind: locValue, offset: uint32(v.Value), size: 1}
			if old.kind != locMissing && old != now {
				now = location{}
			}
			found[v.Name] = now
		}
	}
	return found
}

// enumerator looks up the value of a constant, which is then the offset of the
// location; it is of one byte, so that its size cannot matter.
func enumerator(spec *btf.Spec, enum, name string) location {
	all, err := spec.AnyTypesByName(enum)
	if err != nil || len(all) != 1 {
		return location{}
	}
	e, ok := all[0].(*btf.Enum)
	if !ok {
		return location{}
	}
	for _, v := range e.Values {
		if v.Name == name && v.Value < maxStructSize {
			return location{kind: locValue, offset: uint32(v.Value), size: 1}
		}
	}
	return location{}
}

// structByName returns the structure of that name, or nil when there is none
// or several that differ: then nobody can tell which is meant.
func structByName(spec *btf.Spec, name string) btf.Type {
	all, err := spec.AnyTypesByName(name)
	if err != nil {
		return nil
	}
	var found btf.Type
	for _, t := range all {
		if _, ok := t.(*btf.Struct); !ok {
			continue
		}
		if found != nil {
			return nil
		}
		found = t
	}
	return found
}

// member walks a path of member names from t on.
func member(t btf.Type, path string) location {
	var at btf.Bits
	for {
		name, rest, more := strings.Cut(path, ".")
		m, offset, ok := findMember(t, name)
		if !ok {
			return location{}
		}
		at += offset
		if !more {
			return locate(m, at)
		}
		t, path = m.Type, rest
	}
}

// findMember finds a member by name, also inside unnamed structures and
// unions, with its offset from the start of t.
func findMember(t btf.Type, name string) (btf.Member, btf.Bits, bool) {
	members := membersOf(t)
	for _, m := range members {
		if m.Name == name {
			return m, m.Offset, true
		}
		if m.Name == "" {
			if found, offset, ok := findMember(m.Type, name); ok {
				return found, m.Offset + offset, true
			}
		}
	}
	return btf.Member{}, 0, false
}

func membersOf(t btf.Type) []btf.Member {
	switch v := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return v.Members
	case *btf.Union:
		return v.Members
	}
	return nil
}

func locate(m btf.Member, at btf.Bits) location {
	if m.BitfieldSize != 0 {
		first := uint32(at) / 8
		bit := uint32(at) % 8
		return location{
			kind: locValue, offset: first, bit: uint8(bit), bits: uint8(m.BitfieldSize),
			size: (bit + uint32(m.BitfieldSize) + 7) / 8,
		}
	}
	size, err := btf.Sizeof(m.Type)
	if err != nil || at%8 != 0 {
		return location{}
	}
	loc := location{kind: locValue, offset: at.Bytes(), size: uint32(size)}
	switch v := btf.UnderlyingType(m.Type).(type) {
	case *btf.Pointer:
		loc.kind = locPointer
	case *btf.Array:
		element, err := btf.Sizeof(v.Type)
		if err != nil {
			return location{}
		}
		loc.kind, loc.count, loc.element = locArray, v.Nelems, uint32(element)
	case *btf.Struct, *btf.Union:
		loc.kind = locCompound
	}
	return loc
}

const kallsyms = "/proc/kallsyms"

// missingSymbols says that the kernel keeps its symbols from us.
func missingSymbols(err error) error {
	return &MissingError{
		What: "the addresses of kernel functions (" + kallsyms + ")",
		Fix:  "run as root or with CAP_SYSLOG, and with kernel.kptr_restrict below 2",
		Err:  err,
	}
}

var (
	errHidden = errors.New("the kernel hides them")
	errNoText = errors.New("there is no _stext")
)

// textBase finds the address of _stext, which moves at every boot. It is at
// the beginning of the table, so this reads little of it.
func textBase() (uint64, error) {
	var base uint64
	err := eachSymbol(func(addr uint64, name []byte) bool {
		if string(name) == "_stext" {
			base = addr
			return false
		}
		return true
	})
	switch {
	case err != nil:
		return 0, missingSymbols(err)
	case base == 0:
		return 0, missingSymbols(errNoText)
	}
	return base, nil
}

// resolveSymbols finds the distance of every wanted function from _stext. A
// name that several functions have stays unknown.
func resolveSymbols() ([]symbolPlace, error) {
	index := make(map[string]int, len(symbolNames))
	for i, name := range symbolNames {
		index[name] = i
	}
	var base uint64
	addrs := make([]uint64, len(symbolNames))
	count := make([]int, len(symbolNames))
	err := eachSymbol(func(addr uint64, name []byte) bool {
		if i, ok := index[string(name)]; ok {
			addrs[i] = addr
			count[i]++
		} else if string(name) == "_stext" {
			base = addr
		}
		return true
	})
	if err != nil {
		return nil, missingSymbols(err)
	}
	if base == 0 {
		return nil, missingSymbols(errNoText)
	}
	found := make([]symbolPlace, len(symbolNames))
	for i, addr := range addrs {
		if count[i] == 1 && addr >= base {
			found[i] = symbolPlace{known: true, offset: addr - base}
		}
	}
	return found, nil
}

// reader reads a file of the kernel's.
type reader struct{ fd *sys.FD }

func (r reader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(r.fd.Int(), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// eachSymbol calls fn for the symbols of the kernel proper, not of its
// modules, until fn returns false.
func eachSymbol(fn func(addr uint64, name []byte) bool) error {
	fd, err := sys.Open(kallsyms, unix.O_RDONLY, 0) // os.Open would look for a poller first
	if err != nil {
		return err
	}
	defer fd.Close()
	r := bufio.NewReaderSize(reader{fd}, 4096)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		// ffffffff81000000 T _stext[\t[module]]
		line = bytes.TrimSuffix(line, []byte{'\n'})
		hex, rest, ok := bytes.Cut(line, []byte{' '})
		if !ok || len(rest) < 3 {
			return fmt.Errorf("parsing a line: %w", strconv.ErrSyntax)
		}
		name := rest[2:]
		if bytes.IndexByte(name, '\t') >= 0 {
			continue
		}
		// Parsing the address only where it matters would save nothing worth it:
		// this runs once for each kernel build.
		addr, err := strconv.ParseUint(string(hex), 16, 64)
		if err != nil {
			return fmt.Errorf("parsing an address: %w", strconv.ErrSyntax)
		}
		if addr == 0 && string(name) == "_stext" {
			return errHidden
		}
		if !fn(addr, name) {
			return nil
		}
	}
}
