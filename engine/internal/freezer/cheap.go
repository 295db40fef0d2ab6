package freezer

import (
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/beside"
	"crpipe/engine/internal/sys"
)

// KeepMovesCheap starts what makes moves between cgroups cheap (see [beside.Mover]); nil if that cannot be had: without the
// right to move oneself there is none to move others either.
func KeepMovesCheap() *beside.Mover {
	for _, way := range []Way{WayV2, WayV1} { // one lock for all hierarchies
		if m := keepCheap(way); m != nil {
			return m
		}
	}
	return nil
}

func keepCheap(way Way) *beside.Mover {
	h, err := openHierarchy(way)
	if err != nil {
		return nil
	}
	defer h.Close()
	own, err := h.of(os.Getpid(), os.Getpid())
	if err != nil {
		return nil
	}
	dir, err := h.dir(own)
	if err != nil {
		return nil
	}
	defer dir.Close()
	raw, err := unix.Openat(dir.Int(), "cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	procs := sys.NewFD(raw)
	defer procs.Close()
	m, err := beside.NewMover(procs)
	if err != nil {
		return nil
	}
	return m
}
