package stream

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
)

// Raw is metadata that is encoded already. Put takes it where it takes a
// struct, and checks it.
type Raw []byte

// EncodeMeta returns the metadata that v encodes to: the shortest msgpack form
// of each value, fields of a struct in their order. v is
//   - a struct, or a pointer to one, whose fields have tags `msgpack:"name"` or
//     `msgpack:"name,omitempty"` and are fixed-width or plain integers, floats,
//     bool, string, []byte, [N]byte, Ref, slices, arrays, structs and pointers
//     of those, or any (a value tree); embedded structs are inlined;
//   - a value tree;
//   - Raw;
//   - nil, which is the empty map.
//
// The same v always encodes to the same bytes; a nil slice is an empty one.
func EncodeMeta(v any) ([]byte, error) { return appendMeta(nil, v) }

// appendMeta appends the encoding of v to b.
func appendMeta(b []byte, v any) ([]byte, error) {
	base := len(b)
	var err error
	switch v := v.(type) {
	case nil:
		return append(b, codeFixMap), nil
	case Raw:
		b = append(b, v...)
	default:
		b, err = appendValue(b, v, 0)
	}
	if err != nil {
		return b[:base], err
	}
	if len(b)-base > MaxMeta {
		return b[:base], fmt.Errorf("%w: %d bytes of metadata, the limit is %d", ErrLength, len(b)-base, MaxMeta)
	}
	return b, nil
}

// appendValue appends a node of a value tree, or any other value by its type.
func appendValue(b []byte, v any, depth int) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, codeNil), nil
	case bool:
		return appendBool(b, v), nil
	case uint64:
		return appendUint(b, v), nil
	case int64:
		return appendInt(b, v), nil
	case int:
		return appendInt(b, int64(v)), nil
	case float32:
		return appendFloat32(b, v), nil
	case float64:
		return appendFloat64(b, v), nil
	case string:
		return appendString(b, v), nil
	case []byte:
		return appendBytes(b, v), nil
	case Ref:
		return appendRef(b, v)
	case []any:
		if depth >= MaxDepth {
			return b, errDepth
		}
		b = appendArrayLen(b, len(v))
		for i := range v {
			var err error
			if b, err = appendValue(b, v[i], depth+1); err != nil {
				return b, err
			}
		}
		return b, nil
	case Map:
		if depth >= MaxDepth {
			return b, errDepth
		}
		b = appendMapLen(b, len(v))
		for i := range v {
			b = appendString(b, v[i].Name)
			var err error
			if b, err = appendValue(b, v[i].Value, depth+1); err != nil {
				return b, err
			}
		}
		return b, nil
	}
	rv := reflect.ValueOf(v)
	c, err := codecOf(rv.Type())
	if err != nil {
		return b, err
	}
	return c.append(b, rv, depth)
}

var errDepth = fmt.Errorf("%w: it nests deeper than %d", ErrMetadata, MaxDepth)

// append appends the value v of c's type, which depth arrays and maps enclose.
func (c *codec) append(b []byte, v reflect.Value, depth int) ([]byte, error) {
	var err error
	switch c.form {
	case formBool:
		return appendBool(b, v.Bool()), nil
	case formInt:
		return appendInt(b, v.Int()), nil
	case formUint:
		return appendUint(b, v.Uint()), nil
	case formFloat32:
		return appendFloat32(b, float32(v.Float())), nil
	case formFloat64:
		return appendFloat64(b, v.Float()), nil
	case formString:
		return appendString(b, v.String()), nil
	case formBytes:
		return appendBytes(b, v.Bytes()), nil
	case formByteArray:
		b = appendBytesLen(b, v.Len())
		if v.CanAddr() {
			return append(b, v.Bytes()...), nil
		}
		for i := range v.Len() {
			b = append(b, byte(v.Index(i).Uint()))
		}
		return b, nil
	case formRef:
		return appendRef(b, Ref{ID: uint32(v.Field(0).Uint()), Class: v.Field(1).String()})
	case formPointer:
		if v.IsNil() {
			return append(b, codeNil), nil
		}
		if depth > MaxDepth { // a pointer that leads back to itself
			return b, errDepth
		}
		return c.elem.append(b, v.Elem(), depth)
	case formAny, formMap:
		return appendValue(b, v.Interface(), depth)
	}
	if depth >= MaxDepth {
		return b, errDepth
	}
	if c.form == formStruct {
		return c.appendStruct(b, v, depth)
	}
	b = appendArrayLen(b, v.Len())
	for i := range v.Len() {
		if b, err = c.elem.append(b, v.Index(i), depth+1); err != nil {
			return b, fmt.Errorf("element %d: %w", i, err)
		}
	}
	return b, nil
}

func (c *codec) appendStruct(b []byte, v reflect.Value, depth int) ([]byte, error) {
	var omit [maxFields / 64]uint64
	n := len(c.fields)
	for i := range c.fields {
		f := &c.fields[i]
		if f.omitEmpty && f.codec.isEmpty(f.of(v)) {
			omit[i/64] |= 1 << (i % 64)
			n--
		}
	}
	b = appendMapLen(b, n)
	for i := range c.fields {
		if omit[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		f := &c.fields[i]
		b = append(b, f.key...)
		var err error
		if b, err = f.codec.append(b, f.of(v), depth+1); err != nil {
			return b, fmt.Errorf("field %s: %w", f.name, err)
		}
	}
	return b, nil
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, codeTrue)
	}
	return append(b, codeFalse)
}

func appendUint(b []byte, n uint64) []byte {
	switch {
	case n < codeFixMap:
		return append(b, byte(n))
	case n <= math.MaxUint8:
		return append(b, codeUint8, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, codeUint16), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, codeUint32), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, codeUint64), n)
}

func appendInt(b []byte, n int64) []byte {
	switch {
	case n >= 0:
		return appendUint(b, uint64(n))
	case n >= -32:
		return append(b, byte(n))
	case n >= math.MinInt8:
		return append(b, codeInt8, byte(n))
	case n >= math.MinInt16:
		return binary.BigEndian.AppendUint16(append(b, codeInt16), uint16(n))
	case n >= math.MinInt32:
		return binary.BigEndian.AppendUint32(append(b, codeInt32), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, codeInt64), uint64(n))
}

func appendFloat32(b []byte, f float32) []byte {
	return binary.BigEndian.AppendUint32(append(b, codeFloat32), math.Float32bits(f))
}

func appendFloat64(b []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(append(b, codeFloat64), math.Float64bits(f))
}

func float32frombits(n uint64) float32 { return math.Float32frombits(uint32(n)) }
func float64frombits(n uint64) float64 { return math.Float64frombits(n) }

func appendString(b []byte, s string) []byte {
	if len(s) < 32 {
		return append(append(b, codeFixStr|byte(len(s))), s...)
	}
	return append(appendLen(b, len(s), codeStr8, codeStr16), s...)
}

func appendBytesLen(b []byte, n int) []byte { return appendLen(b, n, codeBin8, codeBin16) }

func appendBytes(b []byte, v []byte) []byte {
	return append(appendBytesLen(slices.Grow(b, len(v)+5), len(v)), v...)
}

func appendArrayLen(b []byte, n int) []byte {
	if n < 16 {
		return append(b, codeFixArray|byte(n))
	}
	return appendLen(b, n, 0, codeArray16)
}

func appendMapLen(b []byte, n int) []byte {
	if n < 16 {
		return append(b, codeFixMap|byte(n))
	}
	return appendLen(b, n, 0, codeMap16)
}

// appendLen appends a length that does not fit the code itself. code8 is 0 where
// there is no such form; the code of four bytes follows that of two.
func appendLen(b []byte, n int, code8, code16 byte) []byte {
	switch {
	case n <= math.MaxUint8 && code8 != 0:
		return append(b, code8, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, code16), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, code16+1), uint32(n))
}
