package engine

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
	"crpipe/engine/terminals"
)

// planTerminals finds out which sessions are to have which controlling terminal, when all of these are open.
func (rs *restoration) planTerminals() error {
	list, err := terminals.Sessions(rs.r)
	if err != nil {
		return err
	}
	if rs.outside, err = terminals.OutsideTerminals(rs.r); err != nil {
		return err
	}
	for _, o := range rs.outside {
		if o.Session != 0 {
			list = append(list, *o.Controlled())
		}
	}
	rs.ttys = map[int32]*terminals.Controlled{}
	for i := range list {
		c := &list[i]
		if rs.ttys[c.Session] != nil {
			return object.BadImagef("session %d with two controlling terminals", c.Session)
		}
		leader := rs.byPID[c.Session]
		if leader == nil || leader.state.Zombie || leader.birth == nil || !leader.birth.Setsid {
			return object.BadImagef("a terminal that controls session %d, which nobody leads", c.Session)
		}
		for _, pid := range c.Without {
			if p := rs.byPID[pid]; p == nil || p.state.Zombie || p.state.OutsideSession || p.state.Session != c.Session || pid == c.Session {
				return object.BadImagef("process %d is to be without the terminal of session %d", pid, c.Session)
			}
		}
		if c.Group > tasks.MaxPID {
			return object.BadImagef("the foreground group %d is no number", c.Group)
		}
		rs.ttys[c.Session] = c
	}
	return nil
}

// takeTerminal appends the call by which a task that has just become the leader of a session takes its controlling terminal.
func (rs *restoration) takeTerminal(b *tracee.Batch, x *tasks.Birth) {
	if c := rs.ttys[x.PID]; c != nil && x.Process != nil {
		c.Take(b)
	}
}

// openCurrent has helpers open what was opened as /dev/tty, while only the pool is open in the stub, whose table they share.
func (rs *restoration) openCurrent() error {
	all, err := terminals.OpenCurrent(rs.r)
	if err != nil {
		return err
	}
	for _, calls := range all {
		b := rs.arena.NewBatch()
		helper := b.Clone(sys.CloneArgs{Flags: unix.CLONE_FILES}, nil, 0).Note("helper") // no exit signal: the stub hears nothing of it
		if err := rs.tracer.RunOne(rs.stub, b); err != nil {
			return err
		}
		b = rs.arena.NewBatch()
		calls(b)
		if err := rs.tracer.RunOne(helper.Child(), b); err != nil {
			return err
		}
		b = rs.arena.NewBatch()
		b.Call(b.Sys().Wait4, int32(helper.Int()), 0, unix.WALL, 0).Note("helper %d", helper.Int())
		if err := rs.tracer.RunOne(rs.stub, b); err != nil {
			return err
		}
	}
	return nil
}

// settleTerminals puts the foreground groups in their place, when everybody is in its group, and finishes the terminals.
func (rs *restoration) settleTerminals() error {
	if err := rs.live(func(p *process, b *tracee.Batch) error {
		if p.state.OutsideSession {
			return nil
		}
		if c := rs.ttys[p.state.Session]; c != nil && slices.Contains(c.Without, p.state.PID) {
			c.GiveUp(b)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, p := range rs.procs {
		c := rs.ttys[p.state.PID]
		if c == nil || c.Group == 0 || c.Group == p.state.PID { // taking it has put the leader's there
			continue
		}
		if err := rs.putForeground(p, c); err != nil {
			return fmt.Errorf("session %d: %w", c.Session, err)
		}
	}
	return terminals.Finish(rs.r)
}

// putForeground has the leader of a session put a group in the foreground. A shell whose job has ended has that group there until it
// has taken its place again: then a helper makes the group for a moment.
func (rs *restoration) putForeground(leader *process, c *terminals.Controlled) error {
	for _, p := range rs.procs {
		if !p.state.OutsideGroup && p.state.Group == c.Group {
			if p.state.Session != c.Session {
				return object.BadImagef("its foreground group %d is in session %d", c.Group, p.state.Session)
			}
			b := rs.arena.NewBatch()
			c.Foreground(b)
			return rs.tracer.RunOne(leader.task, b)
		}
	}
	b := rs.arena.NewBatch()
	helper := b.Clone(sys.CloneArgs{}, []int32{c.Group}, 0).Note("task %d", c.Group)
	if err := rs.tracer.RunOne(leader.task, b); err != nil {
		return rs.explainTaken(err)
	}
	if err := rs.tracer.RunOne(helper.Child(), rs.setGroup(0)); err != nil {
		return err
	}
	b = rs.arena.NewBatch()
	c.Foreground(b)
	if err := rs.tracer.RunOne(leader.task, b); err != nil {
		return err
	}
	b = rs.arena.NewBatch()
	b.Call(b.Sys().ExitGroup, 0)
	if err := rs.tracer.RunOne(helper.Child(), b); err != nil {
		return err
	}
	b = rs.arena.NewBatch()
	b.Call(b.Sys().Wait4, c.Group, 0, unix.WALL, 0).Note("task %d", c.Group)
	return rs.tracer.RunOne(leader.task, b)
}
