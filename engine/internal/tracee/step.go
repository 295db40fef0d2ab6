package tracee

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// A Step is one system call that a task is made to execute by setting its registers.
type Step struct {
	Task   *Task
	Nr     int
	Args   [6]uint64
	Compat bool  // a call of 32-bit code: see CompatCall
	Result int64 // after CallSteps: -errno where it failed
}

// CallSteps makes each task execute one system call and leaves it in the syscall-exit-stop: not one
// more instruction of the routine runs, so the call may remove it. (A task may come up several
// times in a row only in separate CallSteps.) The results are the caller's to judge.
func (t *Tracer) CallSteps(steps []*Step) error {
	return t.Do(func() error { return t.steps(steps, 0) })
}

// steps uses the system call instruction at an address, or with 0 the routine's.
func (t *Tracer) steps(steps []*Step, at arch.Addr) error {
	for _, s := range steps {
		k := s.Task
		if k.state != taskReady && k.state != taskAside {
			return fmt.Errorf("pid %d: the task is not stopped: %w", k.Tid, unix.EBUSY)
		}
		regs, err := k.regs()
		if err != nil {
			return err
		}
		pc := at
		if pc == 0 {
			pc = k.syscallAddr()
		}
		if s.Compat {
			pc = k.Base + arch.Addr(k.arena.arch.Routine.Compat)
		}
		s.abi().SetCall(regs, pc, s.Nr, s.Args)
		if err := writeRegs(k.Tid, regs); err != nil {
			return err
		}
	}
	// The first stop is at the call's entry, the second at its exit.
	for range 2 {
		for _, s := range steps {
			if err := sys.PtraceSyscall(s.Task.Tid, 0); err != nil {
				return fmt.Errorf("pid %d: continuing it: %w", s.Task.Tid, err)
			}
			s.Task.state = taskRunning
		}
		for _, s := range steps {
			if err := t.awaitSyscallStop(s.Task); err != nil {
				return fmt.Errorf("%s: %w", s.Name(), err)
			}
		}
	}
	for _, s := range steps {
		regs, err := s.Task.regs()
		if err != nil {
			return err
		}
		s.Result = s.abi().Result(regs)
	}
	return nil
}

// Name is the system call's.
func (s *Step) Name() string { return s.abi().SyscallName(s.Nr) }

func (s *Step) abi() *arch.Arch {
	if s.Compat {
		return s.Task.arena.arch.Compat
	}
	return s.Task.arena.arch
}

func (t *Tracer) awaitSyscallStop(k *Task) error {
	for {
		ws, err := t.await(k)
		if err != nil {
			return err
		}
		if ws.Dead() {
			return fmt.Errorf("pid %d: %s: %w", k.Tid, ws, unix.ESRCH)
		}
		if ws.SyscallStop() {
			k.state = taskAside
			return nil
		}
		if err := t.pass(k, ws); err != nil {
			return err
		}
		if err := sys.PtraceSyscall(k.Tid, 0); err != nil {
			return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
		}
	}
}

// ErrNotBlocked is Block's error for a task whose call had not gone to sleep in time.
var ErrNotBlocked = errors.New("the call does not block")

// Block executes a batch in each task whose last call is one that sleeps, lets it fall asleep and
// interrupts it there. What the kernel keeps of the call, its restart block above all, stays in the
// task: when the final registers hold the class's result (see arch.Restart) the kernel continues
// the call on release, and it ends at the moment that was fixed when it began. Other calls that do
// not sleep may be made in between.
//
// It returns, for each task, the class; arch.RestartNone means that the call ended by itself before
// it could be interrupted, and its Result is set. The timeout is for each task from when Block
// looks at it. Memory that the call uses until it is continued must not be in the slot.
func (t *Tracer) Block(tasks []*Task, batches []*Batch, timeout time.Duration) ([]arch.Restart, error) {
	if len(tasks) != len(batches) {
		return nil, fmt.Errorf("running %d batches in %d tasks: %w", len(batches), len(tasks), unix.EINVAL)
	}
	classes := make([]arch.Restart, len(tasks))
	err := t.Do(func() error {
		jobs := make([]*job, len(tasks))
		for i, k := range tasks {
			parts, err := batches[i].split(k.slot.size)
			if err != nil {
				return fmt.Errorf("pid %d: %w", k.Tid, err)
			}
			if len(parts) != 1 || len(parts[0].calls) == 0 {
				return fmt.Errorf("pid %d: a batch to block in that does not fit a slot, or is empty: %w", k.Tid, unix.EINVAL)
			}
			jobs[i] = &job{task: k, batch: batches[i], parts: parts}
			if err := t.begin(jobs[i]); err != nil {
				return fmt.Errorf("starting a batch: %w", err)
			}
		}
		// All are interrupted before the first is waited for: they stop at the same time.
		asleep := make([]bool, len(jobs))
		var errs []error
		for i, j := range jobs {
			var err error
			classes[i] = arch.RestartNone
			if asleep[i], err = t.awaitSleep(j, timeout); err == nil && asleep[i] {
				if err = sys.PtraceInterrupt(j.task.Tid); err != nil {
					err = fmt.Errorf("pid %d: stopping it: %w", j.task.Tid, err)
				}
			}
			if err != nil {
				errs, asleep[i] = append(errs, err), false
			}
		}
		for i, j := range jobs {
			if !asleep[i] {
				continue
			}
			var err error
			if classes[i], err = t.awaitInterrupted(j, timeout); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return classes, err
}

// awaitSleep waits until a job's last call sleeps, or until it is late: the task has to be stopped in any case; false: its batch is over.
func (t *Tracer) awaitSleep(j *job, timeout time.Duration) (bool, error) {
	k, part := j.task, j.parts[0].calls
	last := part[len(part)-1]
	deadline := time.Now().Add(timeout)
	for pause := 10 * time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		for {
			ws, ok, err := t.poll(k)
			if err != nil {
				return false, err
			}
			if !ok {
				break
			}
			if ended, err := t.blockEnded(j, ws); ended || err != nil {
				return false, err
			}
		}
		asleep, err := sleepsIn(k, last.nr)
		if err != nil || asleep || time.Now().After(deadline) {
			return true, err
		}
		time.Sleep(pause)
	}
}

// awaitInterrupted waits for the stop of a job that has been interrupted in its last call, and says how that goes on.
func (t *Tracer) awaitInterrupted(j *job, timeout time.Duration) (arch.Restart, error) {
	k, part := j.task, j.parts[0].calls
	last := part[len(part)-1]
	deadline := time.Now().Add(timeout)
	a := last.abi(k.arena.arch)
	var regs []byte
	for {
		ws, err := t.await(k)
		if err != nil {
			return 0, err
		}
		if !ws.EventStop() {
			if ended, err := t.blockEnded(j, ws); ended || err != nil {
				return arch.RestartNone, err
			}
			if err := sys.PtraceInterrupt(k.Tid); err != nil {
				return 0, fmt.Errorf("pid %d: stopping it: %w", k.Tid, err)
			}
			continue
		}
		k.state = taskAside
		if regs, err = k.regs(); err != nil {
			return 0, err
		}
		if nr, in := a.SyscallNr(regs); in && nr == last.nr {
			break
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("pid %d: %s: %w", k.Tid, a.SyscallName(last.nr), ErrNotBlocked)
		}
		// It slept, and woke before it was stopped: a few instructions on the batch ends.
		if err := sys.PtraceCont(k.Tid, 0); err != nil {
			return 0, fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
		}
		k.state = taskRunning
	}
	if err := k.collect(part[:len(part)-1], j.bufs, j.first); err != nil {
		return 0, err
	}
	last.ran, last.result = true, a.Result(regs)
	return a.Restart(regs), nil
}

// blockEnded deals with a stop of a task that was to fall asleep; true: its batch is over.
func (t *Tracer) blockEnded(j *job, ws sys.WaitStatus) (bool, error) {
	k, part := j.task, j.parts[0].calls
	if ws.Dead() {
		return true, k.diedIn(part)
	}
	if k.atEnd(ws) {
		k.state = taskReady
		err := k.collect(part, j.bufs, j.first)
		var ce *CallError
		if errors.As(err, &ce) && ce.Index == j.first+len(part)-1 {
			err = nil // the sleeping call's own result is the caller's to judge
		}
		return true, err
	}
	if err := t.pass(k, ws); err != nil {
		return true, err
	}
	if err := sys.PtraceCont(k.Tid, 0); err != nil {
		return true, fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
	}
	return false, nil
}

// sleepsIn says whether a task sleeps in a certain system call (/proc/PID/syscall begins with its
// number, or "running"). Kernels without that file show at least the sleep.
func sleepsIn(k *Task, nr int) (bool, error) {
	b, err := os.ReadFile(procfs.ThreadPath(k.Pid, k.Tid, "syscall"))
	if errors.Is(err, os.ErrNotExist) {
		st, err := procfs.ReadThreadStat(k.Pid, k.Tid)
		if err != nil {
			return false, fmt.Errorf("pid %d: looking whether it sleeps: %w", k.Tid, err)
		}
		return st.State == 'S', nil
	}
	if err != nil {
		return false, fmt.Errorf("pid %d: looking whether it sleeps: %w", k.Tid, err)
	}
	word, _, _ := bytes.Cut(b, []byte{' '})
	return string(word) == strconv.Itoa(nr), nil
}
