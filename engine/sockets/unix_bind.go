package sockets

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// The text of a path that a socket is bound to is what everybody is told who asks for its address, whatever has become of the file.
// So the socket is bound with that text, but in a directory made for it, which for the moment of bind(2) is the root and the working
// directory of the thread that calls it. From there it is renamed to where it was found, or removed. What connects to it before that
// reaches it through descriptors.

// namedFile is the file of a socket that was bound to a path.
type namedFile struct {
	state *unixPath // where it is to be; nil: nowhere
	dir   int       // in the pool: the directory that it is in
	base  string    // its name there
	inode *sys.FD   // itself, O_PATH

	target  *sys.FD // the directory where it is to be
	name    string  // and its name there
	settled bool
}

// placeOf returns where, below the directory that is the root, a path leads to: all its directories are made for it, so that none is
// a symbolic link.
func placeOf(text string) (string, error) {
	at := path.Clean("/" + text)
	if at == "/" || strings.HasSuffix(text, "/") || strings.HasSuffix(text, "/.") || strings.HasSuffix(text, "/..") || text == "." || text == ".." || strings.IndexByte(text, 0) >= 0 {
		return "", object.BadImagef("%q is no path of a socket", clip(text))
	}
	return at, nil
}

func (s *unixPath) check() error {
	if s == nil {
		return nil
	}
	if !strings.HasPrefix(s.Path, "/") || path.Clean(s.Path) != s.Path || s.Path == "/" || len(s.Path) > 4095 || strings.IndexByte(s.Path, 0) >= 0 || s.Mode&^0o7777 != 0 {
		return object.BadImagef("%q is no path of a socket, or its mode %#o none", clip(s.Path), s.Mode)
	}
	return nil
}

// bind binds a socket to the address of m.
func (w *unixWorld) bind(m *madeUnix, fd int, to *unixPath) error {
	if m.Address[0] == 0 {
		if err := sys.Bind(fd, unixSockaddr(m.Address)); err != nil {
			if errors.Is(err, unix.EADDRINUSE) {
				return &object.Lacking{What: fmt.Sprintf("the name %s of a unix socket is taken", addressText(m.Address)), Err: err,
					Do: "end who has it, or restore in a network namespace of its own (unshare --net)"}
			}
			return fmt.Errorf("binding a unix socket to %s: %w", addressText(m.Address), err)
		}
		return nil
	}
	text := string(m.Address[:len(m.Address)-1])
	at, err := placeOf(text)
	if err != nil {
		return err
	}
	b := &namedFile{state: to, base: path.Base(at)}
	parents := []string{os.TempDir(), "/tmp", "/var/tmp", "/dev/shm", "/run", "/"}
	if to != nil {
		if err := b.aim(); err != nil {
			return err
		}
		parents = []string{path.Dir(to.Path)}
	}
	root, err := w.room(parents)
	if err != nil {
		return fmt.Errorf("binding a unix socket to %s: %w", text, err)
	}
	// Also those that the path leaves again by "..".
	parts := strings.Split(text, "/")
	dir := "/"
	for _, part := range parts[:len(parts)-1] {
		dir = path.Join(dir, part)
		if err := os.Mkdir(root+dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making the directory of a socket: %w", err)
		}
	}
	if err := w.below(root, func() error { return sys.Bind(fd, unixSockaddr(m.Address)) }); err != nil {
		return fmt.Errorf("binding a unix socket to %s: %w", addressText(m.Address), err)
	}
	in, err := unix.Open(root+path.Dir(at), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root + path.Dir(at), Err: err}
	}
	if b.dir, err = w.r.Pool(in); err != nil {
		return err
	}
	if b.inode, err = sys.Open(root+at, unix.O_PATH|unix.O_NOFOLLOW, 0); err != nil {
		return err
	}
	w.r.OnClose(func() { _ = b.inode.Close() }) // O_PATH
	// Whoever is to be told to have connected may write to it, for the time being.
	if err := os.Chmod(root+at, 0o777); err != nil {
		return err
	}
	m.place = b
	return nil
}

// room makes a directory that is removed when the restore ends.
func (w *unixWorld) room(parents []string) (string, error) {
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	var first error
	for _, p := range parents {
		dir := path.Join(p, ".crpipe-"+hex.EncodeToString(random))
		if err := os.Mkdir(dir, 0o755); err != nil {
			first = errors.Join(first, err)
			continue
		}
		// The thread may be in another mount namespace by then.
		at, err := sys.Open(p, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
		w.r.OnClose(func() {
			_ = removeAll(at.Int(), path.Base(dir)) // what is left does no harm, and has a telling name
			_ = at.Close()
		})
		return dir, nil
	}
	return "", first
}

// removeAll removes a directory with all directories and sockets in it, of which there are only those that were made here.
func removeAll(at int, name string) error {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
			return unix.Unlinkat(at, name, 0)
		}
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	for _, n := range names {
		err = errors.Join(err, removeAll(fd, n))
	}
	return errors.Join(err, unix.Unlinkat(at, name, unix.AT_REMOVEDIR))
}

// below calls f while the root and the working directory of its thread are dir.
func (w *unixWorld) below(dir string, f func() error) error {
	inside := func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		root, err := sys.Open("/", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer root.Close()
		if err := unix.Chroot(dir); err != nil {
			return &object.Lacking{What: "binding a unix socket to a path needs chroot(2)", Err: err, Do: "run cr-restore as root, or give it CAP_SYS_CHROOT"}
		}
		err = unix.Chdir("/")
		if err == nil {
			err = f()
		}
		return errors.Join(err, unix.Fchdir(root.Int()), unix.Chroot("."))
	}
	if w.r.Elsewhere { // the thread is in the mount namespace of the tree, and shares its root with none
		return inside()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- inside()
	}()
	return <-done
}

// aim looks at the place where the file of a socket is to be. What is there already must be a socket that nobody has any more: one
// is left behind by everybody who ends without unlink(2).
func (b *namedFile) aim() error {
	dir, name := path.Split(b.state.Path)
	var err error
	if b.target, err = sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return fmt.Errorf("opening the directory of a socket: %w", err)
	}
	b.name = name
	return b.free()
}

// free says whether the place is free.
func (b *namedFile) free() error {
	var st unix.Stat_t
	err := unix.Fstatat(b.target.Int(), b.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &os.PathError{Op: "stat", Path: b.state.Path, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s was a socket when it was dumped, and is something else now", b.state.Path)
	}
	at, err := unix.Openat(b.target.Int(), b.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: b.state.Path, Err: err}
	}
	defer unix.Close(at)
	used, err := inUse(at)
	if err != nil {
		return fmt.Errorf("looking whether %s is in use: %w", b.state.Path, err)
	}
	if used {
		return &object.Lacking{What: b.state.Path + " is the socket of another process", Do: "end that process"}
	}
	return nil
}

// inUse says whether a socket is bound to the file that fd leads to. Connecting to it with a socket of a type that fits not is
// refused in one way if there is one (EPROTOTYPE) and in another if there is none (unix_find_bsd in net/unix/af_unix.c), and does
// nothing in either.
func inUse(fd int) (bool, error) {
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		probe, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		err = connectNow(probe, unixSockaddr(append([]byte(ownLink(fd)), 0)))
		_ = unix.Close(probe) // nothing went through it
		switch {
		case errors.Is(err, unix.EPROTOTYPE):
			return true, nil
		case errors.Is(err, unix.ECONNREFUSED) && typ == unix.SOCK_DGRAM:
			return false, nil
		case err == nil || errors.Is(err, unix.EPERM): // a datagram socket, or one that is connected to somebody else
			return true, nil
		case err != nil:
			return false, err
		}
	}
	return true, nil
}

// settle puts the file where it is to be, when nothing else can fail, or removes it.
func (b *namedFile) settle(r *object.Restorer) error {
	if b.settled {
		return nil
	}
	b.settled = true
	if b.state == nil {
		return os.NewSyscallError("unlinkat", unix.Unlinkat(b.dir, b.base, 0))
	}
	if err := unix.Fchownat(b.dir, b.base, int(b.state.UID), int(b.state.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting owner %d:%d of %s: %w", b.state.UID, b.state.GID, b.state.Path, err)
	}
	if err := unix.Fchmodat(b.dir, b.base, b.state.Mode, 0); err != nil {
		return fmt.Errorf("setting mode %#o of %s: %w", b.state.Mode, b.state.Path, err)
	}
	times := []unix.Timespec{unix.NsecToTimespec(b.state.Access), unix.NsecToTimespec(b.state.Modify)}
	if err := unix.UtimesNanoAt(b.dir, b.base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the times of %s: %w", b.state.Path, err)
	}
	if err := b.free(); err != nil {
		return err
	}
	if err := unix.Renameat(b.dir, b.base, b.target.Int(), b.name); err != nil {
		return fmt.Errorf("putting the socket %s into its place: %w", b.state.Path, err)
	}
	r.Undo(func() { _ = unix.Unlinkat(b.target.Int(), b.name, 0) }) // made by this restore, which has failed
	return nil
}

// reach is a path by which this process reaches the socket's file, wherever that is.
func (b *namedFile) reach() string { return ownLink(b.inode.Int()) }

func ownLink(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// connectNow connects by an address that a thread in the own mount namespace can find, without waiting: the caller may be in that of
// the tree. A goroutine of its own never is on the caller's thread then, which is locked.
func connectNow(fd int, address []byte) error {
	done := make(chan error)
	go func() { done <- sys.Connect(fd, address) }()
	return <-done
}
