package object

import (
	"crpipe/stream"
)

// FileKind is one kind of open file: what claims a file for it, and how its state is dumped and restored.
type FileKind struct {
	Type stream.Type // class "file"

	schema  func() any
	claims  func(d *Dumper, f *OpenFile) bool
	dump    func(d *Dumper, f *OpenFile) (stream.Ref, error)
	decode  func(r *stream.Record) (any, error)
	restore func(r *Restorer, ref stream.Ref, state any) (int, error)

	independent bool
	late        bool
}

// Independent says that restore needs nothing but the state and the file system, and the Restorer only to read: it may run on any
// thread, and before objects that come before it in the stream.
func (k FileKind) Independent() FileKind {
	k.independent = true
	return k
}

// Late says that the last steps of a restore need the file, when the rest of the pool may be closed already.
func (k FileKind) Late() FileKind {
	k.late = true
	return k
}

// NewFileKind ties the two halves of a kind together by their state S, the schema of the kind's record.
//
// claims looks at a file and says whether it is of this kind; it must not fail. dump returns the file's state, having
// added (Dumper.Add) whatever the state refers to; it refuses by returning an error. restore makes the open file
// description and returns a descriptor of it, which the Restorer then owns.
func NewFileKind[S any](t stream.Type, claims func(*Dumper, *OpenFile) bool,
	dump func(*Dumper, *OpenFile) (*S, error), restore func(*Restorer, stream.Ref, *S) (int, error)) FileKind {
	return FileKind{
		Type:   t,
		schema: func() any { return new(S) },
		claims: claims,
		dump: func(d *Dumper, f *OpenFile) (stream.Ref, error) {
			s, err := dump(d, f)
			if err != nil {
				return stream.Ref{}, err
			}
			return d.Add(t, s), nil
		},
		decode: decodeInto[S],
		restore: func(r *Restorer, ref stream.Ref, state any) (int, error) {
			return restore(r, ref, state.(*S))
		},
	}
}

// NewContentFileKind is NewFileKind for files with contents that no other object has: contents is called with the reference of each
// file that dump has looked at, and adds them (Dumper.AddBulk).
func NewContentFileKind[S any](t stream.Type, claims func(*Dumper, *OpenFile) bool, dump func(*Dumper, *OpenFile) (*S, error),
	contents func(*Dumper, stream.Ref, *S), restore func(*Restorer, stream.Ref, *S) (int, error)) FileKind {
	k := NewFileKind(t, claims, dump, restore)
	k.dump = func(d *Dumper, f *OpenFile) (stream.Ref, error) {
		s, err := dump(d, f)
		if err != nil {
			return stream.Ref{}, err
		}
		ref := d.Add(t, s)
		contents(d, ref, s)
		return ref, nil
	}
	return k
}

func decodeInto[S any](r *stream.Record) (any, error) {
	s := new(S)
	if err := r.Decode(s); err != nil {
		return nil, err
	}
	return s, nil
}

// Kind is any other kind of record with an objref of its own or none: its schema and, where making it needs nothing
// but the caller, its restore.
type Kind struct {
	Type    stream.Type
	schema  func() any
	decode  func(r *stream.Record) (any, error)
	restore func(r *Restorer, ref stream.Ref, state any) error
	open    func(r *Restorer, ref stream.Ref, state any) (int, error) // of independent files
	late    bool                                                      // the last steps need the file
}

// Schema returns a zero state of the kind: a pointer to the struct that is the schema of its record.
func (k *Kind) Schema() any { return k.schema() }

// NewKind makes a Kind of schema S. restore may be nil when the engine itself acts on the record (processes, threads,
// address spaces). It runs in stream order before any task exists, so whatever it refers to has been restored.
func NewKind[S any](t stream.Type, restore func(*Restorer, stream.Ref, *S) error) Kind {
	k := Kind{Type: t, schema: func() any { return new(S) }, decode: decodeInto[S]}
	if restore != nil {
		k.restore = func(r *Restorer, ref stream.Ref, state any) error { return restore(r, ref, state.(*S)) }
	}
	return k
}

// AsKind returns the part of a file kind that reading a plan needs.
func (k *FileKind) AsKind() Kind {
	kind := Kind{Type: k.Type, schema: k.schema, decode: k.decode, late: k.late, restore: func(r *Restorer, ref stream.Ref, state any) error {
		fd, err := k.restore(r, ref, state)
		if err != nil {
			return err
		}
		return r.addFile(ref, fd)
	}}
	if k.independent {
		kind.open = k.restore
	}
	return kind
}
