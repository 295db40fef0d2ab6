package arch

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// These descriptors are what a kernel made of the entries (modify_ldt(2), read back from its table).
func TestUserDesc(t *testing.T) {
	for _, c := range []struct {
		desc                uint64
		base, limit, fields uint32
	}{
		// 32-bit data, writable, limit in pages, useable: base 0x12345678, limit 0xfffff.
		{0x12dff3345678ffff, 0x12345678, 0xfffff, 1 | 0<<1 | 0<<3 | 1<<4 | 0<<5 | 1<<6},
		// 16-bit code, execute only, bytes: base 0x1000, limit 0xff.
		{0x0000f900100000ff, 0x1000, 0xff, 2<<1 | 1<<3},
	} {
		var want []byte
		for _, w := range []uint32{5, c.base, c.limit, c.fields} {
			want = binary.LittleEndian.AppendUint32(want, w)
		}
		if got := amd64.UserDesc(5, c.desc); !bytes.Equal(got, want) {
			t.Errorf("%#x: %x, want %x", c.desc, got, want)
		}
	}
}
