package engine

import (
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/memory"
)

// crowd is from how many tasks on a dump needs so much memory that it is worth some preparation.
const crowd = 64

// prepare has the memory that a dump of a tree is going to need touched while the tree still runs: each page that is touched for the first time
// takes as long as some system calls.
func prepare(pid int) {
	chunks := 2 // one for the pages on their way, one for what is written
	if st, err := procfs.ReadStatus(pid); err == nil {
		children, _ := procfs.ReadChildren(pid, pid) // without them: a guess that is too low
		if st.Threads+len(children) >= crowd {
			sys.HugeHeap(32 << 20)
		}
		if own := ownMemory(st); own <= 2*uint64(holdBackMost) {
			chunks += min(int(own), holdBackMost)/sys.ChunkSize + 1
		} else {
			chunks += memory.AheadChunks
		}
	}
	collectLate()
	sys.PrepareChunks(chunks)
	sys.PopulateHeap(512 << 10)
}
