// Package terminals holds pseudo-terminals (pty(7)) and what makes a terminal the controlling one of a session.
//
// A pair of master and slave is one object, of which the open files of both sides are views. What is in it is read from the kernel's
// memory: every call that would tell takes it away, or opens the slave, which the other side could notice. At restore it is filled
// through its own two ends, in modes chosen so that every byte lands where it was, before the modes of the program are set.
//
// A terminal whose master is outside of the tree (that of a shell, ssh, an emulator) is not kept but replaced by the one of whoever
// restores; see outside.go.
package terminals

import (
	"crpipe/engine/object"
	"crpipe/stream"
)

const (
	pairType   stream.Type = "pty"
	masterType stream.Type = "file.pty"
	slaveType  stream.Type = "file.tty"
)

// Kinds returns the kinds of open files of this family in the order of their claims, which exclude each other.
func Kinds() []object.FileKind { return []object.FileKind{MasterKind, SlaveKind} }

// PlainKinds returns the other records of this family.
func PlainKinds() []object.Kind { return []object.Kind{PairObject, OutsideObject} }
