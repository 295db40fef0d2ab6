package tracee

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// Vfork executes a batch in a task whose last call is a Clone with CLONE_VFORK, up to the stop in which the child has been made and
// the task is about to wait for it (PTRACE_EVENT_VFORK of ptrace(2)). From there only SetFinal and Commit are right: the task goes
// on when the child has ended or called exec, with the registers that it is given and the call's result in them. The child is ready
// for batches.
func (t *Tracer) Vfork(k *Task, b *Batch) error {
	return t.Do(func() error {
		parts, err := b.split(k.slot.size)
		if err != nil {
			return fmt.Errorf("pid %d: %w", k.Tid, err)
		}
		if len(parts) != 1 || len(parts[0].calls) == 0 || parts[0].calls[len(parts[0].calls)-1].child == nil {
			return fmt.Errorf("pid %d: a batch for vfork that does not fit a slot, or makes no child: %w", k.Tid, unix.EINVAL)
		}
		options := t.options()
		if err := sys.PtraceSetOptions(k.Tid, options|unix.PTRACE_O_TRACEVFORK); err != nil {
			return fmt.Errorf("pid %d: asking for its vfork: %w", k.Tid, err)
		}
		j := &job{task: k, batch: b, parts: parts}
		if err := t.begin(j); err != nil {
			return fmt.Errorf("starting a batch: %w", err)
		}
		part := parts[0].calls
		last := part[len(part)-1]
		for {
			ws, err := t.await(k)
			switch {
			case err != nil:
				return err
			case ws.Dead():
				return k.diedIn(part)
			case ws.Event() == unix.PTRACE_EVENT_VFORK:
				k.state = taskAside
				if err := k.collect(part[:len(part)-1], j.bufs, 0); err != nil {
					return err
				}
				return t.adoptVfork(k, last, options)
			case k.atEnd(ws): // a call has failed
				k.state = taskReady
				if err := k.collect(part, j.bufs, 0); err != nil {
					return err
				}
				return fmt.Errorf("pid %d: it made a child without stopping for it: %w", k.Tid, unix.EIO)
			}
			if err := t.pass(k, ws); err != nil {
				return err
			}
			if err := sys.PtraceCont(k.Tid, 0); err != nil {
				return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
			}
		}
	})
}

func (t *Tracer) adoptVfork(k *Task, c *Call, options int) error {
	pid, err := unix.PtraceGetEventMsg(k.Tid)
	if err != nil {
		return fmt.Errorf("pid %d: asking for its child: %w", k.Tid, err)
	}
	child := c.child
	c.ran, c.result = true, int64(pid)
	child.Tid, child.Base, child.nested = int(pid), k.Base, k.nested
	child.group = &group{live: 1}
	child.state = taskRunning
	t.register(child, k)
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
	if err := sys.PtraceSetOptions(child.Tid, options); err != nil {
		return fmt.Errorf("pid %d: setting options: %w", child.Tid, err)
	}
	return nil
}

// options are those that tasks are traced with.
func (t *Tracer) options() int {
	options := sys.PtraceOExitKill | sys.PtraceOTraceSysGood
	if t.suspended {
		options |= sys.PtraceOSuspendSeccomp
	}
	return options
}

// UndoVfork ends the child that Vfork has just made, so that the task returns from its call and can run batches again. The child is
// left for it to wait for.
func (t *Tracer) UndoVfork(k *Task, c *Call) error {
	return t.Do(func() error {
		if err := t.discard(c.child); err != nil {
			return err
		}
		if err := sys.PtraceCont(k.Tid, 0); err != nil {
			return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
		}
		k.state = taskRunning
		return t.awaitBatch(k, nil)
	})
}
