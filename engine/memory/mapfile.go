package memory

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// File is the record of a file that is mapped or executed. A mapping keeps a file open for itself, but of that open file it
// shows nothing but the file and whether it may be written to, so that this record, unlike those of descriptors, is about the
// file. The kernel shows it as /proc/PID/map_files/START-END (needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the initial
// user namespace).
type File struct {
	Path string `msgpack:"path"`
	Size uint64 `msgpack:"size,omitempty"` // bytes, when it was dumped
	// BuildID identifies the build of an ELF file: the GNU build id, else Go's; empty for none.
	BuildID []byte `msgpack:"build_id,omitempty"`
	Zero    bool   `msgpack:"zero,omitempty"` // the device 1:5, /dev/zero
	// Deleted: it has no name any more, and its contents follow in data records. Path is the name that it had.
	Deleted bool `msgpack:"deleted,omitempty"`
	// Modify is its modification time in ns since 1970, when nothing else tells that it is the same: no build id.
	Modify int64  `msgpack:"mtime,omitempty"`
	Mode   uint32 `msgpack:"mode,omitempty"` // permissions, of a deleted one
	UID    uint32 `msgpack:"uid,omitempty"`
	GID    uint32 `msgpack:"gid,omitempty"`
	// Flock is "shared" or "exclusive" where the open file of all its mappings is locked so (mapflock.go).
	Flock string `msgpack:"flock,omitempty"`
}

const deletedSuffix = " (deleted)"

var zeroDevice = unix.Mkdev(1, 5)

// fileKey is the identity of a mapped file in a dump.
type fileKey struct {
	dev, ino uint64
	path     string
}

// mapped is what a mapping shows, as far as the dump of its address space needs it.
type mapped struct {
	ref     stream.Ref
	shm     bool
	open    bool // an open file
	deleted bool
	segment *segUse // of System V shared memory
}

// look reads what is behind a /proc link to a file.
func look(path string) (link string, st unix.Stat_t, err error) {
	if link, err = os.Readlink(path); err == nil {
		// Following the link does not open the file, so that a lease on it is not broken.
		if err = unix.Stat(path, &st); err != nil {
			err = fmt.Errorf("looking at %s: %w", path, err)
		}
	}
	if errors.Is(err, unix.EPERM) {
		err = &object.Lacking{What: "reading " + path, Err: err, Do: "following /proc/PID/map_files needs CAP_CHECKPOINT_RESTORE; without it only files that their name still leads to can be mapped"}
	}
	return link, st, err
}

// lookByName finds a mapped file by the name that maps shows, for those who may not follow map_files. It is the right one only
// if it has the device and inode number that maps shows as well, which file systems with devices of their own (btrfs, overlayfs) may
// show otherwise.
func (m *mmDump) lookByName(v *procfs.SmapsVMA) (link string, st unix.Stat_t, path string, ok bool) {
	link = strings.ReplaceAll(v.Path, `\012`, "\n")
	if !filepath.IsAbs(link) || strings.HasSuffix(link, deletedSuffix) {
		return "", st, "", false
	}
	path = procfs.Path(m.tid, "root") + link
	if unix.Lstat(path, &st) != nil || st.Ino != v.Inode || unix.Major(st.Dev) != v.Major || unix.Minor(st.Dev) != v.Minor {
		return "", st, "", false
	}
	return link, st, path, true
}

// file dumps the file behind a /proc link of the process: a mapping or the executable. v is the mapping through which it
// was met, nil for the executable.
func (m *mmDump) file(path string, v *procfs.SmapsVMA) (mapped, error) {
	link, st, err := look(path)
	if errors.Is(err, unix.EPERM) && v != nil {
		var named bool
		if link, st, path, named = m.lookByName(v); named {
			err = nil
		}
	}
	if err != nil {
		return mapped{}, err
	}
	name := strings.TrimSuffix(link, deletedSuffix)
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == zeroDevice:
		return m.addFile(fileKey{st.Dev, st.Ino, link}, &File{Path: link, Zero: true}, path)
	case st.Mode&unix.S_IFMT == unix.S_IFCHR:
		return mapped{}, object.Unsupportedf("character device %d:%d cannot be checkpointed", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case link == ringLink && v != nil:
		return m.ring(v)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return mapped{}, object.Unsupportedf("%s cannot be checkpointed", link)
	case name == "/secretmem":
		return mapped{}, object.Unsupportedf("secret memory (memfd_secret) cannot be checkpointed")
	case strings.HasPrefix(name, "/memfd:") && v != nil:
		return m.openFile(path, v)
	case strings.HasPrefix(name, "/memfd:"):
		return mapped{}, object.Unsupportedf("a memfd as its executable cannot be checkpointed")
	}
	internal, err := shmDevice()
	if err != nil {
		return mapped{}, err
	}
	if st.Dev == internal {
		switch {
		case link == "/dev/zero"+deletedSuffix && v != nil:
			return m.shm(path, &st)
		case strings.HasPrefix(name, sysvPrefix):
			if v == nil {
				return mapped{}, object.Unsupportedf("System V shared memory as its executable cannot be checkpointed")
			}
			return m.segment(path, name, &st)
		}
		return mapped{}, object.Unsupportedf("memory of a driver (%s) cannot be checkpointed", link)
	}
	f := &File{Path: link, Size: uint64(st.Size)}
	if v != nil && v.Offset == 0 {
		f.BuildID = m.buildID(v)
	}
	if m.leadsTo(link, &st) {
		if len(f.BuildID) == 0 {
			f.Modify = st.Mtim.Nano()
		}
		return m.addFile(fileKey{st.Dev, st.Ino, link}, f, path)
	}
	if st.Nlink > 0 {
		return mapped{}, object.Unsupportedf("the file is not found by its name any more, which was %s", name)
	}
	if name == link {
		return mapped{}, object.Unsupportedf("the file has no name that can be found")
	}
	also, err := m.alsoHeld(&st)
	if err != nil {
		return mapped{}, err
	}
	switch {
	case also != "" && v == nil:
		return mapped{}, object.Unsupportedf("a deleted executable that is also %s cannot be checkpointed", also)
	case also != "":
		return m.openFile(path, v)
	}
	f.Path, f.Deleted, f.Mode, f.UID, f.GID = name, true, st.Mode&0o7777, st.Uid, st.Gid
	return m.addFile(fileKey{st.Dev, st.Ino, link}, f, path)
}

// openFile dumps a mapped file as an open one, on an inode that descriptors and other mappings may have too.
func (m *mmDump) openFile(path string, v *procfs.SmapsVMA) (mapped, error) {
	ref, err := files.Mapped(m.d, m.p, path, v.Prot&procfs.ProtShared != 0 && v.Flags.Has("mw"))
	return mapped{ref: ref, open: true}, err
}

// alsoHeld says who else in the tree sees what is written to a deleted file, or writes to it: a descriptor or a shared mapping; "" for nobody.
func (m *mmDump) alsoHeld(st *unix.Stat_t) (string, error) {
	for _, p := range m.d.Processes {
		if p.Zombie {
			continue
		}
		dir := procfs.Path(p.Leader().TID, "fd")
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			var at unix.Stat_t
			if unix.Stat(dir+"/"+e.Name(), &at) == nil && at.Dev == st.Dev && at.Ino == st.Ino {
				return fmt.Sprintf("open (descriptor %s of pid %d)", e.Name(), p.PID), nil
			}
		}
		maps, err := procfs.ReadMaps(p.Leader().TID)
		if err != nil {
			return "", err
		}
		for i := range maps {
			if v := &maps[i]; v.Prot&procfs.ProtShared != 0 && v.Inode == st.Ino && strings.HasSuffix(v.Path, deletedSuffix) {
				return fmt.Sprintf("mapped shared (at %s of pid %d)", span(v.Start, v.End), p.PID), nil
			}
		}
	}
	return "", nil
}

func (m *mmDump) addFile(key fileKey, f *File, path string) (mapped, error) {
	ref, err := m.d.Once(key, func() (stream.Ref, error) {
		ref := m.d.Add(TypeFile, f)
		mapFiles(m.d)[ref.ID] = &mapFile{state: f, open: map[kernelview.ID]bool{}, write: map[bool]bool{}, at: map[placeKey]bool{}}
		if f.Deleted {
			// Kept open, since the mapping that leads to the file may be gone when a thawed target is read.
			fd, err := sys.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return stream.Ref{}, err
			}
			m.d.Keep(fd)
			m.d.AddBulk(ref, func(w *stream.Writer) error {
				return writeFile(w, ref, fd, f)
			})
		}
		return ref, nil
	})
	return mapped{ref: ref, deleted: f.Deleted}, err
}

// leadsTo says whether a name leads to the file that st describes, in the caller's mount namespace or in the target's.
func (m *mmDump) leadsTo(name string, st *unix.Stat_t) bool {
	if !filepath.IsAbs(name) {
		return false
	}
	for _, root := range [...]string{"", fmt.Sprintf("/proc/%d/root", m.tid)} {
		var at unix.Stat_t
		if unix.Lstat(root+name, &at) == nil && at.Dev == st.Dev && at.Ino == st.Ino {
			return true
		}
	}
	return false
}

// buildID reads the build ID of an ELF file from the memory of the process, through the mapping of its beginning: opening
// the file could break somebody's lease on it.
func (m *mmDump) buildID(v *procfs.SmapsVMA) []byte {
	if v.Prot&procfs.ProtRead == 0 {
		return nil
	}
	mem, err := m.mem()
	if err != nil {
		return nil
	}
	return bytes.Clone(buildID(remoteReader{mem, v}))
}

// remoteReader reads a mapping as the file that it shows.
type remoteReader struct {
	mem *sys.FD // /proc/PID/mem: see shared.go
	v   *procfs.SmapsVMA
}

// ReadAt reads what lies inside of the mapping. Less than all is an error without a meaning of its own.
func (r remoteReader) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || uint64(off) >= r.v.Size() {
		return 0, unix.EFAULT
	}
	n := min(uint64(len(b)), r.v.Size()-uint64(off))
	got, err := readAt(r.mem, b[:n], uint64(r.v.Start)+uint64(off))
	if err == nil && got < len(b) {
		err = unix.EFAULT
	}
	return got, err
}

// writeFile writes the contents of a file, holes aside.
func writeFile(w *stream.Writer, ref stream.Ref, fd *sys.FD, f *File) error {
	b := getBuffer()
	defer b.put()
	err := eachData(fd, f.Size, func(start, end uint64) error {
		for start < end {
			n, err := readAt(fd, b.data[:min(end-start, maxPages)], start)
			if err != nil {
				return err
			}
			if n == 0 {
				return errors.New("the file became shorter")
			}
			if err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: start}, b.data[:n]); err != nil {
				return err
			}
			start += uint64(n)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("writing the contents of deleted file %s: %w", f.Path, err)
	}
	return nil
}

// eachData calls f for each part below size that is not a hole (lseek(2) SEEK_DATA; a file system without holes says that all
// is data).
func eachData(fd *sys.FD, size uint64, f func(start, end uint64) error) error {
	for at := uint64(0); at < size; {
		start, err := unix.Seek(fd.Int(), int64(at), unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return fmt.Errorf("looking for data: %w", err)
		}
		end, err := unix.Seek(fd.Int(), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("looking for a hole: %w", err)
		}
		at = uint64(end)
		if uint64(start) >= size {
			return nil
		}
		if err := f(uint64(start), min(at, size)); err != nil {
			return err
		}
	}
	return nil
}

// readAt fills b from offset, unless the file ends first.
func readAt(fd *sys.FD, b []byte, offset uint64) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Pread(fd.Int(), b[done:], int64(offset)+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}
