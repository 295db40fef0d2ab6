package events

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An inotify instance (inotify(7)). fdinfo shows each watch: its number, its mask with IN_ONESHOT and IN_EXCL_UNLINK, and the
// inode, by numbers and by a handle (fs/notify/fdinfo.c). A watch belongs to the inode and remembers no path. One is found
// in the names that the kernel's memory has of the inode (struct dentry), or by the handle, or among the paths of what
// the tree has open, and taken only when it is seen to lead to that very inode. A file that was removed is watched through
// an open file of the tree.
//
// The watches are made by cr-restore, at the very end: whatever the restore itself opens would be an event. Their numbers are set
// by INOTIFY_IOC_SETNEXTWD, as is the number that the next one gets.
//
// Refused by name: a watch of the dump's own reading of removed files (refuseRead); unread events, since nothing but what really happens to a file can put one into the queue; a watch whose
// inode has neither path nor open file any more, or is in a proc file system. Lost: without the kernel view, which number comes next when the
// watch with the highest number was removed.
type inotifyFileState struct {
	Inotify stream.Ref `msgpack:"inotify"`
	Flags   uint32     `msgpack:"flags"` // as F_GETFL
}

// inotifyState is the instance itself, an object of its own so that its watches can refer to it.
type inotifyState struct {
	Next int32 `msgpack:"next,omitempty"` // the least number that the next new watch may get
}

// inotifyWatches is some of the watches of one instance.
type inotifyWatches struct {
	Inotify stream.Ref     `msgpack:"inotify"`
	Watches []inotifyWatch `msgpack:"watches"` // in the order in which they were made
}

type inotifyWatch struct {
	WD   int32  `msgpack:"wd"`
	Mask uint32 `msgpack:"mask"` // IN_*
	Path string `msgpack:"path,omitempty"`
	Mode uint32 `msgpack:"mode,omitempty"` // st_mode at dump

	File stream.Ref `msgpack:"file,omitempty"` // in place of a path: an open file, which was removed
}

const (
	inotifyType        stream.Type = "inotify"
	inotifyWatchesType stream.Type = "link.inotify"

	// watchBytes keeps a record well below the limit of its metadata.
	watchBytes = 256 << 10

	inotifyMask = unix.IN_ALL_EVENTS | unix.IN_ONESHOT | unix.IN_EXCL_UNLINK

	// setNextWD is INOTIFY_IOC_SETNEXTWD, _IOW('I', 0, __s32) of linux/inotify.h; TUNSETIFF is an _IOW of four bytes too.
	setNextWD = unix.TUNSETIFF&^0xffff | 'I'<<8
)

func dumpInotify(d *object.Dumper, f *object.OpenFile) (*inotifyFileState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Inotify(f.View.ID)
	if err != nil {
		return nil, fmt.Errorf("looking at the inotify instance: %w", err)
	}
	if v.Queued > 0 {
		return nil, &object.Unsupported{
			What: "it has events that were not read yet, which nothing can put into another one",
			Do:   "dump again in a moment, when the program has read them, or while nothing happens to the files that it watches",

			Passes: true,
		}
	}
	info, err := f.Fdinfo()
	if err != nil {
		return nil, err
	}
	finder, err := files.NewFinder(d, f.Process)
	if err != nil {
		return nil, fmt.Errorf("looking at the mounts: %w", err)
	}
	s := &inotifyState{Next: 1}
	watches := make([]inotifyWatch, 0, len(info.Inotify))
	for i := range info.Inotify {
		w, err := dumpInotifyWatch(d, finder, &info.Inotify[i], v.Names)
		if err != nil {
			d.Refuse(f.Error(err))
			continue
		}
		watches = append(watches, *w)
		s.Next = max(s.Next, w.WD+1)
	}
	if next, ok := v.Next.Get(); ok {
		s.Next = max(next, 1)
	}
	slices.Reverse(watches) // fdinfo has the latest one first
	ref := d.Add(inotifyType, s)
	for len(watches) > 0 {
		n, size := 0, 0
		for n < len(watches) && (n == 0 || size+len(watches[n].Path) < watchBytes) && n < itemsPerRecord {
			size += len(watches[n].Path)
			n++
		}
		d.AddLink(inotifyWatchesType, &inotifyWatches{Inotify: ref, Watches: watches[:n]})
		watches = watches[n:]
	}
	return &inotifyFileState{Inotify: ref, Flags: flags}, nil
}

func dumpInotifyWatch(d *object.Dumper, finder *files.Finder, w *procfs.InotifyWatch, names map[int][]string) (*inotifyWatch, error) {
	in := &files.Inode{Dev: w.Dev, Ino: w.Ino, HandleType: w.HandleType, Handle: w.Handle}
	path, st, err := finder.Path(in, names[w.WD])
	if err != nil {
		return nil, err
	}
	if odd := w.Mask &^ inotifyMask; odd != 0 {
		return nil, object.Unsupportedf("its watch %d has flags (%#x) that cannot be restored", w.WD, odd)
	}
	if err := refuseRead(d, w.Mask, func(r *files.Removed) bool {
		return r.On(w.Dev) && (r.Ino == w.Ino || path == r.Dir && w.Mask&unix.IN_EXCL_UNLINK == 0)
	}); err != nil {
		return nil, err
	}
	if st == nil {
		ref, err := removedFile(d, in)
		if err != nil || !ref.IsZero() {
			return &inotifyWatch{WD: int32(w.WD), Mask: w.Mask, File: ref}, err
		}
	}
	what := fmt.Sprintf("inode %d of file system %d:%d", w.Ino, w.Dev>>20, w.Dev&(1<<20-1))
	if len(names[w.WD]) > 0 {
		what = names[w.WD][0] + ", " + what
	}
	if st == nil {
		return nil, &object.Unsupported{
			What: fmt.Sprintf("its watch %d is of something to which no path leads that the kernel remembers (%s): it was removed or unmounted, or nobody has used its name for long", w.WD, what),
			Do:   "if it is still there, look at it by its name (ls -l) and dump again",
		}
	}
	if finder.FSType(in) == "proc" {
		return nil, object.Unsupportedf("its watch %d is of a file of proc(5), %s, which cannot be checkpointed", w.WD, path)
	}
	return &inotifyWatch{WD: int32(w.WD), Mask: w.Mask, Path: path, Mode: st.Mode}, nil
}

// removedFile dumps an open file of the tree that is a certain inode, a regular file without a name; the zero Ref: there is none.
func removedFile(d *object.Dumper, in *files.Inode) (stream.Ref, error) {
	h, err := files.HolderOf(d, in)
	if err != nil || h == nil {
		return stream.Ref{}, err
	}
	f, err := object.Meet(h.Process, h.FD, h.File)
	if err != nil {
		return stream.Ref{}, err
	}
	defer f.Close()
	if f.Stat.Mode&unix.S_IFMT != unix.S_IFREG || f.Stat.Nlink != 0 {
		return stream.Ref{}, nil
	}
	return d.File(f)
}

// madeInotify is an instance at restore.
type madeInotify struct {
	state   *inotifyState
	file    stream.Ref // zero until its open file is met
	watches []pinnedWatch
	numbers map[int32]bool // of the watches
	root    int            // of the mount namespace of the tree, in the pool; set with the first watch
	fd      int            // of the file, by StartWatches
}

type pinnedWatch struct {
	inotifyWatch
	at *files.Pinned // nil: there is
	fd int           // an open file, in the pool
}

func restoreInotifyObject(r *object.Restorer, ref stream.Ref, s *inotifyState) error {
	if s.Next < 0 {
		return object.BadImagef("the next watch of an inotify instance is to be number %d", s.Next)
	}
	r.Remember(ref, &madeInotify{state: s, numbers: map[int32]bool{}})
	return nil
}

func restoreInotify(r *object.Restorer, ref stream.Ref, s *inotifyFileState) (int, error) {
	m, err := object.Recall[madeInotify](r, s.Inotify)
	if err != nil {
		return -1, err
	}
	if !m.file.IsZero() {
		return -1, object.BadImagef("two open files are the same inotify instance")
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making an inotify instance: %w", err)
	}
	m.file = ref
	return finishMode(fd, s.Flags, unix.O_RDONLY)
}

// restoreWatches looks whether what was watched is there. Nothing is watched yet.
func restoreWatches(r *object.Restorer, _ stream.Ref, s *inotifyWatches) error {
	m, err := object.Recall[madeInotify](r, s.Inotify)
	if err != nil {
		return err
	}
	for _, w := range s.Watches {
		if w.WD <= 0 || w.Mask&^inotifyMask != 0 || m.numbers[w.WD] {
			return object.BadImagef("watch %d with mask %#x of an inotify instance is impossible, or one too many", w.WD, w.Mask)
		}
		m.numbers[w.WD] = true
		p := pinnedWatch{inotifyWatch: w}
		if w.File.IsZero() {
			if p.at, err = files.Pin(w.Path, w.Mode); err != nil {
				return fmt.Errorf("looking at what inotify is to watch: %w", err)
			}
		} else if p.fd, err = watchedFile(r, w.File, w.Path); err != nil {
			return err
		}
		m.watches = append(m.watches, p)
	}
	if len(m.watches) == 0 {
		return nil
	}
	return watchRoot(r, &m.root)
}

// watchedFile returns the open file that is watched. What is opened later, by a task, is no regular file yet.
func watchedFile(r *object.Restorer, file stream.Ref, path string) (int, error) {
	fd, err := r.File(file)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("looking at what is to be watched: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || path != "" {
		return -1, object.BadImagef("what is to be watched is an open file that is not regular, or has a path too")
	}
	return fd, nil
}

func (m *madeInotify) hold(r *object.Restorer, keep func(fd *int)) (err error) {
	if m.file.IsZero() {
		return object.BadImagef("no open file is one of the inotify instances")
	}
	if m.fd, err = r.File(m.file); err != nil {
		return err
	}
	keep(&m.fd)
	if len(m.watches) > 0 {
		keep(&m.root)
	}
	for i := range m.watches {
		if w := &m.watches[i]; w.at == nil {
			keep(&w.fd)
		}
	}
	return nil
}

func (m *madeInotify) start() error {
	fd := m.fd
	next := int32(1) // the number that the next watch gets by itself
	set := func(wd int32) error {
		if wd == next || wd == 0 {
			return nil
		}
		next = wd
		err := unix.IoctlSetInt(fd, setNextWD, int(wd))
		if errors.Is(err, unix.ENOTTY) {
			return &object.Lacking{What: "giving a watch of inotify its number", Err: err, Do: "use a kernel with CONFIG_CHECKPOINT_RESTORE"}
		}
		if err != nil {
			return fmt.Errorf("setting the number %d of a watch of inotify: %w", wd, err)
		}
		return nil
	}
	for i := range m.watches {
		w := &m.watches[i]
		if err := set(w.WD); err != nil {
			return err
		}
		if err := w.add(fd, m.root); err != nil {
			return fmt.Errorf("having watch %d of inotify watch %s: %w", w.WD, cmp.Or(w.Path, "a removed file"), err)
		}
		next++ // of the highest number this is negative, as in the kernel, which then begins anew
	}
	return set(m.state.Next)
}

func (w *pinnedWatch) add(fd, root int) error {
	of := w.fd
	if w.at != nil {
		at, err := w.at.Open(root)
		if err != nil {
			return err
		}
		defer at.Close()
		of = at.Int()
	}
	// Two paths that lead to one inode by now would share one watch.
	wd, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/thread-self/fd/%d", of), w.Mask|unix.IN_MASK_CREATE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return errors.New("another watch of the same instance is of the same file now")
	case errors.Is(err, unix.ENOSPC):
		return &object.Lacking{What: "one more watch", Err: err, Do: "raise the limit in /proc/sys/fs/inotify/max_user_watches"}
	case err != nil:
		return err
	case wd != int(w.WD):
		return fmt.Errorf("internal error: it got the number %d instead of %d", wd, w.WD)
	}
	return nil
}

// InotifyKind is the kind of inotify instances.
var InotifyKind = object.NewFileKind("file.inotify", claims(kernelview.KindInotify, "anon_inode:inotify"), dumpInotify, restoreInotify).Late()

// InotifyObject is the record of an instance itself.
var InotifyObject = object.NewKind(inotifyType, restoreInotifyObject)

// InotifyLink is the record of what an instance watches.
var InotifyLink = object.NewKind(inotifyWatchesType, restoreWatches)
