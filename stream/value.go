package stream

import (
	"fmt"
	"math"
)

// A value tree is metadata without a schema: what DecodeValue returns and
// EncodeMeta takes. Its nodes are
//
//	nil       bool      string    []byte    Ref
//	uint64    int64 (negative numbers only)
//	float32   float64
//	[]any     Map
//
// When encoding, every Go integer type will do.

// Map is a map of a value tree, in wire order.
type Map []Field

// Field is an entry of a Map.
type Field struct {
	Name  string
	Value any
}

// Get returns the value of a field, and whether there is one.
func (m Map) Get(name string) (any, bool) {
	for i := range m {
		if m[i].Name == name {
			return m[i].Value, true
		}
	}
	return nil, false
}

// Set replaces the value of a field, or adds the field at the end.
func (m *Map) Set(name string, value any) {
	for i := range *m {
		if (*m)[i].Name == name {
			(*m)[i].Value = value
			return
		}
	}
	*m = append(*m, Field{name, value})
}

// Delete removes a field and reports whether it was there.
func (m *Map) Delete(name string) bool {
	for i := range *m {
		if (*m)[i].Name == name {
			*m = append((*m)[:i:i], (*m)[i+1:]...)
			return true
		}
	}
	return false
}

// DecodeValue checks meta and returns it as a value tree that shares no memory
// with it. The tree of a block takes at most some forty times its size.
func DecodeValue(meta []byte) (any, error) {
	if err := CheckMeta(meta); err != nil {
		return nil, err
	}
	d := newDecoder(meta)
	defer d.done()
	return d.tree()
}

// tree decodes the next value.
func (d *decoder) tree() (any, error) {
	t, err := d.next()
	if err != nil {
		return nil, err
	}
	switch t.kind {
	case kindArray:
		list := make([]any, t.num)
		for i := range list {
			if list[i], err = d.tree(); err != nil {
				return nil, err
			}
		}
		return list, nil
	case kindMap:
		m := make(Map, t.num)
		for i := range m {
			key, err := d.next()
			if err != nil {
				return nil, err
			}
			m[i].Name = string(key.data)
			if m[i].Value, err = d.tree(); err != nil {
				return nil, err
			}
		}
		return m, nil
	}
	return t.scalar(), nil
}

// scalar returns the value-tree node of a token that is no array or map.
func (t token) scalar() any {
	switch t.kind {
	case kindNil:
		return nil
	case kindBool:
		return t.num == 1
	case kindUint:
		return t.num
	case kindInt:
		return int64(t.num)
	case kindFloat32:
		return math.Float32frombits(uint32(t.num))
	case kindFloat64:
		return math.Float64frombits(t.num)
	case kindString:
		return string(t.data)
	case kindBytes:
		return append([]byte{}, t.data...)
	case kindRef:
		return Ref{ID: uint32(t.num), Class: string(t.data)}
	}
	panic(fmt.Sprintf("stream: internal error: %s is no scalar", t.kind))
}
