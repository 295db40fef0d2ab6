package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"unicode/utf8"
)

// The msgpack codes, https://github.com/msgpack/msgpack/blob/master/spec.md.
// Those of msgpack/v5 are variables: anybody could change them, and switches over
// them are chains of comparisons.
const (
	codeFixMap   = 0x80
	codeFixArray = 0x90
	codeFixStr   = 0xa0
	codeNil      = 0xc0
	codeFalse    = 0xc2
	codeTrue     = 0xc3
	codeBin8     = 0xc4
	codeBin16    = 0xc5
	codeBin32    = 0xc6
	codeExt8     = 0xc7
	codeFloat32  = 0xca
	codeFloat64  = 0xcb
	codeUint8    = 0xcc
	codeUint16   = 0xcd
	codeUint32   = 0xce
	codeUint64   = 0xcf
	codeInt8     = 0xd0
	codeInt16    = 0xd1
	codeInt32    = 0xd2
	codeInt64    = 0xd3
	codeFixExt8  = 0xd7
	codeFixExt16 = 0xd8
	codeStr8     = 0xd9
	codeStr16    = 0xda
	codeStr32    = 0xdb
	codeArray16  = 0xdc
	codeArray32  = 0xdd
	codeMap16    = 0xde
	codeMap32    = 0xdf
	codeNegFix   = 0xe0
)

// MaxDepth is how deep arrays and maps may nest; a map of scalars has depth 1.
const MaxDepth = 32

// maxKey is the length limit of a map key in bytes.
const maxKey = 255

// scan reads the value that begins at meta[pos] into t. It returns where it ends,
// or where the elements of an array or map begin. It checks that what the value
// claims fits what is left of meta, without allocating.
func scan(meta []byte, pos int, t *token) (end int, err error) {
	if pos >= len(meta) {
		return pos, fmt.Errorf("%w: it ends within a value", ErrMetadata)
	}
	c := meta[pos]
	pos++
	switch {
	case c < codeFixMap:
		t.kind, t.num = kindUint, uint64(c)
		return pos, nil
	case c >= codeNegFix:
		t.kind, t.num = kindInt, uint64(int64(int8(c)))
		return pos, nil
	case c < codeFixArray:
		return container(meta, pos, t, kindMap, uint64(c&0x0f))
	case c < codeFixStr:
		return container(meta, pos, t, kindArray, uint64(c&0x0f))
	case c < codeNil:
		return blob(meta, pos, t, kindString, uint64(c&0x1f))
	}
	width := 0 // of the number after the code
	switch c {
	case codeNil:
		t.kind, t.num = kindNil, 0
		return pos, nil
	case codeFalse, codeTrue:
		t.kind, t.num = kindBool, uint64(c-codeFalse)
		return pos, nil
	case codeFixExt8:
		return reference(meta, pos, t, 8)
	case codeFixExt16:
		return reference(meta, pos, t, 16)
	case codeBin8, codeExt8, codeUint8, codeInt8, codeStr8:
		width = 1
	case codeBin16, codeUint16, codeInt16, codeStr16, codeArray16, codeMap16:
		width = 2
	case codeBin32, codeFloat32, codeUint32, codeInt32, codeStr32, codeArray32, codeMap32:
		width = 4
	case codeFloat64, codeUint64, codeInt64:
		width = 8
	default: // 0xc1 is never used; the other extension codes cannot hold a reference
		return pos, fmt.Errorf("%w: code 0x%02x is not allowed", ErrMetadata, c)
	}
	if len(meta)-pos < width {
		return pos, fmt.Errorf("%w: it ends within a number", ErrMetadata)
	}
	var n uint64 // what the value is, or claims
	switch width {
	case 1:
		n = uint64(meta[pos])
	case 2:
		n = uint64(binary.BigEndian.Uint16(meta[pos:]))
	case 4:
		n = uint64(binary.BigEndian.Uint32(meta[pos:]))
	case 8:
		n = binary.BigEndian.Uint64(meta[pos:])
	}
	pos += width
	switch c {
	case codeStr8, codeStr16, codeStr32:
		return blob(meta, pos, t, kindString, n)
	case codeBin8, codeBin16, codeBin32:
		return blob(meta, pos, t, kindBytes, n)
	case codeArray16, codeArray32:
		return container(meta, pos, t, kindArray, n)
	case codeMap16, codeMap32:
		return container(meta, pos, t, kindMap, n)
	case codeExt8:
		return reference(meta, pos, t, n)
	case codeFloat32:
		t.kind = kindFloat32
	case codeFloat64:
		t.kind = kindFloat64
	case codeInt8, codeInt16, codeInt32, codeInt64:
		unused := 64 - 8*width
		if t.kind = kindUint; int64(n<<unused) < 0 {
			t.kind, n = kindInt, uint64(int64(n<<unused)>>unused)
		}
	default:
		t.kind = kindUint
	}
	t.num = n
	return pos, nil
}

func blob(meta []byte, pos int, t *token, k kind, n uint64) (int, error) {
	if n > uint64(len(meta)-pos) {
		return pos, fmt.Errorf("%w: %s claims %d bytes where %d are left", ErrMetadata, k, n, len(meta)-pos)
	}
	end := pos + int(n)
	t.kind, t.data = k, meta[pos:end:end]
	return end, nil
}

// container checks that n elements can follow: each takes a byte at least, and
// in a map two.
func container(meta []byte, pos int, t *token, k kind, n uint64) (int, error) {
	least := n
	if k == kindMap {
		least = 2 * n
	}
	if least > uint64(len(meta)-pos) {
		return pos, fmt.Errorf("%w: %s claims %d elements where %d bytes are left", ErrMetadata, k, n, len(meta)-pos)
	}
	t.kind, t.num = k, n
	return pos, nil
}

// reference checks an extension of n bytes of content. The only one there is is
// ours.
func reference(meta []byte, pos int, t *token, n uint64) (int, error) {
	if n < 5 || n > 4+MaxType || n+1 > uint64(len(meta)-pos) {
		return pos, fmt.Errorf("%w: an extension claims %d bytes where %d are left", ErrMetadata, n, len(meta)-pos)
	}
	if extension := int8(meta[pos]); extension != extRef {
		return pos, fmt.Errorf("%w: extension type %d is unknown", ErrMetadata, extension)
	}
	end := pos + 1 + int(n)
	t.kind, t.num, t.data = kindRef, uint64(binary.BigEndian.Uint32(meta[pos+1:])), meta[pos+5:end:end]
	if t.num < 1 || t.num > MaxRef {
		return end, fmt.Errorf("%w: reference to %d", ErrZeroRef, int32(t.num))
	}
	if !validClass(t.data) {
		return end, fmt.Errorf("%w: reference to object %d has the class %q", ErrMetadata, t.num, t.data)
	}
	return end, nil
}

// span is a piece of a metadata block, which is at most 1 MiB.
type span struct{ start, end uint32 }

// checker is the structural checker. Its memory is reused from block to block
// and is bounded by the size of a block.
type checker struct {
	meta []byte
	keys []span // keys of the maps being checked, outer ones first
	ref  func(id uint32, class []byte, at span) error
}

// CheckMeta reports whether meta is exactly one msgpack value that obeys the
// rules: at most MaxMeta bytes; each claimed length at most what is left; arrays
// and maps nested at most MaxDepth deep; keys of maps are distinct strings of 1
// to 255 bytes of UTF-8 that do not begin with '$'; the only extension is a Ref.
// Nothing is decoded before it has passed.
func CheckMeta(meta []byte) error { return checkMeta(meta, nil) }

// checkers keeps the memory of checkers that no Reader or Writer owns.
var checkers = sync.Pool{New: func() any { return new(checker) }}

func checkMeta(meta []byte, ref func(id uint32, class []byte, at span) error) error {
	c, ok := checkers.Get().(*checker)
	if !ok {
		c = new(checker)
	}
	defer checkers.Put(c)
	return c.check(meta, ref)
}

// WalkRefs checks meta as CheckMeta does and calls fn for each reference in it,
// in their order. It stops at fn's first error and returns it.
func WalkRefs(meta []byte, fn func(Ref) error) error {
	return checkMeta(meta, func(id uint32, class []byte, _ span) error {
		return fn(Ref{ID: id, Class: string(class)})
	})
}

// RewriteRefs returns meta with each reference replaced by what fn makes of it;
// the zero Ref becomes nil. All other bytes stay as they are. When fn changes
// nothing, meta itself is returned.
func RewriteRefs(meta []byte, fn func(Ref) (Ref, error)) ([]byte, error) {
	var out []byte
	from := 0
	err := checkMeta(meta, func(id uint32, class []byte, at span) error {
		old := Ref{ID: id, Class: string(class)}
		now, err := fn(old)
		if err != nil || now == old {
			return err
		}
		out = append(out, meta[from:at.start]...)
		from = int(at.end)
		out, err = appendValue(out, now)
		return err
	})
	if err != nil {
		return nil, err
	}
	if from == 0 {
		return meta, nil
	}
	out = append(out, meta[from:]...)
	if len(out) > MaxMeta {
		return nil, fmt.Errorf("%w: %d bytes of metadata, the limit is %d", ErrLength, len(out), MaxMeta)
	}
	return out, nil
}

// check checks one block and calls ref, where it is not nil, for each reference.
func (c *checker) check(meta []byte, ref func(id uint32, class []byte, at span) error) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes of metadata, the limit is %d", ErrLength, len(meta), MaxMeta)
	}
	c.meta, c.ref, c.keys = meta, ref, c.keys[:0]
	end, err := c.value(0, 0)
	c.meta, c.ref = nil, nil
	if err != nil {
		return err
	}
	if end != len(meta) {
		return fmt.Errorf("%w: %d bytes follow its value", ErrMetadata, len(meta)-end)
	}
	return nil
}

// value checks the value at pos, which depth arrays and maps enclose.
func (c *checker) value(pos, depth int) (int, error) {
	var t token
	end, err := scan(c.meta, pos, &t)
	if err != nil {
		return end, err
	}
	switch t.kind {
	case kindArray, kindMap:
		if depth >= MaxDepth {
			return end, fmt.Errorf("%w: it nests deeper than %d", ErrMetadata, MaxDepth)
		}
	case kindRef:
		if c.ref != nil {
			return end, c.ref(uint32(t.num), t.data, span{uint32(pos), uint32(end)})
		}
		return end, nil
	default:
		return end, nil
	}
	base := len(c.keys)
	for i := uint64(0); i < t.num; i++ {
		if t.kind == kindMap {
			if end, err = c.key(end); err != nil {
				return end, err
			}
		}
		if end, err = c.value(end, depth+1); err != nil {
			return end, err
		}
	}
	if t.kind == kindMap {
		if err := c.distinct(c.keys[base:]); err != nil {
			return end, err
		}
		c.keys = c.keys[:base]
	}
	return end, nil
}

// key checks the map key at pos and remembers it.
func (c *checker) key(pos int) (int, error) {
	var t token
	end, err := scan(c.meta, pos, &t)
	if err != nil {
		return end, err
	}
	if t.kind != kindString {
		return end, fmt.Errorf("%w: the key of a map is %s", ErrMetadata, t.kind)
	}
	if len(t.data) < 1 || len(t.data) > maxKey || t.data[0] == '$' || !utf8.Valid(t.data) {
		return end, fmt.Errorf("%w: the key of a map is %.40q", ErrMetadata, t.data)
	}
	c.keys = append(c.keys, span{uint32(end - len(t.data)), uint32(end)})
	return end, nil
}

// distinct reports a key that occurs twice. It may reorder keys.
func (c *checker) distinct(keys []span) error {
	if len(keys) <= 40 { // the usual case: comparing all pairs is faster than sorting
		for i, a := range keys {
			for _, b := range keys[:i] {
				if a.end-a.start == b.end-b.start && bytes.Equal(c.meta[a.start:a.end], c.meta[b.start:b.end]) {
					return c.twice(a)
				}
			}
		}
		return nil
	}
	slices.SortFunc(keys, func(a, b span) int {
		return bytes.Compare(c.meta[a.start:a.end], c.meta[b.start:b.end])
	})
	for i := 1; i < len(keys); i++ {
		a, b := keys[i-1], keys[i]
		if bytes.Equal(c.meta[a.start:a.end], c.meta[b.start:b.end]) {
			return c.twice(a)
		}
	}
	return nil
}

func (c *checker) twice(key span) error {
	return fmt.Errorf("%w: key %q occurs twice in a map", ErrMetadata, c.meta[key.start:key.end])
}
