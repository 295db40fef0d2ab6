package engine

import (
	"runtime"
	"runtime/debug"
	"sync"

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

// firstCollection is how much a dump may allocate before garbage is collected for the first time, in bytes. Most dumps are over before:
// what they have read of a tree they need to the end, and a collection takes a processor from them while the tree stands still.
const firstCollection = 32 << 20

// collectLate puts the next garbage collection off. From then on the runtime collects as it did before.
var collectLate = sync.OnceFunc(func() {
	const usualHeap = 4 << 20 // that GOGC=100 stands for where there is little (heapMinimum in runtime/mgcpacer.go)
	usual := debug.SetGCPercent(100 * firstCollection / usualHeap)
	if usual != 100 {
		debug.SetGCPercent(usual) // somebody else has decided
		return
	}
	runtime.AddCleanup(new([32]byte), func(percent int) { debug.SetGCPercent(percent) }, usual)
})
