package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/ipc"
	"crpipe/engine/memory"
	"crpipe/engine/object"
	"crpipe/stream"
)

// CheckIPC says what is wrong with one of DumpOptions.IPC.
func CheckIPC(name string) error { return ipc.CheckName(name) }

// sysvObjects are the System V objects of an image, and what has been made of them.
type sysvObjects struct {
	namespace *ipc.NamespaceState // nil: they live in the caller's
	segments  []object.Found[memory.Segment]
	sets      []object.Found[ipc.SemSet]
	undo      []object.Found[ipc.SemUndo]
	queues    []object.Found[ipc.MsgQueue]
	sends     []func() error // contents of the queues
	made      []madeObject   // in the caller's namespace
}

type madeObject struct {
	typ ipc.Type
	id  int32
}

// planSysV collects and checks the System V objects of the image.
func (rs *restoration) planSysV() error {
	v := &rs.sysv
	for _, n := range object.All[ipc.NamespaceState](rs.plan) {
		if v.namespace != nil {
			return object.BadImagef("two IPC namespaces")
		}
		if err := n.State.Check(); err != nil {
			return err
		}
		v.namespace = n.State
	}
	v.segments = object.All[memory.Segment](rs.plan)
	v.sets, v.undo, v.queues = object.All[ipc.SemSet](rs.plan), object.All[ipc.SemUndo](rs.plan), object.All[ipc.MsgQueue](rs.plan)
	for _, s := range v.sets {
		if err := s.State.Check(); err != nil {
			return err
		}
	}
	for _, u := range v.undo {
		if err := u.State.Check(rs.plan); err != nil {
			return err
		}
		if rs.threadOf(u.State.Thread) == nil {
			return object.BadImagef("semaphore adjustments of thread %d, which is not there", u.State.Thread)
		}
	}
	for _, q := range v.queues {
		if err := q.State.Check(); err != nil {
			return err
		}
	}
	ids, keys := map[madeObject]bool{}, map[madeObject]bool{}
	return rs.eachSysV(func(t ipc.Type, _ stream.Ref, p *ipc.Perm) error {
		id, key := madeObject{t, p.ID}, madeObject{t, p.Key}
		if ids[id] || p.Key != 0 && keys[key] {
			return object.BadImagef("two objects %s %d, or with its key", t, p.ID)
		}
		ids[id], keys[key] = true, true
		return nil
	})
}

func (rs *restoration) eachSysV(f func(t ipc.Type, ref stream.Ref, p *ipc.Perm) error) error {
	for _, s := range rs.sysv.segments {
		if err := f(ipc.Shm, s.Ref, &s.State.Perm); err != nil {
			return err
		}
	}
	for _, s := range rs.sysv.sets {
		if err := f(ipc.Sem, s.Ref, &s.State.Perm); err != nil {
			return err
		}
	}
	for _, q := range rs.sysv.queues {
		if err := f(ipc.Msg, q.Ref, &q.State.Perm); err != nil {
			return err
		}
	}
	return nil
}

func (rs *restoration) threadOf(tid int32) *thread {
	for _, p := range rs.procs {
		for _, t := range p.threads {
			if t.state.TID == tid {
				return t
			}
		}
	}
	return nil
}

// leaveTime is how long an id may be in use by what a dump is about to remove: the tree that it has ended is gone a moment before.
const leaveTime = 2 * time.Second

// checkSysV makes sure that ids and keys are free in the caller's namespace, and names who has one that is not.
func (rs *restoration) checkSysV(ctx context.Context) error {
	if rs.sysv.namespace != nil {
		return nil // in the tree's own all are free
	}
	for deadline := time.Now().Add(leaveTime); ; {
		err := rs.eachSysV(func(t ipc.Type, _ stream.Ref, p *ipc.Perm) error { return ipc.CheckFree(t, p) })
		if err == nil {
			err = ipc.CheckMqueues(rs.plan)
		}
		if !ipc.IsTaken(err) || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// enterIPC moves the tracer's thread into the tree's own IPC namespace, which is made here and which the first task is born into. It
// stays: it has nothing to do with that of cr-restore.
func (rs *restoration) enterIPC() error {
	if rs.sysv.namespace == nil {
		return nil
	}
	return rs.sysv.namespace.Make()
}

// maker is the process that makes an object: the one that once did, if it is in the tree.
func (rs *restoration) maker(pid int32) *process {
	if p := rs.byPID[pid]; pid > 0 && p != nil && !p.state.Zombie && p.task != nil {
		return p
	}
	return rs.procs[0]
}

// makeSysV has tasks make all System V objects, before any is attached. A segment that was destroyed comes last but before it is
// destroyed again (finishSysV): for a moment it needs the key that it was made with, which another may have now.
func (rs *restoration) makeSysV() error {
	v := &rs.sysv
	for _, dest := range []bool{false, true} {
		for _, s := range v.segments {
			if s.State.Dest == dest {
				if err := rs.makeSegment(s.Ref, s.State); err != nil {
					return err
				}
			}
		}
	}
	for _, s := range v.sets {
		if err := rs.makeObject(ipc.Sem, &s.State.Perm, 0, s.State.Perm.Key, len(s.State.Values)); err != nil {
			return err
		}
		if err := rs.tracer.Do(s.State.SetValues); err != nil {
			return err
		}
		b := rs.arena.NewBatch()
		s.State.Perm.SetCalls(b, ipc.Sem, 0)
		if err := rs.tracer.RunOne(rs.procs[0].task, b); err != nil {
			return err
		}
	}
	for _, q := range v.queues {
		if err := rs.makeObject(ipc.Msg, &q.State.Perm, 0, q.State.Perm.Key); err != nil {
			return err
		}
		b := rs.arena.NewBatch()
		q.State.Perm.SetCalls(b, ipc.Msg, q.State.Room())
		if err := rs.tracer.RunOne(rs.procs[0].task, b); err != nil {
			if errors.Is(err, unix.EPERM) {
				err = &object.Lacking{What: fmt.Sprintf("%s %d: a limit of %d bytes is more than kernel.msgmnb allows", ipc.Msg.What(), q.State.Perm.ID, q.State.Room()), Err: err}
			}
			return err
		}
		if len(q.State.Types) > 0 {
			take, send := q.State.Fill()
			rs.r.OnContent(q.Ref, take)
			v.sends = append(v.sends, send)
		}
	}
	return nil
}

func (rs *restoration) makeSegment(ref stream.Ref, s *memory.Segment) error {
	key := s.Perm.Key
	if s.Name != 0 {
		key = s.Name
	}
	err := rs.makeObject(ipc.Shm, &s.Perm, s.Maker, key, s.Size)
	if s.Dest && errors.Is(err, unix.EEXIST) { // the key, which it has no more, is another's now: only /proc will show it with none
		err = rs.makeObject(ipc.Shm, &s.Perm, s.Maker, 0, s.Size)
	}
	if err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	s.Perm.SetCalls(b, ipc.Shm, 0)
	if err := rs.tracer.RunOne(rs.procs[0].task, b); err != nil {
		return err
	}
	if err := rs.tracer.Do(func() error { return memory.OpenSegment(rs.r, ref, s) }); err != nil {
		return fmt.Errorf("%s %d: %w", ipc.Shm.What(), s.Perm.ID, err)
	}
	return nil
}

// makeObject has a process make an object with the id that it had. arg is the size of a segment or set.
func (rs *restoration) makeObject(t ipc.Type, p *ipc.Perm, maker, key int32, arg ...any) error {
	if err := rs.tracer.Do(func() error { return ipc.SetNext(t, p.ID) }); err != nil {
		return err
	}
	b := rs.arena.NewBatch()
	const create = 0o1000 | 0o2000 // IPC_CREAT, IPC_EXCL
	by := rs.maker(maker)
	call := p.MakeCalls(b, ipc.Maker{EUID: rs.initial.creds.UID[1], EGID: rs.initial.creds.GID[1]}, t, key, append(arg, create|p.Mode)...)
	if err := rs.tracer.RunOne(by.task, b); err != nil {
		return err
	}
	if errno := call.Errno(); errno != 0 {
		return fmt.Errorf("making %s %d of process %d: %w", t.What(), p.ID, by.state.PID, errno)
	}
	id := int32(call.Result())
	if rs.sysv.namespace == nil {
		rs.sysv.made = append(rs.sysv.made, madeObject{t, id})
	}
	if err := failpoint.Hit("restore.ipc"); err != nil {
		return err
	}
	if id != p.ID {
		if err := rs.tracer.Do(func() error { return ipc.CheckFree(t, p) }); ipc.IsTaken(err) {
			return err
		}
		return fmt.Errorf("making %s %d: it got the id %d; somebody makes one at the same time", t.What(), p.ID, id)
	}
	return nil
}

// settleSegments comes when everybody has attached what it had.
func (rs *restoration) settleSegments() error {
	if len(rs.sysv.segments) == 0 {
		return nil
	}
	return rs.tracer.Do(func() error {
		for _, s := range rs.sysv.segments {
			if s.State.Locked {
				if err := ipc.LockNow(s.State.Perm.ID); err != nil {
					return fmt.Errorf("%s %d: locking it (SHM_LOCK): %w", ipc.Shm.What(), s.State.Perm.ID, err)
				}
			}
			if s.State.Dest {
				if err := ipc.Shm.RemoveNow(s.State.Perm.ID); err != nil {
					return fmt.Errorf("%s %d: destroying it again: %w", ipc.Shm.What(), s.State.Perm.ID, err)
				}
			}
		}
		return nil
	})
}

// finishSysV gives queues their messages and semaphores their adjustments, once all contents are there.
func (rs *restoration) finishSysV() error {
	v := &rs.sysv
	if err := ipc.FinishMqueues(rs.r); err != nil {
		return err
	}
	if v.namespace == nil && len(v.sets) == 0 && len(v.queues) == 0 {
		return nil
	}
	if err := rs.tracer.Do(func() error {
		for _, send := range v.sends {
			if err := send(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, u := range v.undo {
		s, err := object.State[ipc.SemSet](rs.plan, u.State.Of)
		if err != nil {
			return err
		}
		b := rs.arena.NewBatch()
		u.State.Calls(b, s)
		if err := rs.tracer.RunOne(rs.threadOf(u.State.Thread).task, b); err != nil {
			return err
		}
	}
	for i, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		b := rs.arena.NewBatch()
		for _, s := range v.sets {
			s.State.TouchCalls(b, p.state.PID, i == 0 && !rs.touchedByOther(s.State))
		}
		if err := rs.tracer.RunOne(p.task, b); err != nil {
			return err
		}
	}
	for _, q := range v.queues {
		send, receive := rs.arena.NewBatch(), rs.arena.NewBatch()
		q.State.SendCall(send)
		if err := rs.tracer.RunOne(rs.maker(q.State.Sender).task, send); err != nil {
			return err
		}
		q.State.ReceiveCall(receive)
		q.State.Perm.SetCalls(receive, ipc.Msg, q.State.MaxBytes)
		if err := rs.tracer.RunOne(rs.maker(q.State.Receiver).task, receive); err != nil {
			return err
		}
	}
	if v.namespace == nil {
		return nil
	}
	return rs.tracer.Do(v.namespace.Settle)
}

// notifyOfMessages has processes ask again to be told of the next message of a queue. Their descriptors are their own by now.
func (rs *restoration) notifyOfMessages() error {
	for _, n := range ipc.Notifies(rs.plan) {
		p := rs.byPID[n.PID]
		if p == nil || p.state.Zombie || p.task == nil {
			return object.BadImagef("process %d, which is not there, is told of messages of a queue", n.PID)
		}
		table, err := object.State[files.TableState](rs.plan, p.threads[0].files())
		if err != nil {
			return err
		}
		b := rs.arena.NewBatch()
		if err := n.Calls(rs.r, b, table); err != nil {
			return err
		}
		if err := rs.tracer.RunOne(p.task, b); err != nil {
			return err
		}
	}
	return nil
}

// touchedByOther says whether a process other than the first is going to change the set.
func (rs *restoration) touchedByOther(s *ipc.SemSet) bool {
	for _, pid := range s.PIDs {
		if p := rs.byPID[pid]; p != nil && !p.state.Zombie && p.task != nil {
			return true
		}
	}
	for _, u := range rs.sysv.undo {
		if of, err := object.State[ipc.SemSet](rs.plan, u.State.Of); err == nil && of == s {
			return true
		}
	}
	return false
}

// removeSysV removes what a restore that failed has made in the caller's namespace. What is in a namespace of the tree's own goes with it.
func (rs *restoration) removeSysV() {
	for _, m := range rs.sysv.made {
		err := m.typ.RemoveNow(m.id)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EIDRM) {
			rs.o.Warn(fmt.Sprintf("%s %d stays (%s): %v", m.typ, m.id, m.typ.Remove(m.id), err))
		}
	}
}
