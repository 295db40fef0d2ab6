package files

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A FIFO that has no name any more (unlink(2)) but is open: a pipe with an inode of its own on some file system. It is made
// again, and its name removed, in the directory where it was or the nearest one above that is there; owner, permissions,
// times and extended attributes are those of deleted files (inode.go). One that has other names is refused, as deleted
// files are, and so is an end that was opened with O_NOFOLLOW, which needs a name.
type removedFIFOState struct {
	Dir        string `msgpack:"dir"`
	Capacity   uint32 `msgpack:"capacity"` // bytes
	attributes        // its fields stand beside the others
}

const removedFIFOType stream.Type = "pipe.removed"

func removedFIFOOf(f *object.OpenFile, capacity uint32) (*removedFIFOState, error) {
	dir, ok := deletedPlace(f)
	if !ok {
		return nil, object.Unsupportedf("a FIFO whose name was removed, and its directory with it, cannot be checkpointed")
	}
	a, err := readAttributes(f)
	if err != nil {
		return nil, err
	}
	if a.IFlags != 0 || a.Size != 0 {
		return nil, object.Unsupportedf("a FIFO with inode flags (%#x), whose name was removed, cannot be checkpointed", a.IFlags)
	}
	return &removedFIFOState{Dir: dir, Capacity: capacity, attributes: *a}, nil
}

func restoreRemovedFIFO(r *object.Restorer, ref stream.Ref, s *removedFIFOState) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := checkPath(s.Dir); err != nil {
		return err
	}
	if s.Size != 0 || s.IFlags != 0 {
		return object.BadImagef("a FIFO of %d bytes and with inode flags %#x is impossible", s.Size, s.IFlags)
	}
	made, err := makeFIFO(s.Dir)
	if err != nil {
		return fmt.Errorf("making a FIFO without a name in %s: %w", s.Dir, err)
	}
	fd, err := r.Pool(made.Disown())
	if err != nil {
		return err
	}
	m := &madePipe{fifo: &fifoState{}, look: s.attributes, ends: [2]int{fd, fd}, size: s.Capacity}
	if err := m.setSize(); err != nil {
		return err
	}
	if s.Hint != 0 {
		if err := sys.SetWriteHint(fd, uint64(s.Hint)); err != nil {
			return fmt.Errorf("setting write hint %d: %w", s.Hint, err)
		}
	}
	dress := (&madeInode{attributes: s.attributes, fd: fd}).finish
	if err := dress(); err != nil {
		return fmt.Errorf("making a FIFO without a name in %s: %w", s.Dir, err)
	}
	r.Remember(ref, m)
	r.OnContent(ref, func(meta *object.Data, data []byte) error {
		return errors.Join(m.content(meta, data), m.look.setTimes(fd))
	})
	return nil
}

// makeFIFO makes a FIFO in dir, or the nearest directory above that is there, under a name that is gone again when it
// returns.
func makeFIFO(dir string) (*sys.FD, error) {
	at, err := sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) && path.Dir(dir) != dir {
		dir = path.Dir(dir)
		at, err = sys.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, err
	}
	defer at.Close()
	for try := 0; ; try++ {
		name := fmt.Sprintf(".cr-restore.%d.%d", unix.Getpid(), try)
		err := unix.Mkfifoat(at.Int(), name, 0o600)
		if errors.Is(err, unix.EEXIST) && try < 1000 {
			continue
		}
		if err != nil {
			return nil, err
		}
		fd, err := sys.OpenAt(at.Int(), name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		err = failpoint.After("restore.named", err)
		if bad := unix.Unlinkat(at.Int(), name, 0); bad != nil {
			return nil, errors.Join(fmt.Errorf("removing %s/%s: %w", dir, name, bad), err, fd.Close())
		}
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd.Int(), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return nil, errors.Join(fmt.Errorf("%s/%s was replaced while it was being opened", dir, name), err, fd.Close())
		}
		return fd, nil
	}
}

// RemovedFIFOObject is the record of a FIFO without a name; its ends are of PipeKind.
var RemovedFIFOObject = object.NewKind(removedFIFOType, restoreRemovedFIFO)
