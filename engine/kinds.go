package engine

import (
	"crpipe/engine/files"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
)

// fileKinds is THE table of kinds of open files, in the order in which they are asked whether a file is theirs.
func fileKinds() []object.FileKind {
	var kinds []object.FileKind
	kinds = append(kinds, files.Kinds()...)
	return kinds
}

// allKinds is every kind of record that a restore knows.
func allKinds() []object.Kind {
	kinds := []object.Kind{
		namespaces.PIDKind,
		namespaces.MountsKind,
		signals.SighandKind,
		tasks.ProcessKind,
		tasks.ThreadKind,
	}
	kinds = append(kinds, memory.Kinds()...)
	kinds = append(kinds, files.PlainKinds()...)
	for _, k := range fileKinds() {
		kinds = append(kinds, k.AsKind())
	}
	return kinds
}
