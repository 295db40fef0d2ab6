package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/stream"
)

// A directory. The position is a value that the file system makes up (telldir(3)); set again on the same directory it
// leads to the same next entry on every file system of Linux. A removed directory cannot be opened again and is
// refused.
type directoryState struct {
	Path  string `msgpack:"path"`
	Flags uint32 `msgpack:"flags"` // as F_GETFL
	Pos   int64  `msgpack:"pos,omitempty"`
}

func claimsDirectory(_ *object.Dumper, f *object.OpenFile) bool {
	return isType(f, unix.S_IFDIR) && isPath(f.Link) && !isOPath(f) && fsType(f) != unix.PROC_SUPER_MAGIC
}

func dumpDirectory(_ *object.Dumper, f *object.OpenFile) (*directoryState, error) {
	p, err := directoryPath(f)
	if err != nil {
		return nil, err
	}
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	pos, err := position(f)
	if err != nil {
		return nil, err
	}
	return &directoryState{Path: p, Flags: flags, Pos: pos}, nil
}

func directoryPath(f *object.OpenFile) (string, error) {
	if f.Stat.Nlink == 0 {
		return "", object.Unsupportedf("a directory that was removed cannot be checkpointed")
	}
	return pathOf(f)
}

func restoreDirectory(_ *object.Restorer, _ stream.Ref, s *directoryState) (int, error) {
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
