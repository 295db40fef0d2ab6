package engine

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

// spawn starts the stub with the pool of open files, and has it make what must be born inside a task.
func (rs *restoration) spawn() error {
	rs.small = rs.light()
	count := 3 + len(rs.forest.All) + 2*len(rs.last) - len(rs.small)
	var err error
	if rs.arena, err = tracee.NewMixedArena(rs.arch, count, 0, len(rs.small)); err != nil {
		return err
	}
	if rs.base, err = memory.Hole(rs.spaces, rs.arch, uint64(rs.arena.Size()), rs.compat != nil); err != nil {
		return err
	}
	if err := rs.tracer.Do(keepRights); err != nil {
		return err
	}
	if err := rs.initial.read(rs.tracer.Tid()); err != nil {
		return err
	}
	if err := rs.checkHost(); err != nil {
		return err
	}
	if rs.compat != nil {
		if err := rs.compat.open(rs); err != nil {
			return err
		}
	}
	if rs.stub, err = rs.tracer.Spawn(rs.arena, rs.base); err != nil {
		return fmt.Errorf("starting the first task: %w", err)
	}
	if err := rs.suspendSeccomp(); err != nil {
		return err
	}
	if rs.homeNet != nil {
		if err := rs.tracer.Do(func() error { return unix.Setns(rs.homeNet.Int(), unix.CLONE_NEWNET) }); err != nil {
			return fmt.Errorf("returning to the own network namespace: %w", err)
		}
	}
	if rs.home != nil {
		// The /proc that the tree mounts is of its own pid namespace; the tracer needs that of its own.
		if err := rs.tracer.Do(func() error { return unix.Setns(rs.home.Int(), unix.CLONE_NEWNS) }); err != nil {
			return fmt.Errorf("returning to the own mount namespace: %w", err)
		}
	}
	if err := rs.enterBirths(); err != nil {
		return err
	}
	if err := rs.resetInherited(); err != nil {
		return err
	}
	if err := rs.openCurrent(); err != nil {
		return err
	}
	if err := rs.actOutside(); err != nil {
		return err
	}
	if rs.actsInside() {
		return nil
	}
	return rs.rootCalls(rs.stub)
}

// rootCalls has a task that has the pool open do what is asked of it before others inherit that.
func (rs *restoration) rootCalls(task *tracee.Task) error {
	if err := rs.act(task); err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	for _, call := range rs.r.RootCalls() {
		if err := call(b); err != nil {
			return err
		}
	}
	return rs.tracer.RunOne(task, b)
}

// makeProcesses grows the tree, threads and all, a generation a batch.
func (rs *restoration) makeProcesses() error {
	rs.made = make(map[*tasks.Birth]*tracee.Task, len(rs.forest.All))
	if err := rs.generation([]*tasks.Birth{nil}); err != nil {
		return err
	}
	if rs.actsInside() {
		if err := rs.rootCalls(rs.made[rs.forest.Roots[0]]); err != nil {
			return err
		}
	}
	// All comes sorted by generations.
	for all := rs.forest.All; len(all) > 0; {
		n := 1
		for n < len(all) && all[n].Depth == all[0].Depth {
			n++
		}
		if err := rs.generation(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	if err := rs.propagateMounts(); err != nil {
		return err
	}
	for _, p := range rs.procs {
		p.task = rs.made[p.birth]
		for _, t := range p.threads {
			t.task = rs.made[t.birth]
		}
	}
	if rs.bank == nil { // else the stub is needed until everybody has its memory
		b := rs.arena.NewBatch()
		b.Call(b.Sys().ExitGroup, 0)
		if err := rs.tracer.RunOne(rs.stub, b); err != nil {
			return err
		}
	}
	return rs.everyThread(func(t *thread, b *tracee.Batch) error {
		if flags := t.birth.Unshare; flags != 0 {
			b.Call(b.Sys().Unshare, flags)
		}
		return nil
	})
}

// propagateMounts has the mounts of the tree, all of which are there by now, propagate as they did.
func (rs *restoration) propagateMounts() error {
	for _, m := range object.All[namespaces.Mounts](rs.plan) {
		if !m.State.Propagates() {
			continue
		}
		root := rs.made[rs.forest.Roots[0]].Tid
		list, err := procfs.ReadMountinfo(root) // the tree's own /proc does not show the tracer
		if err != nil {
			return err
		}
		there, err := sys.Open("/proc/"+strconv.Itoa(root)+"/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer there.Close()
		if err := rs.tracer.Do(func() (err error) {
			if err := unix.Setns(there.Int(), unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("entering the mount namespace: %w", err)
			}
			defer func() { err = errors.Join(err, unix.Setns(rs.home.Int(), unix.CLONE_NEWNS)) }()
			return m.State.Propagate(list, rs.outer)
		}); err != nil {
			return err
		}
	}
	return nil
}

// generation has each of the creators (nil: the stub) do all that it does before anybody else's help is needed: bear
// those who must be older than its session, leave the session, bear the others.
func (rs *restoration) generation(creators []*tasks.Birth) error {
	var who []*tracee.Task
	var batches []*tracee.Batch
	var all []*tasks.Birth
	var calls []*tracee.Call
	for _, creator := range creators {
		b := rs.arena.NewBatch()
		slack := uint64(0)
		shareIO := false
		bear := func(list []*tasks.Birth) {
			for _, x := range list {
				if t := x.State(); t != nil && t.Prctls.DefaultSlack != slack {
					slack = t.Prctls.DefaultSlack
					passSlack(b, slack)
				}
				if x.Share&unix.CLONE_IO != 0 && !shareIO {
					// A task has an I/O context to share only once it has asked for a priority (copy_io in kernel/fork.c).
					const who = 1 // IOPRIO_WHO_PROCESS: the caller
					b.Call(b.Sys().IoprioSet, who, 0, 0)
					shareIO = true
				}
				all = append(all, x)
				calls = append(calls, rs.bear(b, creator, x))
			}
		}
		task := rs.stub
		if creator == nil {
			bear(rs.forest.Roots)
		} else {
			task = rs.made[creator]
			rs.prune(b, creator)
			rs.identityCalls(b, creator)
			if creator.Depth == 0 && len(rs.mounts) > 0 {
				namespaces.ProcCalls(b, b.Sys().Mount, rs.mounts)
			}
			if creator.Process != nil && creator.Process.Subreaper && !creator.Thread {
				b.Call(b.Sys().Prctl, unix.PR_SET_CHILD_SUBREAPER, 1)
			}
			bear(creator.Before)
			if creator.Setsid {
				b.Call(b.Sys().Setsid)
				rs.takeTerminal(b, creator)
			}
			bear(creator.After)
			if err := rs.takeSteps(b, creator, bear); err != nil {
				return err
			}
		}
		if b.Len() == 0 {
			continue
		}
		who, batches = append(who, task), append(batches, b)
	}
	if len(batches) == 0 {
		return nil
	}
	err := rs.tracer.Run(who, batches)
	for i, x := range all {
		if calls[i].Result() > 0 {
			rs.made[x] = calls[i].Child()
		}
	}
	if err != nil {
		return rs.explainTaken(err)
	}
	for _, x := range all {
		if err := rs.setMode(x); err != nil {
			return err
		}
	}
	return failpoint.Hit("restore.born")
}

// bear adds the call with which creator makes x.
func (rs *restoration) bear(b *tracee.Batch, creator, x *tasks.Birth) *tracee.Call {
	// A stand-in's siblings take over its exit signal. What it sends itself is forgotten (forgetChildren).
	args := sys.CloneArgs{Flags: x.Share, ExitSignal: uint64(unix.SIGCHLD)}
	if x.Process != nil {
		args.ExitSignal = uint64(uint32(x.Process.ExitSignal))
	}
	if x.Sibling {
		args.Flags |= unix.CLONE_PARENT
	}
	if x.Sibling || x.Thread {
		args.ExitSignal = 0 // taken from the creator, and none
	}
	tid := int(x.PID)
	if rs.ownPIDs {
		tid = 0 // inside another namespace than ours
		if creator == nil {
			args.Flags |= unix.CLONE_NEWPID
		}
	}
	clone := b.Clone
	if rs.small[x] {
		clone = b.CloneSmall
	}
	return clone(args, []int32{x.PID}, tid).Note("task %d", x.PID)
}

// light returns the births of the threads that have little to do, and about themselves only: those of a process of many that have
// nothing of their own but registers, signals and credentials.
func (rs *restoration) light() map[*tasks.Birth]bool {
	const groups, pending = 64, 4 // what else has calls with much data
	out := map[*tasks.Birth]bool{}
	for _, p := range rs.procs {
		alike := true
		for _, t := range p.threads {
			alike = alike && t.state.Files.IsZero() && t.state.FS.IsZero()
		}
		for i, t := range p.threads {
			if s := t.state; i > 0 && t.birth.Thread && alike && len(s.Seccomp) == 0 && len(s.Creds.Groups) <= groups && len(s.Signals.Pending) <= pending {
				out[t.birth] = true
			}
		}
	}
	return out
}

// passSlack adds the call by which a creator gives the thread that it makes next its default timer slack: that is what
// the creator's own slack is at that moment (copy_process in kernel/fork.c). A default of 0, which only children of
// real-time threads have, cannot be passed on.
func passSlack(b *tracee.Batch, slack uint64) {
	if slack != 0 {
		b.Call(b.Sys().Prctl, unix.PR_SET_TIMERSLACK, slack)
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
			need[int(t.state.TID)] = rs.unmade(t.birth)
		}
		need[int(p.state.PID)] = rs.unmade(p.birth)
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

// unmade says whether the batch that was to make b has not come to that.
func (rs *restoration) unmade(b *tasks.Birth) bool { return rs.made[b] == nil }

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
			if x.Thread || x.Leads != leaders || x.Setsid || group == 0 {
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
	return rs.dismissGhosts(false)
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

func (rs *restoration) taskOf(x *tasks.Birth) *tracee.Task { return rs.made[x] }

// dismissGhosts ends the stand-ins, those that others were made by last, and has their parents reap them. Those whose numbers are needed
// until all contents have come (holdEnded) stay till then.
func (rs *restoration) dismissGhosts(needed bool) error {
	need := map[int32]bool{}
	for _, p := range rs.r.NeededEnded() {
		need[p.ID] = true
	}
	for i := len(rs.forest.All) - 1; i >= 0; i-- {
		x := rs.forest.All[i]
		if !x.Ghost() || need[x.PID] != needed {
			continue
		}
		b := rs.arena.NewBatch()
		b.Call(b.Sys().ExitGroup, 0)
		if err := rs.tracer.RunOne(rs.taskOf(x), b); err != nil {
			return err
		}
		if x.Reaper == nil {
			continue // cr-restore is its parent, and has waited for it as its tracer
		}
		b = rs.arena.NewBatch()
		b.Call(b.Sys().Wait4, x.PID, 0, unix.WALL, 0).Note("stand-in %d", x.PID)
		reaper := rs.taskOf(x.Reaper)
		for _, p := range rs.procs {
			if p.birth == x.Reaper {
				reaper = p.task // its leader may have ended
			}
		}
		if err := rs.tracer.RunOne(reaper, b); err != nil {
			return err
		}
	}
	return nil
}

// endLeaders ends the leaders of processes of which only other threads have lived on. What they have made goes to the
// first of these.
func (rs *restoration) endLeaders() error {
	var who []*tracee.Task
	var batches []*tracee.Batch
	for _, p := range rs.procs {
		if !p.state.LeaderDead {
			continue
		}
		b := rs.arena.NewBatch()
		n := b.Sys()
		b.Call(n.Prctl, unix.PR_SET_NAME, p.state.Comm)
		b.Call(n.Setresgid, p.state.GID, p.state.GID, p.state.GID)
		b.Call(n.Setresuid, p.state.UID, p.state.UID, p.state.UID)
		b.Call(n.Exit, p.state.WaitStatus>>8)
		who, batches = append(who, p.task), append(batches, b)
		p.task = p.threads[0].task
	}
	if len(batches) == 0 {
		return nil
	}
	return rs.tracer.Run(who, batches)
}

// initialState is what every new task starts with, inherited from cr-restore's tracing thread.
type initialState struct {
	session int
	creds   tasks.Credentials
	sched   tasks.Scheduling

	oomScore   int32
	coreFilter uint32
	sigpending unix.Rlimit
	login      uint32 // login uid
	keyring    int32  // serial of the session keyring, 0: there are none
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
	s.login = tasks.OwnLogin()
	s.keyring = tasks.OwnKeyring()
	online, err := tasks.Online()
	if err != nil {
		return fmt.Errorf("reading the processors that are online: %w", err)
	}
	if s.sched, err = tasks.ReadScheduling(tid, online); err != nil {
		return err
	}
	s.sched.Runtime = 0 // no custom slice
	for _, f := range []struct {
		name string
		base int
		to   func(v int64)
	}{
		{"oom_score_adj", 10, func(v int64) { s.oomScore = int32(v) }},
		{"coredump_filter", 16, func(v int64) { s.coreFilter = uint32(v) }},
	} {
		data, err := os.ReadFile("/proc/self/" + f.name)
		if err != nil {
			return err
		}
		v, err := strconv.ParseInt(strings.TrimSpace(string(data)), f.base, 64)
		if err != nil {
			return fmt.Errorf("reading the own %s: %w", f.name, err)
		}
		f.to(v)
	}
	if err := unix.Getrlimit(unix.RLIMIT_SIGPENDING, &s.sigpending); err != nil {
		return fmt.Errorf("reading RLIMIT_SIGPENDING: %w", err)
	}
	return nil
}
