package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

// What waits in a unix(7) socket may say who has sent it, which may have ended long ago. The kernel lets a privileged process say so of
// any number that it knows (scm_check_creds and find_get_pid in net/core/scm.c), and a zombie's it knows. So helpers get those
// numbers, end at once, and are waited for when all contents have come. A number that only a process group or session still has is not
// enough (pidfs_register_pid in fs/pidfs.c): who leads that until the others have joined stays as long.

// holdEnded makes the numbers that were asked for known, and release lets go of them.
func (rs *restoration) holdEnded(ctx context.Context) (release func() error, err error) {
	known := map[int32]int{}
	rs.r.Ended = func(id int32) int { return known[id] }
	var zombies []int32
	for _, p := range rs.r.NeededEnded() {
		if known[p.ID] != 0 || rs.numberOf(p.ID) != 0 {
			continue
		}
		switch {
		case p.ID < 0 || p.ID > tasks.MaxPID:
			return nil, object.BadImagef("a message of process %d", p.ID)
		case p.ID == 0 && rs.ownPIDs: // everybody outside of the tree's namespace is 0 there
			known[0] = os.Getpid()
			continue
		case p.ID == 0:
			return nil, object.BadImagef("a message of a process of another pid namespace, and no pid namespace of its own")
		}
		helper, err := rs.hire(ctx, p.ID, func() bool {
			known[p.ID] = rs.rightly(p)
			return known[p.ID] != 0
		})
		switch {
		case errors.Is(err, unix.EEXIST):
			st, _ := procfs.ReadStat(int(p.ID))
			return nil, &object.Lacking{What: fmt.Sprintf("a message was sent by process %d, whose number another one has here (%s)", p.ID, st.Comm),
				Do: "end that process, or restore in a pid namespace of its own (unshare --pid --fork)"}
		case err != nil:
			return nil, fmt.Errorf("making a helper with the number of who has sent a message: %w", err)
		case helper == nil:
			continue
		}
		known[p.ID] = helper.Tid
		b := rs.arena.NewBatch()
		b.Call(b.Sys().ExitGroup, 0)
		if err := rs.tracer.RunOne(helper, b); err != nil {
			return nil, err
		}
		zombies = append(zombies, p.ID)
	}
	return func() error {
		for len(zombies) > 0 {
			const most = 256 // in a batch
			n := min(len(zombies), most)
			b := rs.arena.NewBatch()
			for _, id := range zombies[:n] {
				b.Call(b.Sys().Wait4, id, 0, unix.WALL, 0).Note("helper %d", id)
			}
			if err := rs.tracer.RunOne(rs.procs[0].task, b); err != nil {
				return err
			}
			zombies = zombies[n:]
		}
		return rs.dismissGhosts(true)
	}, nil
}

// rightly returns the number, as this process knows it, of the task that has the number of a process that is taken for ended: one of the
// tree, which has got the number since, or has led a group or session whose number it is still; or that process itself, which lives. 0:
// it is somebody else.
func (rs *restoration) rightly(p object.EndedProcess) int {
	for i, last := range rs.last {
		if last.state.PID == p.ID {
			return rs.holders[i].Tid
		}
	}
	for x, task := range rs.made {
		if x.PID == p.ID {
			return task.Tid
		}
	}
	if rs.ownPIDs || p.Began == 0 {
		return 0
	}
	if st, err := procfs.ReadStat(int(p.ID)); err == nil && st.Starttime == p.Began {
		return int(p.ID)
	}
	return 0
}
