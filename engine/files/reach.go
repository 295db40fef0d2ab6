package files

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// Reach returns a path by which the caller reaches what a process of the tree sees as p.
func Reach(proc *object.Process, p string) (string, error) { return reach(proc, p) }

// Lookup looks at what p names for a process of the tree, without following a symbolic link at its end.
func Lookup(proc *object.Process, p string) (unix.Stat_t, error) { return lookup(proc, p) }
