package files

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// deletedSuffix is what d_path appends to the name of an unlinked file; a file may also be named so.
const deletedSuffix = " (deleted)"

const pathMax = 4096 // PATH_MAX with the NUL, limits.h

// sight is how the caller reaches what a process sees.
type sight struct {
	of   *object.Process
	same bool   // in the caller's own mount namespace
	dir  string // /proc/PID/root
	root string // what that leads to
	from vantage
}

// A vantage is what makes processes of one tree see the same, as the kernel view tells it.
type vantage struct {
	tree       *object.Process // its root
	namespaces kernelview.ID
	root       kernelview.Place
}

// vantageOf returns the zero value where it is not known.
func vantageOf(proc *object.Process) vantage {
	view := proc.Leader().View
	if view == nil || !view.Namespaces.Known || !view.Root.Known {
		return vantage{}
	}
	top := proc
	for top.Parent != nil {
		top = top.Parent
	}
	return vantage{top, view.Namespaces.V, view.Root.V}
}

// lastSight is the sight of the process that was looked at last: files are met process by process.
var lastSight struct {
	sync.Mutex
	sight
}

func sightOf(proc *object.Process) (*sight, error) {
	lastSight.Lock()
	defer lastSight.Unlock()
	from := vantageOf(proc)
	if s := lastSight.sight; s.of == proc || s.of != nil && s.root == "/" && from.tree != nil && s.from == from {
		return &s, nil
	}
	pid := proc.Leader().TID
	own, err := procfs.ThreadNamespace(os.Getpid(), unix.Gettid(), "mnt")
	if err != nil {
		return nil, err
	}
	its, err := procfs.Namespace(pid, "mnt")
	if err != nil {
		return nil, err
	}
	s := sight{of: proc, same: own == its, from: from}
	// An ancestor that is in the same mount namespace (the whole tree is) and has not called chroot(2) sees more.
	for q := proc; q != nil && (q == proc || s.root != "/"); q = q.Parent {
		dir := procfs.Path(q.Leader().TID, "root")
		root, err := os.Readlink(dir)
		if err != nil {
			return nil, err
		}
		if q == proc || root == "/" {
			s.dir, s.root = dir, root
		}
	}
	lastSight.sight = s
	return &s, nil
}

// reach returns a path by which the caller reaches what the process sees as p. In the caller's own mount namespace
// that is p itself, since the kernel shows links relative to the root of whoever reads them; in another one the way
// goes through /proc/PID/root.
func reach(proc *object.Process, p string) (string, error) {
	s, err := sightOf(proc)
	if err != nil {
		return "", err
	}
	if s.same {
		return p, nil
	}
	if s.root == "/" {
		return s.dir + p, nil
	}
	if rest, ok := strings.CutPrefix(p, s.root); ok && (rest == "" || rest[0] == '/') {
		return s.dir + rest, nil
	}
	return "", object.Unsupportedf("%s lies outside of the process's root directory %s in another mount namespace, where it cannot be looked at", p, s.root)
}

// lookup looks at what p names for the process, without following a symbolic link at its end.
func lookup(proc *object.Process, p string) (st unix.Stat_t, err error) {
	at, err := reach(proc, p)
	if err != nil {
		return st, err
	}
	err = unix.Lstat(at, &st)
	return st, err
}

func same(a, b *unix.Stat_t) bool { return a.Dev == b.Dev && a.Ino == b.Ino }

// isPath says whether a link of /proc/PID/fd is a path at all and not the name of something without one.
func isPath(link string) bool { return strings.HasPrefix(link, "/") }

// pathOf returns the path that leads to the open file at this moment. A file whose own name is gone may have another
// one (a hard link).
func pathOf(f *object.OpenFile) (string, error) {
	if f.Named {
		return f.Link, nil
	}
	st, err := lookup(f.Process, f.Link)
	if err == nil && same(&st, &f.Stat) {
		return f.Link, nil
	}
	var refused *object.Unsupported
	if errors.As(err, &refused) {
		return "", err
	}
	name, deleted := strings.CutSuffix(f.Link, deletedSuffix)
	if !deleted {
		if err != nil {
			return "", &object.Unsupported{
				What: fmt.Sprintf("its path does not lead to it any more: %v", err),
				Do:   "a file system was unmounted or something was mounted over it; undo that before the dump",
			}
		}
		return "", &object.Unsupported{
			What: "its path leads to another file now",
			Do:   "something was put or mounted over the open file; undo that before the dump",
		}
	}
	if p := otherName(f, path.Dir(name)); p != "" {
		return p, nil
	}
	return "", &object.Unsupported{
		What: fmt.Sprintf("its name was removed, but %d other names of it remain in places that the kernel does not tell, not among the %d nearest or not found in %v", f.Stat.Nlink, searchEntries, searchTime),
		Do:   "remove the other hard links, or make one of them in " + path.Dir(name),
	}
}

// mountOf returns the id of the mount that holds what name leads to; the last symbolic link is followed, which for a
// link of /proc opens nothing.
func mountOf(name string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, name, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("this kernel does not tell mount ids (Linux 5.8)")
	}
	return st.Mnt_id, nil
}

// checkPath refuses a path in an image that no open file can have had.
func checkPath(p string) error {
	switch {
	case !isPath(p):
		return object.BadImagef("%q is not an absolute path", clip(p))
	case len(p) >= pathMax:
		return object.BadImagef("a path of %d bytes is too long", len(p))
	case strings.IndexByte(p, 0) >= 0:
		return object.BadImagef("path %q has a NUL byte in it", clip(p))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// pin opens what p names with O_PATH, which neither blocks nor acts on anything, and checks its type, a value of
// S_IFMT.
func pin(p string, typ uint32, nofollow bool) (*sys.FD, *unix.Stat_t, error) {
	if err := checkPath(p); err != nil {
		return nil, nil, err
	}
	flags := unix.O_PATH
	if nofollow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := sys.Open(p, flags, 0)
	if err != nil {
		return nil, nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil {
		_ = fd.Close() // nothing was done through it
		return nil, nil, fmt.Errorf("looking at %s: %w", p, err)
	}
	if st.Mode&unix.S_IFMT != typ&unix.S_IFMT {
		_ = fd.Close()
		return nil, nil, fmt.Errorf("%s is %s now, it was %s when it was dumped", p, typeName(st.Mode), typeName(typ))
	}
	return fd, &st, nil
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFBLK:
		return "a block device"
	}
	return "of no known type"
}

// fsType returns the magic number of the file system that an open file lies on, as statfs(2) gives it.
func fsType(f *object.OpenFile) int64 {
	if v, ok := f.View.FSType.Get(); ok {
		return int64(v)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.Path, &st); err != nil {
		return 0
	}
	return int64(st.Type)
}

func isType(f *object.OpenFile, typ uint32) bool { return f.Stat.Mode&unix.S_IFMT == typ }

// isOPath says whether a file was opened with O_PATH.
func isOPath(f *object.OpenFile) bool {
	if f.FD < 0 {
		return false
	}
	flags, err := Flags(f)
	return err == nil && flags&unix.O_PATH != 0
}

// openPinned opens the file that was pinned under path p, with the flags of the image. O_NOFOLLOW shows in F_GETFL
// and can only be had by opening the name; what is opened is then compared with what was looked at.
func openPinned(p string, pinned *sys.FD, st *unix.Stat_t, flags uint32) (int, error) {
	if flags&unix.O_NOFOLLOW == 0 {
		return reopen(pinned.Int(), flags)
	}
	how := int(flags)
	if flags&unix.O_PATH == 0 {
		how |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	fd, err := sys.Open(p, how, 0)
	if err != nil {
		return -1, err
	}
	var now unix.Stat_t
	if err := unix.Fstat(fd.Int(), &now); err != nil {
		_ = fd.Close()
		return -1, fmt.Errorf("looking at %s: %w", p, err)
	}
	if !same(&now, st) {
		_ = fd.Close()
		return -1, fmt.Errorf("%s was replaced while it was being opened", p)
	}
	if flags&(unix.O_NONBLOCK|unix.O_PATH) == 0 { // it was added for the opening alone
		if err := setStatus(fd.Int(), flags); err != nil {
			_ = fd.Close()
			return -1, err
		}
	}
	return fd.Disown(), nil
}

// openAny opens what p names with O_PATH, whatever it is.
func openAny(p string, nofollow bool) (*sys.FD, error) {
	flags := unix.O_PATH
	if nofollow {
		flags |= unix.O_NOFOLLOW
	}
	return sys.Open(p, flags, 0)
}
