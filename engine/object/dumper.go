package object

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/stream"
)

// Dumper is what a dump offers to the kinds. It is used by one goroutine.
type Dumper struct {
	View      kernelview.View
	Arch      *arch.Arch
	Kinds     []FileKind // THE table of kinds of open files, in order of their claims
	Root      *Process
	Processes []*Process // the root first, parents before children
	External  []string   // names that the user declared external (--external)
	Warn      func(format string, args ...any)

	// At is the moment at which the tree stood still, on the caller's clocks; Offsets are those of the tree's time namespace.
	At      sys.Instant
	Offsets procfs.TimeOffsets

	// MappedLocks are the mappings of files to which locks or leases belong: a mapping keeps the open file, and with it the
	// lock, without a descriptor. LocksUnknown says that some mappings could not be asked.
	MappedLocks  []MappedLock
	LocksUnknown bool

	// Container says that the tree must share nothing with the outside that External does not name. Leaks are the open files
	// that do, and have been refused.
	Container bool
	Leaks     map[kernelview.ID]bool

	// IPCNames are the objects of the caller's IPC namespace that belong to the tree (--ipc). IPC is what package ipc keeps
	// between its steps.
	IPCNames []string
	IPC      any
	// Ended is done when the tree has been ended (--kill): what it leaves behind goes too.
	Ended []func() error
	// TCP is what becomes of TCP connections (--tcp), Kill that the dump ends the processes. Sockets is what package sockets keeps between
	// its steps.
	TCP     string
	Kill    bool
	Sockets any
	// Hold is the name of the hold of TCP connections that belongs to the ticket by which the tree is dumped; empty: there is none.
	Hold string
	// Ports is what keeps new connections away from listening sockets between two tries of a dump; nil: nothing.
	Ports any
	// Steady are asked when all contents have been copied, while the tree still stands: an error says that what was looked at has changed since, though no task ran.
	Steady []func() error
	// Patient: a state that cannot be kept and passes by itself is better waited for than refused.
	Patient bool

	// Undo has the guard of the dump undo a change to a socket of the tree, should this process die; with nil not any more. It returns when that
	// is in safe hands. nil: there is no guard.
	Undo func(*PeekOff) error

	// SocketOutside says of a socket whether its other end is outside of the tree; known: it can be told. nil: nothing can.
	SocketOutside func(d *Dumper, f *OpenFile) (outside, known bool)

	records  []record
	links    []record
	bulk     []Bulk
	open     []*sys.FD // what Bulk reads from
	refusals Refusals
	nextRef  uint32
	once     map[any]stream.Ref
	ids      map[int]bool
	memos    map[any]any // by key, of Memo
}

// MappedLock is a mapping that holds an open file with a lock.
type MappedLock struct {
	Process    *Process
	Start, End arch.Addr
	File       kernelview.ID
	Flock      uint8 // as kernelview.Area has it
	// Keep has the mapping's file take it at restore; false: it cannot.
	Keep func() bool
}

// A Bulk is the contents of one object, written after all metadata.
type Bulk struct {
	Of    stream.Ref // the object whose contents these are
	Write func(w *stream.Writer) error
}

type record struct {
	typ   stream.Type
	ref   uint32
	state any
}

// Add remembers an object's record and returns the reference to it. Objects are written in the order of Add, so
// whatever state refers to must have been added before it.
func (d *Dumper) Add(t stream.Type, state any) stream.Ref {
	d.nextRef++
	d.records = append(d.records, record{t, d.nextRef, state})
	return stream.Ref{ID: d.nextRef, Class: t.Class()}
}

// Added returns the state that Add was given, nil for what was never added.
func (d *Dumper) Added(ref stream.Ref) any {
	for i := range d.records {
		if d.records[i].ref == ref.ID && ref.ID != 0 {
			return d.records[i].state
		}
	}
	return nil
}

// AddPlain remembers a record that nothing refers to.
func (d *Dumper) AddPlain(t stream.Type, state any) {
	d.records = append(d.records, record{t, 0, state})
}

// AddLink remembers a record that is written behind all objects, so that it may refer to any of them.
func (d *Dumper) AddLink(t stream.Type, state any) {
	d.links = append(d.links, record{t, 0, state})
}

// AddBulk remembers contents that are written behind all records.
func (d *Dumper) AddBulk(of stream.Ref, write func(w *stream.Writer) error) {
	d.bulk = append(d.bulk, Bulk{of, write})
}

// AddFirstBulk is AddBulk for contents that are written before all others so far.
func (d *Dumper) AddFirstBulk(of stream.Ref, write func(w *stream.Writer) error) {
	d.bulk = append([]Bulk{{of, write}}, d.bulk...)
}

// Keep has Close close what contents are going to be read from.
func (d *Dumper) Keep(fd *sys.FD) { d.open = append(d.open, fd) }

// Close closes what was kept.
func (d *Dumper) Close() {
	for _, fd := range d.open {
		_ = fd.Close() // only read from
	}
	d.open = nil
}

// Once returns the reference made by the first call with the same key; make runs only that first time. Keys are
// comparable values of a type private to the family, so that two families cannot collide.
func (d *Dumper) Once(key any, make func() (stream.Ref, error)) (stream.Ref, error) {
	if ref, ok := d.once[key]; ok {
		return ref, nil
	}
	ref, err := make()
	if err != nil {
		return stream.Ref{}, err
	}
	if d.once == nil {
		d.once = map[any]stream.Ref{}
	}
	d.once[key] = ref
	return ref, nil
}

// Refuse remembers that the tree cannot be dumped because of err. The dump goes on looking, so that the user hears
// of everything at once, and stops before anything is written.
func (d *Dumper) Refuse(err error) {
	if err != nil {
		d.refusals = append(d.refusals, err)
	}
}

// Refusals returns what was refused so far, nil when nothing was.
func (d *Dumper) Refusals() error {
	if len(d.refusals) == 0 {
		return nil
	}
	return d.refusals
}

// WriteRecords writes all remembered records, in order.
func (d *Dumper) WriteRecords(w *stream.Writer) error {
	for _, list := range [][]record{d.records, d.links} {
		for i := range list {
			r := &list[i]
			if err := r.hit(); err != nil {
				return err
			}
			if err := w.Put(r.typ, r.ref, r.state, nil); err != nil {
				return fmt.Errorf("writing %s record: %w", r.typ, err)
			}
			r.state = nil
		}
	}
	return nil
}

// hit is before a record of each class.
func (r *record) hit() error {
	switch {
	case r.typ.Class() == "process":
		return failpoint.Hit("dump.process")
	case r.typ == "thread":
		return failpoint.Hit("dump.thread")
	case r.ref == 0:
		return failpoint.Hit("dump.link")
	}
	return failpoint.Hit("dump.object")
}

// WriteBulk writes all remembered contents, in order.
func (d *Dumper) WriteBulk(w *stream.Writer) error {
	for _, b := range d.bulk {
		if err := failpoint.After("dump.contents", b.Write(w)); err != nil {
			return err
		}
	}
	return nil
}

// OpenFile is an open file description of the tree, whether a descriptor, a mapping or an executable holds it.
type OpenFile struct {
	Process *Process // where it was first met
	FD      int      // its number there; -1 when only a mapping or the executable holds it
	Path    string   // /proc/PID/fd/N or /proc/PID/map_files/... : where the caller can look at it
	Link    string   // what that link says
	Stat    unix.Stat_t
	View    *kernelview.File
	Named   bool // Link, as a path, was seen to lead to it
	dup     *sys.FD
	fdinfo  *procfs.Fdinfo
}

type fileKey struct{ id kernelview.ID }

// Descriptor returns a descriptor of the caller's own for the same open file description (pidfd_getfd(2)): position
// and flags are shared with the target, so neither may be changed. For a file that only a mapping holds it is an
// O_PATH one. It is closed by the dump.
func (f *OpenFile) Descriptor() (int, error) {
	if f.dup != nil {
		return f.dup.Int(), nil
	}
	if f.FD < 0 {
		fd, err := unix.Open(f.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, f.Error(fmt.Errorf("opening %s: %w", f.Path, err))
		}
		f.dup = sys.NewFD(fd)
		return fd, nil
	}
	pidfd, err := sys.PidfdOfThread(f.Process.Leader().TID)
	if errors.Is(err, unix.EINVAL) {
		return -1, f.Error(&Lacking{What: "the descriptors of a process without its first thread (Linux 6.9)", Err: err})
	}
	if err != nil {
		return -1, f.Error(fmt.Errorf("opening pidfd: %w", err))
	}
	defer pidfd.Close()
	dup, err := sys.PidfdGetfd(pidfd, f.FD)
	if err != nil {
		return -1, f.Error(fmt.Errorf("duplicating descriptor: %w", err))
	}
	f.dup = dup
	return dup.Int(), nil
}

// Fdinfo returns what /proc/PID/fdinfo/N says (proc_pid_fdinfo(5)).
func (f *OpenFile) Fdinfo() (*procfs.Fdinfo, error) {
	if f.fdinfo == nil {
		if f.FD < 0 {
			return nil, f.Error(errors.New("internal error: fdinfo of a file that no descriptor holds"))
		}
		info, err := procfs.ReadFdinfo(f.Process.Leader().TID, f.FD)
		if err != nil {
			return nil, f.Error(err)
		}
		f.fdinfo = info
	}
	return f.fdinfo, nil
}

// Error wraps err with the process and descriptor that it is about.
func (f *OpenFile) Error(err error) error {
	return &Error{PID: f.Process.PID, Comm: f.Process.Comm(), FD: f.FD, What: f.Link, Err: err}
}

// Close gives back what Descriptor took.
func (f *OpenFile) Close() {
	if f.dup != nil {
		_ = f.dup.Close() // a duplicate only: nothing can be lost by its close
		f.dup = nil
	}
}

// File returns the reference to an open file description, dumping it through the kind that claims it when it is met
// for the first time. A file that no kind claims is refused by name, and the zero Ref is returned.
func (d *Dumper) File(f *OpenFile) (stream.Ref, error) {
	return d.Once(fileKey{f.View.ID}, func() (stream.Ref, error) {
		defer f.Close()
		for i := range d.Kinds {
			k := &d.Kinds[i]
			if !k.claims(d, f) {
				continue
			}
			ref, err := k.dump(d, f)
			if err != nil {
				d.Refuse(f.wrap(err))
			}
			return ref, nil
		}
		u := describe(f)
		if f.Stat.Mode&unix.S_IFMT == unix.S_IFSOCK && d.View != nil && d.View.Source() == kernelview.SourceClassical {
			u = unkept{u.what + ", into which the classical source cannot look,", "run cr-dump as root on a kernel with BTF"}
		}
		d.Refuse(f.Error(&Unsupported{What: u.what + " cannot be checkpointed", Do: u.do}))
		return stream.Ref{}, nil
	})
}

func (f *OpenFile) wrap(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return f.Error(err)
}

// Meet fills in an OpenFile for descriptor fd of p, whose kernel view is v.
func Meet(p *Process, fd int, v *kernelview.File) (*OpenFile, error) {
	return meet(p, fd, fmt.Sprintf("/proc/%d/fd/%d", p.Leader().TID, fd), v)
}

// MeetMapped fills in an OpenFile that a mapping or the executable of p holds; path is the /proc link to it.
func MeetMapped(p *Process, path string, v *kernelview.File) (*OpenFile, error) {
	return meet(p, -1, path, v)
}

func meet(p *Process, fd int, path string, v *kernelview.File) (*OpenFile, error) {
	f := &OpenFile{Process: p, FD: fd, Path: path, View: v}
	link, err := os.Readlink(path)
	if err != nil {
		return nil, f.Error(err)
	}
	f.Link = link
	// Following the link does not open the file, so a lease on it is not broken (design.md section 7).
	if err := unix.Stat(path, &f.Stat); err != nil {
		return nil, f.Error(fmt.Errorf("looking at %s: %w", path, err))
	}
	return f, nil
}

// InTree says whether a process of the tree has this number in the pid namespace of the tree's root.
func (d *Dumper) InTree(id int) bool {
	if d.ids == nil {
		d.ids = make(map[int]bool, len(d.Processes))
		for _, p := range d.Processes {
			d.ids[p.ID] = true
		}
	}
	return d.ids[id]
}

// Describe writes what would be dumped, one record a line.
func (d *Dumper) Describe(w io.Writer) error {
	for _, list := range [][]record{d.records, d.links} {
		for _, r := range list {
			line, err := Line(r.typ, r.ref, r.state)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// lineWidth is how many columns a described record takes at most.
const lineWidth = 160

// Line describes a record in one line, as cr-filter list does.
func Line(t stream.Type, ref uint32, state any) (string, error) {
	meta, err := stream.EncodeMeta(state)
	if err != nil {
		return "", fmt.Errorf("describing %s record: %w", t, err)
	}
	r := stream.Record{Type: t, Ref: ref, Meta: meta}
	return r.Describe(lineWidth), nil
}
