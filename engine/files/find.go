package files

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Inode is what fdinfo shows of an inode that is watched (inotify_fdinfo in fs/notify/fdinfo.c).
type Inode struct {
	Dev        uint32 // of the file system, as the kernel writes it: minor in the low 20 bits
	Ino        uint64
	HandleType uint32 // of name_to_handle_at(2)
	Handle     []byte // empty: the file system has none
}

func (in *Inode) on(m *procfs.Mount) bool {
	return m.Major == in.Dev>>20 && m.Minor == in.Dev&(1<<20-1)
}

// Finder finds paths of inodes that no descriptor leads to, as a process sees them.
type Finder struct {
	d      *object.Dumper
	p      *object.Process
	mounts []procfs.Mount
	root   string // what the mount points are relative to
	near   []string
	looked bool // near is filled
}

// NewFinder returns a Finder for what a process sees.
func NewFinder(d *object.Dumper, p *object.Process) (*Finder, error) {
	s, err := sightOf(p)
	if err != nil {
		return nil, err
	}
	f := &Finder{d: d, p: p}
	if s.same {
		f.mounts, err = procfs.ReadSelfMountinfo()
		return f, err
	}
	if s.root != "/" {
		f.root = s.root
	}
	data, err := os.ReadFile(path.Dir(s.dir) + "/mountinfo")
	if err != nil {
		return nil, err
	}
	f.mounts, err = procfs.ParseMountinfo(data)
	return f, err
}

// Path returns a path that leads to an inode now, and what is there; "" when none is found. names are the paths within
// its file system that the kernel remembers. Nothing is opened but with O_PATH, which breaks no lease and tells no
// watcher.
func (f *Finder) Path(in *Inode, names []string) (string, *unix.Stat_t, error) {
	try := func(paths []string) (string, *unix.Stat_t, error) {
		for _, p := range paths {
			if st, err := f.leads(p, in); err != nil || st != nil {
				return p, st, err
			}
		}
		return "", nil, nil
	}
	for _, more := range []func() []string{
		func() []string { return f.mounted(in, names) },
		func() []string { return f.byHandle(in) },
		f.nearby,
	} {
		if p, st, err := try(more()); err != nil || st != nil {
			return p, st, err
		}
	}
	return "", nil, nil
}

// FSType returns the name of the type of the file system that an inode is on, "" when it is not mounted.
func (f *Finder) FSType(in *Inode) string {
	for i := range f.mounts {
		if in.on(&f.mounts[i]) {
			return f.mounts[i].FSType
		}
	}
	return ""
}

// mounted returns where names of a file system can be seen.
func (f *Finder) mounted(in *Inode, names []string) []string {
	var out []string
	for i := range f.mounts {
		m := &f.mounts[i]
		if !in.on(m) {
			continue
		}
		for _, name := range names {
			rest, ok := strings.CutPrefix(name, strings.TrimSuffix(m.Root, "/"))
			if ok && (rest == "" || rest[0] == '/') {
				out = append(out, path.Clean(f.root+m.Point+"/"+rest))
			}
		}
	}
	return out
}

// Mounted returns a mount point, and what is there, of a mount that the process sees and that fits, one by which it can be reached
// now: the root of a mount that no other one hides. "" when there is none.
func (f *Finder) Mounted(fits func(m *procfs.Mount) bool) (string, *unix.Stat_t, error) {
	for i := range f.mounts {
		m := &f.mounts[i]
		if !fits(m) {
			continue
		}
		p := path.Clean(f.root + "/" + m.Point)
		at, err := reach(f.p, p)
		if err != nil {
			continue
		}
		fd, err := sys.Open(at, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		id, is, err := MountRoot(fd.Int())
		if err == nil {
			err = unix.Fstat(fd.Int(), &st)
		}
		_ = fd.Close() // only looked at
		if err != nil {
			return "", nil, fmt.Errorf("looking at %s: %w", p, err)
		}
		if is && id == uint64(m.ID) {
			return p, &st, nil
		}
	}
	return "", nil, nil
}

// MountRoot says on which mount an open file is, and whether it is the root of that.
func MountRoot(fd int) (id uint64, is bool, err error) {
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &x); err != nil {
		return 0, false, err
	}
	return x.Mnt_id, x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// byHandle asks the file system itself, which needs CAP_DAC_READ_SEARCH; it knows the names of directories, and those of
// other files that are in use.
func (f *Finder) byHandle(in *Inode) []string {
	var out []string
	for i := range f.mounts {
		m := &f.mounts[i]
		if len(in.Handle) == 0 || !in.on(m) {
			continue
		}
		at, err := reach(f.p, path.Clean(f.root+m.Point))
		if err != nil {
			continue
		}
		fd, err := openByHandle(at, in)
		if err != nil {
			continue
		}
		if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
			out = append(out, link)
			if m.Point != "/" { // of another mount namespace, in which it is shown as if it were the root
				out = append(out, path.Clean(f.root+m.Point+"/"+link))
			}
		}
		_ = unix.Close(fd)
	}
	return out
}

// openByHandle opens an inode with O_PATH by its handle, on the mount of a directory. A descriptor of that would have to be
// more than a path (open_by_handle_at(2)), and to open it is an event that somebody may watch for: so a thread goes there
// which has a working directory of its own and ends.
func openByHandle(dir string, in *Inode) (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		at, e := sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err = e; err != nil {
			return
		}
		defer at.Close()
		if err = unix.Fchdir(at.Int()); err != nil {
			return
		}
		fd, err = unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(int32(in.HandleType), in.Handle), unix.O_PATH|unix.O_CLOEXEC)
	}()
	<-done
	return fd, err
}

// maxNear bounds the guesses.
const maxNear = 4096

// nearby returns the paths of what the tree has open, and the directories of these: who watches a file, or the directory
// that it lies in, mostly has it open too.
func (f *Finder) nearby() []string {
	if f.looked {
		return f.near
	}
	f.looked = true
	seen := map[string]bool{}
	add := func(p string) {
		for ; isPath(p) && len(f.near) < maxNear && !seen[p]; p = path.Dir(p) {
			seen[p] = true
			f.near = append(f.near, p)
		}
	}
	for _, p := range f.d.Processes {
		pid := p.Leader().TID
		fds, _ := procfs.Descriptors(pid)
		links := []string{procfs.Path(pid, "cwd"), procfs.Path(pid, "root"), procfs.Path(pid, "exe")}
		for _, fd := range fds {
			links = append(links, procfs.Path(pid, fmt.Sprintf("fd/%d", fd)))
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil {
				add(to)
			}
		}
	}
	return f.near
}

// leads says what is at a path if that is the inode, nil if not.
func (f *Finder) leads(p string, in *Inode) (*unix.Stat_t, error) {
	at, err := reach(f.p, p)
	if err != nil {
		return nil, nil
	}
	fd, err := sys.Open(at, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil
	}
	defer fd.Close()
	var x unix.Statx_t
	if err := unix.Statx(fd.Int(), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &x); err != nil {
		return nil, fmt.Errorf("looking at %s: %w", p, err)
	}
	if !slices.ContainsFunc(f.mounts, func(m procfs.Mount) bool { return uint64(m.ID) == x.Mnt_id && in.on(&m) }) {
		return nil, nil
	}
	st := &unix.Stat_t{}
	if err := unix.Fstat(fd.Int(), st); err != nil {
		return nil, fmt.Errorf("looking at %s: %w", p, err)
	}
	if len(in.Handle) == 0 {
		if st.Ino != in.Ino {
			return nil, nil
		}
		return st, nil
	}
	const handleFID = 0x200 // AT_HANDLE_FID, Linux 6.5: a handle that may be of no use to open the file by
	for _, how := range []int{0, handleFID} {
		h, _, err := unix.NameToHandleAt(fd.Int(), "", unix.AT_EMPTY_PATH|how)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("asking for a handle of %s: %w", p, err)
		}
		if uint32(h.Type()) == in.HandleType && bytes.Equal(h.Bytes(), in.Handle) {
			return st, nil
		}
	}
	return nil, nil
}

// Pinned is a file that was looked at by its path in the mount namespace in which files are opened, to be reached again later by
// whatever thread.
type Pinned struct {
	path     string
	dev, ino uint64
}

// Pin looks at what path leads to, whose type must be that of mode.
func Pin(path string, mode uint32) (*Pinned, error) {
	fd, st, err := pin(path, mode, true)
	if err != nil {
		return nil, err
	}
	_ = fd.Close() // only looked at
	return &Pinned{path, uint64(st.Dev), st.Ino}, nil
}

// Open opens it with O_PATH, beneath a descriptor of the root directory of that namespace.
func (p *Pinned) Open(root int) (*sys.FD, error) {
	f, err := p.open(root)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.Int(), &st); err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "stat", Path: p.path, Err: err}
	}
	if uint64(st.Dev) != p.dev || st.Ino != p.ino {
		_ = f.Close()
		return nil, fmt.Errorf("%s was replaced while it was being looked at", p.path)
	}
	return f, nil
}

// OpenMount is Open for a mount point. What is mounted there need not be what it was: a /proc of the tree's own pid namespace comes
// with its tasks.
func (p *Pinned) OpenMount(root int) (*sys.FD, error) {
	f, err := p.open(root)
	if err != nil {
		return nil, err
	}
	_, is, err := MountRoot(f.Int())
	if err == nil && !is {
		err = fmt.Errorf("%s is no mount point here", p.path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (p *Pinned) open(root int) (*sys.FD, error) {
	// The way begins at root however many slashes it has (RESOLVE_IN_ROOT, Linux 5.6).
	fd, err := unix.Openat2(root, p.path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.path, Err: err}
	}
	return sys.NewFD(fd), nil
}
