package engine

import (
	"runtime"
	"runtime/debug"
	"sync"

	"crpipe/engine/internal/sys"
)

const (
	// heapAhead is how much memory UseHugePages prepares, in bytes: what a restore of a thousand threads takes. Only what is used
	// becomes memory.
	heapAhead = 32 << 20
	// firstCollection is how much a dump may allocate before garbage is collected for the first time, in bytes. Most dumps are over
	// before: what they have read of a tree they need to the end, and a collection takes a processor from them while the tree stands still.
	firstCollection = 32 << 20
	// usualHeap is what GOGC=100 stands for where there is little (heapMinimum in runtime/mgcpacer.go).
	usualHeap = 4 << 20
)

// UseHugePages is for a command that lives shortly and allocates much. It has the first memory that the runtime is going to hand out be
// of huge pages, where the system gives them to who asks for them: a fault for each page of 4 KiB can cost more than what is done with
// the page. And it has garbage collected later: for the first time when there is twice as much.
func UseHugePages() {
	sys.HugeHeap(heapAhead)
	collectFrom(2*heapAhead, 400)
}

// collectLate puts the next garbage collection of a dump off. From then on the runtime collects as it did before.
var collectLate = sync.OnceFunc(func() {
	const usual = 100
	if was := debug.SetGCPercent(usual); was != usual {
		debug.SetGCPercent(was) // somebody else has decided
		return
	}
	collectFrom(firstCollection, usual)
})

// collectFrom has garbage collected when there are so many bytes, and from then on as GOGC=percent does.
func collectFrom(size, percent int) {
	debug.SetGCPercent(100 * (size / usualHeap))
	runtime.AddCleanup(new([32]byte), func(percent int) { debug.SetGCPercent(percent) }, percent) // which the first collection finds
}
