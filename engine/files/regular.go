package files

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A regular file that has a name. Its contents stay in the file system: the image holds the path, and the restore
// opens it again. The file must still be a regular file, and not shorter than the position that the process had in it
// (or than it was, when the position lay behind its end): a program that reads on would otherwise meet an end of file
// that was not there. Shown by /proc/PID/fd, fdinfo and fcntl(F_GETFL), proc_pid_fd(5).
//
// A file that has another size or was modified since is another file to the program, and refused unless the user allows it
// (--allow-changed), or it is a log, open for nothing but to append to it, that grew. A copy with the same size and modification time (cp -p, rsync -t, on another machine too) is taken for
// the file itself: inode numbers are not compared.
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
	// Modify is st_mtime at dump in ns since 1970; 0: the file system makes it up.
	Modify int64 `msgpack:"mtime,omitempty"`
	Hint   uint8 `msgpack:"hint,omitempty"` // RWH_WRITE_LIFE_*

	Cgroup bool `msgpack:"cgroup,omitempty"` // it belongs to a control group
}

// File systems (linux/magic.h) whose files do something when they are opened or cannot be opened by name.
const (
	debugfsMagic   = 0x64626720
	tracefsMagic   = 0x74726163
	secretmemMagic = 0x5345434d
	pidfsMagic     = 0x50494446
	configfsMagic  = 0x62656570
	mqueueMagic    = 0x19800202
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
	if err := refuseUnseen(f); err != nil {
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
	hint, err := writeHint(f)
	if err != nil {
		return nil, err
	}
	s := &regularState{Path: p, Flags: flags, Mode: f.Stat.Mode, Size: f.Stat.Size, Pos: pos, Hint: hint, Cgroup: onCgroup(fsType(f))}
	if !madeUp(fsType(f)) {
		s.Modify = f.Stat.Mtim.Nano()
	}
	return s, nil
}

// appends says whether the file can only be written to at its end, wherever that is: a log that others write to as well.
func (s *regularState) appends() bool {
	return s.Flags&unix.O_APPEND != 0 && s.Flags&unix.O_ACCMODE == unix.O_WRONLY
}

// madeUp says whether the files of a file system are not stored anywhere: what they hold, their sizes and times, is what
// the kernel makes of it at each moment (linux/magic.h).
func madeUp(fs int64) bool {
	switch fs {
	case unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.SMACK_MAGIC,
		unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC, unix.BINFMTFS_MAGIC, unix.PROC_SUPER_MAGIC, unix.RDTGROUP_SUPER_MAGIC,
		configfsMagic, mqueueMagic:
		return true
	}
	return false
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
	if !(s.appends() && st.Size >= s.Size) {
		if err := r.Unchanged(p, st, s.Size, s.Modify); err != nil {
			return -1, err
		}
	}
	if s.Hint > 5 {
		return -1, object.BadImagef("%s: write hint %d is impossible", clip(s.Path), s.Hint)
	}
	fd, err := openPinned(p, pinned, st, s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", p, err)
	}
	if err := seek(fd, s.Pos); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", p, err)
	}
	if s.Hint != 0 { // it belongs to the inode, which may have kept it
		if err := sys.SetWriteHint(fd, uint64(s.Hint)); err != nil && r.Warn != nil {
			r.Warn("%s: its write hint %d (F_SET_RW_HINT) cannot be set: %v", p, s.Hint, err)
		}
	}
	return fd, nil
}

// RegularKind is the kind of regular files that have a name.
var RegularKind = object.NewFileKind("file.regular", claimsRegular, dumpRegular, restoreRegular).Independent()
