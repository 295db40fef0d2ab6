package files

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A regular file without a name: removed while it was open or mapped, or made with O_TMPFILE. Its inode is an object
// of its own, which all its open files share; the image holds its attributes and as "data" its contents without the
// holes. It is made again, without a name, in the directory where it was (or the nearest one above that is there),
// so that it lies on the same file system.
//
// A file whose name is gone but which has others (hard links) is a regular file when one of them is found, else it is
// refused: a copy would be another file. Whether linkat(2) may give it a name (made with O_TMPFILE, without O_EXCL, and not
// linked since) only the kernel's inode says. Lost: the name that /proc/PID/fd shows ("/tmp/x (deleted)").
type deletedState struct {
	Dir        string `msgpack:"dir"`               // absolute
	Tmpfile    uint32 `msgpack:"tmpfile,omitempty"` // flags of the open file that made it with O_TMPFILE
	Linkable   bool   `msgpack:"linkable,omitempty"`
	attributes        // its fields stand beside the others
}

// deletedPlace returns the nearest directory, from where the file was upwards, that is there and on the same mount:
// what the kernel makes for itself (shared anonymous memory, memfd) is on no mount at all.
func deletedPlace(f *object.OpenFile) (string, bool) {
	name, ok := strings.CutSuffix(f.Link, deletedSuffix)
	if !ok || !isPath(name) {
		return "", false
	}
	mount, err := mountOf(f.Path)
	if err != nil {
		return "", false
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		at, err := reach(f.Process, dir)
		if err != nil {
			return "", false
		}
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			m, err := mountOf(at)
			return dir, err == nil && m == mount
		}
		if dir == "/" {
			return "", false
		}
	}
}

func claimsDeleted(_ *object.Dumper, f *object.OpenFile) bool {
	if !isType(f, unix.S_IFREG) || f.Stat.Nlink != 0 || isMemfd(f) || fsType(f) == unix.PROC_SUPER_MAGIC {
		return false
	}
	_, ok := deletedPlace(f)
	return ok
}

func dumpDeleted(d *object.Dumper, f *object.OpenFile) (*unnamedState, error) {
	if err := refuseUnseen(f); err != nil {
		return nil, err
	}
	dir, _ := deletedPlace(f)
	flags, err := Flags(f)
	if err != nil {
		return nil, err
	}
	if odd := flags &^ (openFlags | tmpfileFlag | largefile()); odd != 0 {
		return nil, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	tmpfile, err := tmpfileFlags(d, f)
	if err != nil {
		return nil, err
	}
	linkable, ok := f.View.Linkable.Get()
	if !ok && tmpfile != 0 {
		return nil, &object.Lacking{What: "the kernel view does not know whether a file of O_TMPFILE was made with O_EXCL", Do: "run cr-dump as root"}
	}
	return dumpUnnamed(d, f, flags, false, func(a *attributes) (stream.Ref, error) {
		return d.Add(deletedType, &deletedState{Dir: dir, Tmpfile: tmpfile, Linkable: linkable, attributes: *a}), nil
	})
}

// tmpfileFlags returns the flags of the open file that made f's inode with O_TMPFILE, 0 when it was made otherwise or
// nobody holds that open file any more.
func tmpfileFlags(d *object.Dumper, f *object.OpenFile) (uint32, error) {
	flags, err := Flags(f)
	if err != nil || flags&tmpfileFlag != 0 {
		return flags, err
	}
	ix, err := indexOf(d)
	if err != nil {
		return 0, err
	}
	for _, holders := range ix.holders { // at most one has the flag
		h := holders[0]
		v, ok := h.File.Flags.Get()
		if !ok || v&tmpfileFlag == 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", h.Process.Leader().TID, h.FD), &st); err == nil && same(&st, &f.Stat) {
			return v &^ kernelFlags, nil
		}
	}
	return 0, nil
}

func restoreDeletedInode(r *object.Restorer, ref stream.Ref, s *deletedState) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := checkPath(s.Dir); err != nil {
		return err
	}
	if err := checkFlags(s.Tmpfile, openFlags&^unix.O_PATH|tmpfileFlag); err != nil {
		return err
	}
	m := &madeInode{attributes: s.attributes, first: -1}
	fd, first, err := makeUnnamed(s.Dir, s.Tmpfile, s.Linkable)
	if err != nil {
		return err
	}
	if first != nil {
		if m.first, err = r.Pool(first.Disown()); err != nil {
			return errors.Join(err, fd.Close())
		}
	}
	if err := m.hold(r, ref, fd); err != nil {
		return fmt.Errorf("making a file without a name in %s: %w", s.Dir, err)
	}
	return nil
}

// makeUnnamed makes a regular file without a name in dir or the nearest directory above. With tmpfile flags first is a
// description that has them.
func makeUnnamed(dir string, tmpfile uint32, linkable bool) (fd, first *sys.FD, err error) {
	for {
		fd, first, err = makeIn(dir, tmpfile, linkable)
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) || path.Dir(dir) == dir {
			break
		}
		dir = path.Dir(dir)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("making a file without a name in %s: %w", dir, err)
	}
	return fd, first, nil
}

func makeIn(dir string, tmpfile uint32, linkable bool) (fd, first *sys.FD, err error) {
	flags := unix.O_TMPFILE | unix.O_RDWR
	access := tmpfile & unix.O_ACCMODE
	keep := tmpfile&tmpfileFlag != 0 && (access == unix.O_RDWR || access == unix.O_WRONLY)
	if keep {
		flags = int(tmpfile) | unix.O_TMPFILE
	}
	if !linkable {
		flags |= unix.O_EXCL
	}
	fd, err = sys.Open(dir, flags, 0o600)
	switch {
	case err == nil && !keep:
		return fd, nil, nil
	case err == nil:
		n, err := reopen(fd.Int(), unix.O_RDWR)
		if err != nil {
			return nil, nil, errors.Join(err, fd.Close())
		}
		return sys.NewFD(n), fd, nil
	case !linkable && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL)):
		// The file system cannot (open(2), O_TMPFILE).
		fd, err = makeAndRemove(dir)
		return fd, nil, err
	}
	return nil, nil, err
}

// makeAndRemove makes a file under a name that is gone again when it returns.
func makeAndRemove(dir string) (*sys.FD, error) {
	at, err := sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	for try := 0; ; try++ {
		name := fmt.Sprintf(".cr-restore.%d.%d", unix.Getpid(), try)
		fd, err := sys.OpenAt(at.Int(), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, unix.EEXIST) && try < 1000 {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Unlinkat(at.Int(), name, 0); err != nil {
			return nil, errors.Join(fmt.Errorf("removing %s/%s: %w", dir, name, err), fd.Close())
		}
		return fd, nil
	}
}

const deletedType stream.Type = "inode"

// DeletedKind is the kind of open files on regular files without a name.
var DeletedKind = object.NewFileKind("file.deleted", claimsDeleted, dumpDeleted, restoreUnnamed).Late()

// DeletedObject is the record of such a file itself.
var DeletedObject = object.NewKind(deletedType, restoreDeletedInode)
