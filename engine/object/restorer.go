package object

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/stream"
)

// Restorer is what a restore offers to the kinds.
//
// Open files are made by cr-restore itself, in the mount namespace of the tree, before the first task; all their
// descriptors lie at or above PoolBase and are inherited by every task, which duplicates what it needs to its own
// numbers. What must be born inside a task is asked for with InRoot.
type Restorer struct {
	Plan    *Plan
	Arch    *arch.Arch
	Inherit map[string]int // names of external objects, and the descriptors of the caller that stand in for them
	Wait    bool           // cr-restore stays: its own standard descriptors stand in for external ones
	Warn    func(format string, args ...any)
	// AllowChanged are patterns (--allow-changed) of the paths of files that may have changed since the dump.
	AllowChanged []string
	// DropTCP (--tcp drop) has every TCP connection come back as one that its peer has reset.
	DropTCP bool
	// StdinTaken says that cr-restore reads the image from its standard input, so that nobody else can.
	StdinTaken bool

	// Elsewhere says that what a path leads to depends on the thread: that of the restore is in another mount namespace than this
	// process.
	Elsewhere bool

	// PoolBase is above every descriptor number that any task of the image uses.
	PoolBase int

	files   map[uint32]int                // objref of a file -> descriptor in the pool
	values  map[uint32]any                // objref -> what a kind wants to remember of it
	content map[uint32]ContentFunc        // objref -> who takes its contents
	inRoot  []func(b *tracee.Batch) error // calls that the root task makes while only the pool is open
	after   []func() error                // what is done when all objects have been made
	onClose []func()

	acts          []Act
	afterContents []func() error
	undo          []func()
	// Number returns the number by which this process knows a process or thread of the tree; 0: there is none (yet).
	Number func(id int32) int
	// Ended returns the same of a process that has ended, and that NeedEnded has asked for.
	Ended func(id int32) int
	ended []EndedProcess
	extra []int
	late  []int // of those what the last steps need
}

// ContentFunc takes one piece of an object's contents. data is valid only during the call.
type ContentFunc func(meta *Data, data []byte) error

// Data is the metadata of a "data" record: where in the object its payload belongs.
type Data struct {
	Of      stream.Ref `msgpack:"of"`
	Offset  uint64     `msgpack:"offset,omitempty"`  // bytes from the start of the object
	Packets []uint32   `msgpack:"packets,omitempty"` // lengths of the packets that the payload consists of, where boundaries matter
	Extend  uint64     `msgpack:"extend,omitempty"`  // the object's whole size in bytes, where it ends in a hole
}

// Pool moves descriptor fd of the caller into the pool and returns its new number; fd is closed.
func (r *Restorer) Pool(fd int) (int, error) {
	// Deliberately without close-on-exec: the pool is what tasks inherit.
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD, r.PoolBase)
	_ = unix.Close(fd) // the description lives on in its duplicate
	if err != nil {
		return -1, fmt.Errorf("moving descriptor above %d: %w", r.PoolBase, err)
	}
	r.extra = append(r.extra, n)
	return n, nil
}

func (r *Restorer) addFile(ref stream.Ref, fd int) error {
	n, err := r.Pool(fd)
	if err != nil {
		return err
	}
	if r.files == nil {
		r.files = map[uint32]int{}
	}
	r.files[ref.ID] = n
	return nil
}

// File returns the pool descriptor of a restored open file.
func (r *Restorer) File(ref stream.Ref) (int, error) {
	fd, ok := r.files[ref.ID]
	if !ok {
		return -1, BadImagef("object %d is not an open file", ref.ID)
	}
	return fd, nil
}

// Remember keeps a value for the object ref; Recall returns it.
func (r *Restorer) Remember(ref stream.Ref, v any) {
	if r.values == nil {
		r.values = map[uint32]any{}
	}
	r.values[ref.ID] = v
}

// Recall returns the *V that was remembered for ref.
func Recall[V any](r *Restorer, ref stream.Ref) (*V, error) {
	v, ok := r.values[ref.ID].(*V)
	if !ok {
		return nil, BadImagef("object %d is not what is needed here", ref.ID)
	}
	return v, nil
}

// OnContent says who takes the contents of the object ref when they arrive.
func (r *Restorer) OnContent(ref stream.Ref, f ContentFunc) {
	if r.content == nil {
		r.content = map[uint32]ContentFunc{}
	}
	r.content[ref.ID] = f
}

// Content hands one piece of contents to whom it belongs.
func (r *Restorer) Content(d *Data, data []byte) error {
	f := r.content[d.Of.ID]
	if f == nil {
		return BadImagef("object %d has no contents", d.Of.ID)
	}
	return f(d, data)
}

// InRoot asks for calls to be made by the root task at a moment when exactly the pool's descriptors are open in it,
// so that any number below PoolBase may be used for a while.
func (r *Restorer) InRoot(f func(b *tracee.Batch) error) { r.inRoot = append(r.inRoot, f) }

// RootCalls returns what InRoot collected.
func (r *Restorer) RootCalls() []func(b *tracee.Batch) error { return r.inRoot }

// AfterObjects asks for a call when every object that is made without a task has been made.
func (r *Restorer) AfterObjects(f func() error) { r.after = append(r.after, f) }

// OnClose asks for a call when the pool is closed.
func (r *Restorer) OnClose(f func()) { r.onClose = append(r.onClose, f) }

// MakeObjects restores, in stream order, every object whose kind does so without a task.
func (r *Restorer) MakeObjects() error {
	r.reserve()
	early := r.openEarly()
	defer early.end()
	for i := range r.Plan.Objects {
		o := &r.Plan.Objects[i]
		if o.kind.restore == nil {
			continue
		}
		fd, ok, err := early.take(i)
		switch {
		case ok && err == nil:
			err = r.addFile(o.Ref, fd)
		case !ok:
			err = o.kind.restore(r, o.Ref, o.State)
		}
		if err = failpoint.After("restore.object", err); err != nil {
			return fmt.Errorf("restoring %s: %w", o, err)
		}
		if o.kind.late {
			r.Late(r.files[o.Ref.ID])
		}
	}
	for _, f := range r.after {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// reserve makes room for the whole pool at once: each time that the kernel doubles a table of descriptors that threads share, it waits
// until no processor can be looking at the old one (expand_fdtable in fs/file.c), for milliseconds.
func (r *Restorer) reserve() {
	last := r.PoolBase
	for i := range r.Plan.Objects {
		if r.Plan.Objects[i].Type.Class() == "file" {
			last++
		}
	}
	fd, err := sys.Open("/", unix.O_PATH, 0)
	if err != nil {
		return // it is only slower
	}
	defer fd.Close() //nolint:errcheck // of nothing
	if n, err := unix.FcntlInt(uintptr(fd.Int()), unix.F_DUPFD_CLOEXEC, last); err == nil {
		_ = unix.Close(n)
	}
}

// Late names a descriptor of the pool that the last steps need.
func (r *Restorer) Late(fd int) { r.late = append(r.late, fd) }

// Close closes the pool.
func (r *Restorer) Close() {
	r.late = nil
	r.CloseEarly()
}

// CloseEarly is Close for all pool descriptors but those that the last steps need, which Close closes.
func (r *Restorer) CloseEarly() {
	kept := slices.Clone(r.late)
	r.extra = slices.DeleteFunc(r.extra, func(n int) bool { return slices.Contains(kept, n) })
	defer func() { r.extra = kept }()
	for _, f := range r.onClose {
		f()
	}
	r.onClose = nil
	slices.Sort(r.extra)
	for len(r.extra) > 0 {
		n := 1 // descriptors whose numbers follow one another
		for n < len(r.extra) && r.extra[n] == r.extra[0]+n {
			n++
		}
		_ = unix.CloseRange(uint(r.extra[0]), uint(r.extra[n-1]), 0) // tasks hold their own; never fails (close_range(2))
		r.extra = r.extra[n:]
	}
}
