package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
)

// This file alone knows msgpack/v5. Every value that is written or read passes
// one of its primitives; what goes into a block and what comes out of it is
// decided above, by the walkers over Go types and value trees, because v5's own
// lose state without an error. In its primitives these choices matter:
//   - Encoder: EncodeInt and EncodeUint take the shortest form whatever its
//     flags say, EncodeInt64 and its sisters never do. EncodeBytes makes nil of a
//     nil slice, so bytes go through EncodeBytesLen.
//   - Decoder: each Decode takes nil for zero, DecodeUint64 takes negative
//     numbers and DecodeFloat64 integers. So the code is looked at first
//     (PeekCode) and the one primitive called that belongs to it.
//   - A blob's length is v5's (DecodeBytesLen), its content is taken from the
//     block itself. So v5 allocates for no length, be it claimed or real.

// kind is what a msgpack value is, whatever its encoding.
type kind uint8

const (
	kindNil kind = iota
	kindBool
	kindUint
	kindInt // negative
	kindFloat32
	kindFloat64
	kindString
	kindBytes
	kindArray
	kindMap
	kindRef
)

var kindNames = [...]string{"null", "a boolean", "a number", "a negative number", "a float", "a float", "a string", "bytes", "an array", "a map", "a reference"}

func (k kind) String() string { return kindNames[k] }

// token is one msgpack value without what an array or a map holds.
type token struct {
	kind kind
	num  uint64 // number (two's complement), float bits, bool, or count of an array or map
	data []byte // what a string, bytes or class of a reference holds; part of the block
}

// decoder reads a block that has been checked.
type decoder struct {
	dec    *msgpack.Decoder // reads from in
	in     block
	budget int
	loose  bool
}

var decoders = sync.Pool{New: func() any {
	d := new(decoder)
	d.dec = msgpack.NewDecoder(&d.in)
	return d
}}

// newDecoder returns a decoder of meta, which CheckMeta has accepted. done gives
// it back.
func newDecoder(meta []byte) *decoder {
	d := decoders.Get().(*decoder) // the pool holds nothing else
	d.in = block{meta: meta}
	return d
}

func (d *decoder) done() {
	d.in, d.budget, d.loose = block{}, 0, false
	decoders.Put(d)
}

// next reads the next value, of an array or a map only how many elements follow.
// It fails only on a block that was not checked.
func (d *decoder) next() (token, error) {
	c, err := d.dec.PeekCode()
	if err != nil {
		return token{}, unchecked(err)
	}
	var t token
	var n int
	switch {
	case c < codeFixMap || codeUint8 <= c && c <= codeUint64:
		t.kind = kindUint
		t.num, err = d.dec.DecodeUint64()
	case c >= codeNegFix || codeInt8 <= c && c <= codeInt64:
		var signed int64
		if signed, err = d.dec.DecodeInt64(); signed < 0 {
			t.kind = kindInt
		} else {
			t.kind = kindUint
		}
		t.num = uint64(signed)
	case codeFixStr <= c && c < codeNil || codeStr8 <= c && c <= codeStr32:
		t.kind = kindString
		if n, err = d.dec.DecodeBytesLen(); err == nil {
			t.data, err = d.in.take(n)
		}
	case codeBin8 <= c && c <= codeBin32:
		t.kind = kindBytes
		if n, err = d.dec.DecodeBytesLen(); err == nil {
			t.data, err = d.in.take(n)
		}
	case c < codeFixArray || c == codeMap16 || c == codeMap32:
		t.kind = kindMap
		n, err = d.dec.DecodeMapLen()
		t.num = uint64(n)
	case c < codeFixStr || c == codeArray16 || c == codeArray32:
		t.kind = kindArray
		n, err = d.dec.DecodeArrayLen()
		t.num = uint64(n)
	case c == codeNil:
		err = d.dec.DecodeNil()
	case c == codeFalse || c == codeTrue:
		t.kind = kindBool
		var v bool
		if v, err = d.dec.DecodeBool(); v {
			t.num = 1
		}
	case c == codeFloat32:
		t.kind = kindFloat32
		var v float32
		v, err = d.dec.DecodeFloat32()
		t.num = uint64(math.Float32bits(v))
	case c == codeFloat64:
		t.kind = kindFloat64
		var v float64
		v, err = d.dec.DecodeFloat64()
		t.num = math.Float64bits(v)
	default:
		return d.ref()
	}
	if n < 0 { // where int has 32 bits
		err = errBlockEnd
	}
	if err != nil {
		return token{}, unchecked(err)
	}
	return t, nil
}

// ref reads an extension, which must be a Ref.
func (d *decoder) ref() (token, error) {
	id, n, err := d.dec.DecodeExtHeader()
	if err != nil {
		return token{}, unchecked(err)
	}
	content, err := d.in.take(n)
	if err != nil {
		return token{}, unchecked(err)
	}
	return parseRef(id, content)
}

// takeNil reports whether the next value is nil, and passes over it if so.
func (d *decoder) takeNil() (bool, error) {
	if c, err := d.dec.PeekCode(); err != nil || c != codeNil {
		return false, unchecked(err)
	}
	return true, unchecked(d.dec.DecodeNil())
}

// unchecked is the error of reading a block that breaks the rules CheckMeta is
// there for. It is no io.EOF to whoever asks.
func unchecked(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %v", ErrMetadata, err) //nolint:errorlint // see above
}

// block is a metadata block as msgpack/v5 reads it. To an io.ByteScanner it adds
// no buffer of its own, so the next value always begins at pos.
type block struct {
	meta []byte
	pos  int
}

var errBlockEnd = errors.New("it ends within a value")

func (b *block) Read(p []byte) (int, error) {
	if b.pos >= len(b.meta) {
		return 0, io.EOF
	}
	n := copy(p, b.meta[b.pos:])
	b.pos += n
	return n, nil
}

func (b *block) ReadByte() (byte, error) {
	if b.pos >= len(b.meta) {
		return 0, errBlockEnd
	}
	b.pos++
	return b.meta[b.pos-1], nil
}

func (b *block) UnreadByte() error {
	if b.pos < 1 {
		return errors.New("nothing was read")
	}
	b.pos--
	return nil
}

// take returns the next n bytes as they lie in the block.
func (b *block) take(n int) ([]byte, error) {
	if n < 0 || n > len(b.meta)-b.pos {
		return nil, errBlockEnd
	}
	from := b.pos
	b.pos += n
	return b.meta[from:b.pos:b.pos], nil
}

// encoder appends values to out.
type encoder struct {
	enc *msgpack.Encoder // writes to out, unbuffered
	out sink
}

var encoders = sync.Pool{New: func() any {
	e := new(encoder)
	e.enc = msgpack.NewEncoder(&e.out)
	return e
}}

// newEncoder returns an encoder. Who does not keep it gives it back to encoders.
func newEncoder() *encoder {
	return encoders.Get().(*encoder) // the pool holds nothing else
}

// append appends the encoding of v to b; nil is nil. It returns b, grown, also
// with an error.
func (e *encoder) append(b []byte, v any) ([]byte, error) {
	e.out.b = b
	err := e.value(v, 0)
	b, e.out.b = e.out.b, nil
	return b, err
}

// bytes writes bytes; a nil slice is an empty one.
func (e *encoder) bytes(v []byte) error {
	if err := e.enc.EncodeBytesLen(len(v)); err != nil {
		return err
	}
	_, err := e.out.Write(v)
	return err
}

// ref writes a reference: nil for the zero one, else the shortest extension.
func (e *encoder) ref(r Ref) error {
	if r == (Ref{}) {
		return e.enc.EncodeNil()
	}
	if err := r.check(); err != nil {
		return err
	}
	if err := e.enc.EncodeExtHeader(extRef, 4+len(r.Class)); err != nil {
		return err
	}
	e.out.b = append(binary.BigEndian.AppendUint32(e.out.b, r.ID), r.Class...)
	return nil
}

// token writes a token in its shortest form.
func (e *encoder) token(t token) error {
	switch t.kind {
	case kindNil:
		return e.enc.EncodeNil()
	case kindBool:
		return e.enc.EncodeBool(t.num == 1)
	case kindUint:
		return e.enc.EncodeUint(t.num)
	case kindInt:
		return e.enc.EncodeInt(int64(t.num))
	case kindFloat32:
		return e.enc.EncodeFloat32(math.Float32frombits(uint32(t.num)))
	case kindFloat64:
		return e.enc.EncodeFloat64(math.Float64frombits(t.num))
	case kindString:
		return e.enc.EncodeString(string(t.data))
	case kindBytes:
		return e.bytes(t.data)
	case kindArray:
		return e.enc.EncodeArrayLen(int(t.num))
	case kindMap:
		return e.enc.EncodeMapLen(int(t.num))
	default:
		return e.ref(Ref{ID: uint32(t.num), Class: string(t.data)})
	}
}

// sink is the memory that msgpack/v5 writes to. Writing never fails.
type sink struct{ b []byte }

func (s *sink) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	return len(p), nil
}

func (s *sink) WriteByte(c byte) error {
	s.b = append(s.b, c)
	return nil
}
