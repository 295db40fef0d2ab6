package engine

import (
	"runtime/debug"

	"crpipe/engine/internal/sys"
)

// heapAhead is how much memory UseHugePages prepares, in bytes: what a restore of a thousand threads takes. Only what is used becomes
// memory.
const heapAhead = 32 << 20

// UseHugePages is for a command that lives shortly and allocates much. It has the first memory that the runtime is going to hand out be
// of huge pages, where the system gives them to who asks for them: a fault for each page of 4 KiB can cost more than what is done with
// the page. And it has garbage collected later.
func UseHugePages() {
	sys.HugeHeap(heapAhead)
	debug.SetGCPercent(400)
}
