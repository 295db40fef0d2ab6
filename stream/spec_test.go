package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

// A second, simple reading of the msgpack specification, which shares nothing
// with msgpack/v5. It is the witness that the codec reads and writes what the
// specification says, and in the one form of each value that cr-stream(5) wants
// written.

// specEncode appends the shortest encoding of a value tree.
func specEncode(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, 0xc0)
	case bool:
		if v {
			return append(b, 0xc3)
		}
		return append(b, 0xc2)
	case uint64:
		switch {
		case v < 1<<7:
			return append(b, byte(v))
		case v < 1<<8:
			return append(b, 0xcc, byte(v))
		case v < 1<<16:
			return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(v))
		case v < 1<<32:
			return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v))
		}
		return binary.BigEndian.AppendUint64(append(b, 0xcf), v)
	case int64:
		switch {
		case v >= 0:
			return specEncode(b, uint64(v))
		case v >= -1<<5:
			return append(b, byte(v))
		case v >= -1<<7:
			return append(b, 0xd0, byte(v))
		case v >= -1<<15:
			return binary.BigEndian.AppendUint16(append(b, 0xd1), uint16(v))
		case v >= -1<<31:
			return binary.BigEndian.AppendUint32(append(b, 0xd2), uint32(v))
		}
		return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
	case float32:
		return binary.BigEndian.AppendUint32(append(b, 0xca), math.Float32bits(v))
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(v))
	case string:
		return append(specLen(b, len(v), 0xa0, 32, 0xd9, 0xda), v...)
	case []byte:
		return append(specLen(b, len(v), 0, 0, 0xc4, 0xc5), v...)
	case Ref:
		if v == (Ref{}) {
			return append(b, 0xc0)
		}
		switch n := 4 + len(v.Class); n {
		case 8:
			b = append(b, 0xd7, 1)
		case 16:
			b = append(b, 0xd8, 1)
		default:
			b = append(b, 0xc7, byte(n), 1)
		}
		return append(binary.BigEndian.AppendUint32(b, v.ID), v.Class...)
	case []any:
		b = specLen(b, len(v), 0x90, 16, 0, 0xdc)
		for i := range v {
			b = specEncode(b, v[i])
		}
		return b
	case Map:
		b = specLen(b, len(v), 0x80, 16, 0, 0xde)
		for i := range v {
			b = specEncode(specEncode(b, v[i].Name), v[i].Value)
		}
		return b
	}
	panic(fmt.Sprintf("%T is no node of a value tree", v))
}

// specLen appends a length: in the code itself below limit, else in 1, 2 or 4
// bytes.
func specLen(b []byte, n int, fix byte, limit int, code8, code16 byte) []byte {
	switch {
	case n < limit:
		return append(b, fix|byte(n))
	case n < 1<<8 && code8 != 0:
		return append(b, code8, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, code16), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, code16+1), uint32(n))
}

// specDecode returns the value at the front of b, which is sound, and the rest.
func specDecode(b []byte) (any, []byte) {
	c, b := b[0], b[1:]
	width := map[byte]int{
		0xc4: 1, 0xc5: 2, 0xc6: 4, 0xc7: 1, 0xca: 4, 0xcb: 8, 0xcc: 1, 0xcd: 2, 0xce: 4, 0xcf: 8, 0xd0: 1, 0xd1: 2, 0xd2: 4, 0xd3: 8,
		0xd9: 1, 0xda: 2, 0xdb: 4, 0xdc: 2, 0xdd: 4, 0xde: 2, 0xdf: 4,
	}[c]
	n := uint64(0)
	for _, digit := range b[:width] {
		n = n<<8 | uint64(digit)
	}
	signed := int64(n<<(64-8*width)) >> (64 - 8*width)
	b = b[width:]
	switch {
	case c < 0x80:
		return uint64(c), b
	case c < 0x90:
		return specMap(b, uint64(c-0x80))
	case c < 0xa0:
		return specArray(b, uint64(c-0x90))
	case c < 0xc0:
		return string(b[:c-0xa0]), b[c-0xa0:]
	case c == 0xc0:
		return nil, b
	case c <= 0xc3:
		return c == 0xc3, b
	case c <= 0xc6:
		return append([]byte{}, b[:n]...), b[n:]
	case c == 0xc7:
		return specRef(b, n)
	case c == 0xca:
		return math.Float32frombits(uint32(n)), b
	case c == 0xcb:
		return math.Float64frombits(n), b
	case c <= 0xcf || c <= 0xd3 && signed >= 0:
		return n, b
	case c <= 0xd3:
		return signed, b
	case c == 0xd7:
		return specRef(b, 8)
	case c == 0xd8:
		return specRef(b, 16)
	case c <= 0xdb:
		return string(b[:n]), b[n:]
	case c <= 0xdd:
		return specArray(b, n)
	case c <= 0xdf:
		return specMap(b, n)
	}
	return int64(int8(c)), b
}

func specRef(b []byte, n uint64) (any, []byte) {
	return Ref{ID: binary.BigEndian.Uint32(b[1:]), Class: string(b[5 : 1+n])}, b[1+n:]
}

func specArray(b []byte, n uint64) (any, []byte) {
	list := make([]any, n)
	for i := range list {
		list[i], b = specDecode(b)
	}
	return list, b
}

func specMap(b []byte, n uint64) (any, []byte) {
	m := make(Map, n)
	for i := range m {
		var key any
		key, b = specDecode(b)
		m[i].Name, _ = key.(string)
		m[i].Value, b = specDecode(b)
	}
	return m, b
}

// checkSpec compares what the codec makes of a value tree with the witness.
func checkSpec(t *testing.T, v any) {
	t.Helper()
	want := specEncode(nil, v)
	got, err := appendValue(nil, v)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%.40v is written as %.40x, the specification says %.40x (%v)", v, got, want, err)
	}
	tree, err := DecodeValue(want)
	if err != nil || !bytes.Equal(specEncode(nil, tree), want) {
		t.Errorf("%.40x is read as %.40v, it says %.40v (%v)", want, tree, v, err)
	}
}

func TestWireForms(t *testing.T) {
	for _, v := range []any{
		nil, true, false, Ref{}, math.Inf(-1), float32(0), math.SmallestNonzeroFloat64, math.Copysign(0, -1), 3.0, float32(3),
		math.Float64frombits(0x7ff4_0000_0000_0001), math.Float32frombits(0xffa0_0001), // NaNs that signal: all their bits are state
	} {
		checkSpec(t, v)
	}
	for n := 1; n <= MaxType; n++ {
		checkSpec(t, Ref{ID: 1 << n, Class: strings.Repeat("c", n)})
	}
	for _, n := range []int{0, 15, 16, 17, 31, 32, 255, 256, 65535, 65536} {
		m := make(Map, n)
		for i := range m {
			m[i].Name = fmt.Sprint(i)
		}
		checkSpec(t, m)
		checkSpec(t, make([]any, n))
		checkSpec(t, strings.Repeat("\xff", n))
		checkSpec(t, make([]byte, n))
	}
}

// Nil is zero to each of msgpack/v5's primitives. To a decoder it is nothing but
// nil, whatever the target.
func TestNilIsNotZero(t *testing.T) {
	meta := []byte{codeNil}
	for _, target := range []any{
		new(bool), new(int8), new(int64), new(uint8), new(uint64), new(float32), new(float64), new(string), new([]byte), new([4]byte),
		new([]uint32), new([2]uint32), new(inner), new(Map),
	} {
		if err := DecodeMeta(meta, target); !errors.Is(err, ErrMetadata) {
			t.Errorf("%T takes nil (%v)", target, err)
		}
	}
	var ref Ref
	var pointer *inner
	var tree any
	for _, target := range []any{&ref, &pointer, &tree} {
		if err := DecodeMeta(meta, target); err != nil {
			t.Errorf("%T: %v", target, err)
		}
	}
}

// The checker keeps false claims from msgpack/v5. Should one slip through, it
// would be an error even so, and cost no memory.
func TestClaimsBehindTheChecker(t *testing.T) {
	for _, s := range []string{
		"", "d9", "d9ff", "dbffffffff", "db7fffffff00", "c6ffffffff", "c67fffffff00", "bf", "c7ff01", "c9ffffffff01", "d8010000", "d80200000001000000000000000000000000",
		"cf000000", "cb00", "dd00", "df", "c1",
	} {
		meta := raw(t, s)
		if err := CheckMeta(meta); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: the checker says %v", s, err)
		}
		got := allocated(func() {
			d := newDecoder(meta)
			defer d.done()
			if tok, err := d.next(); !errors.Is(err, ErrMetadata) {
				t.Errorf("%s: %v, %v", s, tok, err)
			}
		})
		if got > 16<<10 {
			t.Errorf("%s: %d bytes allocated", s, got)
		}
	}
}

// The largest block is copied once, into what is returned; nothing of its size
// stays with the codec.
func TestLargestValue(t *testing.T) {
	for _, v := range []any{make([]byte, MaxMeta-5), strings.Repeat("s", MaxMeta-5)} {
		meta, err := EncodeMeta(v)
		if err != nil || len(meta) != MaxMeta {
			t.Fatal(len(meta), err)
		}
		for range 3 {
			if got := allocated(func() { _, err = DecodeValue(meta) }); got > MaxMeta+64<<10 || err != nil {
				t.Errorf("%T: %d bytes allocated (%v)", v, got, err)
			}
		}
	}
}
