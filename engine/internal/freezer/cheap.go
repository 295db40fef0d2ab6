package freezer

import (
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// MovesAhead guesses whether a freeze of these processes is going to move them between cgroups: they share theirs with this
// one, or are where nothing can be frozen. Then it returns cgroup.procs of this process's own cgroup, open for writing, by which
// moves can be made cheap (see beside.NewWatch). Without the right to do that there is none to move others.
func MovesAhead(pids []int) *sys.FD {
	if len(pids) == 0 {
		return nil
	}
	for _, way := range []Way{WayV2, WayV1} { // the lock is one for all hierarchies
		h, err := openHierarchy(way)
		if err != nil {
			continue
		}
		procs := h.movesAhead(pids)
		h.Close()
		if procs != nil {
			return procs
		}
	}
	return nil
}

func (h *hierarchy) movesAhead(pids []int) *sys.FD {
	own, err := h.of(os.Getpid(), os.Getpid())
	if err != nil {
		return nil
	}
	ahead := false
	for _, pid := range pids {
		theirs, err := h.of(pid, pid)
		ahead = ahead || err == nil && (theirs == "/" || under(own, theirs))
	}
	if !ahead {
		return nil
	}
	dir, err := h.dir(own)
	if err != nil {
		return nil
	}
	defer dir.Close()
	procs, err := sys.OpenAt(dir.Int(), "cgroup.procs", unix.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	return procs
}
