package events

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A fanotify group (fanotify(7)). fdinfo shows with which flags it was made and each mark: what it is on, its masks, and the flags that
// fanotify_mark(2) has left on it (fs/notify/fdinfo.c). A marked inode is found as a watch of inotify(7) is; a mount or file system
// is named by a mount point. The kernel's memory tells what waits in the group, and whether it was made without CAP_SYS_ADMIN, which
// it remembers for ever and by which it tells less of other users' processes.
//
// The marks are made by cr-restore, at the very end, and read back: two of the kernel's rules let a call succeed that does less
// than it was told (do_fanotify_mark in fs/notify/fanotify/fanotify_user.c).
//
// Refused by name: a watch of the dump's own reading of removed files (refuseRead); unread events, which nothing can put into another queue; events whose answer somebody waits for; groups of another
// user namespace; marks on what no path leads to, or in a proc file system; an ignored mask that a modification clears, of an inode that is
// open for writing, which the kernel does not set. Lost: who pays for the marks (fs.fanotify.max_user_marks), and the length of the queue
// that fs.fanotify.max_queued_events was when the group was made.
type fanotifyFileState struct {
	Fanotify stream.Ref `msgpack:"fanotify"`
	Flags    uint32     `msgpack:"flags"` // as F_GETFL
}

// fanotifyState is the group itself, an object of its own so that its marks can refer to it.
type fanotifyState struct {
	Init         uint32 `msgpack:"init"`                   // FAN_* of fanotify_init(2)
	EventFlags   uint32 `msgpack:"eventflags"`             // O_*, of the files of events
	Unprivileged bool   `msgpack:"unprivileged,omitempty"` // made without CAP_SYS_ADMIN
}

// fanotifyMarks is some of the marks of one group.
type fanotifyMarks struct {
	Fanotify stream.Ref     `msgpack:"fanotify"`
	Marks    []fanotifyMark `msgpack:"marks"` // in the order in which they were made
}

type fanotifyMark struct {
	On      string `msgpack:"on,omitempty"`    // "": an inode, "mount", "filesystem", "namespace" (of mounts, the tree's)
	Flags   uint32 `msgpack:"flags,omitempty"` // FAN_MARK_IGNORE, _IGNORED_SURV_MODIFY, _EVICTABLE
	Mask    uint32 `msgpack:"mask,omitempty"`
	Ignored uint32 `msgpack:"ignored,omitempty"`

	Path string     `msgpack:"path,omitempty"` // of the inode, or a mount point
	Mode uint32     `msgpack:"mode,omitempty"` // its st_mode at dump
	File stream.Ref `msgpack:"file,omitempty"` // in place of a path: an open file, which was removed
}

const (
	fanotifyType      stream.Type = "fanotify"
	fanotifyMarksType stream.Type = "link.fanotify"

	// fanotifyInit and fanotifyMarkFlags are the flags that are known to do what they do here and no more.
	fanotifyInit = unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | unix.FAN_ALL_CLASS_BITS | unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS |
		unix.FAN_ENABLE_AUDIT | unix.FAN_REPORT_PIDFD | unix.FAN_REPORT_TID | unix.FAN_REPORT_FID | unix.FAN_REPORT_DIR_FID |
		unix.FAN_REPORT_NAME | unix.FAN_REPORT_TARGET_FID | unix.FAN_REPORT_FD_ERROR | unix.FAN_REPORT_MNT
	fanotifyMarkFlags = unix.FAN_MARK_IGNORE | unix.FAN_MARK_IGNORED_SURV_MODIFY | unix.FAN_MARK_EVICTABLE
)

// markType is a sort of object of marks: what fdinfo says, what an image says, and the flag of fanotify_mark(2).
type markType struct {
	on   procfs.MarkedObject
	name string
	flag uint
}

var markTypes = []markType{
	{procfs.OnInode, "", unix.FAN_MARK_INODE},
	{procfs.OnMount, "mount", unix.FAN_MARK_MOUNT},
	{procfs.OnFilesystem, "filesystem", unix.FAN_MARK_FILESYSTEM},
	{procfs.OnMountNamespace, "namespace", unix.FAN_MARK_MNTNS},
}

func dumpFanotify(d *object.Dumper, f *object.OpenFile) (*fanotifyFileState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Fanotify(f.View.ID)
	if err != nil {
		return nil, fmt.Errorf("looking at the fanotify group: %w", err)
	}
	const wait = "dump again in a moment, when the program has taken care of them, or while nothing happens to the files that it watches"
	switch {
	case v.Waiting:
		return nil, &object.Unsupported{What: "processes wait for its answers to events of permission", Do: wait, Passes: true}
	case v.Queued > 0:
		return nil, &object.Unsupported{What: "it has events that were not read yet, which nothing can put into another one", Do: wait, Passes: true}
	case v.Nested:
		return nil, object.Unsupportedf("it was made in a user namespace of its own")
	}
	info, err := f.Fdinfo()
	if err != nil {
		return nil, err
	}
	g := info.Fanotify
	if g == nil || len(g.Marks) != len(v.Marks) {
		return nil, object.Unsupportedf("what it watches is being removed at the moment")
	}
	if odd := g.Flags &^ fanotifyInit; odd != 0 {
		return nil, object.Unsupportedf("it was made with flags (%#x) that are not known", odd)
	}
	finder, err := files.NewFinder(d, f.Process)
	if err != nil {
		return nil, fmt.Errorf("looking at the mounts: %w", err)
	}
	marks := make([]fanotifyMark, 0, len(g.Marks))
	for i := range g.Marks {
		m, err := dumpFanotifyMark(d, f, finder, &g.Marks[i], &v.Marks[i])
		if err != nil {
			d.Refuse(f.Error(err))
			continue
		}
		marks = append(marks, *m)
	}
	slices.Reverse(marks) // fdinfo has the latest one first
	ref := d.Add(fanotifyType, &fanotifyState{Init: g.Flags, EventFlags: g.EventFlags, Unprivileged: v.Unprivileged})
	for len(marks) > 0 {
		n, size := 0, 0
		for n < len(marks) && (n == 0 || size+len(marks[n].Path) < watchBytes) && n < itemsPerRecord {
			size += len(marks[n].Path)
			n++
		}
		d.AddLink(fanotifyMarksType, &fanotifyMarks{Fanotify: ref, Marks: marks[:n]})
		marks = marks[n:]
	}
	return &fanotifyFileState{Fanotify: ref, Flags: flags}, nil
}

func dumpFanotifyMark(d *object.Dumper, f *object.OpenFile, finder *files.Finder, m *procfs.FanotifyMark, v *kernelview.FanotifyMark) (*fanotifyMark, error) {
	if m.Mask != v.Mask || m.Ignored != v.Ignored {
		return nil, object.Unsupportedf("its marks are being changed at the moment")
	}
	if odd := m.Flags &^ fanotifyMarkFlags; odd != 0 {
		return nil, object.Unsupportedf("a mark has flags (%#x) that are not known", odd)
	}
	s := &fanotifyMark{Flags: m.Flags, Mask: m.Mask, Ignored: m.Ignored}
	var st *unix.Stat_t
	var err error
	what := ""
	switch m.On {
	case procfs.OnMountNamespace:
		var ns unix.Stat_t
		if err := unix.Stat(procfs.Path(f.Process.Leader().TID, "ns/mnt"), &ns); err != nil {
			return nil, fmt.Errorf("looking at the mount namespace: %w", err)
		}
		if ns.Ino != uint64(m.ID) {
			return nil, object.Unsupportedf("it has a mark on a mount namespace (%d) that is not its own", m.ID)
		}
		s.On = "namespace"
		return s, nil
	case procfs.OnMount:
		s.On, what = "mount", fmt.Sprintf("mount %d", m.ID)
		s.Path, st, err = finder.Mounted(func(at *procfs.Mount) bool { return uint32(at.ID) == m.ID })
	case procfs.OnFilesystem:
		s.On, what = "filesystem", fmt.Sprintf("file system %d:%d", m.Dev>>20, m.Dev&(1<<20-1))
		s.Path, st, err = finder.Mounted(func(at *procfs.Mount) bool { return at.Major == m.Dev>>20 && at.Minor == m.Dev&(1<<20-1) })
	default:
		in := &files.Inode{Dev: m.Dev, Ino: m.Ino, HandleType: m.HandleType, Handle: m.Handle}
		what = fmt.Sprintf("inode %d of file system %d:%d", m.Ino, m.Dev>>20, m.Dev&(1<<20-1))
		if s.Path, st, err = finder.Path(in, v.Names); err != nil {
			break
		}
		if st == nil {
			s.File, err = removedFile(d, in)
		} else if finder.FSType(in) == "proc" {
			err = object.Unsupportedf("it has a mark on a file of proc(5), %s, which cannot be checkpointed", s.Path)
		}
		if m.Ignored != 0 && m.Flags&unix.FAN_MARK_IGNORED_SURV_MODIFY == 0 && v.Written {
			err = &object.Unsupported{
				What: fmt.Sprintf("it ignores events of %s until that is modified, which the kernel refuses for a file that is open for writing", what),
				Do:   "dump again when nobody writes to the file",

				Passes: true,
			}
		}
	}
	if err == nil {
		err = refuseRead(d, m.Mask, func(r *files.Removed) bool {
			switch m.On {
			case procfs.OnMount:
				return uint32(r.Mount) == m.ID
			case procfs.OnFilesystem:
				return r.On(m.Dev)
			}
			return r.On(m.Dev) && (r.Ino == m.Ino || s.Path == r.Dir && m.Mask&unix.FAN_EVENT_ON_CHILD != 0)
		})
	}
	if err != nil {
		return nil, err
	}
	if st == nil && s.File.IsZero() {
		return nil, &object.Unsupported{
			What: fmt.Sprintf("it has a mark on something to which no path leads that the kernel remembers (%s): it was removed or unmounted, or nobody has used its name for long", what),
			Do:   "if it is still there, look at it by its name (ls -l) and dump again",
		}
	}
	if st != nil {
		s.Mode = st.Mode
	}
	return s, nil
}

// FanotifyKind is the kind of fanotify groups.
var FanotifyKind = object.NewFileKind("file.fanotify", claims(kernelview.KindFanotify, "anon_inode:[fanotify]"), dumpFanotify, restoreFanotify).Late()

// FanotifyObject is the record of a group itself.
var FanotifyObject = object.NewKind(fanotifyType, restoreFanotifyObject)

// FanotifyLink is the record of what a group watches.
var FanotifyLink = object.NewKind(fanotifyMarksType, restoreMarks)
