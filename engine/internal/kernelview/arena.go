package kernelview

import "golang.org/x/sys/unix"

// An arena is memory for what is read of many tasks at once and not kept. It is used again for the next look: ten megabytes of a thousand threads
// would otherwise be fresh pages each time, whose first touch takes longer than reading all of it from the kernel. So they are huge ones, if there are.
type arena struct {
	mapped []byte
	small  []byte
}

const (
	arenaSmall = 256 << 10 // up to here an ordinary slice does
	hugePage   = 2 << 20
)

// take returns n bytes of any content, and invalidates what it has returned before.
func (a *arena) take(n int) []byte {
	if n <= len(a.mapped) {
		return a.mapped[:n]
	}
	if n > arenaSmall {
		a.free()
		// On error: without.
		mem, err := unix.Mmap(-1, 0, (n+hugePage-1)&^(hugePage-1)+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err == nil {
			_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // only for speed
			a.mapped = mem
			return mem[:n]
		}
	}
	if n > len(a.small) {
		a.small = make([]byte, n)
	}
	return a.small[:n]
}

func (a *arena) free() {
	if a.mapped != nil {
		_ = unix.Munmap(a.mapped) // of our own
		a.mapped = nil
	}
}
