package arch

import "encoding/binary"

// x86UserDesc is X86UserDesc as the bytes of struct user_desc (asm/ldt.h).
func x86UserDesc(entry uint32, desc uint64) []byte {
	var b []byte
	d := X86UserDesc(entry, desc)
	for _, w := range []uint32{d.Entry, d.Base, d.Limit, d.Flags} {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}
