package freezer

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// What follows spares the common case most of its reading: a tree that version
// 2 freezes. Each file of /proc that is read of each process counts where
// there are hundreds.

// anyLive reports whether a process of the tree is still there.
func (t *tree) anyLive() bool {
	return slices.ContainsFunc(t.order, func(pid int) bool {
		st, err := procfs.ReadStat(pid)
		return err == nil && st.Starttime == t.procs[pid]
	})
}

// gathered reports whether gather has nothing to do, which the lists of the
// cgroups tell: at first when the cgroup of the root holds the tree and nothing
// else, and later when the groups hold all of it.
func (f *freeze) gathered(first bool) (bool, error) {
	if f.h.way != WayV2 || len(f.tree.order) == 0 {
		return false, nil
	}
	if !first {
		var members []int
		for _, g := range f.groups {
			list, err := f.h.members(g.dir, false)
			if err != nil {
				return false, nil //nolint:nilerr // gather finds out and tells
			}
			members = append(members, list...)
		}
		return f.tree.isIn(members), nil
	}
	cgroup, err := f.h.of(f.tree.order[0], f.tree.order[0])
	if err != nil || cgroup == "/" {
		return false, nil //nolint:nilerr // it has died, or cannot be frozen where it is
	}
	dir, err := f.h.dir(cgroup)
	if err != nil {
		return false, nil //nolint:nilerr // gather finds out and tells
	}
	defer dir.Close()
	members, err := f.h.members(dir, false)
	if err != nil || !f.tree.isIn(members) {
		return false, nil //nolint:nilerr // the same
	}
	done, err := f.asItIs(cgroup)
	f.whole = done && !f.groups[0].Already
	return done, err
}

// isIn reports whether all processes of the tree that live are in a list. A
// cgroup does not list its zombies.
func (t *tree) isIn(list []int) bool {
	in := make(map[int]bool, len(list))
	for _, pid := range list {
		in[pid] = true
	}
	return !slices.ContainsFunc(t.order, func(pid int) bool {
		if in[pid] {
			return false
		}
		st, err := procfs.ReadStat(pid)
		if err != nil {
			return !procfs.IsGone(err) && !errors.Is(err, unix.ESRCH)
		}
		return st.State != 'Z' || st.NumThreads > 1
	})
}

// describeBriefly is describe of a tree that stands still, without what only a
// ticket needs: of a thread that is not the first of its process only the
// number is new. It returns what it has read of the processes, too.
func (t *tree) describeBriefly() ([]Task, map[int]procfs.Stat, error) {
	var out []Task
	stats := make(map[int]procfs.Stat, len(t.order))
	for _, pid := range t.order {
		st, err := procfs.ReadStat(pid)
		if procfs.IsGone(err) || err == nil && st.Starttime != t.procs[pid] {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		stats[pid] = st
		leader := taskOf(pid, pid, &st)
		tids, known := t.tids[pid]
		if !known {
			if tids, err = procfs.Threads(pid); err != nil && !procfs.IsGone(err) {
				return nil, nil, err
			}
		}
		out = append(out, leader)
		for _, tid := range tids {
			if tid == pid {
				continue
			}
			other := leader
			other.TID, other.Start = tid, 0
			if other.Before == BeforeZombie {
				other.Before = BeforeRunning
			}
			out = append(out, other)
		}
	}
	return out, stats, nil
}
