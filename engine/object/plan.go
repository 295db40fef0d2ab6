package object

import (
	"fmt"
	"io"

	"crpipe/stream"
)

// Plan is everything that an image says but the bulk: a pure value, made from records alone, that needs no privilege.
type Plan struct {
	Header  *stream.Header
	Objects []Object // in stream order
	byRef   map[uint32]int
}

// Object is one record of a plan.
type Object struct {
	Type  stream.Type
	Ref   stream.Ref // zero for a record that defines nothing
	State any        // pointer to the kind's state struct

	kind *Kind
}

// IsBulk says whether a record carries contents, and so ends the metadata.
func IsBulk(t stream.Type) bool { return t == TypePages || t == TypeData }

// Record types of the bulk.
const (
	TypePages stream.Type = "pages" // a run of pages of an address space or a memory object
	TypeData  stream.Type = "data"  // contents of a pipe or of a deleted file
)

// ReadPlan reads records up to the first bulk record, which it returns; nil when the image has none. kinds is every
// kind that this build knows.
func ReadPlan(r *stream.Reader, kinds []Kind) (*Plan, *stream.Record, error) {
	table := make(map[stream.Type]*Kind, len(kinds))
	for i := range kinds {
		table[kinds[i].Type] = &kinds[i]
	}
	p := &Plan{Header: r.Header(), byRef: map[uint32]int{}}
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return p, nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if IsBulk(rec.Type) {
			return p, rec, nil
		}
		k := table[rec.Type]
		if k == nil {
			if rec.Flags&stream.FlagOptional != 0 {
				continue
			}
			return nil, nil, BadImagef("record %d: this cr-restore does not know record type %q", rec.Index, rec.Type)
		}
		state, err := k.decode(rec)
		if err != nil {
			return nil, nil, BadImagef("record %d (%s): %w", rec.Index, rec.Type, err)
		}
		o := Object{Type: rec.Type, State: state, kind: k}
		if rec.Ref != 0 {
			o.Ref = stream.Ref{ID: rec.Ref, Class: rec.Type.Class()}
			p.byRef[rec.Ref] = len(p.Objects)
		}
		p.Objects = append(p.Objects, o)
	}
}

// Lookup returns the object that ref names.
func (p *Plan) Lookup(ref stream.Ref) (*Object, error) {
	i, ok := p.byRef[ref.ID]
	if !ok || p.Objects[i].Ref.Class != ref.Class {
		return nil, BadImagef("no object %d of class %q", ref.ID, ref.Class)
	}
	return &p.Objects[i], nil
}

// State returns the state of the object that ref names, which must be an *S.
func State[S any](p *Plan, ref stream.Ref) (*S, error) {
	o, err := p.Lookup(ref)
	if err != nil {
		return nil, err
	}
	s, ok := o.State.(*S)
	if !ok {
		return nil, BadImagef("object %d is a %s, which does not belong here", ref.ID, o.Type)
	}
	return s, nil
}

// All returns every object of the plan whose state is an *S, in stream order.
func All[S any](p *Plan) []Found[S] {
	var all []Found[S]
	for i := range p.Objects {
		if s, ok := p.Objects[i].State.(*S); ok {
			all = append(all, Found[S]{p.Objects[i].Ref, s})
		}
	}
	return all
}

// Found is one result of All.
type Found[S any] struct {
	Ref   stream.Ref
	State *S
}

func (o *Object) String() string {
	if o.Ref.IsZero() {
		return string(o.Type)
	}
	return fmt.Sprintf("%s (ref %d)", o.Type, o.Ref.ID)
}
