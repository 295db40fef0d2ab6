package kernelview

import "crpipe/engine/internal/sys"

// An arena is memory for what is read of many tasks at once and not kept. It is used again for the next look: ten megabytes of a thousand threads
// would otherwise be fresh pages each time, whose first touch takes longer than reading all of it from the kernel.
type arena struct {
	huge  sys.Huge
	small []byte
}

// arenaSmall is up to where an ordinary slice does.
const arenaSmall = 256 << 10

// take returns n bytes of any content, and invalidates what it has returned before.
func (a *arena) take(n int) []byte {
	switch {
	case n <= len(a.huge.Bytes):
		return a.huge.Bytes[:n]
	case n > arenaSmall:
		a.huge.Free()
		a.huge = sys.NewHuge(n)
		return a.huge.Bytes[:n]
	case n > len(a.small):
		a.small = make([]byte, n)
	}
	return a.small[:n]
}

func (a *arena) free() { a.huge.Free() }
