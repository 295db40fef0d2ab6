package object

import "reflect"

// Note returns what the one who asks has noted of the dump that p belongs to: the zero value the first time. T is a type private to
// the package that asks, so that two cannot collide.
func Note[T any](p *Process) *T {
	root := p.root()
	key := reflect.TypeFor[T]()
	if n, ok := root.notes[key].(*T); ok {
		return n
	}
	if root.notes == nil {
		root.notes = map[reflect.Type]any{}
	}
	n := new(T)
	root.notes[key] = n
	return n
}

// root is the process in which the notes of a dump are, which is of no other.
func (p *Process) root() *Process {
	for p.Parent != nil {
		p = p.Parent
	}
	if len(p.Threads) > 0 && p.Threads[0].Process != nil {
		return p.Threads[0].Process // p may be what AsProcess has made
	}
	return p
}
