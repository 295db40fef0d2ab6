package stream

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
)

// This file alone knows msgpack/v5, which writes: every value passes one of its
// primitives. What goes into a block is decided above, by the walkers over Go
// types and value trees, because v5's own lose state without an error. In its
// primitives these choices matter: EncodeInt and EncodeUint take the shortest
// form whatever the encoder's flags say, EncodeInt64 and its sisters never do;
// EncodeBytes makes nil of a nil slice, so bytes go through EncodeBytesLen.
// Reading is scan's, which has to look at every byte before any is believed; v5's
// primitives of reading take nil for zero, integers for floats and negative
// numbers for large ones. Tests have v5 as a witness for what is read.

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
	meta   []byte
	pos    int
	budget int
	loose  bool
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

// newDecoder returns a decoder of meta, which CheckMeta has accepted. done gives
// it back.
func newDecoder(meta []byte) *decoder {
	d := decoders.Get().(*decoder) // the pool holds nothing else
	d.meta = meta
	return d
}

func (d *decoder) done() {
	*d = decoder{}
	decoders.Put(d)
}

// next reads the next value, of an array or map only how many elements follow.
// It fails only on a block that was not checked.
func (d *decoder) next() (t token, err error) {
	d.pos, err = scan(d.meta, d.pos, &t)
	return t, err
}

// takeNil reports whether the next value is nil, and passes over it if so.
func (d *decoder) takeNil() (bool, error) {
	if d.pos >= len(d.meta) {
		return false, fmt.Errorf("%w: it ends within a value", ErrMetadata)
	}
	if d.meta[d.pos] != codeNil {
		return false, nil
	}
	d.pos++
	return true, nil
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
