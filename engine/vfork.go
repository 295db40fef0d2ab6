package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// Parents that wait in vfork(2): how they are made again is told in tasks/vfork.go. Mostly the wait is over within a millisecond, so
// a dump first lets it pass.

// vforkError is a parent that waits in vfork(2). It passes, or else is kept, or refused.
type vforkError struct{ refusal error }

func (e *vforkError) Error() string { return e.refusal.Error() }
func (e *vforkError) Unwrap() error { return errTransient }

const vforkHint = "wait until the child has called execve, or has ended"

func refuseVfork(p *object.Process, format string, args ...any) error {
	return &vforkError{p.Error("", &object.Unsupported{What: "its parent waits for it in vfork" + fmt.Sprintf(format, args...), Do: vforkHint})}
}

// findVforks finds who waits for whom. Unless such are to be kept they are an error.
func findVforks(d *object.Dumper, keep bool) error {
	for _, p := range d.Processes {
		if p.Zombie {
			continue
		}
		if child, ok := p.Leader().View.State.VforkChild.Get(); !ok || !child {
			continue
		}
		if !keep {
			return refuseVfork(p, "")
		}
		tid, ok := p.Leader().View.Parent.Get()
		var waiter *object.Thread
		if p.Parent != nil {
			for _, t := range p.Parent.Threads {
				if t.InVfork && ok && t.TID == tid && t.Child == nil {
					waiter = t
				}
			}
		}
		if waiter == nil {
			return refuseVfork(p, ", and can be seen by the BPF source only, in a cgroup of version 2")
		}
		waiter.Child = p
	}
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			if t.InVfork && t.Child == nil { // its child is about to let it go on, if it is not another call that has failed
				return &vforkError{p.Error("", &object.Unsupported{What: freezer.ErrVfork.Error(), Do: vforkHint})}
			}
		}
	}
	return nil
}

// checkVforks refuses children that could not be made again; the plan of births is checked elsewhere.
func checkVforks(d *object.Dumper, families []tasks.Family) error {
	byPID := map[int32]tasks.Family{}
	for _, f := range families {
		byPID[f.PID] = f
	}
	for _, f := range families {
		for _, t := range f.Threads {
			if t.Vfork == 0 {
				continue
			}
			c := byPID[t.Vfork]
			why := cannotFollow(t, f, c, d.Added)
			if why == "" {
				why = named(d, families, c)
			}
			for _, p := range d.Processes {
				if why != "" && p.ID == int(c.PID) {
					return refuseVfork(p, "%s", why)
				}
			}
		}
	}
	return nil
}

// cannotFollow says why a child cannot come to its state from that of the thread that waits for it; empty if it can.
func cannotFollow(t *tasks.Thread, parent, child tasks.Family, state func(stream.Ref) any) string {
	fs, files1 := t.FS, t.Files
	if fs.IsZero() {
		fs = parent.FS
	}
	if files1.IsZero() {
		files1 = parent.Files
	}
	if child.Process == nil || len(child.Threads) != 1 {
		return ", and it has several threads"
	}
	if fs != child.FS {
		a, ok1 := state(fs).(*files.FSState)
		b, ok2 := state(child.FS).(*files.FSState)
		if !ok1 || !ok2 || !a.Same(b) {
			return ", and it has changed its root, working directory or umask"
		}
	}
	if files1 != child.Files {
		a, ok1 := state(files1).(*files.TableState)
		b, ok2 := state(child.Files).(*files.TableState)
		if !ok1 || !ok2 {
			return ", and its descriptors are not known"
		}
		if fd, ok := b.CanInherit(a); !ok && fd >= 0 {
			return fmt.Sprintf(", and it has opened a file of its own (fd %d)", fd)
		} else if !ok {
			return ", and it has locked a file or asked for SIGIO"
		}
	}
	return ""
}

// named says whether something in the tree leads to the child that must be there before it: a pidfd, a receiver of SIGIO.
func named(d *object.Dumper, families []tasks.Family, child tasks.Family) string {
	for _, f := range families {
		tables := []stream.Ref{f.Files}
		for _, t := range f.Threads {
			tables = append(tables, t.Files)
		}
		for _, ref := range tables {
			table, ok := d.Added(ref).(*files.TableState)
			if !ok {
				continue
			}
			for _, o := range table.Owners {
				if o.ID == child.PID {
					return ", and it is the receiver of SIGIO of a file"
				}
			}
			for _, e := range table.Entries {
				if p, ok := d.Added(e.File).(interface{ Target() int32 }); ok && p.Target() == child.PID {
					return fmt.Sprintf(", and pid %d has a pidfd of it", f.PID)
				}
			}
		}
	}
	return ""
}

// checkLast refuses children made last that no dump writes, and takes them out of what is made first.
func (rs *restoration) planLast() error {
	state := func(ref stream.Ref) any {
		s, _ := rs.plan.Lookup(ref)
		if s == nil {
			return nil
		}
		return s.State
	}
	var first []*process
	for _, p := range rs.procs {
		if !p.birth.Last {
			first = append(first, p)
			continue
		}
		waiter := rs.waiter(p)
		family := func(p *process) tasks.Family {
			f := tasks.Family{Process: p.state}
			for _, t := range p.threads {
				f.Threads = append(f.Threads, t.state)
			}
			return f
		}
		if why := cannotFollow(waiter.state, family(waiter.process), family(p), state); why != "" {
			return object.BadImagef("process %d: its parent waits for it in vfork%s", p.state.PID, why)
		}
		rs.last = append(rs.last, p)
	}
	rs.procs = first
	return nil
}

// waiter is the thread that waits for p.
func (rs *restoration) waiter(p *process) *thread {
	for _, q := range rs.procs {
		for _, t := range q.threads {
			if t.birth == p.birth.Creator {
				return t
			}
		}
	}
	return nil // PlanForest has found it
}

// holdNumbers has tasks hold the numbers of those who are made last, until then, and makes, while everybody still has all privileges,
// one in the tree's pid namespace that will choose numbers there for children of parents that may not.
func (rs *restoration) holdNumbers(ctx context.Context) error {
	for _, p := range rs.last {
		holder, err := rs.hire(ctx, p.state.PID, nil)
		if err != nil {
			return err
		}
		rs.holders = append(rs.holders, holder)
		if rs.ownPIDs && rs.numberer == nil && !rs.waiter(p).state.Creds.Privileged() {
			rs.numbererID = rs.forest.Spare()
			if rs.numberer, err = rs.hire(ctx, rs.numbererID, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// hire has the first process make a helper with a number. Where that is taken it tries again for a while, for zombies go soon, unless
// known, if not nil, says that it is taken rightly; then there is no helper.
func (rs *restoration) hire(ctx context.Context, id int32, known func() bool) (*tracee.Task, error) {
	for deadline := time.Now().Add(zombieTime); ; {
		b := rs.arena.NewBatch()
		clone := b.Clone(sys.CloneArgs{}, []int32{id}, 0).Note("task %d", id) // no exit signal: its parent hears nothing of it
		err := rs.tracer.RunOne(rs.procs[0].task, b)
		switch {
		case err == nil:
			return clone.Child(), nil
		case errors.Is(err, unix.EEXIST) && known != nil && known():
			return nil, nil
		case !errors.Is(err, unix.EEXIST) || time.Now().After(deadline):
			return nil, err
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// nextNumber makes a number the one that the next task gets: it is one more than the last one, in the namespace of whoever writes that.
func (rs *restoration) nextNumber(id int32) error {
	const cwd = 1<<64 - 100 // AT_FDCWD
	const file = "/proc/sys/kernel/ns_last_pid"
	last := strconv.Itoa(int(id) - 1)
	if !rs.ownPIDs {
		return os.WriteFile(file, []byte(last), 0)
	}
	b := rs.arena.NewBatch()
	n := b.Sys()
	fd := b.Call(n.Openat, uint64(cwd), file, unix.O_WRONLY, 0).Note(file)
	b.Call(n.Write, fd, b.Data([]byte(last)), len(last)).Note(file)
	b.Call(n.Close, fd)
	return rs.tracer.RunOne(rs.numberer, b)
}

// dismissNumberer ends it: its parent may be the next to wait in vfork.
func (rs *restoration) dismissNumberer() error {
	if rs.numberer == nil {
		return nil
	}
	helper := rs.numberer
	rs.numberer = nil
	return rs.endHelper(helper, rs.numbererID)
}

// bearLast makes the children for which others wait in vfork, and gives them what is their own. From then on nothing can be done to
// those any more but to let them go.
func (rs *restoration) bearLast() error {
	for i, holder := range rs.holders {
		if err := rs.endHelper(holder, rs.last[i].state.PID); err != nil {
			return err
		}
	}
	for _, p := range rs.last {
		if err := failpoint.After("restore.vfork", rs.bearVfork(p)); err != nil {
			return fmt.Errorf("process %d: %w", p.state.PID, err)
		}
		rs.procs = append(rs.procs, p)
		only := func(q *process) bool { return q == p }
		if err := rs.queueSignals(only); err != nil {
			return err
		}
		if err := rs.blockSleepers(only); err != nil {
			return err
		}
	}
	return nil
}

func (rs *restoration) bearVfork(p *process) error {
	x, w := p.birth, rs.waiter(p)
	// Of what its process shares with nobody but the child, the arena is left to that.
	if err := rs.removeTraces(func(q *process) bool { return q == w.process && !q.clean }); err != nil {
		return err
	}
	args := sys.CloneArgs{Flags: x.Share, ExitSignal: uint64(uint32(p.state.ExitSignal))}
	if err := rs.vfork(p, w, args); err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	n := b.Sys()
	if x.Setsid {
		b.Call(n.Setsid)
	} else if x.Group != 0 && x.Group != w.process.state.Group {
		b.Call(n.Setpgid, 0, x.Group).Note("group %d", x.Group)
	}
	if x.Share&unix.CLONE_FILES == 0 {
		from, err := object.State[files.TableState](rs.plan, w.files())
		if err != nil {
			return err
		}
		table, err := object.State[files.TableState](rs.plan, p.threads[0].files())
		if err != nil {
			return err
		}
		if err := files.InheritCalls(b, table, from); err != nil {
			return err
		}
	}
	t := p.threads[0]
	if x.Share&unix.CLONE_SIGHAND == 0 {
		s, err := object.State[signals.Sighand](rs.plan, p.state.Sighand)
		if err != nil {
			return err
		}
		if err := s.Check(); err != nil {
			return err
		}
		rs.defaultActions(b)
		s.Calls(b, rs.arch)
	}
	t.state.PointerCalls(b, rs.arch)
	t.state.Signals.StackCalls(b, rs.arch)
	t.state.Prctls.Calls(b, rs.arch)
	t.state.Prctls.LateCalls(b, rs.arch)
	if t.state.Sched.Ioprio != w.state.Sched.Ioprio {
		const who = 1 // IOPRIO_WHO_PROCESS: the caller
		b.Call(n.IoprioSet, who, 0, t.state.Sched.Ioprio)
	}
	if err := rs.tracer.RunOne(p.task, b); err != nil {
		return err
	}
	return rs.vforkOutside(p, w)
}

// vforkTries is how often a child is made for which its parent cannot choose the number: others may be faster.
const vforkTries = 100

// vfork has w make the child, with the right number.
func (rs *restoration) vfork(p *process, w *thread, args sys.CloneArgs) error {
	privileged := w.state.Creds.Privileged()
	for try := 1; ; try++ {
		number := []int32{p.birth.PID}
		if !privileged {
			number = nil
			if err := rs.nextNumber(p.birth.PID); err != nil {
				return fmt.Errorf("choosing its number: %w", err)
			}
		}
		if p == rs.last[len(rs.last)-1] && rs.ownPIDs { // where nobody else makes tasks now
			if err := rs.dismissNumberer(); err != nil {
				return err
			}
		}
		b := rs.arena.NewBatch()
		clone := b.Clone(args, number, 0).Note("task %d", p.birth.PID)
		if err := rs.tracer.Vfork(w.task, b); err != nil {
			return err
		}
		p.task = clone.Child()
		p.threads[0].task, rs.made[p.birth] = p.task, p.task
		status, err := procfs.ReadStatus(p.task.Tid)
		if err != nil {
			return err
		}
		n := status.NSpid
		if len(n) > 0 && n[len(n)-1] == int(p.birth.PID) {
			return nil
		}
		if again, err := rs.unmakeVfork(p, w, clone, n); err != nil || !again || try == vforkTries {
			return errors.Join(err, &object.Lacking{What: fmt.Sprintf("other programs were faster to get pid %d", p.birth.PID), Do: "try again"})
		}
	}
}

// unmakeVfork takes back a child with the wrong number, with what its parent hears of its end; it says whether that was possible.
func (rs *restoration) unmakeVfork(p *process, w *thread, clone *tracee.Call, number []int) (bool, error) {
	s, err := object.State[signals.Sighand](rs.plan, w.process.state.Sighand)
	if err != nil {
		return false, err
	}
	sig := unix.Signal(p.state.ExitSignal)
	const firstRealTime = 32
	if s.Trap() != nil || sig >= firstRealTime || w.state.Signals.Has(sig) {
		return false, nil // the end of a batch could change the action; one of several signals would be taken for another
	}
	if err := rs.tracer.UndoVfork(w.task, clone); err != nil {
		return false, err
	}
	b := rs.arena.NewBatch()
	if len(number) > 0 {
		b.Call(b.Sys().Wait4, number[len(number)-1], 0, unix.WALL, 0).Allow(unix.ECHILD) // it may ignore SIGCHLD
	}
	if sig != 0 && !w.process.state.Signals.Has(sig) { // else it was pending before, and does not queue
		forgetSignal(b, sig)
	}
	return true, rs.tracer.RunOne(w.task, b)
}

// defaultActions adds the calls that undo all actions for signals but that of SIGTRAP, which ends batches.
func (rs *restoration) defaultActions(b *tracee.Batch) {
	standard := b.Data(make([]byte, 32)) // struct kernel_sigaction: SIG_DFL, no flags, empty mask
	for sig := unix.Signal(1); sig <= 64; sig++ {
		if sig != unix.SIGKILL && sig != unix.SIGSTOP {
			b.Call(b.Sys().RtSigaction, sig, standard, 0, 8).Note("rt_sigaction of signal %d", int(sig))
		}
	}
}

// vforkOutside is fromOutside for a child whose start was what its parent has for good.
func (rs *restoration) vforkOutside(p *process, w *thread) error {
	online, err := tasks.Online()
	if err != nil {
		return err
	}
	t := p.threads[0]
	have, err := tasks.ReadScheduling(t.task.Tid, online)
	if err != nil {
		return err
	}
	if err := t.state.Sched.Apply(t.task.Tid, &have); err != nil {
		return err
	}
	if p.state.AutoNice != 0 && t.birth.Setsid {
		if err := tasks.SetAutogroup(p.task.Tid, p.state.AutoNice); err != nil {
			return err
		}
	}
	if p.state.OOMScore != w.process.state.OOMScore {
		if err := tasks.SetOOMScore(p.task.Tid, p.state.OOMScore); err != nil {
			return err
		}
	}
	if err := tasks.SetLimits(p.task.Tid, p.state.Limits); err != nil {
		return err
	}
	rs.joinCgroups(p, rs.ownCgroups())
	return nil
}
