package memory

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
)

// maxNotes bounds what is read of one PT_NOTE segment.
const maxNotes = 64 << 10

// buildID returns what identifies the build of an ELF file: the GNU build-id note, else Go's own; nil when r holds neither
// or is no ELF file. Only what program headers lead to is read, so r may be the part of a file that a process has mapped.
func buildID(r io.ReaderAt) []byte {
	var ident [64]byte
	if n, err := r.ReadAt(ident[:], 0); n < len(ident) && err != io.EOF || n < 52 || !bytes.HasPrefix(ident[:], []byte(elf.ELFMAG)) {
		return nil
	}
	var order binary.ByteOrder
	switch elf.Data(ident[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		order = binary.BigEndian
	default:
		return nil
	}
	var at uint64
	var size, count int
	wide := elf.Class(ident[elf.EI_CLASS]) == elf.ELFCLASS64
	if wide {
		at, size, count = order.Uint64(ident[32:]), int(order.Uint16(ident[54:])), int(order.Uint16(ident[56:]))
	} else {
		at, size, count = uint64(order.Uint32(ident[28:])), int(order.Uint16(ident[42:])), int(order.Uint16(ident[44:]))
	}
	if size < 32 || wide && size < 56 || at > 1<<40 {
		return nil
	}
	headers := make([]byte, size*count)
	if n, _ := r.ReadAt(headers, int64(at)); n < len(headers) {
		return nil
	}
	var goID []byte
	for ; len(headers) > 0; headers = headers[size:] {
		if elf.ProgType(order.Uint32(headers)) != elf.PT_NOTE {
			continue
		}
		var offset, length, align uint64
		if wide {
			offset, length, align = order.Uint64(headers[8:]), order.Uint64(headers[32:]), order.Uint64(headers[48:])
		} else {
			offset, length, align = uint64(order.Uint32(headers[4:])), uint64(order.Uint32(headers[16:])), uint64(order.Uint32(headers[28:]))
		}
		if offset > 1<<40 {
			continue
		}
		notes := make([]byte, min(length, maxNotes))
		n, _ := r.ReadAt(notes, int64(offset))
		gnu, own := findNotes(notes[:n], order, align)
		if gnu != nil {
			return gnu
		}
		if own != nil {
			goID = own
		}
	}
	return goID
}

// findNotes returns the descriptors of the GNU build-id (type 3) and of Go's build ID (type 4) among notes, nil for what is
// not there.
func findNotes(b []byte, order binary.ByteOrder, align uint64) (gnu, own []byte) {
	if align != 8 {
		align = 4 // what the gABI says; 0 and 1 occur
	}
	up := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
	for len(b) >= 12 {
		nameLen, descLen, typ := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		descAt := up(12 + nameLen)
		end := descAt + descLen
		if end > uint64(len(b)) {
			return gnu, own
		}
		name, desc := string(b[12:12+nameLen]), b[descAt:end]
		switch {
		case len(desc) == 0:
		case name == "GNU\x00" && typ == 3:
			gnu = desc
		case name == "Go\x00\x00" && typ == 4:
			own = desc
		}
		b = b[min(up(end), uint64(len(b))):]
	}
	return gnu, own
}
