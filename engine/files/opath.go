package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/stream"
)

// A file of any type that was opened with O_PATH (open(2)): a handle on a place in the tree of names. It has no
// position. One whose name is gone is kept when it is a regular file (deleted.go) or a
// directory (directory_removed.go), else refused.
type opathState struct {
	Path  string `msgpack:"path"`
	Flags uint32 `msgpack:"flags"` // as F_GETFL
	Mode  uint32 `msgpack:"mode"`  // st_mode at dump
}

// opathFlags are all that open(2) keeps beside O_PATH.
const opathFlags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_DIRECTORY

func claimsOPath(_ *object.Dumper, f *object.OpenFile) bool {
	if !isPath(f.Link) || !isOPath(f) || fsType(f) == unix.PROC_SUPER_MAGIC {
		return false
	}
	return f.Stat.Nlink != 0 || !isType(f, unix.S_IFREG) && !isType(f, unix.S_IFDIR)
}

func dumpOPath(_ *object.Dumper, f *object.OpenFile) (*opathState, error) {
	if f.Stat.Nlink == 0 {
		return nil, object.Unsupportedf("%s that was removed and is held with O_PATH cannot be checkpointed", typeName(f.Stat.Mode))
	}
	p, err := pathOf(f)
	if err != nil {
		return nil, err
	}
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	return &opathState{Path: p, Flags: flags, Mode: f.Stat.Mode}, nil
}

func restoreOPath(_ *object.Restorer, _ stream.Ref, s *opathState) (int, error) {
	if s.Flags&unix.O_PATH == 0 || s.Flags&^opathFlags != 0 {
		return -1, object.BadImagef("open flags %#o do not belong here", s.Flags)
	}
	pinned, st, err := pin(s.Path, s.Mode, s.Flags&unix.O_NOFOLLOW != 0 || s.Mode&unix.S_IFMT == unix.S_IFLNK)
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	fd, err := openPinned(s.Path, pinned, st, s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", s.Path, err)
	}
	return fd, nil
}

// OPathKind is the kind of files opened with O_PATH.
var OPathKind = object.NewFileKind("file.path", claimsOPath, dumpOPath, restoreOPath)
