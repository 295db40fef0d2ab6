package memory

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// shmHandle is what restored shared memory is remembered by.
type shmHandle struct {
	fd   int // in the pool, open for reading and writing
	size uint64
}

// restoreShm makes shared memory as mmap(2) makes it, in cr-restore itself, and opens it through /proc/self/map_files: a
// descriptor of the very object, which tasks then map. It shows in /proc as the original did, unlike a memfd.
func restoreShm(r *object.Restorer, ref stream.Ref, s *Shm) error {
	if s.Size == 0 || s.Size > uint64(r.Arch.TaskSize) {
		return object.BadImagef("a size of %d bytes", s.Size)
	}
	fd, err := makeShm(s)
	if err != nil {
		return fmt.Errorf("making shared memory of %d bytes: %w", s.Size, err)
	}
	n, err := r.Pool(fd.Disown())
	if err != nil {
		return err
	}
	r.Remember(ref, &shmHandle{fd: n, size: s.Size})
	return nil
}

func makeShm(s *Shm) (*sys.FD, error) {
	flags := uintptr(unix.MAP_SHARED | unix.MAP_ANONYMOUS)
	if s.NoReserve {
		flags |= unix.MAP_NORESERVE
	}
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(s.Size), unix.PROT_READ|unix.PROT_WRITE, flags, ^uintptr(0), 0)
	if errno != 0 {
		return nil, errno
	}
	size := (uintptr(s.Size) + uintptr(os.Getpagesize()) - 1) &^ (uintptr(os.Getpagesize()) - 1)
	fd, err := sys.Open(fmt.Sprintf("/proc/self/map_files/%x-%x", at, at+size), unix.O_RDWR, 0)
	if errors.Is(err, unix.EPERM) {
		err = &object.Lacking{What: "opening shared memory through /proc/self/map_files", Err: err, Do: "it needs CAP_CHECKPOINT_RESTORE"}
	}
	if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, at, size, 0); errno != 0 && err == nil {
		err = errors.Join(fmt.Errorf("unmapping it: %w", errno), fd.Close())
	}
	if err != nil {
		return nil, err
	}
	return fd, nil
}
