package tracee

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/sys"
)

// RegsetData is one register set of a task.
type RegsetData struct {
	Note uint32 // NT_*
	Data []byte
}

// SetFinal gives a stopped task the registers and the signal mask with which it shall go on. Sets
// are written in the order given; an xsave area of another machine is fitted to this one. After it
// only Commit, KillAll and further SetFinal are right.
//
// A result of -512, -513, -514 or -516 in the registers makes the kernel restart the call they
// show, once the task has been let go (never if it is continued otherwise).
func (t *Tracer) SetFinal(k *Task, sets []RegsetData, mask uint64) error {
	return t.Do(func() error {
		if k.state != taskReady && k.state != taskAside {
			return fmt.Errorf("pid %d: the task is not stopped: %w", k.Tid, unix.EBUSY)
		}
		a := k.arena.arch
		for _, s := range sets {
			data := s.Data
			if s.Note == arch.NTX86XState && a.FitXState != nil {
				native, err := t.nativeXState(k.Tid)
				if err != nil {
					return err
				}
				if data, err = a.FitXState(data, native); err != nil {
					return fmt.Errorf("pid %d: floating point registers: %w", k.Tid, err)
				}
			}
			set := func() error { return sys.PtraceSetRegset(k.Tid, s.Note, data) }
			if s.Note == arch.NTPRStatus {
				set = func() error { return sys.PtraceSetRegs(k.Tid, data) }
			}
			if err := set(); err != nil {
				return fmt.Errorf("pid %d: setting register set %#x of %d bytes: %w", k.Tid, s.Note, len(data), err)
			}
		}
		if err := sys.PtraceSetSigmask(k.Tid, mask); err != nil {
			return fmt.Errorf("pid %d: setting the signal mask: %w", k.Tid, err)
		}
		k.state = taskAside
		return nil
	})
}

// maxXState is more than any processor's xsave area: with all of AMX 11 KiB.
const maxXState = 32 << 10

// nativeXState is any xsave area of this machine, for its size and features.
func (t *Tracer) nativeXState(tid int) ([]byte, error) {
	if t.xstate != nil {
		return t.xstate, nil
	}
	buf := make([]byte, maxXState)
	n, err := sys.PtraceGetRegset(tid, arch.NTX86XState, buf)
	if err != nil {
		return nil, fmt.Errorf("pid %d: reading floating point registers: %w", tid, err)
	}
	t.xstate = append([]byte(nil), buf[:n]...)
	return t.xstate, nil
}

// Commit lets tasks go. From the moment that the last PTRACE_O_EXITKILL has been taken off, before
// the first task runs, the death of the tracer leaves them alive: then untied, if not nil, is called.
// If either fails nothing has run and KillAll is still possible; if letting go of one fails (it was
// killed from outside) all are killed, and the error says so. Should this process die before untied is
// called some live and some do not: it takes another to end those.
func (t *Tracer) Commit(tasks []*Task, untied func() error) error {
	return t.Do(func() error {
		for _, k := range tasks {
			if k.state != taskReady && k.state != taskAside {
				return fmt.Errorf("pid %d: the task is not stopped: %w", k.Tid, unix.EBUSY)
			}
			if err := sys.PtraceSetOptions(k.Tid, 0); err != nil {
				return fmt.Errorf("pid %d: taking off the tie to this process: %w", k.Tid, err)
			}
			if err := failpoint.Hit("restore.untied"); err != nil {
				return err
			}
		}
		if untied != nil {
			if err := untied(); err != nil {
				return err
			}
		}
		for i, k := range tasks {
			if err := failpoint.After("restore.detached", sys.PtraceDetach(k.Tid, 0)); err != nil {
				err = fmt.Errorf("pid %d: letting it go: %w", k.Tid, err)
				for _, free := range tasks[:i] {
					// It was let go within this loop and has had no time to die and be replaced.
					err = errors.Join(err, killProcess(free.Pid))
				}
				return errors.Join(err, t.killAll(nil))
			}
			k.state = taskGone
			delete(t.tasks, k.Tid)
			k.arena.give(k.slot)
		}
		return nil
	})
}

func killProcess(pid int) error {
	if err := sys.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("pid %d: killing it: %w", pid, err)
	}
	return nil
}

// KillAll kills every task that Spawn and Clone made and that Commit has not let go, those included
// that a failed batch has made and nobody knows, and waits until none is left of them but zombies
// of their parents. Tasks that were merely seized are left alone.
func (t *Tracer) KillAll() error { return t.Do(func() error { return t.killAll(nil) }) }

// KillAllBut is KillAll with an exception: a task that is stopped at the end of a batch and goes on to run others.
func (t *Tracer) KillAllBut(spared *Task) error {
	return t.Do(func() error { return t.killAll(spared) })
}

func (t *Tracer) killAll(spared *Task) error {
	if spared != nil {
		delete(t.tasks, spared.Tid)
	}
	err := t.killTasks()
	if spared != nil {
		t.tasks[spared.Tid] = spared
	}
	return err
}

func (t *Tracer) killTasks() error {
	var errs []error
	killed := map[int]bool{}
	for _, k := range t.tasks {
		if !killed[k.Pid] {
			killed[k.Pid] = true
			errs = append(errs, killProcess(k.Pid))
		}
	}
	for tid, ws := range t.strays {
		if ws.Stopped() { // a dead one's id may be somebody else's by now
			errs = append(errs, killProcess(tid))
		}
	}
	// Whoever dies first is waited for first: the kernel reports a process only after its threads
	// and the init of a pid namespace only after everything in it, so waiting for a certain one
	// could block for ever.
	for {
		options := 0
		if len(t.tasks) == 0 {
			// What is left may be seized tasks, or children that this thread has made for somebody else. A task of a
			// batch whose end nobody has seen, and that is not stopped yet, dies with the tracer.
			options = unix.WNOHANG
		}
		tid, ws, err := sys.WaitAny(options)
		if errors.Is(err, unix.ECHILD) || err == nil && tid == 0 {
			break
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("waiting for killed tasks: %w", err))
			break
		}
		k := t.tasks[tid]
		switch {
		case k != nil && ws.Dead():
			k.gone(ws)
			delete(t.tasks, tid)
		case k == nil && t.seized[tid] != nil:
			t.events[tid] = ws
		case k == nil && ws.Stopped():
			// Made by a batch whose end nobody has seen. (A thread of a killed process is about to die anyway.)
			errs = append(errs, killProcess(tid))
		}
	}
	for _, k := range t.tasks {
		errs = append(errs, fmt.Errorf("pid %d: it was killed but could not be waited for", k.Tid))
	}
	clear(t.tasks)
	clear(t.strays)
	return errors.Join(errs...)
}

// Tasks is how many tasks were made and neither let go nor seen dead.
func (t *Tracer) Tasks() int {
	n := 0
	_ = t.Do(func() error { n = len(t.tasks); return nil })
	return n
}
