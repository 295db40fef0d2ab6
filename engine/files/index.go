package files

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// index is what all descriptor tables of a tree hold, read once.
type index struct {
	tables  map[*object.Process]*kernelview.FileTable
	holders map[kernelview.ID][]Holder // by open file, in order of processes and numbers; shared tables once
	order   []Holder                   // the first of each
	pipes   map[inode]*pipeUse

	// ttys are the character devices that standard descriptors of the tree are open on, by device number, with
	// the numbers of these descriptors.
	ttys map[uint64][]int32
	// Open files of terminals, each once: masters of pseudo-terminals, and all others.
	masters, terminals []Holder
	sides              map[kernelview.ID]Holder // masters by the identity of their side; nil: not asked yet

	sockets map[inode]bool
	rings   map[kernelview.ID]int // references that io_uring instances of the tree hold to open files

	refs    map[kernelview.ID]stream.Ref // of open files that have been dumped
	owners  map[kernelview.ID]*pendingOwner
	removed *[]Removed      // nil: not looked for yet
	locked  map[string]bool // files (lockedFile) that are locked through a descriptor of the tree
}

// Holder is a descriptor that leads to an open file. Of processes that share a table it names the first.
type Holder struct {
	Process *object.Process
	FD      int
	File    *kernelview.File
}

// inode is the identity of an inode: as the kernel view knows it, else by numbers.
type inode struct {
	id       kernelview.ID
	dev, ino uint64
}

func inodeBy(view *kernelview.File, st *unix.Stat_t) inode {
	if id, ok := view.Inode.Get(); ok && id != 0 {
		return inode{id: id}
	}
	return inode{dev: uint64(st.Dev), ino: st.Ino}
}

func inodeOf(f *object.OpenFile) inode { return inodeBy(f.View, &f.Stat) }

// pipeUse is how the tree holds a pipe.
type pipeUse struct {
	files    []*kernelview.File // its open files in the tree
	first    Holder
	readers  uint32 // open files with read access
	writers  uint32
	reader   *Holder // a descriptor that can read; nil: none
	standard int     // the lowest of 0, 1, 2 that leads to it in any process; -1: none

	view    kernelview.Pipe // once seen
	looked  bool
	outside bool
}

// look asks the kernel view about the pipe, the first time, and whether the outside holds it too.
func (use *pipeUse) look(ix *index, v kernelview.View) error {
	if use.looked {
		return nil
	}
	if len(use.files) == 0 {
		return errors.New("internal error: a pipe without an open file")
	}
	view, err := v.Pipe(use.files[0].ID)
	if err != nil {
		return fmt.Errorf("looking at the pipe: %w", err)
	}
	use.view, use.outside, use.looked = view, use.isOutside(ix, &view), true
	return nil
}

// noted is the index of a dump.
type noted struct{ ix *index }

func indexOf(d *object.Dumper) (*index, error) {
	n := object.Note[noted](d.Root)
	if n.ix == nil {
		ix, err := buildIndex(d)
		if err != nil {
			return nil, err
		}
		n.ix = ix
	}
	return n.ix, nil
}

// Holders returns every descriptor of the tree that leads to the open file.
func Holders(d *object.Dumper, file kernelview.ID) ([]Holder, error) {
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	return ix.holders[file], nil
}

// HolderOf returns a descriptor that leads to an inode, nil for none. Only the kernel view by BPF knows inodes as fdinfo
// shows them.
func HolderOf(d *object.Dumper, in *Inode) (*Holder, error) {
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	var found *Holder
	for _, list := range ix.holders {
		for i := range list {
			h := &list[i]
			dev, ok1 := h.File.Dev.Get()
			ino, ok2 := h.File.Ino.Get()
			flags, ok3 := h.File.Flags.Get()
			if !ok1 || !ok2 || !ok3 || flags&unix.O_PATH != 0 || ino != in.Ino || unix.Major(dev) != in.Dev>>20 || unix.Minor(dev) != in.Dev&(1<<20-1) {
				continue
			}
			if found == nil || h.Process.PID < found.Process.PID || h.Process == found.Process && h.FD < found.FD {
				found = h
			}
		}
	}
	return found, nil
}

func buildIndex(d *object.Dumper) (*index, error) {
	ix := &index{
		tables:  map[*object.Process]*kernelview.FileTable{},
		holders: map[kernelview.ID][]Holder{},
		pipes:   map[inode]*pipeUse{},
		ttys:    map[uint64][]int32{},
		sockets: map[inode]bool{},
		rings:   map[kernelview.ID]int{},
		refs:    map[kernelview.ID]stream.Ref{},
		owners:  map[kernelview.ID]*pendingOwner{},
		locked:  map[string]bool{},
	}
	var procs []*object.Process
	var tids []int
	for _, p := range d.Processes {
		if p.Zombie || len(p.Threads) == 0 {
			continue
		}
		for _, q := range withTables(p) {
			procs = append(procs, q)
			tids = append(tids, q.Leader().TID)
		}
	}
	tables, err := d.View.Files(tids)
	if err != nil {
		return nil, fmt.Errorf("reading descriptor tables: %w", err)
	}
	if len(tables) != len(procs) {
		return nil, fmt.Errorf("internal error: %d descriptor tables of %d processes", len(tables), len(procs))
	}
	seen := map[kernelview.ID]bool{}
	for i, p := range procs {
		t := &tables[i]
		ix.tables[p] = t
		if id, ok := t.ID.Get(); ok && id != 0 {
			if seen[id] {
				continue
			}
			seen[id] = true
		}
		for _, fd := range t.FDs {
			if err := ix.enter(Holder{p, fd.FD, fd.File}); err != nil {
				return nil, err
			}
		}
	}
	ix.enterRings(d)
	return ix, nil
}

// enterRings counts what io_uring instances hold. One that cannot be looked at holds nothing here, and is refused.
func (ix *index) enterRings(d *object.Dumper) {
	view, ok := d.View.(kernelview.IOUringView)
	if !ok {
		return
	}
	for id, holders := range ix.holders {
		if holders[0].File.Kind != kernelview.KindIOUring {
			continue
		}
		u, err := view.IOUring(id, nil)
		if err != nil {
			continue
		}
		for _, f := range u.Holds() {
			ix.rings[f]++
		}
	}
}

// references is how often the tree holds an open file, mappings aside.
func (ix *index) references(file kernelview.ID) int64 {
	return int64(len(ix.holders[file]) + ix.rings[file])
}

// References is how often the tree holds an open file by descriptors and io_uring instances.
func References(d *object.Dumper, file kernelview.ID) (int64, error) {
	ix, err := indexOf(d)
	if err != nil {
		return 0, err
	}
	return ix.references(file), nil
}

// withTables is p, and for each of its threads that has a descriptor table that is not its leader's, p as that thread sees it.
func withTables(p *object.Process) []*object.Process {
	out := []*object.Process{p}
	for _, t := range p.Threads[1:] {
		if differs(p, t, func(v *kernelview.Thread) kernelview.Maybe[kernelview.ID] { return v.Files }) {
			out = append(out, t.AsProcess())
		}
	}
	return out
}

// differs says whether a thread has another object than its leader.
func differs(p *object.Process, t *object.Thread, id func(*kernelview.Thread) kernelview.Maybe[kernelview.ID]) bool {
	if t.View == nil || p.Leader().View == nil {
		return false
	}
	want, ok := id(p.Leader().View).Get()
	have, known := id(t.View).Get()
	return ok && known && have != 0 && want != have
}

func (ix *index) enter(h Holder) error {
	first := len(ix.holders[h.File.ID]) == 0
	if first {
		ix.order = append(ix.order, h)
	}
	ix.holders[h.File.ID] = append(ix.holders[h.File.ID], h)
	standard := h.FD <= 2
	switch h.File.Kind {
	case kernelview.KindPipe, kernelview.KindTTY, kernelview.KindSocket, kernelview.KindUnknown:
	default:
		return nil
	}
	var st unix.Stat_t
	if id, ok := h.File.Inode.Get(); ok && id != 0 && h.File.Kind == kernelview.KindPipe {
		st.Mode = unix.S_IFIFO
	} else if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", h.Process.Leader().TID, h.FD), &st); err != nil {
		return h.Process.Error(fmt.Sprintf("fd %d", h.FD), fmt.Errorf("looking at it: %w", err))
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return ix.enterPipe(h, &st, first, standard)
	case unix.S_IFCHR:
		rdev, n := uint64(st.Rdev), int32(h.FD)
		switch {
		case !first || h.File.Kind != kernelview.KindTTY && h.File.Kind != kernelview.KindUnknown:
		case rdev == ptmx:
			ix.masters = append(ix.masters, h)
		default:
			ix.terminals = append(ix.terminals, h)
		}
		if _, plain := plainDevice(&st); standard && !plain && !slices.Contains(ix.ttys[rdev], n) {
			ix.ttys[rdev] = append(ix.ttys[rdev], n)
			slices.Sort(ix.ttys[rdev])
		}
	case unix.S_IFSOCK:
		ix.sockets[inodeBy(h.File, &st)] = true
	}
	return nil
}

func (ix *index) enterPipe(h Holder, st *unix.Stat_t, first, standard bool) error {
	key := inodeBy(h.File, st)
	use := ix.pipes[key]
	if use == nil {
		use = &pipeUse{first: h, standard: -1}
		ix.pipes[key] = use
	}
	if standard && (use.standard < 0 || h.FD < use.standard) {
		use.standard = h.FD
	}
	if !first {
		return nil
	}
	f := &object.OpenFile{Process: h.Process, FD: h.FD, View: h.File}
	flags, err := Flags(f)
	if err != nil {
		return err
	}
	if flags&unix.O_PATH != 0 {
		return nil // holds the inode, is no end
	}
	use.files = append(use.files, h.File)
	if readable(flags) {
		use.readers++
		if use.reader == nil {
			use.reader = &h
		}
	}
	if writable(flags) {
		use.writers++
	}
	return nil
}

func readable(flags uint32) bool {
	m := flags & unix.O_ACCMODE
	return m == unix.O_RDONLY || m == unix.O_RDWR
}

func writable(flags uint32) bool {
	m := flags & unix.O_ACCMODE
	return m == unix.O_WRONLY || m == unix.O_RDWR
}
