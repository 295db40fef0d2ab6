package tasks

import (
	"fmt"

	"crpipe/stream"
)

// CheckShared says whether every object that processes of the forest share can be shared again: a task gets another's
// descriptor table, or its directories and umask, only by being made by it (CLONE_FILES, CLONE_FS of clone(2)). Address
// spaces and tables of signal actions belong to one process.
func (f *Forest) CheckShared() error {
	for _, kind := range []struct {
		what    string
		of      func(p *Process) stream.Ref
		inherit bool
	}{
		{"an address space (CLONE_VM)", func(p *Process) stream.Ref { return p.MM }, false},
		{"a table of signal actions (CLONE_SIGHAND)", func(p *Process) stream.Ref { return p.Sighand }, false},
		{"a descriptor table (CLONE_FILES)", func(p *Process) stream.Ref { return p.Files }, true},
		{"a working directory, root and umask (CLONE_FS)", func(p *Process) stream.Ref { return p.FS }, true},
	} {
		first := map[stream.Ref]int32{} // who has it without having inherited it
		for _, b := range f.All {
			if b.Ghost() || b.Process.Zombie {
				continue
			}
			ref := kind.of(b.Process)
			if c := b.Creator; kind.inherit && c != nil && !c.Ghost() && !c.Process.Zombie && kind.of(c.Process) == ref {
				continue
			}
			if other, ok := first[ref]; ok {
				return fmt.Errorf("processes %d and %d share %s, but neither can be made by the other", other, b.PID, kind.what)
			}
			first[ref] = b.PID
		}
	}
	return nil
}
