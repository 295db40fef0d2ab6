package engine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/tasks"
)

// spawn starts the stub with the pool of open files, and has it make what must be born inside a task.
func (rs *restoration) spawn() error {
	count := 2 + len(rs.forest.All)
	for _, p := range rs.procs {
		count += len(p.threads)
	}
	var err error
	if rs.arena, err = tracee.NewArena(rs.arch, count, 0); err != nil {
		return err
	}
	if rs.base, err = memory.Hole(rs.spaces, rs.arch, uint64(rs.arena.Size())); err != nil {
		return err
	}
	if err := rs.initial.read(rs.tracer.Tid()); err != nil {
		return err
	}
	if err := rs.checkHost(); err != nil {
		return err
	}
	if rs.stub, err = rs.tracer.Spawn(rs.arena, rs.base); err != nil {
		return fmt.Errorf("starting the first task: %w", err)
	}
	if err := rs.suspendSeccomp(); err != nil {
		return err
	}
	if rs.home != nil {
		// The /proc that the tree mounts is of its own pid namespace; the tracer needs that of its own.
		if err := rs.tracer.Do(func() error { return unix.Setns(rs.home.Int(), unix.CLONE_NEWNS) }); err != nil {
			return fmt.Errorf("returning to the own mount namespace: %w", err)
		}
	}
	if err := rs.resetInherited(); err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	for _, call := range rs.r.RootCalls() {
		if err := call(b); err != nil {
			return err
		}
	}
	return rs.tracer.RunOne(rs.stub, b)
}

// makeProcesses grows the tree, a generation a batch.
func (rs *restoration) makeProcesses() error {
	rs.ghosts = map[*tasks.Birth]*tracee.Task{}
	made := map[*tasks.Birth]*tracee.Task{}
	if err := rs.generation([]*tasks.Birth{nil}, made); err != nil {
		return err
	}
	for level := 0; ; level++ {
		var creators []*tasks.Birth
		deeper := false
		for _, b := range rs.forest.All {
			if b.Depth == level {
				deeper = true
				creators = append(creators, b)
			}
		}
		if !deeper {
			break
		}
		if err := rs.generation(creators, made); err != nil {
			return err
		}
	}
	if rs.bank != nil {
		return nil // the stub is needed until everybody has its memory
	}
	// The stub has done its work.
	b := rs.arena.NewBatch()
	b.Call(b.Sys().ExitGroup, 0)
	return rs.tracer.RunOne(rs.stub, b)
}

// generation has each of the creators (nil: the stub) do all that it does before anybody else's help is needed: bear
// those who must be older than its session, leave the session, bear the others.
func (rs *restoration) generation(creators []*tasks.Birth, made map[*tasks.Birth]*tracee.Task) error {
	var who []*tracee.Task
	var batches []*tracee.Batch
	type born struct {
		b *tasks.Birth
		c *tracee.Call
	}
	var all []born
	for _, creator := range creators {
		b := rs.arena.NewBatch()
		bear := func(list []*tasks.Birth) {
			for _, x := range list {
				if !x.Ghost() && !x.Process.Zombie {
					passSlack(b, rs.byPID[x.PID].threads[0])
				}
				all = append(all, born{x, rs.bear(b, creator, x)})
			}
		}
		task := rs.stub
		if creator == nil {
			bear(rs.forest.Roots)
		} else {
			task = made[creator]
			rs.prune(b, creator)
			if creator.Depth == 0 && len(rs.mounts) > 0 {
				namespaces.ProcCalls(b, b.Sys().Mount, rs.mounts)
			}
			if creator.Process != nil && creator.Process.Subreaper {
				b.Call(b.Sys().Prctl, unix.PR_SET_CHILD_SUBREAPER, 1)
			}
			bear(creator.Before)
			if creator.Setsid {
				b.Call(b.Sys().Setsid)
			}
			bear(creator.After)
		}
		if b.Len() == 0 {
			continue
		}
		who, batches = append(who, task), append(batches, b)
	}
	if len(batches) == 0 {
		return nil
	}
	if err := rs.tracer.Run(who, batches); err != nil {
		return rs.explainTaken(err)
	}
	for _, x := range all {
		task := x.c.Child()
		made[x.b] = task
		if x.b.Ghost() {
			rs.ghosts[x.b] = task
		} else {
			rs.byPID[x.b.PID].task = task
		}
	}
	return nil
}

// bear adds the call with which creator makes x.
func (rs *restoration) bear(b *tracee.Batch, creator, x *tasks.Birth) *tracee.Call {
	// A stand-in's siblings take over its exit signal. What it sends itself is forgotten (forgetChildren).
	args := sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}
	if x.Process != nil {
		args.ExitSignal = uint64(uint32(x.Process.ExitSignal))
	}
	if x.Sibling {
		args.Flags |= unix.CLONE_PARENT
		args.ExitSignal = 0 // taken from the creator
	}
	if creator != nil && creator.Process != nil && x.Process != nil && !x.Process.Zombie && !creator.Process.Zombie {
		if x.Process.Files == creator.Process.Files {
			args.Flags |= unix.CLONE_FILES
		}
		if x.Process.FS == creator.Process.FS {
			args.Flags |= unix.CLONE_FS
		}
	}
	tid := int(x.PID)
	if rs.ownPIDs {
		tid = 0 // inside another namespace than ours
		if creator == nil {
			args.Flags |= unix.CLONE_NEWPID
		}
	}
	return b.Clone(args, []int32{x.PID}, tid).Note("process %d", x.PID)
}

// passSlack adds the call by which a creator gives the thread that it makes next its default timer slack: that is what
// the creator's own slack is at that moment (copy_process in kernel/fork.c). A default of 0, which only children of
// real-time threads have, cannot be passed on.
func passSlack(b *tracee.Batch, t *thread) {
	if t.state.Prctls.DefaultSlack != 0 {
		b.Call(b.Sys().Prctl, unix.PR_SET_TIMERSLACK, t.state.Prctls.DefaultSlack)
	}
}

// explainTaken turns the EEXIST of a clone3 into who is in the way.
func (rs *restoration) explainTaken(err error) error {
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	need := map[int]bool{}
	for _, p := range rs.procs {
		for _, t := range p.threads {
			need[int(t.state.TID)] = t.task == nil
		}
		need[int(p.state.PID)] = p.task == nil
	}
	taken, e := takenIDs(need)
	switch {
	case e != nil || rs.ownPIDs:
		return err
	case taken == nil:
		return &PIDTakenError{Holder: "a task that has just ended", zombie: true}
	}
	return taken
}

// joinGroups puts everybody into the right process group: leaders make theirs, the others join, and then, one by one,
// those leaders go who are in another group than they lead. Then it lets the stand-ins leave.
func (rs *restoration) joinGroups() error {
	for _, leaders := range []bool{true, false} {
		var who []*tracee.Task
		var batches []*tracee.Batch
		for _, x := range rs.forest.All {
			group := x.PID
			if !leaders {
				group = rs.groupOf(x)
			}
			if x.Leads != leaders || x.Setsid || group == 0 {
				continue
			}
			who, batches = append(who, rs.taskOf(x)), append(batches, rs.setGroup(group))
		}
		if err := rs.tracer.Run(who, batches); err != nil {
			return err
		}
	}
	for _, x := range rs.forest.Movers {
		if group := rs.groupOf(x); group != 0 {
			if err := rs.tracer.RunOne(rs.taskOf(x), rs.setGroup(group)); err != nil {
				return err
			}
		}
	}
	return rs.dismissGhosts()
}

func (rs *restoration) setGroup(group int32) *tracee.Batch {
	b := rs.arena.NewBatch()
	b.Call(b.Sys().Setpgid, 0, group).Note("group %d", group)
	return b
}

// groupOf returns the group that x is to be in, 0 for the one that it was born into.
func (rs *restoration) groupOf(x *tasks.Birth) int32 {
	if x.Group != 0 {
		return x.Group
	}
	return rs.outsideGroup(x)
}

// outsideGroup returns the group outside of the tree that x was in, where it can be joined: it still exists and is in
// the session of the caller. Else 0, and x stays in the caller's.
func (rs *restoration) outsideGroup(x *tasks.Birth) int32 {
	if x.Process == nil || !x.Process.OutsideGroup || x.Process.Group <= 0 || rs.ownPIDs {
		return 0
	}
	st, err := procfs.ReadStat(int(x.Process.Group))
	if err != nil || st.Session != rs.initial.session || st.Pgrp != int(x.Process.Group) || st.Session != int(x.Process.Session) {
		return 0
	}
	return x.Process.Group
}

func (rs *restoration) taskOf(x *tasks.Birth) *tracee.Task {
	if x.Ghost() {
		return rs.ghosts[x]
	}
	return rs.byPID[x.PID].task
}

// dismissGhosts ends the stand-ins, those that others were made by last, and has their parents reap them.
func (rs *restoration) dismissGhosts() error {
	for i := len(rs.forest.All) - 1; i >= 0; i-- {
		x := rs.forest.All[i]
		if !x.Ghost() {
			continue
		}
		b := rs.arena.NewBatch()
		b.Call(b.Sys().ExitGroup, 0)
		if err := rs.tracer.RunOne(rs.ghosts[x], b); err != nil {
			return err
		}
		if x.Reaper == nil {
			continue // cr-restore is its parent, and has waited for it as its tracer
		}
		b = rs.arena.NewBatch()
		b.Call(b.Sys().Wait4, x.PID, 0, unix.WALL, 0).Note("stand-in %d", x.PID)
		if err := rs.tracer.RunOne(rs.taskOf(x.Reaper), b); err != nil {
			return err
		}
	}
	return nil
}

// initialState is what every new task starts with, inherited from cr-restore's tracing thread.
type initialState struct {
	session int
	creds   tasks.Credentials
	sched   tasks.Scheduling
}

func (s *initialState) read(tid int) error {
	status, err := procfs.ReadThreadStatus(os.Getpid(), tid)
	if err != nil {
		return err
	}
	st, err := procfs.ReadStat(os.Getpid())
	if err != nil {
		return err
	}
	s.session = st.Session
	secure, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("reading securebits: %w", err)
	}
	s.creds = tasks.Credentials{UID: status.UID[:], GID: status.GID[:], Groups: status.Groups,
		Inheritable: status.CapInh, Permitted: status.CapPrm, Effective: status.CapEff, Bounding: status.CapBnd, Ambient: status.CapAmb,
		Securebits: uint32(secure), NoNewPrivs: status.NoNewPrivs}
	online, err := tasks.Online()
	if err != nil {
		return fmt.Errorf("reading the processors that are online: %w", err)
	}
	if s.sched, err = tasks.ReadScheduling(tid, online); err != nil {
		return err
	}
	s.sched.Runtime = 0 // no custom slice
	return nil
}
