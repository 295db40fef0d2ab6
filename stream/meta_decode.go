package stream

import (
	"errors"
	"fmt"
	"math"
	"reflect"
)

// decodeBudget bounds what one metadata block may make the decoder allocate for
// slices and pointers, in bytes: a block of MaxMeta one-byte elements must not
// become hundreds of megabytes of structs.
const decodeBudget = 32 << 20

// DecodeMeta checks meta as CheckMeta does and stores it in what v points to,
// which is set to zero first. It is as strict as Record.Decode says. Nothing
// stored shares memory with meta. An empty array becomes a nil slice.
func DecodeMeta(meta []byte, v any) error {
	if err := CheckMeta(meta); err != nil {
		return err
	}
	return decodeMeta(meta, v, false)
}

// decodeMeta is DecodeMeta of what CheckMeta has accepted; a loose one ignores
// fields it does not know and does not miss any.
func decodeMeta(meta []byte, v any, loose bool) error {
	rv := reflect.ValueOf(v)
	if rv.Kind() != reflect.Pointer || rv.IsNil() {
		return fmt.Errorf("decoding metadata into %T: not a pointer", v)
	}
	c, err := codecOf(rv.Type().Elem())
	if err != nil {
		return err
	}
	rv = rv.Elem()
	rv.SetZero()
	d := newDecoder(meta)
	defer d.done()
	d.budget, d.loose = decodeBudget, loose
	if err := d.decode(c, rv); err != nil {
		if errors.Is(err, ErrMetadata) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	return nil
}

// spend takes n elements of a type from the budget.
func (d *decoder) spend(n int, t reflect.Type) error {
	size := max(int(t.Size()), 1)
	if n > d.budget/size {
		return fmt.Errorf("decoded it would take more than %d bytes", decodeBudget)
	}
	d.budget -= n * size
	return nil
}

func mismatch(t token, c *codec) error { return fmt.Errorf("%s cannot be %s", t.kind, c.typ) }

// decode stores the next value in v, which is of c's type and zero.
func (d *decoder) decode(c *codec, v reflect.Value) error {
	if c.form == formAny || c.form == formMap || c.form == formPointer {
		return d.decodeIndirect(c, v)
	}
	var t token
	var err error
	if d.pos, err = scan(d.meta, d.pos, &t); err != nil {
		return err
	}
	ok := false
	switch c.form {
	case formBool:
		if ok = t.kind == kindBool; ok {
			v.SetBool(t.num == 1)
		}
	case formInt:
		n := int64(t.num)
		if ok = t.kind == kindInt || t.kind == kindUint; ok {
			if (t.kind == kindUint && n < 0) || v.OverflowInt(n) {
				return fmt.Errorf("%s does not fit %s", t.number(), c.typ)
			}
			v.SetInt(n)
		}
	case formUint:
		if ok = t.kind == kindInt || t.kind == kindUint; ok {
			if t.kind == kindInt || v.OverflowUint(t.num) {
				return fmt.Errorf("%s does not fit %s", t.number(), c.typ)
			}
			v.SetUint(t.num)
		}
	case formFloat32:
		if ok = t.kind == kindFloat32; ok {
			v.Set(reflect.ValueOf(math.Float32frombits(uint32(t.num))).Convert(c.typ))
		}
	case formFloat64:
		if ok = t.kind == kindFloat64; ok {
			v.SetFloat(math.Float64frombits(t.num))
		}
	case formString:
		if ok = t.kind == kindString; ok {
			v.SetString(string(t.data))
		}
	case formBytes:
		if ok = t.kind == kindBytes; ok && len(t.data) > 0 {
			v.SetBytes(append([]byte{}, t.data...))
		}
	case formByteArray:
		if ok = t.kind == kindBytes; ok {
			if len(t.data) != v.Len() {
				return fmt.Errorf("%d bytes do not fit %s", len(t.data), c.typ)
			}
			copy(v.Bytes(), t.data)
		}
	case formRef:
		if ok = t.kind == kindRef || t.kind == kindNil; ok && t.kind == kindRef {
			v.Field(0).SetUint(t.num)
			v.Field(1).SetString(string(t.data))
		}
	case formSlice, formArray:
		if ok = t.kind == kindArray; ok {
			return d.decodeList(c, v, int(t.num))
		}
	case formStruct:
		if ok = t.kind == kindMap; ok {
			return d.decodeStruct(c, v, int(t.num))
		}
	}
	if !ok {
		return mismatch(t, c)
	}
	return nil
}

// number returns the decimal text of a token that is a number.
func (t token) number() string {
	if t.kind == kindInt {
		return fmt.Sprint(int64(t.num))
	}
	return fmt.Sprint(t.num)
}

// decodeIndirect stores the next value in a pointer or in a value tree.
func (d *decoder) decodeIndirect(c *codec, v reflect.Value) error {
	if c.form == formPointer {
		if none, err := d.takeNil(); none || err != nil {
			return err
		}
		if err := d.spend(1, c.elem.typ); err != nil {
			return err
		}
		p := reflect.New(c.elem.typ)
		v.Set(p)
		return d.decode(c.elem, p.Elem())
	}
	tree, err := d.tree()
	if err != nil {
		return err
	}
	if c.form == formMap {
		m, ok := tree.(Map)
		if !ok {
			return errors.New("it is not a map")
		}
		if len(m) > 0 {
			v.Set(reflect.ValueOf(m))
		}
		return nil
	}
	if tree != nil {
		v.Set(reflect.ValueOf(tree))
	}
	return nil
}

func (d *decoder) decodeList(c *codec, v reflect.Value, n int) error {
	if c.form == formArray {
		if n != v.Len() {
			return fmt.Errorf("%d elements do not fit %s", n, c.typ)
		}
	} else if n > 0 {
		if err := d.spend(n, c.elem.typ); err != nil {
			return err
		}
		v.Set(reflect.MakeSlice(c.typ, n, n))
	}
	for i := range n {
		if err := d.decode(c.elem, v.Index(i)); err != nil {
			return fmt.Errorf("element %d: %w", i, err)
		}
	}
	return nil
}

func (d *decoder) decodeStruct(c *codec, v reflect.Value, n int) error {
	var seen [maxFields / 64]uint64
	expect := 0 // our own encoder keeps the fields' order
	var key token
	var err error
	for range n {
		if d.pos, err = scan(d.meta, d.pos, &key); err != nil {
			return err
		}
		i := c.field(key.data, expect)
		if i < 0 {
			if !d.loose {
				return fmt.Errorf("field %s is unknown", key.data)
			}
			if err := d.skip(); err != nil {
				return err
			}
			continue
		}
		expect = i + 1
		seen[i/64] |= 1 << (i % 64)
		f := &c.fields[i]
		if err := d.decode(f.codec, f.of(v)); err != nil {
			return fmt.Errorf("field %s: %w", f.name, err)
		}
	}
	for i := range c.fields {
		if f := &c.fields[i]; !f.omitEmpty && !d.loose && seen[i/64]&(1<<(i%64)) == 0 {
			return fmt.Errorf("field %s is missing", f.name)
		}
	}
	return nil
}

// field returns the index of the field of that name, -1 if there is none; it is
// likely at or after expect.
func (c *codec) field(name []byte, expect int) int {
	for i := expect; i < len(c.fields); i++ {
		if c.fields[i].name == string(name) {
			return i
		}
	}
	for i := range min(expect, len(c.fields)) {
		if c.fields[i].name == string(name) {
			return i
		}
	}
	return -1
}

// skip passes over the next value.
func (d *decoder) skip() error {
	for left := uint64(1); left > 0; left-- {
		t, err := d.next()
		if err != nil {
			return err
		}
		switch t.kind {
		case kindArray:
			left += t.num
		case kindMap:
			left += 2 * t.num
		}
	}
	return nil
}
