package stream

import "fmt"

// MaxRef is the largest object number. Larger ones would be negative in a
// signed 32-bit number and are refused.
const MaxRef = 1<<31 - 1

// MaxObjects is how many objects one stream may define. It bounds the memory
// of the table that every reader and writer keeps.
const MaxObjects = 1 << 22

// Ref refers to the object that an earlier record defines. The zero value
// refers to nothing and is nil on the wire. It is its own msgpack extension type
// (1), so that any program can find, check and renumber the references of a
// record without knowing its schema:
//
//	u32 big-endian object number, class
type Ref struct {
	ID    uint32 // 1 to MaxRef
	Class string // Type.Class of the record that defines it
}

// extRef is the msgpack extension type of a Ref.
const extRef = 1

// IsZero reports whether r refers to nothing.
func (r Ref) IsZero() bool { return r.ID == 0 }

// String returns "file#7", or "nothing".
func (r Ref) String() string {
	if r.IsZero() {
		return "nothing"
	}
	return fmt.Sprintf("%s#%d", r.Class, r.ID)
}

// check reports what is wrong with a reference as such.
func (r Ref) check() error {
	if r.ID < 1 || r.ID > MaxRef {
		return fmt.Errorf("%w: reference to %d", ErrZeroRef, int32(r.ID))
	}
	if !validClass(r.Class) {
		return fmt.Errorf("%w: reference to object %d has the class %q", ErrMetadata, r.ID, r.Class)
	}
	return nil
}

// maxSparse is how many objects may have a number far beyond those given out in
// order: above twice the objects so far, plus 1024. They take ten times the
// memory.
const maxSparse = 1 << 20

// objects knows which objects a stream has defined, and their classes. Numbers
// given out in order (as NewRef does) cost two bytes each; others go to a map.
type objects struct {
	classes []string          // by class index, which counts from 1
	index   map[string]uint16 // class index by name
	dense   []uint16          // class index by object number, 0 for undefined
	sparse  map[uint32]uint16
	count   int
	max     uint32
}

func (o *objects) class(id uint32) (string, bool) {
	var i uint16
	if int64(id) < int64(len(o.dense)) {
		i = o.dense[id]
	}
	if i == 0 {
		i = o.sparse[id] // also of numbers that the slice came to cover later
	}
	if i == 0 {
		return "", false
	}
	return o.classes[i-1], true
}

// checkDefine reports whether a record of type t may define id.
func (o *objects) checkDefine(id uint32, t Type) error {
	if id < 1 || id > MaxRef {
		return fmt.Errorf("%w: %d", ErrZeroRef, int32(id))
	}
	if class, ok := o.class(id); ok {
		return fmt.Errorf("%w: %d is already a %q", ErrDuplicateRef, id, class)
	}
	if o.count >= MaxObjects {
		return fmt.Errorf("%w: more than %d objects", ErrLength, MaxObjects)
	}
	if !o.near(id) && len(o.sparse) >= maxSparse {
		return fmt.Errorf("%w: more than %d objects with numbers out of order", ErrLength, maxSparse)
	}
	if _, ok := o.index[t.Class()]; !ok && len(o.classes) >= 1<<12 {
		return fmt.Errorf("%w: more than %d classes of objects", ErrLength, 1<<12)
	}
	return nil
}

// near reports whether id goes to the slice. It grows to at most about twice what
// the objects seen need, so that one large number does not cost its square.
func (o *objects) near(id uint32) bool {
	return int64(id) < int64(len(o.dense)) || int64(id) <= 2*int64(o.count)+1024
}

// define enters id, which checkDefine has allowed.
func (o *objects) define(id uint32, t Type) {
	class := t.Class()
	i, ok := o.index[class]
	if !ok {
		if o.index == nil {
			o.index = make(map[string]uint16)
		}
		o.classes = append(o.classes, class)
		i = uint16(len(o.classes))
		o.index[class] = i
	}
	if o.near(id) {
		if int64(id) >= int64(len(o.dense)) {
			o.dense = append(o.dense, make([]uint16, int(id)+1-len(o.dense))...)
		}
		o.dense[id] = i
	} else {
		if o.sparse == nil {
			o.sparse = make(map[uint32]uint16)
		}
		o.sparse[id] = i
	}
	o.count++
	o.max = max(o.max, id)
}

// checkRef reports whether a record may refer to r now.
func (o *objects) checkRef(id uint32, class []byte) error {
	have, ok := o.class(id)
	if !ok {
		return fmt.Errorf("%w: %s#%d", ErrForwardRef, class, id)
	}
	if have != string(class) {
		return fmt.Errorf("%w: object %d is a %q, the reference wants a %q", ErrWrongClass, id, have, class)
	}
	return nil
}
