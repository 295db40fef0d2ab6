package sys

import (
	"os"
	"sync"
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
	if len(chunks.free) == 0 {
		for mem := NewHuge(HugePage).Bytes; len(mem) > 0; mem = mem[ChunkSize:] {
			chunks.free = append(chunks.free, mem[:ChunkSize:ChunkSize])
		}
	}
	last := len(chunks.free) - 1
	b := chunks.free[last]
	chunks.free = chunks.free[:last]
	return b
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

// PrepareChunks has the memory of a few chunks there before it is needed: of all that come from one huge page, or of the first one.
func PrepareChunks() {
	b := TakeChunk()
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 0
	}
	GiveChunk(b)
}
