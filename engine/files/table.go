package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// TableState is a descriptor table (files_struct): which number leads to which open file. Processes and threads
// that share one (CLONE_FILES) refer to the same record; kcmp(2) KCMP_FILES, kernelview. For locks see lock.go, for
// the receivers of SIGIO owner.go.
type TableState struct {
	Entries []TableEntry `msgpack:"entries,omitempty"` // in ascending order of numbers
	Locks   []TableLock  `msgpack:"locks,omitempty"`
	Owners  []TableOwner `msgpack:"owners,omitempty"`
}

// TableEntry is one descriptor.
type TableEntry struct {
	FD      int32      `msgpack:"fd"`
	Cloexec bool       `msgpack:"cloexec,omitempty"`
	File    stream.Ref `msgpack:"file"`
}

const tableType stream.Type = "fdtable"

type tableKey struct {
	id kernelview.ID
	of *object.Process // when the identity is not known
}

// DumpTable adds the descriptor tables of p and of its threads, with all open files in them, unless a task that shares
// one was there before, and notes them.
func DumpTable(d *object.Dumper, p *object.Process) error {
	for _, q := range withTables(p) {
		if err := dumpTable(d, q); err != nil {
			return err
		}
		if q != p {
			q.Leader().Files = q.Files
		}
	}
	return nil
}

func dumpTable(d *object.Dumper, p *object.Process) error {
	ix, err := indexOf(d)
	if err != nil {
		return err
	}
	t := ix.tables[p]
	if t == nil {
		return p.Error("descriptors", fmt.Errorf("internal error: the process has no descriptor table"))
	}
	key := tableKey{of: p}
	if id, ok := t.ID.Get(); ok {
		if id == 0 {
			return p.Error("descriptors", fmt.Errorf("the process has no descriptor table"))
		}
		key = tableKey{id: id}
	}
	p.Files, err = d.Once(key, func() (stream.Ref, error) {
		m := newMeeter(p)
		defer m.close()
		s := &TableState{Entries: make([]TableEntry, 0, len(t.FDs))}
		locked := map[kernelview.ID]bool{} // whose locks are in s
		for i, fd := range t.FDs {
			if i%manyFiles == 0 {
				next := t.FDs[i:min(i+manyFiles, len(t.FDs))]
				if err := m.lookAhead(next, func(f *kernelview.File) bool { _, known := ix.refs[f.ID]; return !known }); err != nil {
					return stream.Ref{}, err
				}
			}
			// One more descriptor of a file that is known. POSIX locks, though, belong to the process.
			ref, known := ix.refs[fd.File.ID]
			if locks, ok := fd.File.Locks.Get(); !known || locks || !ok {
				var held []TableLock
				if ref, held, err = dumpDescriptor(d, m, fd, locked[fd.File.ID]); err != nil {
					return stream.Ref{}, err
				}
				ix.refs[fd.File.ID] = ref
				locked[fd.File.ID] = true
				s.Locks = append(s.Locks, held...)
			}
			s.Entries = append(s.Entries, TableEntry{FD: int32(fd.FD), Cloexec: fd.CloseOnExec, File: ref})
			owner, err := ix.owner(d, p, fd)
			if err != nil {
				return stream.Ref{}, err
			}
			if owner != nil {
				s.Owners = append(s.Owners, *owner)
			}
		}
		return d.Add(tableType, s), nil
	})
	return err
}

// dumpDescriptor dumps what a descriptor leads to, and the locks on it that the table is to take, which it does once for
// each file: locked says that this was done.
func dumpDescriptor(d *object.Dumper, m *meeter, fd kernelview.FD, locked bool) (stream.Ref, []TableLock, error) {
	f, err := m.meet(fd.FD, fd.File)
	if err != nil {
		return stream.Ref{}, nil, err
	}
	defer f.Close()
	held, err := checkHeld(d, f, locked)
	if err != nil {
		d.Refuse(f.Error(err))
	}
	ref, err := d.File(f)
	return ref, held, err
}

// checkHeld looks at what is attached to an open file beside its own state: locks, which it returns, and what is refused.
func checkHeld(d *object.Dumper, f *object.OpenFile, locked bool) ([]TableLock, error) {
	flags, err := Flags(f)
	if err != nil {
		return nil, err
	}
	if flags&unix.O_PATH != 0 {
		return nil, nil
	}
	locks, err := dumpLocks(d, f, locked) // before what a lease sets too
	if err != nil {
		return nil, err
	}
	return locks, nil
}

// maxFD bounds descriptor numbers in an image; the kernel's own bound, fs.nr_open, lies below it.
const maxFD = 1 << 30

// check refuses numbers that no table can have.
func (t *TableState) check() error {
	last := int32(-1)
	for _, e := range t.Entries {
		if e.FD <= last || e.FD >= maxFD {
			return object.BadImagef("descriptor %d behind %d in a table", e.FD, last)
		}
		if e.File.IsZero() {
			return object.BadImagef("descriptor %d leads to nothing", e.FD)
		}
		last = e.FD
	}
	if err := t.checkOwners(); err != nil {
		return err
	}
	return t.checkLocks()
}

// MaxFD returns the highest descriptor number that any record of the plan uses, -1 for none: those of descriptor tables
// and those under which epoll instances know what they watch. The pool of a Restorer must begin above it.
func MaxFD(plan *object.Plan) int {
	highest := -1
	for i := range plan.Objects {
		if s, ok := plan.Objects[i].State.(interface{ MaxFD() int }); ok {
			highest = max(highest, s.MaxFD())
		}
	}
	return highest
}

// MaxFD returns the highest number in the table, -1 for none.
func (t *TableState) MaxFD() int {
	highest := -1
	for _, e := range t.Entries {
		highest = max(highest, int(e.FD))
	}
	return highest
}

func cloexecFlag(e TableEntry) int {
	if e.Cloexec {
		return unix.O_CLOEXEC
	}
	return 0
}

// TableCalls appends the calls by which a task that has the pool open makes its descriptor table: each descriptor at
// its number, everything else closed, the pool included. They must be run once per table, when all tasks of the image
// exist (files of /proc about them are opened here), after FSCalls, and before the task gives up the right to open such
// files.
func TableCalls(r *object.Restorer, b *tracee.Batch, t *TableState) error {
	if err := t.check(); err != nil {
		return err
	}
	n := b.Sys()
	opened := map[stream.Ref]*tracee.Call{}
	for _, e := range t.Entries {
		if int(e.FD) >= r.PoolBase {
			return object.BadImagef("descriptor %d lies in the pool, which begins at %d", e.FD, r.PoolBase)
		}
		if l, err := object.Recall[lateFile](r, e.File); err == nil && opened[e.File] == nil {
			if l.table != nil && l.table != t {
				return object.BadImagef("two descriptor tables share the proc file %s", clip(l.state.Path))
			}
			l.table = t
			place, err := r.File(e.File)
			if err != nil {
				return err
			}
			opened[e.File] = l.openCalls(b, place, r.PoolBase)
		}
	}
	for _, e := range t.Entries {
		if call := opened[e.File]; call != nil {
			b.Call(n.Dup3, call, e.FD, cloexecFlag(e)).Note("fd %d", e.FD)
			continue
		}
		fd, err := r.File(e.File)
		if err != nil {
			return err
		}
		b.Call(n.Dup3, fd, e.FD, cloexecFlag(e)).Note("fd %d", e.FD)
	}
	last := int32(-1)
	for _, e := range t.Entries {
		if e.FD > last+1 {
			b.Call(n.CloseRange, last+1, e.FD-1, 0)
		}
		last = e.FD
	}
	b.Call(n.CloseRange, last+1, ^uint32(0), 0)
	return nil
}

// TableKind is the record of a descriptor table. The engine acts on it.
var TableKind = object.NewKind(tableType, restoreTable)
