package stream

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// A codec is what the encoder and the decoder know of a Go type. It is built
// once a type. Everything that could lose state unnoticed is refused then: a
// field without a name, a field that reflection cannot reach, a Go map (its
// order is not fixed), a type with no fixed form.
type codec struct {
	typ    reflect.Type
	form   form
	elem   *codec // of slices, arrays and pointers
	fields []fieldCodec
}

type fieldCodec struct {
	name      string
	index     []int
	omitEmpty bool
	codec     *codec
}

type form uint8

const (
	formBool form = iota
	formInt
	formUint
	formFloat32
	formFloat64
	formString
	formBytes     // slice of bytes
	formByteArray // array of bytes: bytes of exactly its length
	formSlice
	formArray // array of exactly its length
	formStruct
	formPointer // nil or what it points to
	formAny     // a value tree
	formRef
	formMap // Map
)

var (
	refType = reflect.TypeFor[Ref]()
	mapType = reflect.TypeFor[Map]()
)

// maxFields is how many fields a struct may have: the decoder keeps a bit each.
const maxFields = 128

var codecs struct {
	mu    sync.RWMutex
	types map[reflect.Type]*codec
}

// codecOf returns the codec of a type.
func codecOf(t reflect.Type) (*codec, error) {
	codecs.mu.RLock()
	c := codecs.types[t]
	codecs.mu.RUnlock()
	if c != nil {
		return c, nil
	}
	codecs.mu.Lock()
	defer codecs.mu.Unlock()
	building := make(map[reflect.Type]*codec)
	c, err := buildCodec(t, building)
	if err != nil {
		return nil, err
	}
	if codecs.types == nil {
		codecs.types = make(map[reflect.Type]*codec)
	}
	for t, c := range building {
		codecs.types[t] = c
	}
	return c, nil
}

// buildCodec builds the codec of t and of all it holds; building has those
// begun, so that a type may hold itself behind a slice or pointer.
func buildCodec(t reflect.Type, building map[reflect.Type]*codec) (*codec, error) {
	if c := codecs.types[t]; c != nil {
		return c, nil
	}
	if c := building[t]; c != nil {
		return c, nil
	}
	c := &codec{typ: t}
	building[t] = c
	var err error
	switch {
	case t == refType:
		c.form = formRef
		return c, nil
	case t == mapType:
		c.form = formMap
		return c, nil
	}
	switch t.Kind() {
	case reflect.Bool:
		c.form = formBool
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		c.form = formInt
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		c.form = formUint
	case reflect.Float32:
		c.form = formFloat32
	case reflect.Float64:
		c.form = formFloat64
	case reflect.String:
		c.form = formString
	case reflect.Slice, reflect.Array:
		switch isByte := t.Elem().Kind() == reflect.Uint8; {
		case t.Kind() == reflect.Slice && isByte:
			c.form = formBytes
		case t.Kind() == reflect.Slice:
			c.form = formSlice
		case isByte:
			c.form = formByteArray
		default:
			c.form = formArray
		}
		c.elem, err = buildCodec(t.Elem(), building)
	case reflect.Pointer:
		c.form = formPointer
		if t.Elem().Kind() == reflect.Pointer || t.Elem().Kind() == reflect.Interface || t.Elem() == refType {
			return nil, fmt.Errorf("type %s has two forms of nothing", t)
		}
		c.elem, err = buildCodec(t.Elem(), building)
	case reflect.Interface:
		c.form = formAny
		if t.NumMethod() != 0 {
			return nil, fmt.Errorf("type %s has no form on the wire: an interface must be any", t)
		}
	case reflect.Struct:
		c.form = formStruct
		err = c.addFields(t, nil, building)
	default:
		return nil, fmt.Errorf("type %s has no form on the wire", t)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// addFields adds the fields of t, a struct that lies at index in c's.
func (c *codec) addFields(t reflect.Type, index []int, building map[reflect.Type]*codec) error {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("msgpack")
		if tag == "-" || f.Name == "_" {
			continue
		}
		at := append(append([]int{}, index...), i)
		if f.Anonymous && !tagged && f.Type.Kind() == reflect.Struct {
			if err := c.addFields(f.Type, at, building); err != nil {
				return err
			}
			continue
		}
		name, option, _ := strings.Cut(tag, ",")
		switch {
		case !f.IsExported():
			return fmt.Errorf("type %s: field %s is not exported and would be lost (tag it `msgpack:\"-\"` if that is right)", t, f.Name)
		case name == "" || name[0] == '$' || len(name) > maxKey:
			return fmt.Errorf("type %s: field %s has no msgpack name", t, f.Name)
		case option != "" && option != "omitempty":
			return fmt.Errorf("type %s: field %s has the unknown option %q", t, f.Name, option)
		case len(c.fields) >= maxFields:
			return fmt.Errorf("type %s has more than %d fields", t, maxFields)
		}
		for _, other := range c.fields {
			if other.name == name {
				return fmt.Errorf("type %s has two fields named %q", t, name)
			}
		}
		codec, err := buildCodec(f.Type, building)
		if err != nil {
			return fmt.Errorf("type %s: field %s: %w", t, f.Name, err)
		}
		c.fields = append(c.fields, fieldCodec{
			name: name, index: at, omitEmpty: option == "omitempty", codec: codec,
		})
	}
	return nil
}

// isEmpty reports whether an omitempty field is left out. An empty slice and a
// nil one are alike, at any depth, so that equal states encode equally.
func (c *codec) isEmpty(v reflect.Value) bool {
	switch c.form {
	case formSlice, formBytes, formMap:
		return v.Len() == 0
	case formStruct:
		for i := range c.fields {
			f := &c.fields[i]
			if !f.codec.isEmpty(f.of(v)) {
				return false
			}
		}
		return true
	}
	return v.IsZero()
}

// of returns the field of the struct v.
func (f *fieldCodec) of(v reflect.Value) reflect.Value {
	for _, i := range f.index {
		v = v.Field(i)
	}
	return v
}

// CheckSchema reports whether values of v's type can be metadata: whether every
// field has a msgpack name and a form on the wire. For tests of schemas; the
// encoder and the decoder check the same.
func CheckSchema(v any) error {
	if v == nil {
		return errors.New("nil has no type")
	}
	_, err := codecOf(reflect.TypeOf(v))
	return err
}
