package files

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// CanInherit says whether a table can be made of a copy of another, else which descriptor of it cannot, -1 for its locks or
// receivers of SIGIO.
func (t *TableState) CanInherit(from *TableState) (fd int32, ok bool) {
	have := from.byFile()
	for _, e := range t.Entries {
		if _, ok := have[e.File]; !ok {
			return e.FD, false
		}
	}
	if len(t.Locks)+len(t.Owners) > 0 {
		return -1, false
	}
	return 0, true
}

// byFile returns a descriptor for each open file.
func (t *TableState) byFile() map[stream.Ref]int32 {
	out := map[stream.Ref]int32{}
	for _, e := range t.Entries {
		if _, ok := out[e.File]; !ok {
			out[e.File] = e.FD
		}
	}
	return out
}

// InheritCalls appends the calls by which a task that was born with a copy of the finished table from makes its own of it.
func InheritCalls(b *tracee.Batch, t, from *TableState) error {
	if err := t.check(); err != nil {
		return err
	}
	if _, ok := t.CanInherit(from); !ok {
		return object.BadImagef("the descriptor table of a process for which its parent waits in vfork has what that has not")
	}
	n := b.Sys()
	have, at := from.byFile(), map[int32]stream.Ref{}
	above := max(t.MaxFD(), from.MaxFD()) + 1
	for _, e := range from.Entries {
		at[e.FD] = e.File
	}
	// Copies first: a number may be wanted by one and held by another.
	copies := map[stream.Ref]*tracee.Call{}
	for _, e := range t.Entries {
		if at[e.FD] != e.File && copies[e.File] == nil {
			copies[e.File] = b.Call(n.Fcntl, have[e.File], unix.F_DUPFD_CLOEXEC, above).Note("fd %d", e.FD)
		}
	}
	last := int32(-1)
	for _, e := range t.Entries {
		if at[e.FD] == e.File {
			flag := 0
			if e.Cloexec {
				flag = unix.FD_CLOEXEC
			}
			b.Call(n.Fcntl, e.FD, unix.F_SETFD, flag).Note("fd %d", e.FD)
		} else {
			b.Call(n.Dup3, copies[e.File], e.FD, cloexecFlag(e)).Note("fd %d", e.FD)
		}
	}
	for _, e := range t.Entries {
		if e.FD > last+1 {
			b.Call(n.CloseRange, last+1, e.FD-1, 0)
		}
		last = e.FD
	}
	b.Call(n.CloseRange, last+1, ^uint32(0), 0)
	return nil
}
