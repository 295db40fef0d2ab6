package files

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A memfd (memfd_create(2)): a file in memory that never had a name, but one to show. It is kept as a deleted file is,
// with its seals, which are set when its contents are there. The kernel shows the name in /proc/PID/fd, the seals by
// fcntl(F_GET_SEALS), and whether it may be executed by its mode. One of huge pages (MFD_HUGETLB) is refused: its
// contents cannot be written with write(2).
type memfdState struct {
	Name  string `msgpack:"name"`
	Seals uint32 `msgpack:"seals,omitempty"` // F_SEAL_*
	attributes
}

const memfdPrefix = "/memfd:"

func isMemfd(f *object.OpenFile) bool {
	return strings.HasPrefix(f.Link, memfdPrefix) && strings.HasSuffix(f.Link, deletedSuffix) && f.Stat.Nlink == 0
}

func claimsMemfd(_ *object.Dumper, f *object.OpenFile) bool {
	return isType(f, unix.S_IFREG) && isMemfd(f) && fsType(f) == unix.TMPFS_MAGIC
}

func dumpMemfd(d *object.Dumper, f *object.OpenFile) (*unnamedState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	seals, err := readSeals(f)
	if err != nil {
		return nil, err
	}
	return dumpUnnamed(d, f, flags, seals != 0, func(a *attributes) (stream.Ref, error) {
		name := strings.TrimSuffix(strings.TrimPrefix(f.Link, memfdPrefix), deletedSuffix)
		return d.Add(memfdType, &memfdState{Name: name, Seals: uint32(seals), attributes: *a}), nil
	})
}

func readSeals(f *object.OpenFile) (int, error) {
	fd, err := f.Descriptor()
	if err != nil {
		return 0, err
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, fmt.Errorf("reading flags: %w", err)
	}
	if flags&unix.O_PATH != 0 { // it answers to nothing: ask through another one
		n, err := reopen(fd, unix.O_RDONLY)
		if err != nil {
			return 0, fmt.Errorf("opening a memfd: %w", err)
		}
		defer unix.Close(n)
		fd = n
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return 0, fmt.Errorf("reading seals: %w", err)
	}
	return seals, nil
}

func restoreMemfdInode(r *object.Restorer, ref stream.Ref, s *memfdState) error {
	if err := s.check(); err != nil {
		return err
	}
	const allSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_FUTURE_WRITE | unix.F_SEAL_EXEC
	if s.Seals&^allSeals != 0 || strings.IndexByte(s.Name, 0) >= 0 {
		return object.BadImagef("name %q or seals %#x of a memfd are impossible", clip(s.Name), s.Seals)
	}
	// Without MFD_EXEC the mode would be what vm.memfd_noexec says; the flag is unknown before Linux 6.3.
	raw, err := unix.MemfdCreate(s.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		raw, err = unix.MemfdCreate(s.Name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return fmt.Errorf("making memfd %q: %w", clip(s.Name), err)
	}
	m := &madeInode{attributes: s.attributes, first: -1, seals: int(s.Seals)}
	if err := m.hold(r, ref, sys.NewFD(raw)); err != nil {
		return fmt.Errorf("making memfd %q: %w", clip(s.Name), err)
	}
	return nil
}

const memfdType stream.Type = "inode.memfd"

// MemfdKind is the kind of open files on memfds.
var MemfdKind = object.NewFileKind("file.memfd", claimsMemfd, dumpMemfd, restoreUnnamed).Late()

// MemfdObject is the record of a memfd itself.
var MemfdObject = object.NewKind(memfdType, restoreMemfdInode)
