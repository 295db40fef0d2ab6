package engine

import (
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// crowd is from how many tasks on a dump needs so much memory that it is worth some preparation.
const crowd = 64

// prepare has the memory that a dump of a tree is going to need touched while the tree still runs: each page that is touched for the first time
// takes as long as some system calls.
func prepare(pid int) {
	if st, err := procfs.ReadStatus(pid); err == nil {
		children, _ := procfs.ReadChildren(pid, pid) // without them: a guess that is too low
		if st.Threads+len(children) >= crowd {
			sys.HugeHeap(32 << 20)
		}
	}
	collectLate()
	sys.PrepareChunks()
}
