package memory

import (
	"errors"
	"fmt"
	"math"
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
	flags := unix.MAP_SHARED | unix.MAP_ANONYMOUS
	if s.NoReserve {
		flags |= unix.MAP_NORESERVE
	}
	if s.Size > math.MaxInt/2 {
		return nil, unix.ENOMEM // on a 32-bit build
	}
	page := os.Getpagesize()
	size := (int(s.Size) + page - 1) &^ (page - 1)
	at, err := unix.MmapPtr(-1, 0, nil, uintptr(s.Size), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, err
	}
	fd, err := sys.Open(fmt.Sprintf("/proc/self/map_files/%x-%x", uintptr(at), uintptr(at)+uintptr(size)), unix.O_RDWR, 0)
	if errors.Is(err, unix.EPERM) {
		err = &object.Lacking{What: "opening shared memory through /proc/self/map_files", Err: err, Do: "it needs CAP_CHECKPOINT_RESTORE"}
	}
	if unmap := unix.MunmapPtr(at, uintptr(size)); unmap != nil && err == nil {
		err = errors.Join(fmt.Errorf("unmapping it: %w", unmap), fd.Close())
	}
	if err != nil {
		return nil, err
	}
	return fd, nil
}

// write writes whole pages. The last may lie in part behind the end, which must not move.
func (h *shmHandle) write(data []byte, at uint64) error {
	page := uint64(os.Getpagesize())
	last := h.size &^ (page - 1)
	if at+uint64(len(data)) <= h.size {
		return pwriteAll(h.fd, data, at)
	}
	if at < last {
		if err := pwriteAll(h.fd, data[:last-at], at); err != nil {
			return err
		}
		data = data[last-at:]
	}
	return lastPage(h.fd, last, int(page), unix.PROT_READ|unix.PROT_WRITE, func(p []byte) { copy(p, data) })
}
