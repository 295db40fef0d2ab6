package tracee

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// await waits for one task, which must be running. A death is noted in the task.
func (t *Tracer) await(k *Task) (sys.WaitStatus, error) {
	for {
		ws, ok, err := t.poll(k)
		if ok || err != nil {
			return ws, err
		}
		if !k.delicate() {
			_, ws, err := sys.Wait(k.Tid, 0)
			return t.seen(k, ws, err)
		}
		// Whatever happens first: it may be the death of a thread without which the kernel will not
		// report this one.
		tid, ws, err := sys.WaitAny(0)
		if err != nil {
			return 0, fmt.Errorf("pid %d: waiting for it: %w", k.Tid, err)
		}
		if tid == k.Tid {
			return t.seen(k, ws, nil)
		}
		t.note(tid, ws)
	}
}

// poll asks whether a task has stopped or ended.
func (t *Tracer) poll(k *Task) (sys.WaitStatus, bool, error) {
	if ws, ok := t.events[k.Tid]; ok {
		delete(t.events, k.Tid)
		ws, err := t.seen(k, ws, nil)
		return ws, true, err
	}
	tid, ws, err := sys.Wait(k.Tid, unix.WNOHANG)
	if err == nil && tid == 0 {
		return 0, false, nil
	}
	ws, err = t.seen(k, ws, err)
	return ws, true, err
}

func (t *Tracer) seen(k *Task, ws sys.WaitStatus, err error) (sys.WaitStatus, error) {
	if err != nil {
		return 0, fmt.Errorf("pid %d: waiting for it: %w", k.Tid, err)
	}
	if ws.Dead() {
		k.gone(ws)
		delete(t.tasks, k.Tid)
	}
	return ws, nil
}

// note remembers what happened to a task while another one was waited for.
func (t *Tracer) note(tid int, ws sys.WaitStatus) {
	k := t.tasks[tid]
	switch {
	case k == nil && t.seized[tid] != nil:
		t.events[tid] = ws
	case k == nil:
		t.strays[tid] = ws
	case k.state == taskRunning:
		t.events[tid] = ws
	case ws.Dead():
		// It was stopped and nobody waits for it: killed from outside.
		k.gone(ws)
		delete(t.tasks, tid)
	}
}

// adopt takes over the children that a part of parent's batch has made, and waits for their first stops.
func (t *Tracer) adopt(parent *Task, part []*Call) error {
	var unknown []*Task
	var made []*Task
	for _, c := range part {
		child := c.child
		if child == nil {
			continue
		}
		if !c.ran || c.result <= 0 {
			if parent.state != taskDead { // else it may have been made nevertheless, and uses its slot
				child.arena.give(child.slot)
			}
			continue
		}
		child.Base = parent.Base
		child.init = child.init || parent.odd
		child.nested = parent.nested || child.init
		child.group = parent.group
		if !child.thread {
			child.group = &group{}
		}
		child.group.live++
		child.state = taskRunning
		made = append(made, child)
		switch {
		case child.Tid != 0:
		case parent.nested:
			unknown = append(unknown, child)
			continue
		default:
			child.Tid = int(c.result)
		}
		t.register(child, parent)
	}
	if err := t.identify(unknown, parent); err != nil {
		return err
	}
	for _, child := range made {
		if child.state != taskRunning {
			continue
		}
		ws, err := t.firstStop(child)
		if err != nil {
			return err
		}
		if ws.Dead() {
			return fmt.Errorf("pid %d: %s before its first stop: %w", child.Tid, ws, unix.ESRCH)
		}
		if err := t.pass(child, ws); err != nil {
			return err
		}
		child.state = taskReady
	}
	return nil
}

func (t *Tracer) register(child, parent *Task) {
	child.Pid = child.Tid
	if child.thread {
		child.Pid = parent.Pid
	}
	t.tasks[child.Tid] = child
}

func (t *Tracer) firstStop(child *Task) (sys.WaitStatus, error) {
	if ws, ok := t.strays[child.Tid]; ok {
		delete(t.strays, child.Tid)
		return t.seen(child, ws, nil)
	}
	return t.await(child)
}

// identify finds the ids, in the tracer's pid namespace, of children that a task in another one has
// made: a new task stands just after its clone3, and its stack pointer is its slot.
func (t *Tracer) identify(children []*Task, parent *Task) error {
	bySlot := make(map[arch.Addr]*Task, len(children))
	for _, c := range children {
		bySlot[c.SlotAddr()] = c
	}
	for tid, ws := range t.strays {
		if err := t.match(tid, ws, bySlot, parent); err != nil {
			return err
		}
	}
	for len(bySlot) > 0 {
		tid, ws, err := sys.WaitAny(0)
		if err != nil {
			return fmt.Errorf("waiting for the children of pid %d: %w", parent.Tid, err)
		}
		t.note(tid, ws)
		if ws, ok := t.strays[tid]; ok {
			if err := t.match(tid, ws, bySlot, parent); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Tracer) match(tid int, ws sys.WaitStatus, bySlot map[arch.Addr]*Task, parent *Task) error {
	if ws.Dead() {
		return fmt.Errorf("pid %d, a new child of pid %d: %s before its first stop: %w", tid, parent.Tid, ws, unix.ESRCH)
	}
	a := parent.arena.arch
	regs, err := readRegs(a, tid)
	if err != nil {
		return err
	}
	child := bySlot[a.SP(regs)]
	if child == nil || a.PC(regs) != child.syscallAddr()+arch.Addr(len(a.SyscallInsn)) {
		return nil
	}
	delete(bySlot, a.SP(regs))
	child.Tid = tid
	t.register(child, parent)
	return nil
}
