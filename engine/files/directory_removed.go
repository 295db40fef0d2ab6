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

// A directory that was removed while a process was in it or had it open (rmdir(2)): empty, and nothing can be made in it
// any more. It is an object of its own, which all who have it share, and is made again in the directory where it was, or
// the nearest one above that is there, by its own name if that is free, and removed. Lost: the inode number, and where the name is
// taken or the directory above is gone, the name that /proc shows.
type removedState struct {
	Dir  string `msgpack:"dir"`  // absolute
	Name string `msgpack:"name"` // in it
	attributes
}

// removedDirectory is one at restore.
type removedDirectory struct {
	fd int // in the pool
}

type removedKey struct{ dev, ino uint64 }

const removedType stream.Type = "directory.removed"

func isRemoved(f *object.OpenFile) bool { return isType(f, unix.S_IFDIR) && f.Stat.Nlink == 0 }

// dumpRemoved adds the record of a removed directory, the first time that it is met.
func dumpRemoved(d *object.Dumper, f *object.OpenFile) (stream.Ref, error) {
	return d.Once(removedKey{uint64(f.Stat.Dev), f.Stat.Ino}, func() (stream.Ref, error) {
		const cgroup, cgroup2 = 0x27e0eb, 0x63677270 // linux/magic.h
		switch fsType(f) {
		case cgroup, cgroup2, unix.PROC_SUPER_MAGIC:
			return stream.Ref{}, object.Unsupportedf("a directory of the kernel's own that was removed cannot be checkpointed")
		}
		dir, ok := deletedPlace(f)
		if !ok {
			return stream.Ref{}, object.Unsupportedf("a directory that was removed, with all above it on its file system, cannot be checkpointed")
		}
		a, err := readAttributes(f)
		if err != nil {
			return stream.Ref{}, err
		}
		a.Size = 0
		return d.Add(removedType, &removedState{Dir: dir, Name: path.Base(strings.TrimSuffix(f.Link, deletedSuffix)), attributes: *a}), nil
	})
}

func restoreRemoved(r *object.Restorer, ref stream.Ref, s *removedState) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := checkPath(s.Dir); err != nil {
		return err
	}
	if s.Size != 0 || s.Name == "" || s.Name == "." || s.Name == ".." || len(s.Name) > 255 || strings.ContainsAny(s.Name, "/\x00") {
		return object.BadImagef("%q is no name of a directory that was removed, or it has contents", clip(s.Name))
	}
	fd, err := makeRemoved(s.Dir, s.Name)
	if err != nil {
		return fmt.Errorf("making a directory in %s and removing it: %w", clip(s.Dir), err)
	}
	m := &removedDirectory{}
	if m.fd, err = r.Pool(fd.Disown()); err != nil {
		return err
	}
	if err := s.dressDirectory(m.fd); err != nil {
		return fmt.Errorf("removed directory %s/%s: %w", clip(s.Dir), clip(s.Name), err)
	}
	r.Remember(ref, m)
	return nil
}

// makeRemoved makes a directory in dir, or the nearest one above that is there, and removes it again.
func makeRemoved(dir, name string) (*sys.FD, error) {
	at, err := sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for ; (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) && path.Dir(dir) != dir; at, err = sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0) {
		dir = path.Dir(dir)
	}
	if err != nil {
		return nil, err
	}
	defer at.Close()
	own := name
	for try := 0; ; try++ {
		err := unix.Mkdirat(at.Int(), name, 0o700)
		if errors.Is(err, unix.EEXIST) && try < 1000 {
			name = fmt.Sprintf(".cr-restore.%d.%d", unix.Getpid(), try)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", clip(own), err)
		}
		fd, err := sys.OpenAt(at.Int(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		// Only what is empty goes: had somebody put another one in its place, this would fail.
		if e := unix.Unlinkat(at.Int(), name, unix.AT_REMOVEDIR); e != nil {
			err = errors.Join(err, fmt.Errorf("removing %s/%s: %w", dir, name, e))
		}
		if err != nil && fd != nil {
			err = errors.Join(err, fd.Close())
		}
		return fd, err
	}
}

// dressDirectory gives the directory its attributes.
func (a *attributes) dressDirectory(fd int) error {
	if err := a.setInodeFlags(fd, keptIFlags&^guardIFlags); err != nil {
		return err
	}
	if err := a.own(fd); err != nil {
		return err
	}
	for _, x := range a.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("setting extended attribute %s: %w", x.Name, err)
		}
	}
	if err := a.setTimes(fd); err != nil {
		return err
	}
	return a.setInodeFlags(fd, guardIFlags)
}

// openRemoved opens a removed directory once more.
func openRemoved(r *object.Restorer, ref stream.Ref, flags uint32) (int, error) {
	m, err := object.Recall[removedDirectory](r, ref)
	if err != nil {
		return -1, err
	}
	fd, err := reopen(m.fd, flags)
	if err != nil {
		return -1, fmt.Errorf("opening a directory that was removed: %w", err)
	}
	return fd, nil
}

// RemovedDirectoryObject is the record of such a directory.
var RemovedDirectoryObject = object.NewKind(removedType, restoreRemoved)
