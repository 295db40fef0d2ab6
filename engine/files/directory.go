package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/stream"
)

// A directory. The position is a value that the file system makes up (telldir(3)); set again on the same directory it
// leads to the same next entry on every file system of Linux. One that was removed is an object of its own
// (directory_removed.go).
type directoryState struct {
	Path    string     `msgpack:"path,omitempty"`
	Removed stream.Ref `msgpack:"removed,omitempty"` // in place of a path

	Flags uint32 `msgpack:"flags"` // as F_GETFL
	Pos   int64  `msgpack:"pos,omitempty"`
}

func claimsDirectory(_ *object.Dumper, f *object.OpenFile) bool {
	return isType(f, unix.S_IFDIR) && isPath(f.Link) && (!isOPath(f) || isRemoved(f)) && fsType(f) != unix.PROC_SUPER_MAGIC
}

func dumpDirectory(d *object.Dumper, f *object.OpenFile) (*directoryState, error) {
	s := &directoryState{}
	var err error
	if s.Path, s.Removed, err = dumpPlace(d, f); err != nil {
		return nil, err
	}
	if s.Flags, err = dumpFlags(f); err != nil {
		return nil, err
	}
	if isOPath(f) {
		return s, nil
	}
	if err = refuseUnseen(f); err != nil {
		return nil, err
	}
	s.Pos, err = position(f)
	return s, err
}

// dumpPlace returns the path of a directory, or what it is where it has been removed.
func dumpPlace(d *object.Dumper, f *object.OpenFile) (string, stream.Ref, error) {
	if isRemoved(f) {
		ref, err := dumpRemoved(d, f)
		return "", ref, err
	}
	p, err := pathOf(f)
	return p, stream.Ref{}, err
}

func restoreDirectory(r *object.Restorer, _ stream.Ref, s *directoryState) (int, error) {
	if !s.Removed.IsZero() {
		if err := checkFlags(s.Flags, openFlags); err != nil {
			return -1, err
		}
		fd, err := openRemoved(r, s.Removed, s.Flags)
		if err != nil || s.Flags&unix.O_PATH != 0 {
			return fd, err
		}
		if err := seek(fd, s.Pos); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	if err := checkFlags(s.Flags, openFlags&^unix.O_PATH); err != nil {
		return -1, err
	}
	pinned, st, err := pin(s.Path, unix.S_IFDIR, s.Flags&unix.O_NOFOLLOW != 0)
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	fd, err := openPinned(s.Path, pinned, st, s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", s.Path, err)
	}
	if err := seek(fd, s.Pos); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", s.Path, err)
	}
	return fd, nil
}

// DirectoryKind is the kind of open directories.
var DirectoryKind = object.NewFileKind("file.directory", claimsDirectory, dumpDirectory, restoreDirectory)
