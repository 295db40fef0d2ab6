package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// DefaultSlot is a slot's usual size in bytes: some 500 calls with 24 KiB of data. A slot costs
// only the pages that are used.
const DefaultSlot = 64 << 10

// hostOrder is this machine's byte order, which is that of its tasks.
var hostOrder = binary.NativeEndian

// An Arena is the memory that the restorer shares with the tasks it makes: a page of code, then the
// slots. In a task it lies at an address that Spawn is told, as two mappings: the code, readable
// and executable, and the slots, readable and writable. It belongs to one Tracer's thread once
// tasks use it.
type Arena struct {
	Program *arch.Arch // whose stub Spawn executes: the machine's, or its 32-bit companion

	arch     *arch.Arch
	fd       *sys.FD
	mem      []byte
	slotSize int
	unused   []int // slots, the next one last
}

// NewArena makes an arena with room for that many tasks at a time. slotSize is in bytes, a multiple
// of the page size; 0 means DefaultSlot.
func NewArena(a *arch.Arch, slots, slotSize int) (*Arena, error) {
	if a.Routine == nil {
		return nil, fmt.Errorf("making an arena: %w", a.Run)
	}
	if slotSize == 0 {
		slotSize = DefaultSlot
	}
	if slotSize < 0 || slotSize%a.PageSize != 0 || slots <= 0 {
		return nil, fmt.Errorf("making an arena of %d slots of %d bytes: %w", slots, slotSize, unix.EINVAL)
	}
	fd, err := memfd("crpipe-arena")
	if err != nil {
		return nil, err
	}
	size := a.PageSize + slots*slotSize
	if err := unix.Ftruncate(fd.Int(), int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("sizing the arena: %w", err), fd.Close())
	}
	mem, err := unix.Mmap(fd.Int(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping the arena: %w", err), fd.Close())
	}
	copy(mem, a.Routine.Code)
	ar := &Arena{Program: a, arch: a, fd: fd, mem: mem, slotSize: slotSize, unused: make([]int, slots)}
	for i := range ar.unused {
		ar.unused[i] = slots - 1 - i
	}
	return ar, nil
}

// memfd makes a close-on-exec memfd that may be executed and mapped executable. MFD_EXEC is needed
// where vm.memfd_noexec is 1 and unknown before Linux 6.3.
func memfd(name string) (*sys.FD, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("making an executable memfd (sysctl vm.memfd_noexec=2 forbids it): %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("making a memfd: %w", err)
	}
	return sys.NewFD(fd), nil
}

// Size is the length in bytes of the arena in a task.
func (a *Arena) Size() int { return len(a.mem) }

// Close gives up the restorer's view; tasks that map the arena keep it.
func (a *Arena) Close() error {
	err := unix.Munmap(a.mem)
	a.mem = nil
	return errors.Join(err, a.fd.Close())
}

var errNoSlot = errors.New("the arena has no free slot")

func (a *Arena) take() (int, error) {
	if len(a.unused) == 0 {
		return 0, errNoSlot
	}
	s := a.unused[len(a.unused)-1]
	a.unused = a.unused[:len(a.unused)-1]
	return s, nil
}

func (a *Arena) give(slot int) { a.unused = append(a.unused, slot) }

// slot is the restorer's view of a slot.
func (a *Arena) slot(i int) []byte {
	off := a.arch.PageSize + i*a.slotSize
	return a.mem[off : off+a.slotSize : off+a.slotSize]
}

// slotAddr is where a slot lies in a task that has the arena at base.
func (a *Arena) slotAddr(base arch.Addr, i int) arch.Addr {
	return base + arch.Addr(a.arch.PageSize+i*a.slotSize)
}

// NewBatch starts an empty batch for a task with this arena.
func (a *Arena) NewBatch() *Batch { return &Batch{arena: a} }
