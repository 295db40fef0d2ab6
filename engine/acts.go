package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// What the kernel says of a task for ever, because that has made an object, is made by a task with the same number: a helper, before
// the real one is born, which ends at once. It shares the descriptor table of the task that all others inherit theirs from: of the
// stub or, where the tree has a pid namespace of its own, of the first process in it.

// actsInside says whether what is to be made before all tasks must wait for the first of them: only it can bear helpers in its own
// pid namespace.
func (rs *restoration) actsInside() bool {
	if !rs.ownPIDs {
		return false
	}
	for _, a := range rs.r.Acts() {
		if a.By.PID != 0 {
			return true
		}
	}
	return false
}

// actOutside does the acts of tasks outside of the tree's own pid namespace.
func (rs *restoration) actOutside() error {
	for _, a := range rs.r.Acts() {
		if a.By.PID != 0 {
			continue
		}
		if !rs.ownPIDs {
			return &object.Lacking{What: "the image has a socket that a process of another pid namespace has made, and no pid namespace of its own",
				Do: "dump the tree from the pid namespace that its first process is in"}
		}
		if rs.acted > 0 { // by an earlier stub; and what they have made is in the pool
			continue
		}
		if err := rs.helperActs(rs.stub, []object.Act{a}); err != nil {
			return err
		}
	}
	return nil
}

// act does all other acts, those of one actor that follow one another by one helper.
func (rs *restoration) act(task *tracee.Task) error {
	if rs.acted > 0 {
		return nil
	}
	var all []object.Act
	for _, a := range rs.r.Acts() {
		if a.By.PID != 0 {
			all = append(all, a)
		}
	}
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].By.Same(&all[0].By) {
			n++
		}
		if err := rs.helperActs(task, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	rs.acted = len(rs.r.Acts())
	return nil
}

// helperActs has a helper of one task do acts that have the same actor, and takes into the own pool what they have made.
func (rs *restoration) helperActs(maker *tracee.Task, acts []object.Act) error {
	by := &acts[0].By
	helper := maker
	own := rs.ownPIDs && rs.forest.Roots[0].PID == by.PID && maker != rs.stub // the maker itself is who is to do it
	if !own {
		var err error
		if helper, err = rs.bearHelper(maker, by.PID); err != nil {
			return err
		}
	}
	b := rs.arena.NewBatch()
	n := b.Sys()
	groups := make([]byte, 0, 4*len(by.Groups))
	for _, g := range by.Groups {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	b.Call(n.Setgroups, len(by.Groups), groups).Note("the groups of who made a socket")
	b.Call(n.Setresgid, -1, by.GID, -1).Note("group %d of who made a socket", by.GID)
	b.Call(n.Setresuid, -1, by.UID, -1).Note("user %d who made a socket", by.UID)
	var makes []int
	for _, a := range acts {
		if err := a.Calls(b); err != nil {
			return err
		}
		makes = append(makes, a.Makes...)
	}
	if own {
		c := &rs.initial.creds
		b.Call(n.Setresuid, -1, c.UID[1], -1)
		b.Call(n.Setresgid, -1, c.GID[1], -1)
		groups := make([]byte, 0, 4*len(c.Groups))
		for _, g := range c.Groups {
			groups = binary.NativeEndian.AppendUint32(groups, g)
		}
		b.Call(n.Setgroups, len(c.Groups), groups)
	}
	if err := rs.tracer.RunOne(helper, b); err != nil {
		return err
	}
	if !own {
		end := rs.arena.NewBatch()
		end.Call(n.ExitGroup, 0)
		if err := rs.tracer.RunOne(helper, end); err != nil {
			return err
		}
		end = rs.arena.NewBatch()
		end.Call(n.Wait4, -1, 0, unix.WALL, 0).Note("a helper")
		if err := rs.tracer.RunOne(maker, end); err != nil {
			return err
		}
	}
	return rs.takeMade(maker, makes)
}

// bearHelper makes a task with a number, which may be held by a zombie still.
func (rs *restoration) bearHelper(maker *tracee.Task, pid int32) (*tracee.Task, error) {
	for deadline := time.Now().Add(zombieTime); ; time.Sleep(5 * time.Millisecond) {
		b := rs.arena.NewBatch()
		var ids []int32
		if pid != 0 {
			ids = []int32{pid}
		}
		call := b.Clone(sys.CloneArgs{Flags: unix.CLONE_FILES}, ids, 0).Note("who made a socket, %d", pid) // no exit signal
		err := rs.tracer.RunOne(maker, b)
		if err == nil {
			return call.Child(), nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
		if time.Now().After(deadline) {
			st, _ := procfs.ReadStat(int(pid))
			return nil, &object.Lacking{What: fmt.Sprintf("a socket was made by process %d, whose number another one has here (%s)", pid, st.Comm),
				Do: "end that process, or restore in a pid namespace of its own (unshare --pid --fork)"}
		}
	}
}

// takeMade takes what the table of a task has at numbers of the pool to the same numbers of this process.
func (rs *restoration) takeMade(task *tracee.Task, numbers []int) error {
	if len(numbers) == 0 {
		return nil
	}
	pidfd, err := sys.PidfdOfThread(task.Tid)
	if errors.Is(err, unix.EINVAL) {
		pidfd, err = sys.PidfdOpen(task.Tid, 0)
	}
	if err != nil {
		return fmt.Errorf("opening a pidfd: %w", err)
	}
	defer pidfd.Close()
	for _, n := range numbers {
		fd, err := sys.PidfdGetfd(pidfd, n)
		if err != nil {
			return fmt.Errorf("taking a socket: %w", err)
		}
		err = unix.Dup3(fd.Int(), n, 0) // as inherited as the rest of the pool
		if err := errors.Join(os.NewSyscallError("dup3", err), fd.Close()); err != nil {
			return fmt.Errorf("taking a socket: %w", err)
		}
	}
	return nil
}

// numberOf returns the number by which this process knows a task of the image, 0 for one that is not there (yet).
func (rs *restoration) numberOf(id int32) int {
	if p := rs.byPID[id]; p != nil && p.task != nil {
		return p.task.Tid
	}
	return 0
}
