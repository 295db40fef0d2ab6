package sys

import (
	"sync"

	"golang.org/x/sys/unix"
)

// ChunkSize is the size of a chunk in bytes. A few of them stay in a processor's own cache.
const ChunkSize = 256 << 10

// chunks are the free ones: the last one that was given back is taken first, since it is in the cache.
var chunks struct {
	sync.Mutex
	free [][]byte
}

// TakeChunk returns ChunkSize bytes of any content, from memory that this process keeps: the first touch of fresh pages takes longer than reading
// as much from another process. Give it back with GiveChunk.
func TakeChunk() []byte {
	chunks.Lock()
	defer chunks.Unlock()
	last := len(chunks.free) - 1
	if last < 0 {
		return newChunk()
	}
	b := chunks.free[last]
	chunks.free = chunks.free[:last]
	return b
}

// newChunk has its pages there at once, at a fraction of what a fault for each costs; where the kernel cannot do that (before Linux 5.14),
// only for speed, they come when they are touched.
func newChunk() []byte {
	mem, err := unix.Mmap(-1, 0, ChunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, ChunkSize)
	}
	_ = unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
	return mem
}

// GiveChunk takes a chunk back. Nobody may use it any more.
func GiveChunk(b []byte) {
	if cap(b) < ChunkSize {
		return // somebody's own
	}
	chunks.Lock()
	defer chunks.Unlock()
	chunks.free = append(chunks.free, b[:ChunkSize])
}

// PrepareChunks has n chunks there before they are needed.
func PrepareChunks(n int) {
	for range n {
		defer GiveChunk(TakeChunk())
	}
}
