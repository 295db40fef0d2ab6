package files

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/stream"
)

// A regular file that has a name. Its contents stay in the file system: the image holds the path, and the restore
// opens it again. The file must still be a regular file, and not shorter than the position that the process had in it
// (or than it was, when the position lay behind its end): a program that reads on would otherwise meet an end of file
// that was not there. Shown by /proc/PID/fd, fdinfo and fcntl(F_GETFL), proc_pid_fd(5).
//
// The path is checked at dump: a file whose path leads to another file by now (replaced, mounted over) is refused
// rather than mistaken. One whose name is gone is a deleted file, see deleted.go, unless other names of it remain.
//
// A file of a control group that is not there any more is replaced, see cgroup.go.
//
// Lost: O_TMPFILE in F_GETFL of a file that was linked into the file system later.
type regularState struct {
	Path  string `msgpack:"path"`
	Flags uint32 `msgpack:"flags"` // as F_GETFL
	Mode  uint32 `msgpack:"mode"`  // st_mode at dump
	Size  int64  `msgpack:"size"`  // bytes, at dump
	Pos   int64  `msgpack:"pos,omitempty"`

	Cgroup bool `msgpack:"cgroup,omitempty"` // it belongs to a control group
}

// File systems (linux/magic.h) whose files do something when they are opened or cannot be opened by name.
const (
	debugfsMagic   = 0x64626720
	tracefsMagic   = 0x74726163
	secretmemMagic = 0x5345434d
	pidfsMagic     = 0x50494446
)

func claimsRegular(_ *object.Dumper, f *object.OpenFile) bool {
	if !isType(f, unix.S_IFREG) || !isPath(f.Link) || f.Stat.Nlink == 0 || isOPath(f) {
		return false
	}
	switch fsType(f) {
	case unix.PROC_SUPER_MAGIC, debugfsMagic, tracefsMagic, secretmemMagic, pidfsMagic, unix.NSFS_MAGIC:
		return false
	}
	return true
}

func dumpRegular(_ *object.Dumper, f *object.OpenFile) (*regularState, error) {
	p, err := pathOf(f)
	if err != nil {
		return nil, err
	}
	flags, err := Flags(f)
	if err != nil {
		return nil, err
	}
	if flags&tmpfileFlag != 0 {
		flags &^= tmpfileFlag | unix.O_DIRECTORY // it has a name now, by which it can be opened
	}
	if odd := flags &^ (openFlags | largefile()); odd != 0 {
		return nil, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	pos, err := position(f)
	if err != nil {
		return nil, err
	}
	return &regularState{Path: p, Flags: flags, Mode: f.Stat.Mode, Size: f.Stat.Size, Pos: pos, Cgroup: onCgroup(fsType(f))}, nil
}

func restoreRegular(r *object.Restorer, _ stream.Ref, s *regularState) (int, error) {
	if err := checkFlags(s.Flags, openFlags&^unix.O_PATH); err != nil {
		return -1, err
	}
	if s.Mode&unix.S_IFMT != unix.S_IFREG || s.Pos < 0 || s.Size < 0 {
		return -1, object.BadImagef("%s: mode %#o, size %d or position %d of a regular file is impossible", clip(s.Path), s.Mode, s.Size, s.Pos)
	}
	p := s.Path
	pinned, st, err := pin(p, unix.S_IFREG, s.Flags&unix.O_NOFOLLOW != 0)
	if errors.Is(err, unix.ENOENT) && s.Cgroup {
		if other := cgroupStandIn(p); other != "" {
			if r.Warn != nil {
				r.Warn("%s is not there any more, %s stands in for it", p, other)
			}
			p = other
			pinned, st, err = pin(p, unix.S_IFREG, s.Flags&unix.O_NOFOLLOW != 0)
		}
	}
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	if need := min(s.Pos, s.Size); st.Size < need {
		return -1, fmt.Errorf("%s has %d bytes now and was open at byte %d of %d", s.Path, st.Size, s.Pos, s.Size)
	}
	fd, err := openPinned(p, pinned, st, s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", p, err)
	}
	if err := seek(fd, s.Pos); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", p, err)
	}
	return fd, nil
}

// RegularKind is the kind of regular files that have a name.
var RegularKind = object.NewFileKind("file.regular", claimsRegular, dumpRegular, restoreRegular)
