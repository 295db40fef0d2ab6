package engine

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/memory"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// live calls f for every process that is not a zombie, and runs the batches that it fills, all at once. A batch that
// stays empty costs nothing.
func (rs *restoration) live(f func(p *process, b *tracee.Batch) error) error {
	var who []*tracee.Task
	var batches []*tracee.Batch
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		b := rs.arena.NewBatch()
		if err := f(p, b); err != nil {
			return fmt.Errorf("process %d: %w", p.state.PID, err)
		}
		if b.Len() > 0 {
			who, batches = append(who, p.task), append(batches, b)
		}
	}
	if len(batches) == 0 {
		return nil
	}
	return rs.tracer.Run(who, batches)
}

// everyThread is live for threads.
func (rs *restoration) everyThread(f func(t *thread, b *tracee.Batch) error) error {
	var who []*tracee.Task
	var batches []*tracee.Batch
	for _, p := range rs.procs {
		for _, t := range p.threads {
			b := rs.arena.NewBatch()
			if err := f(t, b); err != nil {
				return fmt.Errorf("thread %d: %w", t.state.TID, err)
			}
			if b.Len() > 0 {
				who, batches = append(who, t.task), append(batches, b)
			}
		}
	}
	if len(batches) == 0 {
		return nil
	}
	return rs.tracer.Run(who, batches)
}

// eachSpace is live for address spaces: one process of those that share one is asked.
func (rs *restoration) eachSpace(f func(p *process, b *tracee.Batch) error) error {
	done := map[*memory.Space]bool{}
	return rs.live(func(p *process, b *tracee.Batch) error {
		if done[p.space] {
			return nil
		}
		done[p.space] = true
		return f(p, b)
	})
}

// layOut has every process make its mappings, while all files of the pool are open in it.
func (rs *restoration) layOut() error {
	err := rs.eachSpace(func(p *process, b *tracee.Batch) error {
		return p.space.Layout(rs.r, b, [2]arch.Addr{rs.base, rs.base + arch.Addr(rs.arena.Size())})
	})
	if err != nil {
		return err
	}
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		if err := p.space.CheckVDSO(p.task.Tid); err != nil {
			return err
		}
	}
	return nil
}

// finishProcesses gives processes what belongs to them as a whole: the executable, roots and directories from the pool before it goes.
func (rs *restoration) finishProcesses() error {
	done := map[stream.Ref]bool{} // address spaces, directories, tables of actions
	first := func(ref stream.Ref) bool {
		before := done[ref]
		done[ref] = true
		return !before
	}
	// The table, with which the pool goes, comes behind in the same batch if everybody who needs the pool has its own.
	atOnce := rs.eachTakesItsTable()
	if err := rs.everyThread(func(t *thread, b *tracee.Batch) error {
		if p := t.process; first(p.state.MM) {
			if err := p.space.Finish(rs.r, b); err != nil {
				return err
			}
		}
		if first(t.fs()) {
			fs, err := object.State[files.FSState](rs.plan, t.fs())
			if err != nil {
				return err
			}
			if err := files.FSCalls(rs.r, b, fs); err != nil {
				return err
			}
		}
		if !atOnce || !first(t.files()) {
			return nil
		}
		table, err := object.State[files.TableState](rs.plan, t.files())
		if err != nil {
			return err
		}
		return files.TableCalls(rs.r, b, table)
	}); err != nil {
		return err
	}
	if atOnce {
		return nil
	}
	return rs.tables(func(_ *process, t *files.TableState, b *tracee.Batch) error { return files.TableCalls(rs.r, b, t) })
}

// eachTakesItsTable says whether every thread that finishes an address space or takes directories for others also is the one
// that makes its descriptor table.
func (rs *restoration) eachTakesItsTable() bool {
	done := map[stream.Ref]bool{}
	for _, p := range rs.procs {
		for _, t := range p.threads {
			needs := !done[p.state.MM] || !done[t.fs()]
			if needs && done[t.files()] {
				return false
			}
			done[p.state.MM], done[t.fs()], done[t.files()] = true, true, true
		}
	}
	return true
}

// endZombies ends the processes that shall be zombies, the way they once ended.
func (rs *restoration) endZombies() error {
	for i := len(rs.procs) - 1; i >= 0; i-- { // children before parents
		p := rs.procs[i]
		if !p.state.Zombie {
			continue
		}
		b := rs.arena.NewBatch()
		n := b.Sys()
		b.Call(n.Prctl, unix.PR_SET_NAME, p.state.Comm)
		b.Call(n.Setresgid, p.state.GID, p.state.GID, p.state.GID)
		b.Call(n.Setresuid, p.state.UID, p.state.UID, p.state.UID)
		sig := unix.Signal(p.state.WaitStatus & 0x7f)
		if sig != 0 {
			b.Call(n.Prlimit64, 0, unix.RLIMIT_CORE, make([]byte, 16), 0) // it had dumped no core
		} else {
			b.Call(n.ExitGroup, p.state.WaitStatus>>8&0xff)
		}
		err := rs.tracer.RunOne(p.task, b)
		if err == nil && sig != 0 {
			err = rs.tracer.DieBy(p.task, sig)
		}
		if err != nil {
			return fmt.Errorf("zombie %d: %w", p.state.PID, err)
		}
	}
	return nil
}

// finishThreads gives threads what is their own, credentials last but for what they would take back, and processes their
// signal actions.
func (rs *restoration) finishThreads() error {
	sections, err := rs.criticalSections()
	if err != nil {
		return err
	}
	// What is set from outside comes before the credentials, which could forbid it, but scheduling comes behind what depends
	// on that: where there is any of that, or memory to be written, it takes two rounds.
	twice := len(sections) > 0
	for _, p := range rs.procs {
		for _, t := range p.threads {
			twice = twice || t.state.Sched.Differs(&rs.initial.sched)
		}
	}
	acted, warned := map[stream.Ref]bool{}, map[*process]bool{}
	early := func(t *thread, b *tracee.Batch) error {
		if ref := t.process.state.Sighand; !acted[ref] {
			acted[ref] = true
			s, err := object.State[signals.Sighand](rs.plan, ref)
			if err != nil {
				return err
			}
			if err := s.Check(); err != nil {
				return err
			}
			s.Calls(b, rs.arch)
		}
		t.state.PointerCalls(b, rs.arch)
		t.state.Signals.StackCalls(b, rs.arch)
		t.state.Prctls.Calls(b, rs.arch)
		if t.state.Sched.Ioprio != 0 {
			const who = 1 // IOPRIO_WHO_PROCESS: the caller
			b.Call(b.Sys().IoprioSet, who, 0, t.state.Sched.Ioprio)
		}
		return nil
	}
	threads := map[*memory.Space]int{}
	for _, p := range rs.procs {
		threads[p.space] += len(p.threads)
	}
	// Only when all threads have their credentials: each change of them makes the process undumpable again (commit_creds).
	alone := func(p *process) bool { return threads[p.space] == 1 }
	late := func(t *thread, b *tracee.Batch) error {
		rs.credentials(t, b, warned)
		if alone(t.process) {
			t.process.space.Settle(rs.r, b)
		}
		return nil
	}
	if twice {
		err = rs.everyThread(early)
	}
	if err != nil {
		return err
	}
	for t, saved := range sections {
		if err := sys.Write(t.task.Tid, arch.Addr(t.state.Rseq+rseqCS), saved); err != nil {
			return fmt.Errorf("thread %d: restoring rseq_cs: %w", t.state.TID, err)
		}
	}
	if err := failpoint.After("restore.outside", rs.fromOutside()); err != nil {
		return err
	}
	if err := rs.everyThread(func(t *thread, b *tracee.Batch) error {
		if !twice {
			if err := early(t, b); err != nil {
				return err
			}
		}
		return late(t, b)
	}); err != nil {
		return err
	}
	return rs.eachSpace(func(p *process, b *tracee.Batch) error {
		if !alone(p) {
			p.space.Settle(rs.r, b)
		}
		return nil
	})
}

// credentials gives a thread its own, and what comes behind them.
func (rs *restoration) credentials(t *thread, b *tracee.Batch, warned map[*process]bool) {
	if t == t.process.threads[0] {
		t.process.space.UnsettleCalls(b, rs.initial.creds.UID[3])
	}
	t.state.Creds.Calls(b, rs.arch, &rs.initial.creds)
	rs.keyCalls(b, t)
	if t.process.birth.Parent == nil && t.state.Prctls.PdeathSignal != 0 {
		// Its parent is cr-restore, whose end, soon, would have it killed.
		if !warned[t.process] {
			warned[t.process] = true
			rs.o.Warn(fmt.Sprintf("pid %d (%s): the signal that it wanted at the death of its parent, which is not part of the image, is not kept", t.process.state.PID, t.state.Comm))
		}
		return
	}
	t.state.Prctls.LateCalls(b, rs.arch)
}

// rseqCS is the offset of rseq_cs in struct rseq (linux/rseq.h).
const rseqCS = 8

// criticalSections reads, for the threads that were inside a restartable sequence, which: registering clears it. It is
// written again, so that the kernel aborts the sequence when the thread goes on, as it would after any preemption.
func (rs *restoration) criticalSections() (map[*thread][]byte, error) {
	out := map[*thread][]byte{}
	for _, p := range rs.procs {
		var have []*thread
		for _, t := range p.threads {
			if t.state.Rseq != 0 {
				have = append(have, t)
			}
		}
		for len(have) > 0 {
			n := min(len(have), 512) // below IOV_MAX
			words, err := rseqWords(have[:n])
			if err != nil {
				return nil, err
			}
			for i, t := range have[:n] {
				if w := words[8*i : 8*i+8]; string(w) != string(make([]byte, 8)) {
					out[t] = w
				}
			}
			have = have[n:]
		}
	}
	return out, nil
}

// rseqWords reads rseq_cs of threads of one process, all in one call where that can read them.
func rseqWords(threads []*thread) ([]byte, error) {
	words := make([]byte, 8*len(threads))
	if len(threads) > 1 {
		remote := make([]unix.RemoteIovec, len(threads))
		for i, t := range threads {
			remote[i] = unix.RemoteIovec{Base: uintptr(t.state.Rseq + rseqCS), Len: 8}
		}
		local := unix.Iovec{Base: &words[0]}
		local.SetLen(len(words))
		if n, err := unix.ProcessVMReadv(threads[0].task.Tid, []unix.Iovec{local}, remote, 0); err == nil && n == len(words) {
			return words, nil
		}
	}
	for i, t := range threads {
		if err := sys.Read(t.task.Tid, arch.Addr(t.state.Rseq+rseqCS), words[8*i:8*i+8]); err != nil {
			return nil, fmt.Errorf("thread %d: reading rseq_cs: %w", t.state.TID, err)
		}
	}
	return words, nil
}

// fromOutside sets what is set through /proc, or by calls on another task.
func (rs *restoration) fromOutside() error {
	groups := rs.ownCgroups()
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		wrap := func(err error) error {
			return &object.Error{PID: int(p.state.PID), Comm: p.threads[0].state.Comm, FD: -1, Err: err}
		}
		for _, t := range p.threads {
			if err := t.state.Sched.Apply(t.task.Tid, &rs.initial.sched); err != nil {
				return wrap(err)
			}
		}
		if p.state.AutoNice != 0 && !p.state.OutsideSession { // a new session's is 0
			if err := tasks.SetAutogroup(p.task.Tid, p.state.AutoNice); err != nil {
				return wrap(err)
			}
		}
		if p.state.OOMScore != rs.initial.oomScore {
			if err := tasks.SetOOMScore(p.task.Tid, p.state.OOMScore); err != nil {
				return wrap(err)
			}
		}
		if p.space.MM.CoreFilter != rs.initial.coreFilter {
			if err := p.space.WriteFilter(p.task.Tid); err != nil {
				return wrap(err)
			}
		}
		if err := tasks.SetLimits(p.task.Tid, p.state.Limits); err != nil {
			return wrap(err)
		}
		rs.joinCgroups(p, groups)
	}
	return nil
}
