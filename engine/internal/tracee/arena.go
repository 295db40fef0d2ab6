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

// smallSlot is the size of a small slot: some 15 calls with what they point to. Fresh pages are what a thread costs most
// beside itself, and so several share one.
const smallSlot = 2 << 10

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
	unused   []slot // the next one last
	small    []slot // the same of small ones
}

// slot is a piece of an arena.
type slot struct{ offset, size int }

// NewArena makes an arena with room for that many tasks at a time. slotSize is in bytes, a multiple
// of the page size; 0 means DefaultSlot.
func NewArena(a *arch.Arch, slots, slotSize int) (*Arena, error) {
	return NewMixedArena(a, slots, slotSize, 0)
}

// NewMixedArena is NewArena with small slots beside the others, for CloneSmall.
func NewMixedArena(a *arch.Arch, slots, slotSize, small int) (*Arena, error) {
	if a.Routine == nil {
		return nil, fmt.Errorf("making an arena: %w", a.Run)
	}
	if slotSize == 0 {
		slotSize = DefaultSlot
	}
	if slotSize < 0 || slotSize%a.PageSize != 0 || slots <= 0 || small < 0 {
		return nil, fmt.Errorf("making an arena of %d slots of %d bytes: %w", slots, slotSize, unix.EINVAL)
	}
	fd, err := memfd("crpipe-arena")
	if err != nil {
		return nil, err
	}
	smalls := a.PageSize + slots*slotSize // their offset
	size := (smalls + small*smallSlot + a.PageSize - 1) / a.PageSize * a.PageSize
	if err := unix.Ftruncate(fd.Int(), int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("sizing the arena: %w", err), fd.Close())
	}
	mem, err := unix.Mmap(fd.Int(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping the arena: %w", err), fd.Close())
	}
	copy(mem, a.Routine.Code)
	if smalls < size {
		// All of them will be used: one call makes their pages at a tenth of what as many faults cost, and tasks then find
		// them in one fault for many. Before Linux 5.14 the faults do it.
		_ = unix.Madvise(mem[smalls:], unix.MADV_POPULATE_WRITE)
	}
	ar := &Arena{Program: a, arch: a, fd: fd, mem: mem, slotSize: slotSize, unused: make([]slot, slots), small: make([]slot, small)}
	for i := range ar.unused {
		ar.unused[i] = slot{a.PageSize + (slots-1-i)*slotSize, slotSize}
	}
	for i := range ar.small {
		ar.small[i] = slot{smalls + (small-1-i)*smallSlot, smallSlot}
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

// take takes a slot, a small one if that is asked for and there is one.
func (a *Arena) take(small bool) (slot, error) {
	list := &a.unused
	if small && len(a.small) > 0 {
		list = &a.small
	}
	n := len(*list)
	if n == 0 {
		return slot{}, errNoSlot
	}
	s := (*list)[n-1]
	*list = (*list)[:n-1]
	return s, nil
}

func (a *Arena) give(s slot) {
	if s.size == a.slotSize {
		a.unused = append(a.unused, s)
	} else {
		a.small = append(a.small, s)
	}
}

// slot is the restorer's view of a slot.
func (a *Arena) slot(s slot) []byte {
	return a.mem[s.offset : s.offset+s.size : s.offset+s.size]
}

// slotAddr is where a slot lies in a task that has the arena at base.
func (a *Arena) slotAddr(base arch.Addr, s slot) arch.Addr { return base + arch.Addr(s.offset) }

// NewBatch starts an empty batch for a task with this arena.
func (a *Arena) NewBatch() *Batch { return &Batch{arena: a} }
