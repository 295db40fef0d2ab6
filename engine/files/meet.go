package files

import (
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// meeter looks at the open files of one descriptor table. Where the kernel view tells an inode's numbers, and they are what stat(2)
// shows, two system calls do for a regular file: one tells its path, the other what is there now, and that it is the file itself.
type meeter struct {
	p      *object.Process
	opened bool
	dir    *sys.FD // /proc/PID/fd, when it is first wanted; nil: paths do not mean the same to this process
	path   string  // of that
	buf    []byte
	seen   map[int]sighting // by number, of lookAhead
}

// sighting is what a path that /proc shows of a descriptor leads to: the file itself.
type sighting struct {
	link string
	stat unix.Stat_t
	ok   bool
}

func newMeeter(p *object.Process) *meeter { return &meeter{p: p} }

func (m *meeter) open() error {
	if m.opened {
		return nil
	}
	m.opened = true
	s, err := sightOf(m.p)
	if err != nil {
		return m.p.Error("descriptors", err)
	}
	if !s.same {
		return nil
	}
	m.path = procfs.Path(m.p.Leader().TID, "fd")
	if m.dir, err = sys.Open(m.path, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return m.p.Error("descriptors", err)
	}
	m.buf = make([]byte, pathMax)
	return nil
}

func (m *meeter) close() { _ = m.dir.Close() }

// meet is object.Meet.
func (m *meeter) meet(fd int, v *kernelview.File) (*object.OpenFile, error) {
	if err := m.open(); err != nil {
		return nil, err
	}
	if m.dir != nil && numbered(v) {
		s, looked := m.seen[fd]
		if !looked {
			s = m.look(fd, v, m.buf)
		}
		if s.ok {
			return &object.OpenFile{Process: m.p, FD: fd, Path: m.path + "/" + strconv.Itoa(fd), Link: s.link, Stat: s.stat, View: v, Named: true}, nil
		}
	}
	return object.Meet(m.p, fd, v)
}

// look needs nothing that changes but buf, which is for a path.
func (m *meeter) look(fd int, v *kernelview.File, buf []byte) (s sighting) {
	n, err := unix.Readlinkat(m.dir.Int(), strconv.Itoa(fd), buf)
	if err != nil || n == len(buf) {
		return s
	}
	s.link = string(buf[:n])
	s.ok = isPath(s.link) && unix.Lstat(s.link, &s.stat) == nil && s.stat.Mode&unix.S_IFMT == unix.S_IFREG &&
		uint64(s.stat.Dev) == v.Dev.V && s.stat.Ino == v.Ino.V
	return s
}

// manyFiles is how many descriptors are looked at ahead, on all processors: below a quarter of that it does not pay.
const manyFiles = 1024

// lookAhead looks at the next descriptors of a table that want counts for, and forgets those before.
func (m *meeter) lookAhead(fds []kernelview.FD, want func(*kernelview.File) bool) error {
	m.seen = nil
	if len(fds) < manyFiles/4 || runtime.GOMAXPROCS(0) < 2 {
		return nil
	}
	if err := m.open(); err != nil || m.dir == nil {
		return err
	}
	var todo []kernelview.FD
	for _, fd := range fds {
		if numbered(fd.File) && want(fd.File) {
			todo = append(todo, fd)
		}
	}
	found := make([]sighting, len(todo))
	half := len(todo) / 2
	look := func(from, to int, buf []byte) {
		for i := from; i < to; i++ {
			found[i] = m.look(todo[i].FD, todo[i].File, buf)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		look(half, len(todo), make([]byte, pathMax))
	}()
	look(0, half, m.buf)
	<-done
	m.seen = make(map[int]sighting, len(todo))
	for i := range todo {
		m.seen[todo[i].FD] = found[i]
	}
	return nil
}

// numbered says whether the kernel view knows a regular file's device and inode numbers, on a file system of which stat(2) shows just
// these: not one that makes up its own, as btrfs and overlayfs do.
func numbered(v *kernelview.File) bool {
	if mode, ok := v.Mode.Get(); !ok || uint32(mode)&unix.S_IFMT != unix.S_IFREG || !v.Dev.Known || !v.Ino.Known {
		return false
	}
	fs, ok := v.FSType.Get()
	return ok && (fs == unix.EXT4_SUPER_MAGIC || fs == unix.XFS_SUPER_MAGIC || fs == unix.TMPFS_MAGIC || fs == unix.RAMFS_MAGIC)
}
