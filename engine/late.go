package engine

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// tables calls f once for every descriptor table, with the process of a thread that has it, and runs the batches that it
// fills there.
func (rs *restoration) tables(f func(p *process, t *files.TableState, b *tracee.Batch) error) error {
	done := map[uint32]bool{}
	return rs.everyThread(func(th *thread, b *tracee.Batch) error {
		ref := th.files()
		if done[ref.ID] {
			return nil
		}
		done[ref.ID] = true
		t, err := object.State[files.TableState](rs.plan, ref)
		if err != nil {
			return err
		}
		return f(th.process, t, b)
	})
}

// openPidfds makes the descriptors of processes, all of which exist by now.
func (rs *restoration) openPidfds() error {
	var all []events.Table
	if err := rs.tables(func(p *process, t *files.TableState, _ *tracee.Batch) error {
		all = append(all, events.Table{PID: p.state.PID, State: t})
		return nil
	}); err != nil {
		return err
	}
	var helper *tracee.Call
	gone := int32(0)
	if events.GonePidfds(rs.plan) {
		b := rs.arena.NewBatch()
		helper = b.Clone(sys.CloneArgs{}, nil, 0).Note("helper") // no exit signal: its parent hears nothing of it
		if err := rs.tracer.RunOne(rs.procs[0].task, b); err != nil {
			return err
		}
		gone = int32(helper.Int())
	}
	rounds, err := events.PidfdRounds(rs.r, all, rs.hasTask, gone)
	if err != nil {
		return err
	}
	for i, round := range rounds {
		if err := rs.tables(func(_ *process, t *files.TableState, b *tracee.Batch) error { return round(t, b) }); err != nil {
			return err
		}
		if i > 0 || helper == nil {
			continue
		}
		if err := rs.endHelper(helper.Child(), gone); err != nil {
			return err
		}
	}
	for _, round := range events.SignalfdRounds(rs.r) {
		if err := rs.tables(func(_ *process, t *files.TableState, b *tracee.Batch) error { return round(t, b) }); err != nil {
			return err
		}
	}
	return nil
}

// makeRings makes the io_uring instances, each in the thread that it is bound to or in one that has it. Their mappings come later.
func (rs *restoration) makeRings() error {
	var err error
	if rs.rings, err = events.URings(rs.r, func(tid int32) bool { return rs.threadOf(tid) != nil }); err != nil || len(rs.rings) == 0 {
		return err
	}
	rs.ringMakers = map[*events.URing]*thread{}
	for _, u := range rs.rings {
		if rs.ringMakers[u], err = rs.ringMaker(u); err != nil {
			return err
		}
	}
	if err := rs.everyThread(func(t *thread, b *tracee.Batch) error {
		for _, u := range rs.rings {
			if rs.ringMakers[u] == t {
				u.MakeCalls(b)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, u := range rs.rings {
		if err := u.Made(); err != nil {
			return err
		}
		if err := rs.takeMade(rs.ringMakers[u].task, []int{u.Place()}); err != nil {
			return err
		}
	}
	done := map[uint32]bool{}
	return rs.everyThread(func(t *thread, b *tracee.Batch) error {
		if done[t.files().ID] {
			return nil
		}
		done[t.files().ID] = true
		for _, u := range rs.rings {
			if maker := rs.ringMakers[u]; maker.files() != t.files() {
				u.ShareCalls(b, maker.state.TID, maker.state.TID == maker.process.state.PID)
			}
		}
		return nil
	})
}

// ringMaker returns the thread that makes an instance.
func (rs *restoration) ringMaker(u *events.URing) (*thread, error) {
	if tid := u.Submitter(); tid != 0 {
		return rs.threadOf(tid), nil
	}
	var first *thread
	for _, p := range rs.procs {
		for _, t := range p.threads {
			table, err := object.State[files.TableState](rs.plan, t.files())
			if err != nil {
				return nil, err
			}
			if u.In(rs.r, table) {
				return t, nil
			}
			if first == nil {
				first = t
			}
		}
	}
	return first, nil
}

// settleRings gives the io_uring instances their contents, and registers with them what was registered.
func (rs *restoration) settleRings() error {
	for _, u := range rs.rings {
		maker := rs.ringMakers[u]
		if err := u.Settle(func(build func(*tracee.Batch)) error {
			b := rs.arena.NewBatch()
			build(b)
			return rs.tracer.RunOne(maker.task, b)
		}); err != nil {
			return err
		}
	}
	if len(rs.rings) == 0 {
		return nil
	}
	if err := rs.everyThread(func(t *thread, b *tracee.Batch) error {
		for _, u := range rs.rings {
			if rs.ringMakers[u] == t {
				if err := u.RegisterCalls(rs.r, b); err != nil {
					return err
				}
			}
			u.PlaceCalls(b, t.state.TID)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, u := range rs.rings {
		if err := u.Resubmit(rs.r, func(id int32, build func(*tracee.Batch)) (int, error) {
			t := rs.threadOf(id)
			b := rs.arena.NewBatch()
			build(b)
			return t.task.Tid, rs.tracer.RunOne(t.task, b)
		}); err != nil {
			return err
		}
	}
	return nil
}

// endHelper ends a child of the first process and has that wait for it. id is its number there.
func (rs *restoration) endHelper(helper *tracee.Task, id int32) error {
	b := rs.arena.NewBatch()
	b.Call(b.Sys().ExitGroup, 0)
	if err := rs.tracer.RunOne(helper, b); err != nil {
		return err
	}
	b = rs.arena.NewBatch()
	b.Call(b.Sys().Wait4, id, 0, unix.WALL, 0).Note("helper %d", id)
	return rs.tracer.RunOne(rs.procs[0].task, b)
}

// hasTask says whether the image has a process of this number or, with thread, a thread.
func (rs *restoration) hasTask(id int32, thread bool) bool {
	if rs.byPID[id] != nil {
		return true
	}
	if !thread {
		return false
	}
	for _, p := range rs.procs {
		for _, t := range p.threads {
			if t.state.TID == id {
				return true
			}
		}
	}
	return false
}

// takeLocks has the tables' processes take the locks for which calls makes the calls.
func (rs *restoration) takeLocks(calls func(*object.Restorer, *tracee.Batch, *files.TableState) (func() error, error)) error {
	var checks []func() error
	if err := rs.tables(func(_ *process, t *files.TableState, b *tracee.Batch) error {
		taken, err := calls(rs.r, b, t)
		checks = append(checks, taken)
		return err
	}); err != nil {
		return err
	}
	for _, taken := range checks {
		if err := taken(); err != nil {
			return err
		}
	}
	return nil
}
