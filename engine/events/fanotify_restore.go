package events

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/stream"
)

// madeFanotify is a group at restore.
type madeFanotify struct {
	state *fanotifyState
	file  stream.Ref // zero until its open file is met
	marks []pinnedMark
	root  int // of the mount namespace of the tree, in the pool; set with the first mark
	fd    int // of the file, by StartWatches
}

type pinnedMark struct {
	fanotifyMark
	on   procfs.MarkedObject
	kind uint          // FAN_MARK_INODE and so on
	at   *files.Pinned // nil: there is
	fd   int           // an open file, in the pool
}

func restoreFanotifyObject(r *object.Restorer, ref stream.Ref, s *fanotifyState) error {
	if odd := s.Init &^ fanotifyInit; odd != 0 {
		return object.BadImagef("a fanotify group was made with flags (%#x) that do not exist", odd)
	}
	r.Remember(ref, &madeFanotify{state: s})
	return nil
}

func restoreFanotify(r *object.Restorer, ref stream.Ref, s *fanotifyFileState) (int, error) {
	m, err := object.Recall[madeFanotify](r, s.Fanotify)
	if err != nil {
		return -1, err
	}
	if !m.file.IsZero() {
		return -1, object.BadImagef("two open files are the same fanotify group")
	}
	fd, err := m.state.init()
	if err != nil {
		return -1, err
	}
	unix.CloseOnExec(fd)
	m.file = ref
	// FAN_NONBLOCK may have been taken back since.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0); err != nil {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, fmt.Errorf("setting status flags: %w", err)
	}
	return finish(fd, s.Flags)
}

// init makes the group, as a thread without CAP_SYS_ADMIN where it was one.
func (s *fanotifyState) init() (fd int, err error) {
	if !s.Unprivileged {
		fd, err = unix.FanotifyInit(uint(s.Init), uint(s.EventFlags))
	} else {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // which ends with the goroutine
			if err = withoutAdmin(); err == nil {
				fd, err = unix.FanotifyInit(uint(s.Init), uint(s.EventFlags))
			}
		}()
		<-done
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return -1, &object.Lacking{What: fmt.Sprintf("making a fanotify group with flags %#x", s.Init), Err: err, Do: "restore as root (CAP_SYS_ADMIN)"}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return -1, &object.Lacking{What: fmt.Sprintf("making a fanotify group with flags %#x and event flags %#x", s.Init, s.EventFlags), Err: err,
			Do: "restore on a kernel that knows these flags of fanotify_init(2)"}
	case errors.Is(err, unix.EMFILE):
		return -1, &object.Lacking{What: "one more fanotify group", Err: err, Do: "raise the limit in /proc/sys/fs/fanotify/max_user_groups"}
	case err != nil:
		return -1, fmt.Errorf("making a fanotify group: %w", err)
	}
	return fd, nil
}

// withoutAdmin takes CAP_SYS_ADMIN from the calling thread for ever.
func withoutAdmin() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("asking for capabilities: %w", err)
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("giving up CAP_SYS_ADMIN: %w", err)
	}
	return nil
}

// restoreMarks looks whether what was marked is there. Nothing is watched yet.
func restoreMarks(r *object.Restorer, _ stream.Ref, s *fanotifyMarks) error {
	m, err := object.Recall[madeFanotify](r, s.Fanotify)
	if err != nil {
		return err
	}
	for _, k := range s.Marks {
		p := pinnedMark{fanotifyMark: k}
		i := slices.IndexFunc(markTypes, func(t markType) bool { return t.name == k.On })
		if i < 0 || k.Flags&^fanotifyMarkFlags != 0 || !k.File.IsZero() && k.On != "" {
			return object.BadImagef("a mark of a fanotify group on %q with flags %#x is impossible", k.On, k.Flags)
		}
		p.on, p.kind = markTypes[i].on, markTypes[i].flag
		switch {
		case p.on == procfs.OnMountNamespace:
			if p.fd, err = mountNamespace(); err == nil {
				p.fd, err = r.Pool(p.fd)
			}
			if err != nil {
				return fmt.Errorf("opening the mount namespace that is to be watched: %w", err)
			}
			r.Late(p.fd)
		case !k.File.IsZero():
			p.fd, err = watchedFile(r, k.File, k.Path)
		default:
			p.at, err = files.Pin(k.Path, k.Mode)
		}
		if err != nil {
			return fmt.Errorf("looking at what fanotify is to watch: %w", err)
		}
		m.marks = append(m.marks, p)
	}
	if len(m.marks) == 0 {
		return nil
	}
	return watchRoot(r, &m.root)
}

// mountNamespace opens that of the calling thread, which need not have a /proc there: by its pidfd (Linux 6.11, before such marks).
func mountNamespace() (int, error) {
	const getMountNamespace = unix.BLKRRPART&^0xffff | 0xff<<8 | 3 // PIDFD_GET_MNT_NAMESPACE, _IO(0xFF, 3) of linux/pidfd.h; BLKRRPART is an _IO too
	self, err := unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
	if err != nil {
		return -1, fmt.Errorf("opening the own thread: %w", err)
	}
	defer unix.Close(self)
	fd, err := unix.IoctlRetInt(self, getMountNamespace)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	return fd, err
}

func (m *madeFanotify) hold(r *object.Restorer, keep func(fd *int)) (err error) {
	if m.file.IsZero() {
		return object.BadImagef("no open file is one of the fanotify groups")
	}
	if m.fd, err = r.File(m.file); err != nil {
		return err
	}
	keep(&m.fd)
	if len(m.marks) > 0 {
		keep(&m.root)
	}
	for i := range m.marks {
		if k := &m.marks[i]; k.at == nil {
			keep(&k.fd)
		}
	}
	return nil
}

func (m *madeFanotify) start() error {
	for i := range m.marks {
		k := &m.marks[i]
		if err := k.add(m.fd, m.root); err != nil {
			return fmt.Errorf("having fanotify watch %s: %w", k.name(), err)
		}
	}
	return m.check()
}

func (k *pinnedMark) name() string {
	if k.on == procfs.OnMountNamespace {
		return "the mount namespace"
	}
	return cmp.Or(k.Path, "a removed file")
}

func (k *pinnedMark) add(fd, root int) error {
	of := k.fd
	directory := false
	if k.at != nil {
		open := k.at.Open
		if k.on != procfs.OnInode {
			open = k.at.OpenMount
		}
		at, err := open(root)
		if err != nil {
			return err
		}
		defer at.Close()
		of = at.Int()
		directory = k.on == procfs.OnInode && k.Mode&unix.S_IFMT == unix.S_IFDIR
	}
	mark := func(flags uint, mask uint32) error {
		err := unix.FanotifyMark(fd, flags|k.kind|uint(k.Flags)&unix.FAN_MARK_EVICTABLE, uint64(mask), unix.AT_FDCWD, fmt.Sprintf("/proc/thread-self/fd/%d", of))
		switch {
		case errors.Is(err, unix.ENOSPC):
			return &object.Lacking{What: "one more mark", Err: err, Do: "raise the limit in /proc/sys/fs/fanotify/max_user_marks"}
		case errors.Is(err, unix.EPERM):
			return &object.Lacking{What: "the mark", Err: err, Do: "restore as root (CAP_SYS_ADMIN)"}
		}
		return err
	}
	ignore := uint(unix.FAN_MARK_IGNORED_MASK) | uint(k.Flags)&unix.FAN_MARK_IGNORED_SURV_MODIFY
	if k.Flags&unix.FAN_MARK_IGNORE != 0 {
		ignore = uint(k.Flags) & unix.FAN_MARK_IGNORE_SURV
	}
	if k.Mask != 0 {
		if err := mark(unix.FAN_MARK_ADD, k.Mask); err != nil {
			return err
		}
	}
	if k.Ignored != 0 {
		return mark(unix.FAN_MARK_ADD|ignore, k.Ignored)
	}
	if k.Mask != 0 && k.Flags&unix.FAN_MARK_IGNORE_SURV == 0 {
		return nil
	}
	// An ignored mask was here once, or a whole mark: by a bit that has no meaning there, and that the kernel therefore leaves out
	// except where it means the files of a directory.
	if err := mark(unix.FAN_MARK_ADD|ignore, unix.FAN_EVENT_ON_CHILD); err != nil || !directory || k.Flags&unix.FAN_MARK_IGNORE == 0 {
		return err
	}
	return mark(unix.FAN_MARK_REMOVE|ignore, unix.FAN_EVENT_ON_CHILD)
}

// check reads the marks back. The kernel may have dropped those that it was allowed to.
func (m *madeFanotify) check() error {
	if len(m.marks) == 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", m.fd))
	if err != nil {
		return fmt.Errorf("reading the marks of a fanotify group: %w", err)
	}
	info, err := procfs.ParseFdinfo(b)
	if err != nil {
		return fmt.Errorf("reading the marks of a fanotify group: %w", err)
	}
	if info.Fanotify == nil {
		return errors.New("reading the marks of a fanotify group: fdinfo does not show them")
	}
	have := info.Fanotify.Marks
	slices.Reverse(have)
	for i := range m.marks {
		k := &m.marks[i]
		if len(have) > 0 && have[0].On == k.on && have[0].Flags == k.Flags && have[0].Mask == k.Mask && have[0].Ignored == k.Ignored {
			have = have[1:]
		} else if k.Flags&unix.FAN_MARK_EVICTABLE == 0 {
			return fmt.Errorf("the kernel does not let fanotify watch %s as it did (it was to have flags %#x, mask %#x and ignored mask %#x); another mark may be of the same by now, or somebody writes to it",
				k.name(), k.Flags, k.Mask, k.Ignored)
		}
	}
	return nil
}
