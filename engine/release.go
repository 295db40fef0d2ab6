package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/sockets"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// finishSignals queues what was pending and arms timers: late, for they tick from here. Processes that job control had
// stopped are stopped on the way, children before parents, because a parent is told of each: what it had been told
// before the dump it must not hear again.
func (rs *restoration) finishSignals() error {
	if err := rs.forgetChildren(); err != nil {
		return err
	}
	rs.users = map[stream.Ref]int{}
	for _, p := range append(slices.Clone(rs.procs), rs.last...) {
		if !p.state.Zombie {
			rs.users[p.state.MM]++
			rs.users[p.state.Sighand]++
		}
	}
	for i := len(rs.procs) - 1; i >= 0; i-- {
		p := rs.procs[i]
		if p.state.Continued && !p.state.Zombie {
			if err := rs.stopAndContinue(p); err != nil {
				return fmt.Errorf("process %d: stopping and continuing it: %w", p.state.PID, err)
			}
		}
		if p.state.StopSignal == 0 || p.state.Zombie {
			continue
		}
		if err := failpoint.After("restore.stopped", rs.stop(p)); err != nil {
			return fmt.Errorf("process %d: stopping it: %w", p.state.PID, err)
		}
	}
	running := func(p *process) bool { return p.state.StopSignal == 0 }
	if err := failpoint.After("restore.signals", rs.queueSignals(running)); err != nil {
		return err
	}
	return rs.blockSleepers(running)
}

// forgetChildren takes from every process the signals of the zombies and stand-ins that were made just now.
func (rs *restoration) forgetChildren() error {
	odd := map[*process][]unix.Signal{} // what zombies have sent instead of SIGCHLD
	for _, p := range rs.procs {
		if parent := rs.byPID[p.state.Parent]; p.state.Zombie && parent != nil && p.state.ExitSignal != int32(unix.SIGCHLD) && p.state.ExitSignal != 0 {
			odd[parent] = append(odd[parent], unix.Signal(p.state.ExitSignal))
		}
	}
	heard := map[*process]bool{} // who has been sent any SIGCHLD
	for _, p := range rs.procs {
		if p.state.Zombie {
			heard[rs.byPID[p.state.Parent]] = true
		}
	}
	for _, x := range rs.forest.All {
		if x.Ghost() {
			for _, b := range []*tasks.Birth{x.Parent, x.Reaper} {
				if b != nil {
					heard[rs.byPID[b.PID]] = true
				}
			}
		}
	}
	return rs.live(func(p *process, b *tracee.Batch) error {
		if !heard[p] && p.state.Parent != 0 {
			return nil
		}
		forgetSignal(b, unix.SIGCHLD)
		for _, sig := range odd[p] { // one each: real-time signals queue
			forgetSignal(b, sig)
		}
		return nil
	})
}

func forgetSignal(b *tracee.Batch, sig unix.Signal) {
	var set [8]byte
	binary.NativeEndian.PutUint64(set[:], 1<<(sig-1))
	b.Call(b.Sys().RtSigtimedwait, set[:], 0, make([]byte, 16), 8).Allow(unix.EAGAIN)
}

// queueSignals queues the pending signals of the chosen processes and arms their timers.
func (rs *restoration) queueSignals(chosen func(*process) bool) error {
	for _, p := range rs.procs {
		if p.state.Zombie || !chosen(p) {
			continue
		}
		thread := func(tid int32) *tracee.Task {
			for i, t := range p.threads {
				if t.state.TID == tid || tid == 0 && i == 0 {
					return t.task
				}
			}
			return nil
		}
		if err := p.state.Signals.MakeTimers(rs.tracer, thread, rs.arena.NewBatch); err != nil {
			return fmt.Errorf("process %d: %w", p.state.PID, err)
		}
	}
	return rs.everyThread(func(t *thread, b *tracee.Batch) error {
		if !chosen(t.process) {
			return nil
		}
		t.state.Signals.Calls(b, rs.arch, t.process.state.PID, t.state.TID)
		if t == t.process.threads[0] {
			t.process.state.Signals.Calls(b, rs.arch, t.process.state.PID, rs.clock)
			t.process.state.Limits.LateCalls(b, rs.initial.sigpending)
		}
		return nil
	})
}

// sleepTime is how long a call may take to fall asleep; on a machine that is very busy it may have to wait for a processor.
const sleepTime = 10 * time.Second

// blockSleepers puts every thread that was in an interrupted sleep back into it, with the time that was left, so that
// the kernel itself goes on with it to the exact end.
func (rs *restoration) blockSleepers(chosen func(*process) bool) error {
	var sleepers []*thread
	var calls []*tracee.Call
	var who []*tracee.Task
	var batches []*tracee.Batch
	for _, p := range rs.procs {
		for _, t := range p.threads {
			r := &t.state.Signals.Restart
			if r.Kind == signals.RestartNone || !chosen(p) {
				continue
			}
			now, err := rs.clock(unix.CLOCK_MONOTONIC)
			if err != nil {
				return err
			}
			b := rs.arena.NewBatch()
			calls = append(calls, r.Issue(b, now))
			sleepers, who, batches = append(sleepers, t), append(who, t.task), append(batches, b)
		}
	}
	if len(sleepers) == 0 {
		return nil
	}
	classes, err := rs.tracer.Block(who, batches, sleepTime)
	if err = failpoint.After("restore.sleepers", err); err != nil {
		return fmt.Errorf("putting threads back to sleep: %w", err)
	}
	for i, t := range sleepers {
		switch regs := t.regset(arch.NTPRStatus); classes[i] {
		case arch.RestartBlock:
		case arch.RestartNone:
			// It is over: its time is up, or what it waited for is there already. What it returned is what the
			// program's own call returns.
			rs.arch.SetResult(regs, calls[i].Result())
			rs.arch.ClearSyscall(regs)
		default:
			return fmt.Errorf("thread %d: its call shows %s instead of a restart block", t.state.TID, classes[i])
		}
	}
	return nil
}

func (t *thread) regset(note uint32) []byte {
	for i := range t.state.Regs {
		if t.state.Regs[i].Note == note {
			return t.state.Regs[i].Data
		}
	}
	return nil
}

// removeTraces takes the arena out of the chosen processes, by calls after which there is nothing left to execute any
// with. SIGTRAP's action comes before: until then the breakpoints of batches needed the default one.
func (rs *restoration) removeTraces(chosen func(*process) bool) error {
	var traps, unmaps []*tracee.Step
	for _, p := range rs.procs {
		if p.state.Zombie || !chosen(p) {
			continue
		}
		p.clean = true
		// Of processes that share them (CLONE_VM, CLONE_SIGHAND) the last one does it.
		rs.users[p.state.MM]--
		rs.users[p.state.Sighand]--
		if rs.users[p.state.Sighand] > 0 {
			continue
		}
		s, err := object.State[signals.Sighand](rs.plan, p.state.Sighand)
		if err != nil {
			return err
		}
		if trap := s.Trap(); trap != nil {
			at, err := rs.scratch(p, trap)
			if err != nil {
				return err
			}
			compat, nr := s.TrapCompat(), rs.arch.Sys.RtSigaction
			if compat {
				nr = rs.arch.Compat.Sys.RtSigaction
			}
			traps = append(traps, &tracee.Step{Task: p.task, Nr: nr, Compat: compat, Args: [6]uint64{uint64(unix.SIGTRAP), uint64(at), 0, 8}})
		}
		if rs.users[p.state.MM] == 0 {
			unmaps = append(unmaps, p.task.Unmap())
		}
	}
	for _, steps := range [][]*tracee.Step{traps, unmaps} {
		if len(steps) == 0 {
			continue
		}
		if err := rs.tracer.CallSteps(steps); err != nil {
			return err
		}
		for _, s := range steps {
			if s.Result < 0 {
				return fmt.Errorf("pid %d: %s: %w", s.Task.Tid, s.Name(), unix.Errno(-s.Result))
			}
		}
	}
	return nil
}

// scratch puts data into the slot of a process's leader, which no batch uses any more.
func (rs *restoration) scratch(p *process, data []byte) (arch.Addr, error) {
	at := p.task.SlotAddr()
	return at, sys.Write(p.task.Tid, at, data)
}

// setFinal gives the threads of a process the registers that they go on with. It runs on the tracer's thread.
func (rs *restoration) setFinal(p *process) error {
	for _, t := range p.threads {
		var sets []tracee.RegsetData
		for _, s := range t.state.Regs {
			sets = append(sets, tracee.RegsetData{Note: s.Note, Data: s.Data})
		}
		if err := t.state.SetTLS(t.task.Tid); err != nil {
			return err
		}
		if err := rs.tracer.SetFinal(t.task, sets, t.state.Signals.Mask); err != nil {
			return fmt.Errorf("thread %d: %w", t.state.TID, err)
		}
		if err := t.state.SetDebug(t.task.Tid); err != nil {
			return fmt.Errorf("thread %d: %w", t.state.TID, err)
		}
		if err := t.state.Dispatch.Set(t.task.Tid); err != nil {
			return fmt.Errorf("thread %d: %w", t.state.TID, err)
		}
	}
	return nil
}

// stop brings a process into the job-control stop that it was in, still under the tracer's hand, and has its parent
// consume what it was told then. It is the last thing that happens to it before its final registers.
func (rs *restoration) stop(p *process) error {
	this := func(q *process) bool { return q == p }
	if err := rs.queueSignals(this); err != nil {
		return err
	}
	if err := rs.blockSleepers(this); err != nil {
		return err
	}
	if err := rs.removeTraces(this); err != nil {
		return err
	}
	sig := unix.SIGSTOP
	if p.state.Unwaited {
		sig = unix.Signal(p.state.StopSignal)
	}
	if err := rs.tracer.Do(func() error { return rs.groupStop(p, sig) }); err != nil {
		return err
	}
	parent := rs.byPID[p.state.Parent]
	if parent == nil {
		return nil
	}
	b := rs.arena.NewBatch()
	if !p.state.Unwaited {
		const pPID = 1
		b.Call(b.Sys().Waitid, pPID, p.state.PID, b.Space(128), unix.WSTOPPED|unix.WNOHANG, 0)
	}
	forgetSignal(b, unix.SIGCHLD)
	return rs.tracer.RunOne(parent.task, b)
}

// stopAndContinue has a process stopped and continued, without a step of its own, so that its parent can be told of that. The
// parent's notice of the stop, and all signals, are taken away again.
func (rs *restoration) stopAndContinue(p *process) error {
	if err := rs.tracer.Do(func() error { return rs.groupStop(p, unix.SIGSTOP) }); err != nil {
		return err
	}
	parent := rs.byPID[p.state.Parent]
	if parent != nil {
		b := rs.arena.NewBatch()
		const pPID = 1
		b.Call(b.Sys().Waitid, pPID, p.state.PID, b.Space(128), unix.WSTOPPED|unix.WNOHANG, 0)
		if err := rs.tracer.RunOne(parent.task, b); err != nil {
			return err
		}
	}
	if err := rs.tracer.Do(func() error {
		lead := p.task.Tid
		if err := sys.Tgkill(p.task.Pid, lead, unix.SIGCONT); err != nil {
			return err
		}
		for _, t := range p.threads {
			// It stops once more, to say that the group stop is over (JOBCTL_TRAP_NOTIFY in kernel/signal.c).
			if err := sys.PtraceCont(t.task.Tid, 0); err != nil {
				return err
			}
			_, ws, err := sys.Wait(t.task.Tid, 0)
			if err != nil {
				return err
			}
			if !ws.EventStop() || ws.GroupStop() {
				return fmt.Errorf("internal error: %s instead of the end of a group stop", ws)
			}
		}
		return sys.PtraceSetSigmask(lead, tracee.BlockedMask)
	}); err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	forgetSignal(b, unix.SIGCONT)
	if err := rs.tracer.RunOne(p.task, b); err != nil || parent == nil {
		return err
	}
	b = rs.arena.NewBatch()
	forgetSignal(b, unix.SIGCHLD)
	return rs.tracer.RunOne(parent.task, b)
}

// groupStop runs on the tracer's thread. The threads are in stops inside the kernel's signal code, so that between here
// and the group stop not one instruction of theirs is executed.
func (rs *restoration) groupStop(p *process, sig unix.Signal) error {
	lead := p.task.Tid
	if err := sys.PtraceSetSigmask(lead, ^uint64(0)); err != nil {
		return err
	}
	if err := sys.Tgkill(p.task.Pid, lead, unix.SIGSTOP); err != nil {
		return err
	}
	if err := sys.PtraceCont(lead, 0); err != nil {
		return err
	}
	_, ws, err := sys.Wait(lead, 0)
	if err != nil {
		return err
	}
	if !ws.SignalStop() || ws.Signal() != unix.SIGSTOP {
		return fmt.Errorf("internal error: %s instead of a stop signal", ws)
	}
	if sig != unix.SIGSTOP {
		// Injected in its place; it must not be blocked then (ptrace_signal in kernel/signal.c).
		if err := sys.PtraceSetSigmask(lead, ^uint64(1<<(sig-1))); err != nil {
			return err
		}
	}
	// The leader's stop makes the others join it. Until it has, they must not be continued: they would run.
	for i, t := range p.threads {
		give := unix.Signal(0)
		if i == 0 {
			give = sig
		}
		if err := sys.PtraceCont(t.task.Tid, give); err != nil {
			return err
		}
		_, ws, err := sys.Wait(t.task.Tid, 0)
		if err != nil {
			return err
		}
		if !ws.GroupStop() {
			return fmt.Errorf("internal error: %s instead of a group stop", ws)
		}
	}
	return nil
}

// passOn sends again what others have sent to the new tasks in the meantime: they get it as the first thing they do.
func (rs *restoration) passOn(all []*tracee.Task) error {
	for _, k := range all {
		for i := range k.Kept {
			info := &k.Kept[i]
			sig := unix.Signal(binary.NativeEndian.Uint32(info[:]))
			if err := sys.RtTgsigqueueinfo(k.Pid, k.Tid, sig, info); err != nil {
				// What the kernel or kill(2) has sent may not be sent with its siginfo by another task.
				if err := sys.Tgkill(k.Pid, k.Tid, sig); err != nil {
					return fmt.Errorf("pid %d: passing on %s: %w", k.Tid, sys.SignalName(sig), err)
				}
			}
		}
	}
	return nil
}

// letGo writes the ticket and lets the tree run. From the commit on nothing is undone any more.
func (rs *restoration) letGo() (*Restored, error) {
	var roots, pids []int
	for _, p := range rs.procs {
		pids = append(pids, p.task.Pid)
		if p.state.Parent == 0 {
			roots = append(roots, p.task.Pid)
		}
	}
	var stopped []int
	for _, p := range rs.procs {
		if p.state.StopSignal != 0 && !p.state.Zombie {
			stopped = append(stopped, p.task.Pid)
		}
	}
	ticket, err := freezeHeld(roots, rs.o.Frozen, FreezeOptions{stopped: stopped, all: pids, Guard: rs.guard})
	if err = failpoint.After("restore.described", err); err != nil {
		return nil, err
	}
	made := &Restored{Root: rs.procs[0].task.Pid, Ticket: ticket}
	if !rs.o.Frozen {
		if err := rs.tell(made); err != nil {
			return nil, err
		}
	}
	untied := rs.guard.Clear // from here on all live
	if rs.o.Frozen {
		untied = nil // until somebody has the ticket
	}
	if err := rs.showTerminals(made); err != nil {
		return nil, err
	}
	if err := rs.tracer.Commit(rs.threads(), untied); err != nil {
		rs.hideTerminals(made)
		if rs.o.Frozen { // nobody is left in the freezer, which goes too
			err = errors.Join(err, undoFrozen(rs.guard, freezer.Thaw(&ticket.state, freezer.ThawOptions{Partial: true, Warn: rs.o.Warn})))
		}
		return nil, err
	}
	rs.committed = true
	made.foreground.changed()
	if err := sockets.ReleasedTCP(rs.r); err != nil {
		rs.o.Warn(fmt.Sprintf("the processes run, but letting the packets of their TCP connections pass failed: %v", err))
	}
	if rs.o.Frozen {
		err := failpoint.After("restore.awaited", ticket.state.AwaitFrozen(0))
		if err == nil {
			err = rs.tell(made) // not before: whoever has the ticket may thaw at once, and these must have been let go then
		}
		if err != nil {
			return nil, errors.Join(err, undoFrozen(rs.guard, freezer.Kill(&ticket.state, freezer.ThawOptions{Warn: rs.o.Warn})))
		}
	}
	return made, nil
}

func (rs *restoration) tell(made *Restored) error {
	if rs.o.Tell == nil {
		return nil
	}
	return rs.o.Tell(made)
}

// undoFrozen leaves to the guard what could not be undone.
func undoFrozen(g *Guardian, err error) error {
	if err != nil {
		return err
	}
	return g.Clear()
}
