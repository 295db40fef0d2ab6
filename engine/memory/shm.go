package memory

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/stream"
)

// Shm is the record of anonymous memory that is mapped shared (MAP_SHARED|MAP_ANONYMOUS). The kernel keeps it as a nameless
// file of its internal tmpfs, which /proc/PID/maps shows as "/dev/zero (deleted)" and whose inode number is its identity.
// Opened through /proc/PID/map_files it can be read whole, parts that nobody maps included.
type Shm struct {
	Size      uint64 `msgpack:"size"`                 // bytes
	NoReserve bool   `msgpack:"no_reserve,omitempty"` // does not count as committed memory
}

// shmKey is the identity of a piece of shared memory in a dump.
type shmKey struct{ dev, ino uint64 }

// shmDevice returns the device number of the kernel's internal tmpfs, in the form of st_dev: that of a memfd.
var shmDevice = sync.OnceValues(func() (uint64, error) {
	raw, err := unix.MemfdCreate("crpipe", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("creating memfd: %w", err)
	}
	fd := sys.NewFD(raw)
	defer fd.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd.Int(), &st); err != nil {
		return 0, fmt.Errorf("looking at memfd: %w", err)
	}
	return st.Dev, nil
})

// shm dumps the shared memory behind a map_files link. noReserve of its mappings is that of the memory: both come from
// the same flag of the mmap(2) that made it.
func (m *mmDump) shm(path string, st *unix.Stat_t) (mapped, error) {
	ref, err := m.d.Once(shmKey{st.Dev, st.Ino}, func() (stream.Ref, error) {
		fd, err := sys.Open(path, unix.O_RDONLY, 0)
		if err != nil {
			return stream.Ref{}, err
		}
		m.d.Keep(fd)
		size := uint64(st.Size)
		ref := m.d.Add(TypeShm, &Shm{Size: size, NoReserve: m.current.Flags.Has("nr")})
		m.d.AddBulk(ref, func(w *stream.Writer) error {
			return writeShm(w, ref, fd, size, m.d.Arch.PageSize)
		})
		return ref, nil
	})
	return mapped{ref: ref, shm: true}, err
}

// writeShm writes the pages of shared memory that are not zero.
func writeShm(w *stream.Writer, ref stream.Ref, fd *sys.FD, size uint64, pageSize int) error {
	b := getBuffer()
	defer b.put()
	put := func(start uint64, n int) error {
		b.used, b.segs = n, append(b.segs[:0], segment{addr: start, length: n})
		b.dropZeros(pageSize)
		return b.write(w, ref)
	}
	err := eachData(fd, size, func(start, end uint64) error {
		tail := end == size && size%uint64(pageSize) != 0
		if tail {
			end = size &^ uint64(pageSize-1)
		}
		for start < end {
			n, err := readAt(fd, b.data[:min(end-start, maxPages)], start)
			if err != nil {
				return err
			}
			if n == 0 || n%pageSize != 0 {
				return fmt.Errorf("read %d bytes of it", n)
			}
			if err := put(start, n); err != nil {
				return err
			}
			start += uint64(n)
		}
		if !tail {
			return nil
		}
		if err := lastPage(fd.Int(), end, pageSize, unix.PROT_READ, func(page []byte) { copy(b.data, page) }); err != nil {
			return err
		}
		return put(end, pageSize)
	})
	if err != nil {
		return fmt.Errorf("writing shared memory: %w", err)
	}
	return nil
}

// lastPage calls f with a page of a file as processes that map it see it: what they have there behind the end of the file, which only
// System V shared memory has inside of a page, no read(2) shows. The page must be there, or it is made.
func lastPage(fd int, at uint64, pageSize, prot int, f func([]byte)) error {
	page, err := unix.Mmap(fd, int64(at), pageSize, prot, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping its last page: %w", err)
	}
	f(page)
	return unix.Munmap(page)
}
