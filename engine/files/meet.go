package files

import (
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
		name := strconv.Itoa(fd)
		n, err := unix.Readlinkat(m.dir.Int(), name, m.buf)
		if err == nil && n < len(m.buf) {
			f := &object.OpenFile{Process: m.p, FD: fd, Path: m.path + "/" + name, Link: string(m.buf[:n]), View: v, Named: true}
			if isPath(f.Link) && unix.Lstat(f.Link, &f.Stat) == nil && isType(f, unix.S_IFREG) && uint64(f.Stat.Dev) == v.Dev.V && f.Stat.Ino == v.Ino.V {
				return f, nil
			}
		}
	}
	return object.Meet(m.p, fd, v)
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
