package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// fileHandle is what a restored File is remembered by.
type fileHandle struct {
	fd     int                 // in the pool, for reading
	shared int                 // the same file for reading and writing; -1: no mapping wants it
	writer *sys.FD             // of a deleted file, until its contents are complete
	uses   map[uint32]*fileUse // in the first handle of a restore: of all files, by objref
}

// fileUse is what the mappings of an image want of a file.
type fileUse struct {
	end     uint64 // behind the last byte that is mapped, in the file
	write   bool
	execute bool
}

// fileUses collects what all mappings want of files.
func fileUses(plan *object.Plan) map[uint32]*fileUse {
	uses := map[uint32]*fileUse{}
	use := func(ref stream.Ref) *fileUse {
		if uses[ref.ID] == nil {
			uses[ref.ID] = &fileUse{}
		}
		return uses[ref.ID]
	}
	for i := range plan.Objects {
		switch s := plan.Objects[i].State.(type) {
		case *MM:
			if !s.Exe.IsZero() {
				use(s.Exe).execute = true
			}
		case *Areas:
			for j := range s.Areas {
				a := &s.Areas[j]
				if a.Of.Class != string(TypeFile) {
					continue
				}
				u := use(a.Of)
				u.end = max(u.end, a.Offset+(a.End-a.Start))
				prot, _, _ := parsePerms(a.Perms)
				u.execute = u.execute || prot&unix.PROT_EXEC != 0
				f, _ := parseFlags(a.Flags)
				u.write = u.write || f&flagMayWrite != 0
			}
		}
	}
	return uses
}

// restoreFile opens a mapped file and checks that it is the one that was mapped.
func restoreFile(r *object.Restorer, ref stream.Ref, f *File) error {
	if err := f.check(); err != nil {
		return object.BadImagef("%w", err)
	}
	h := &fileHandle{shared: -1}
	uses, err := usesOf(r, ref, h)
	if err != nil {
		return err
	}
	use := uses[ref.ID]
	if use == nil {
		use = &fileUse{}
	}
	var fd *sys.FD
	if f.Deleted {
		fd, err = makeDeleted(r, ref, f, h)
	} else {
		fd, err = openMapped(r, f, use, unix.O_RDONLY)
	}
	if err != nil {
		return err
	}
	if h.fd, err = r.Pool(fd.Disown()); err != nil {
		return err
	}
	// Both are needed: a mapping of a file that is open for reading only can never be made writable, and programs may rely on it.
	if use.write {
		if fd, err = openMapped(r, f, use, unix.O_RDWR); err != nil {
			return err
		}
		if h.shared, err = r.Pool(fd.Disown()); err != nil {
			return err
		}
	}
	r.Remember(ref, h)
	return h.lockMapped(f)
}

// usesOf returns what is wanted of all files: made by the first of them and kept in its handle.
func usesOf(r *object.Restorer, ref stream.Ref, h *fileHandle) (map[uint32]*fileUse, error) {
	for i := range r.Plan.Objects {
		o := &r.Plan.Objects[i]
		if o.Type != TypeFile {
			continue
		}
		if o.Ref == ref {
			h.uses = fileUses(r.Plan)
			return h.uses, nil
		}
		first, err := object.Recall[fileHandle](r, o.Ref)
		if err != nil {
			return nil, err
		}
		return first.uses, nil
	}
	return nil, object.BadImagef("object %d is not in the plan", ref.ID)
}

// openMapped opens a file by its name and compares it with what the image says of it.
func openMapped(r *object.Restorer, f *File, use *fileUse, mode int) (*sys.FD, error) {
	// O_NONBLOCK: whatever took the file's name meanwhile must not hold us up.
	fd, err := sys.Open(f.Path, mode|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening mapped file: %w", err)
	}
	if err := checkMapped(r, fd, f, use); err != nil {
		return nil, errors.Join(fmt.Errorf("mapped file %s: %w", f.Path, err), fd.Close())
	}
	return fd, nil
}

func checkMapped(r *object.Restorer, fd *sys.FD, f *File, use *fileUse) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil {
		return fmt.Errorf("looking at it: %w", err)
	}
	if f.Zero {
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != zeroDevice {
			return errors.New("it is not the device 1:5 as it was when it was dumped")
		}
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("it is not a regular file as it was when it was dumped")
	}
	if need := min(f.Size, use.end); uint64(st.Size) < need {
		return fmt.Errorf("it has %d bytes, and %d are mapped", st.Size, need)
	}
	// Pages of it that a process had not written to are not in the image.
	if err := r.Unchanged(f.Path, &st, int64(f.Size), f.Modify); err != nil {
		return err
	}
	if !use.execute {
		return nil
	}
	if len(f.BuildID) == 0 {
		if uint64(st.Size) != f.Size {
			return fmt.Errorf("it is another program: it has %d bytes, %d when it was dumped", st.Size, f.Size)
		}
		return nil
	}
	if id := buildID(fileReader{fd}); !bytes.Equal(id, f.BuildID) {
		return fmt.Errorf("it is another program: its build id is %x, %x when it was dumped", id, f.BuildID)
	}
	return nil
}

// fileReader is a descriptor as an io.ReaderAt.
type fileReader struct{ fd *sys.FD }

func (r fileReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := readAt(r.fd, b, uint64(off))
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// makeDeleted makes a file without a name in the directory where the old one was, to be filled by data records.
func makeDeleted(r *object.Restorer, ref stream.Ref, f *File, h *fileHandle) (*sys.FD, error) {
	path := f.Path
	writer, err := sys.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	for try := 0; errors.Is(err, unix.EEXIST) && try < 100; try++ {
		// Somebody else has the name now. The file gets another until it is deleted, which /proc will show.
		path = filepath.Join(filepath.Dir(f.Path), fmt.Sprintf(".%.200s.%d.%d", filepath.Base(f.Path), os.Getpid(), try))
		writer, err = sys.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("making deleted file %s: %w", f.Path, err)
	}
	fd, err := sys.Open(path, unix.O_RDONLY, 0)
	// The name goes first, so that nothing is left behind whatever follows.
	err = errors.Join(err, unix.Unlink(path))
	if err == nil {
		err = prepareDeleted(writer, f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making deleted file %s: %w", f.Path, err), writer.Close(), fd.Close())
	}
	if path != f.Path {
		r.Warn("deleted file %s: there is another file of that name now, so /proc shows it as %s", f.Path, path)
	}
	h.writer = writer
	r.OnContent(ref, func(meta *object.Data, data []byte) error {
		if meta.Offset > f.Size || uint64(len(data)) > f.Size-meta.Offset || h.writer == nil {
			return object.BadImagef("contents at %d of deleted file %s, which has %d bytes", meta.Offset, f.Path, f.Size)
		}
		if err := pwriteAll(writer.Int(), data, meta.Offset); err != nil {
			return fmt.Errorf("writing deleted file %s: %w", f.Path, err)
		}
		return nil
	})
	return fd, nil
}

func prepareDeleted(fd *sys.FD, f *File) error {
	if err := unix.Ftruncate(fd.Int(), int64(f.Size)); err != nil {
		return fmt.Errorf("giving it its size: %w", err)
	}
	if err := unix.Fchown(fd.Int(), int(f.UID), int(f.GID)); err != nil {
		return fmt.Errorf("giving it its owner: %w", err)
	}
	if err := unix.Fchmod(fd.Int(), f.Mode); err != nil {
		return fmt.Errorf("giving it its permissions: %w", err)
	}
	return nil
}

// closeWriter ends the writing of a deleted file: nobody may have it open for writing when it becomes an executable.
func closeWriter(r *object.Restorer, ref stream.Ref) error {
	h, err := object.Recall[fileHandle](r, ref)
	if err != nil {
		return err
	}
	err = h.writer.Close()
	h.writer = nil
	if err != nil {
		return fmt.Errorf("writing deleted file: %w", err)
	}
	return nil
}
