package files

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// attributes are what an inode without a name takes along: everything that stat(2), getxattr(2), FS_IOC_GETFLAGS
// (ioctl_iflags(2)) and F_GET_RW_HINT show of it and that can be set. Lost: the change and birth times, the inode number, the
// block layout, the project id.
type attributes struct {
	Mode   uint32  `msgpack:"mode"` // permission bits with set-id and sticky bits
	UID    uint32  `msgpack:"uid"`
	GID    uint32  `msgpack:"gid"`
	Size   int64   `msgpack:"size"`  // bytes
	Access int64   `msgpack:"atime"` // ns since 1970
	Modify int64   `msgpack:"mtime"`
	Xattrs []xattr `msgpack:"xattrs,omitempty"` // in the order of their names
	IFlags uint32  `msgpack:"iflags,omitempty"` // FS_*_FL, those of keptIFlags
	Hint   uint8   `msgpack:"hint,omitempty"`   // RWH_WRITE_LIFE_*
}

// Inode flags of linux/fs.h that a program may set, and that say something about this file alone. Under the last two
// nothing can be written any more.
const (
	keptIFlags = 0x1 | 0x2 | 0x4 | // SECRM, UNRM, COMPR
		0x8 | 0x40 | 0x80 | // SYNC, NODUMP, NOATIME
		0x4000 | 0x800000 | // JOURNAL_DATA, NOCOW
		guardIFlags

	guardIFlags = 0x10 | 0x20 // IMMUTABLE, APPEND
)

type xattr struct {
	Name  string `msgpack:"name"`
	Value []byte `msgpack:"value"`
}

// unnamedState is an open file on an inode that the image holds.
type unnamedState struct {
	Inode stream.Ref `msgpack:"inode"`
	Flags uint32     `msgpack:"flags"` // as F_GETFL
	Pos   int64      `msgpack:"pos,omitempty"`
}

type inodeKey struct{ inode }

// dumpUnnamed adds, the first time that an inode is met, its record by add and its contents, and returns the state of
// the open file.
func dumpUnnamed(d *object.Dumper, f *object.OpenFile, flags uint32, sealed bool, add func(*attributes) (stream.Ref, error)) (*unnamedState, error) {
	pos, err := position(f)
	if err != nil {
		return nil, err
	}
	ref, err := d.Once(inodeKey{inodeOf(f)}, func() (stream.Ref, error) {
		a, err := readAttributes(f)
		if err != nil {
			return stream.Ref{}, err
		}
		ref, err := add(a)
		if err != nil {
			return stream.Ref{}, err
		}
		from, finish := f.Path, sealed || a.IFlags&guardIFlags != 0
		d.AddBulk(ref, func(w *stream.Writer) error {
			if err := writeContents(w, ref, from, a.Size, finish); err != nil {
				return fmt.Errorf("reading contents of %s: %w", f.Link, err)
			}
			return nil
		})
		return ref, nil
	})
	if err != nil {
		return nil, err
	}
	return &unnamedState{Inode: ref, Flags: flags, Pos: pos}, nil
}

func readAttributes(f *object.OpenFile) (*attributes, error) {
	st := &f.Stat
	a := &attributes{
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Size: st.Size,
		Access: st.Atim.Nano(), Modify: st.Mtim.Nano(),
	}
	var err error
	if a.Hint, err = writeHint(f); err != nil {
		return nil, err
	}
	if a.IFlags, err = inodeFlags(f); err != nil {
		return nil, err
	}
	names, err := listXattrs(f.Path)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return a, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing extended attributes: %w", err)
	}
	for _, name := range names {
		value, err := getXattr(f.Path, name)
		if errors.Is(err, unix.ENODATA) {
			continue // listed but not there: an ACL that says no more than the mode
		}
		if err != nil {
			return nil, fmt.Errorf("reading extended attribute %s: %w", name, err)
		}
		a.Xattrs = append(a.Xattrs, xattr{name, value})
	}
	slices.SortFunc(a.Xattrs, func(x, y xattr) int { return cmp.Compare(x.Name, y.Name) })
	return a, nil
}

// writeHint returns what F_GET_RW_HINT says of a file.
func writeHint(f *object.OpenFile) (uint8, error) {
	if v, ok := f.View.WriteHint.Get(); ok {
		return v, nil
	}
	if f.FD < 0 || isOPath(f) {
		return 0, nil
	}
	fd, err := f.Descriptor()
	if err != nil {
		return 0, err
	}
	hint, err := sys.WriteHint(fd)
	if errors.Is(err, unix.EINVAL) { // before Linux 4.13
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading the write hint: %w", err)
	}
	return uint8(hint), nil
}

// inodeFlags returns the flags of the inode that are kept. They are asked for through the open file itself: opening the file
// once more could break a lease.
func inodeFlags(f *object.OpenFile) (uint32, error) {
	if f.FD < 0 && isType(f, unix.S_IFDIR) { // somebody is in it; a directory has no leases
		fd, err := sys.Open(f.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME, 0)
		if err != nil {
			return 0, err
		}
		defer fd.Close()
		flags, err := unix.IoctlGetInt(fd.Int(), unix.FS_IOC_GETFLAGS)
		if noInodeFlags(err) {
			return 0, nil
		}
		return uint32(flags) & keptIFlags, err
	}
	if f.FD < 0 {
		return 0, nil
	}
	fd, err := f.Descriptor()
	if err != nil {
		return 0, err
	}
	if isOPath(f) { // it answers to nothing: ask through another one
		n, err := reopen(fd, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOATIME)
		if err != nil {
			return 0, fmt.Errorf("opening a deleted file: %w", err)
		}
		defer unix.Close(n)
		fd = n
	}
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if noInodeFlags(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading inode flags: %w", err)
	}
	return uint32(flags) & keptIFlags, nil
}

// noInodeFlags says that the file system has none.
func noInodeFlags(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

// setInodeFlags gives the file behind fd its flags, as far as mask says: a new one may have some from its directory.
func (a *attributes) setInodeFlags(fd int, mask uint32) error {
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if noInodeFlags(err) && a.IFlags == 0 {
		return nil
	}
	want := uint32(flags)&^mask | a.IFlags&mask
	if err == nil && want != uint32(flags) {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(want))
	}
	if err != nil {
		return fmt.Errorf("setting inode flags %#x (FS_IOC_SETFLAGS): %w", a.IFlags, err)
	}
	return nil
}

func listXattrs(path string) ([]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(path, buf)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

func getXattr(path, name string) ([]byte, error) {
	n, err := unix.Getxattr(path, name, nil)
	if err != nil {
		return nil, err
	}
	value := make([]byte, n)
	if n == 0 {
		return value, nil
	}
	n, err = unix.Getxattr(path, name, value)
	if err != nil {
		return nil, err
	}
	return value[:n], nil
}

// writeContents writes what the file at path holds as data records, leaving out holes (lseek(2) SEEK_DATA). The file
// is opened anew, so that no position of the tree moves. With finish a last record without bytes says that all is
// there.
func writeContents(w *stream.Writer, ref stream.Ref, path string, size int64, finish bool) error {
	fd, err := sys.Open(path, unix.O_RDONLY|unix.O_NOATIME|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	buf := make([]byte, min(size, stream.MaxPayload))
	for at := int64(0); at < size; {
		start, err := unix.Seek(fd.Int(), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return fmt.Errorf("looking for data: %w", err)
		}
		end, err := unix.Seek(fd.Int(), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("looking for a hole: %w", err)
		}
		end = min(end, size)
		for at = start; at < end; {
			n, err := unix.Pread(fd.Int(), buf[:min(int64(len(buf)), end-at)], at)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("the file ends at byte %d of %d; somebody changed it", at, size)
			}
			if err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: uint64(at)}, buf[:n]); err != nil {
				return err
			}
			at += int64(n)
		}
	}
	if finish {
		return w.Put(object.TypeData, 0, &object.Data{Of: ref, Extend: uint64(size)}, nil)
	}
	return nil
}

// madeInode is an inode without a name at restore.
type madeInode struct {
	attributes
	fd    int // in the pool: the one through which contents are written
	first int // in the pool: the description that made it with O_TMPFILE, -1: none or taken
	seals int // to be added when all contents are there
}

// check refuses attributes that no inode can have.
func (a *attributes) check() error {
	if a.Mode&^0o7777 != 0 || a.Size < 0 {
		return object.BadImagef("mode %#o and size %d of a file are impossible", a.Mode, a.Size)
	}
	if a.IFlags&^keptIFlags != 0 || a.Hint > 5 {
		return object.BadImagef("inode flags %#x and write hint %d of a file are impossible", a.IFlags, a.Hint)
	}
	for i := range a.Xattrs {
		if name := a.Xattrs[i].Name; name == "" || len(name) > 255 || strings.IndexByte(name, 0) >= 0 {
			return object.BadImagef("%q is no name of an extended attribute", clip(name))
		}
	}
	return nil
}

// dress gives the inode its size and attributes.
func (m *madeInode) dress() error {
	if err := m.setInodeFlags(m.fd, keptIFlags&^guardIFlags); err != nil {
		return err
	}
	if err := unix.Ftruncate(m.fd, m.Size); err != nil {
		return fmt.Errorf("setting size %d: %w", m.Size, err)
	}
	if m.Hint != 0 {
		if err := sys.SetWriteHint(m.fd, uint64(m.Hint)); err != nil {
			return fmt.Errorf("setting write hint %d: %w", m.Hint, err)
		}
	}
	if err := m.finish(); err != nil {
		return err
	}
	if m.Size == 0 && m.seals == 0 { // no contents will come
		return m.setInodeFlags(m.fd, guardIFlags)
	}
	return nil
}

// own sets owner and permissions.
func (a *attributes) own(fd int) error {
	if err := unix.Fchown(fd, int(a.UID), int(a.GID)); err != nil {
		return fmt.Errorf("setting owner %d:%d: %w", a.UID, a.GID, err)
	}
	if err := unix.Fchmod(fd, a.Mode); err != nil {
		return fmt.Errorf("setting mode %#o: %w", a.Mode, err)
	}
	return nil
}

func (a *attributes) setTimes(fd int) error {
	times := []unix.Timespec{unix.NsecToTimespec(a.Access), unix.NsecToTimespec(a.Modify)}
	dir, err := ownDescriptors()
	if err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(dir.Int(), strconv.Itoa(fd), times, 0); err != nil {
		return fmt.Errorf("setting times: %w", err)
	}
	return nil
}

// finish sets again what writing to a file takes away: the times, set-id bits and file capabilities.
func (m *madeInode) finish() error {
	if err := m.own(m.fd); err != nil {
		return err
	}
	for _, x := range m.Xattrs {
		if err := unix.Fsetxattr(m.fd, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("setting extended attribute %s: %w", x.Name, err)
		}
	}
	return m.setTimes(m.fd)
}

// content writes one piece of the contents.
func (m *madeInode) content(meta *object.Data, data []byte) error {
	if len(meta.Packets) > 0 || meta.Offset > math.MaxInt64 || int64(meta.Offset) > m.Size || int64(len(data)) > m.Size-int64(meta.Offset) {
		return object.BadImagef("contents at byte %d lie behind the end of a file of %d bytes", meta.Offset, m.Size)
	}
	for at := int64(meta.Offset); len(data) > 0; {
		n, err := unix.Pwrite(m.fd, data, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing contents of a deleted file: %w", err)
		}
		at += int64(n)
		data = data[n:]
	}
	if err := m.finish(); err != nil {
		return err
	}
	if meta.Extend == 0 && m.Size != 0 {
		return nil
	}
	if err := m.setInodeFlags(m.fd, guardIFlags); err != nil {
		return err
	}
	if m.seals == 0 {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(m.fd), unix.F_ADD_SEALS, m.seals); err != nil {
		return fmt.Errorf("sealing a memfd with %#x: %w", m.seals, err)
	}
	m.seals = 0
	return nil
}

// hold moves the inode's descriptor into the pool and makes the inode known as ref.
func (m *madeInode) hold(r *object.Restorer, ref stream.Ref, fd *sys.FD) error {
	var err error
	if m.fd, err = r.Pool(fd.Disown()); err != nil {
		return err
	}
	if err := m.dress(); err != nil {
		return err
	}
	r.Remember(ref, m)
	r.OnContent(ref, m.content)
	return nil
}

func restoreUnnamed(r *object.Restorer, _ stream.Ref, s *unnamedState) (int, error) {
	if err := checkFlags(s.Flags, openFlags|tmpfileFlag); err != nil {
		return -1, err
	}
	if s.Pos < 0 {
		return -1, object.BadImagef("position %d of a file is impossible", s.Pos)
	}
	m, err := object.Recall[madeInode](r, s.Inode)
	if err != nil {
		return -1, err
	}
	var fd int
	if s.Flags&tmpfileFlag != 0 && m.first >= 0 {
		fd, err = dup(m.first)
		m.first = -1
	} else {
		flags := s.Flags &^ tmpfileFlag
		if s.Flags&tmpfileFlag != 0 {
			flags &^= unix.O_DIRECTORY // O_TMPFILE shows as both
		}
		fd, err = reopen(m.fd, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("opening a deleted file: %w", err)
	}
	if s.Flags&unix.O_PATH != 0 {
		return fd, nil
	}
	if err := seek(fd, s.Pos); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
