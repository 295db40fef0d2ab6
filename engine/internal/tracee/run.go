package tracee

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// job is a task and what is left of its batch.
type job struct {
	task  *Task
	batch *Batch
	parts []*part
	bufs  []*Buf // of the part that runs
	first int    // index in the batch of the part's first call
	err   error
}

// Run executes one batch in each of the tasks, all at the same time, and returns when all have
// stopped again. Errors of all tasks are joined; each names its task, and errors.As finds a
// *CallError where a system call failed. The tasks stay usable after such an error, and what Clone
// made before it can be found by Child (KillAll knows them in any case).
//
// A batch that ends with exit or exit_group ends its task. A batch too large for a slot takes
// several round trips; memory of the slot that an earlier part passed to the kernel for later use
// is then overwritten.
//
// Signals from outside are not delivered but kept in Task.Kept.
func (t *Tracer) Run(tasks []*Task, batches []*Batch) error {
	if len(tasks) != len(batches) {
		return fmt.Errorf("running %d batches in %d tasks: %w", len(batches), len(tasks), unix.EINVAL)
	}
	return t.Do(func() error {
		jobs := make([]*job, len(tasks))
		for i, k := range tasks {
			parts, err := batches[i].split(k.slot.size)
			if err != nil {
				return fmt.Errorf("pid %d: %w", k.Tid, err)
			}
			jobs[i] = &job{task: k, batch: batches[i], parts: parts}
		}
		for len(jobs) > 0 {
			if err := t.round(jobs); err != nil {
				return err
			}
			left := jobs[:0]
			for _, j := range jobs {
				if len(j.parts) > 0 {
					left = append(left, j)
				}
			}
			jobs = left
		}
		return nil
	})
}

// RunOne is Run for one task.
func (t *Tracer) RunOne(k *Task, b *Batch) error { return t.Run([]*Task{k}, []*Batch{b}) }

// round executes the first part that is left of every job.
func (t *Tracer) round(jobs []*job) error {
	for _, j := range jobs {
		if j.err = t.begin(j); j.err != nil {
			j.err = fmt.Errorf("starting a batch: %w", j.err)
		}
	}
	for _, j := range jobs {
		if j.err == nil {
			j.err = t.finish(j)
		}
	}
	var errs []error
	for _, j := range jobs {
		// Children exist even where their maker's batch failed later.
		if len(j.parts) > 0 {
			if err := t.adopt(j.task, j.parts[0].calls); err != nil {
				errs = append(errs, err)
			}
			j.first += len(j.parts[0].calls)
			j.parts = j.parts[1:]
		}
		if j.err != nil {
			errs = append(errs, j.err)
			j.dropClones()
		}
	}
	return errors.Join(errs...)
}

// dropClones gives back the slots of children that will not be made.
func (j *job) dropClones() {
	for _, p := range j.parts {
		for _, c := range p.calls {
			if c.child != nil {
				j.task.arena.give(c.child.slot)
			}
		}
	}
	j.parts = nil
}

func (t *Tracer) begin(j *job) error {
	k := j.task
	if err := k.prepare(); err != nil {
		return err
	}
	bufs, err := k.fill(j.parts[0].calls)
	if err != nil {
		return err
	}
	j.bufs = bufs
	if err := sys.PtraceCont(k.Tid, 0); err != nil {
		return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
	}
	k.state = taskRunning
	return nil
}

// finish waits until a job's part has ended.
func (t *Tracer) finish(j *job) error {
	k, part := j.task, j.parts[0].calls
	if exits(k.arena.arch, part) {
		return t.finishExit(j)
	}
	if err := t.awaitBatch(k, part); err != nil {
		return err
	}
	return k.collect(part, j.bufs, j.first)
}

func exits(a *arch.Arch, part []*Call) bool {
	if len(part) == 0 {
		return false
	}
	last := part[len(part)-1]
	nr := last.nr
	return last.abi(a) == a && (nr == a.Sys.Exit || nr == a.Sys.ExitGroup)
}

// awaitBatch waits for the stop at the end of the routine's work.
func (t *Tracer) awaitBatch(k *Task, part []*Call) error {
	for {
		ws, err := t.await(k)
		if err != nil {
			return err
		}
		if ws.Dead() {
			return k.diedIn(part)
		}
		if k.atEnd(ws) {
			k.state = taskReady
			return nil
		}
		if err := t.pass(k, ws); err != nil {
			return err
		}
		if err := sys.PtraceCont(k.Tid, 0); err != nil {
			return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
		}
	}
}

// atEnd says whether a stop is the routine's breakpoint: it sets the slot's status just before. A
// SIGTRAP from outside that hits between the two makes the next batch begin with the breakpoint,
// whose stop then shows a status that is still SlotRunning and is passed over.
func (k *Task) atEnd(ws sys.WaitStatus) bool {
	return ws.SignalStop() && ws.Signal() == unix.SIGTRAP && hostOrder.Uint64(k.slotMem()[arch.SlotStatus:]) == arch.SlotStopped
}

// diedIn describes the death of a task in the middle of a batch.
func (k *Task) diedIn(part []*Call) error {
	done := int(hostOrder.Uint64(k.slotMem()[arch.SlotDone:]))
	where := "after its batch"
	if done < len(part) {
		where = fmt.Sprintf("in call %d of a batch, %s", done, part[done].abi(k.arena.arch).SyscallName(part[done].nr))
	}
	return fmt.Errorf("pid %d: %s %s: %w", k.Tid, k.status, where, unix.ESRCH)
}

// Offsets in siginfo_t, the same for the kinds used here.
const (
	siginfoCode = 8
	siginfoAddr = 16
)

// pass deals with a stop that is not what a task was continued for. A signal from outside is kept;
// one that the kernel raised for what the task itself did is a failure.
func (t *Tracer) pass(k *Task, ws sys.WaitStatus) error {
	if !ws.SignalStop() {
		return nil // a new task's first stop that came late, or news of job control
	}
	info, err := sys.PtraceGetSiginfo(k.Tid)
	if err != nil {
		return fmt.Errorf("pid %d: reading %s: %w", k.Tid, sys.SignalName(ws.Signal()), err)
	}
	code := int32(hostOrder.Uint32(info[siginfoCode:]))
	switch ws.Signal() {
	case unix.SIGTRAP:
		if code > 0 {
			return nil // see atEnd
		}
	case unix.SIGSEGV, unix.SIGBUS, unix.SIGILL, unix.SIGFPE, unix.SIGSYS:
		if code > 0 {
			k.state = taskAside
			regs, err := k.regs()
			if err != nil {
				return err
			}
			return fmt.Errorf("pid %d: %s (code %d, address %#x) at %v in the middle of a batch: %w",
				k.Tid, sys.SignalName(ws.Signal()), code, hostOrder.Uint64(info[siginfoAddr:]), k.arena.arch.PC(regs), unix.EFAULT)
		}
	}
	k.Kept = append(k.Kept, info)
	return nil
}

// finishExit waits for the end of a task whose batch ends in an exit. The leader of a process that
// has other threads left is not reported by wait4 until they are gone; its state in /proc tells.
func (t *Tracer) finishExit(j *job) error {
	k, part := j.task, j.parts[0].calls
	leaves := part[len(part)-1].nr == k.arena.arch.Sys.Exit && k.delicate()
	for pause := 10 * time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		var ws sys.WaitStatus
		var err error
		if leaves {
			var ok bool
			if ws, ok, err = t.poll(k); err == nil && !ok {
				if st, e := procfs.ReadThreadStat(k.Pid, k.Tid); e == nil && st.State == 'Z' {
					k.gone(0)
					part[len(part)-1].ran = true
					return k.collect(part[:len(part)-1], j.bufs, j.first)
				}
				time.Sleep(pause)
				continue
			}
		} else {
			ws, err = t.await(k)
		}
		if err != nil {
			return err
		}
		if ws.Dead() {
			if !ws.Exited() || int(hostOrder.Uint64(k.slotMem()[arch.SlotDone:])) != len(part)-1 {
				return k.diedIn(part)
			}
			// The exit itself has no result; for the rest it ended the part as a success would have.
			part[len(part)-1].ran = true
			return k.collect(part[:len(part)-1], j.bufs, j.first)
		}
		if k.atEnd(ws) { // a call before the exit failed
			k.state = taskReady
			return k.collect(part, j.bufs, j.first)
		}
		if err := t.pass(k, ws); err != nil {
			return err
		}
		if err := sys.PtraceCont(k.Tid, 0); err != nil {
			return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
		}
	}
}

// gone marks a task as dead. Its slot may be read until the next Clone takes it.
func (k *Task) gone(ws sys.WaitStatus) {
	if k.state == taskDead {
		return
	}
	k.state, k.status = taskDead, ws
	k.group.live--
	k.arena.give(k.slot)
}
