package stream

import (
	"fmt"
	"reflect"
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
func EncodeMeta(v any) ([]byte, error) {
	e := newEncoder()
	defer encoders.Put(e)
	return e.appendMeta(nil, v)
}

// appendMeta appends the metadata that v encodes to.
func (e *encoder) appendMeta(b []byte, v any) ([]byte, error) {
	base := len(b)
	var err error
	switch v := v.(type) {
	case nil:
		b, err = e.append(b, Map(nil))
	case Raw:
		b = append(b, v...)
	default:
		b, err = e.append(b, v)
	}
	if err != nil {
		return b[:base], err
	}
	if len(b)-base > MaxMeta {
		return b[:base], fmt.Errorf("%w: %d bytes of metadata, the limit is %d", ErrLength, len(b)-base, MaxMeta)
	}
	return b, nil
}

// appendValue appends the encoding of v to b; nil is nil.
func appendValue(b []byte, v any) ([]byte, error) {
	e := newEncoder()
	defer encoders.Put(e)
	return e.append(b, v)
}

// shortest returns the shortest encoding of checked metadata, which is the one
// that EncodeMeta makes.
func shortest(meta []byte) ([]byte, error) {
	d, e := newDecoder(meta), newEncoder()
	defer d.done()
	defer encoders.Put(e)
	e.out.b = make([]byte, 0, len(meta))
	for d.pos < len(meta) {
		t, err := d.next()
		if err == nil {
			err = e.token(t)
		}
		if err != nil {
			e.out.b = nil
			return nil, err
		}
	}
	b := e.out.b
	e.out.b = nil
	return b, nil
}

// value writes a node of a value tree, or any other value by its type. depth
// arrays and maps enclose it.
func (e *encoder) value(v any, depth int) error {
	switch v := v.(type) {
	case nil:
		return e.enc.EncodeNil()
	case bool:
		return e.enc.EncodeBool(v)
	case uint64:
		return e.enc.EncodeUint(v)
	case int64:
		return e.enc.EncodeInt(v)
	case int:
		return e.enc.EncodeInt(int64(v))
	case float32:
		return e.enc.EncodeFloat32(v)
	case float64:
		return e.enc.EncodeFloat64(v)
	case string:
		return e.enc.EncodeString(v)
	case []byte:
		return e.bytes(v)
	case Ref:
		return e.ref(v)
	case []any:
		if depth >= MaxDepth {
			return errDepth
		}
		if err := e.enc.EncodeArrayLen(len(v)); err != nil {
			return err
		}
		for i := range v {
			if err := e.value(v[i], depth+1); err != nil {
				return err
			}
		}
		return nil
	case Map:
		if depth >= MaxDepth {
			return errDepth
		}
		if err := e.enc.EncodeMapLen(len(v)); err != nil {
			return err
		}
		for i := range v {
			if err := e.enc.EncodeString(v[i].Name); err != nil {
				return err
			}
			if err := e.value(v[i].Value, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	rv := reflect.ValueOf(v)
	c, err := codecOf(rv.Type())
	if err != nil {
		return err
	}
	return e.typed(c, rv, depth)
}

var errDepth = fmt.Errorf("%w: it nests deeper than %d", ErrMetadata, MaxDepth)

// typed writes the value v of c's type.
func (e *encoder) typed(c *codec, v reflect.Value, depth int) error {
	switch c.form {
	case formBool:
		return e.enc.EncodeBool(v.Bool())
	case formInt:
		return e.enc.EncodeInt(v.Int())
	case formUint:
		return e.enc.EncodeUint(v.Uint())
	case formFloat32:
		return e.enc.EncodeFloat32(float32(v.Float()))
	case formFloat64:
		return e.enc.EncodeFloat64(v.Float())
	case formString:
		return e.enc.EncodeString(v.String())
	case formBytes:
		return e.bytes(v.Bytes())
	case formByteArray:
		return e.byteArray(v)
	case formRef:
		return e.ref(Ref{ID: uint32(v.Field(0).Uint()), Class: v.Field(1).String()})
	case formPointer:
		if v.IsNil() {
			return e.enc.EncodeNil()
		}
		if depth > MaxDepth { // a pointer that leads back to itself
			return errDepth
		}
		return e.typed(c.elem, v.Elem(), depth)
	case formAny, formMap:
		return e.value(v.Interface(), depth)
	}
	if depth >= MaxDepth {
		return errDepth
	}
	if c.form == formStruct {
		return e.structure(c, v, depth)
	}
	if err := e.enc.EncodeArrayLen(v.Len()); err != nil {
		return err
	}
	for i := range v.Len() {
		if err := e.typed(c.elem, v.Index(i), depth+1); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

func (e *encoder) byteArray(v reflect.Value) error {
	if v.CanAddr() {
		return e.bytes(v.Bytes())
	}
	if err := e.enc.EncodeBytesLen(v.Len()); err != nil {
		return err
	}
	for i := range v.Len() {
		if err := e.out.WriteByte(byte(v.Index(i).Uint())); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) structure(c *codec, v reflect.Value, depth int) error {
	var omit [maxFields / 64]uint64
	n := len(c.fields)
	for i := range c.fields {
		f := &c.fields[i]
		if f.omitEmpty && f.codec.isEmpty(f.of(v)) {
			omit[i/64] |= 1 << (i % 64)
			n--
		}
	}
	if err := e.enc.EncodeMapLen(n); err != nil {
		return err
	}
	for i := range c.fields {
		if omit[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		f := &c.fields[i]
		if err := e.enc.EncodeString(f.name); err != nil {
			return err
		}
		if err := e.typed(f.codec, f.of(v), depth+1); err != nil {
			return fmt.Errorf("field %s: %w", f.name, err)
		}
	}
	return nil
}
