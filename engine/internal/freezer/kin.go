package freezer

import (
	"crpipe/engine/internal/procfs"
)

// Kin is what the kernel links a thread to.
type Kin struct {
	Threads  int   // of its process
	Traced   bool  // a tracer is attached
	Children []int // processes that it has made, or has been given
}

// Kinship tells of each of these threads, in this order. An error: it cannot, or not now, and /proc is asked.
type Kinship func(tids []int) ([]Kin, error)

// passByKin is pass where there is somebody who knows: of a process that has one thread nothing is read from /proc. With an error it
// returns what it has found so far.
func (t *tree) passByKin() ([]int, error) {
	var found []int
	tids, traced := make(map[int][]int, len(t.order)), map[int]bool{}
	for done := 0; done < len(t.order); {
		level := t.order[done:]
		done = len(t.order)
		leaders, err := t.kinship(level)
		if err != nil {
			return found, err
		}
		var others []int
		for i, pid := range level {
			if traced[pid] = leaders[i].Traced; leaders[i].Threads <= 1 {
				tids[pid] = []int{pid}
				continue
			}
			if tids[pid], err = procfs.Threads(pid); err != nil {
				return found, err
			}
			for _, tid := range tids[pid] {
				if tid != pid {
					others = append(others, tid)
				}
			}
		}
		more, err := t.kinship(others)
		if err != nil {
			return found, err
		}
		for _, kin := range [][]Kin{leaders, more} {
			for i := range kin {
				for _, child := range kin[i].Children {
					if t.addLive(child) {
						found = append(found, child)
					}
				}
			}
		}
	}
	t.tids, t.traced = tids, traced
	return found, nil
}
