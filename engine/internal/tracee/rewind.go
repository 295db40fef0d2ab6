package tracee

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// ReadRegs reads the general registers of a stopped task, and says whose call they show: a's own or
// one of its 32-bit companion.
func (t *Tracer) ReadRegs(a *arch.Arch, tid int) ([]byte, *arch.Arch, error) {
	var regs []byte
	var view *arch.Arch
	err := t.Do(func() (err error) {
		if regs, err = readRegs(a, tid); err == nil {
			view, err = CallArch(a, tid, regs)
		}
		return err
	})
	return regs, view, err
}

// CallArch returns the architecture, a itself or its 32-bit companion, of the call that a stopped task
// is in: 64-bit code can issue both, and only the kernel knows which it was. It is to be called on the
// tracer's thread.
func CallArch(a *arch.Arch, tid int, regs []byte) (*arch.Arch, error) {
	if mode := a.Mode(regs); mode != a || a.Compat == nil {
		return mode, nil
	}
	if _, in := a.SyscallNr(regs); !in || a.Result(regs) >= 0 {
		return a, nil // in none that is not over
	}
	info, err := sys.PtraceGetSyscallInfo(tid)
	if errors.Is(err, unix.EIO) {
		return a, nil // before Linux 5.3; hardly any 64-bit code issues the others
	}
	if err != nil {
		return nil, fmt.Errorf("pid %d: reading whose system call it is in: %w", tid, err)
	}
	if info.Arch == a.Compat.AuditArch {
		return a.Compat, nil
	}
	return a, nil
}

// Rewind makes the stop of one seized task invisible to the system call that it interrupted: a call
// that returns EINTR on a mere stop will be issued again, unless a handler for a pending signal is
// about to run, in which case EINTR is what the program shall see. All other interrupted calls the
// kernel restarts by itself. regs are the task's registers, as read since it stopped; they are
// changed too. It returns whether anything was changed.
func (t *Tracer) Rewind(view *arch.Arch, tid int, regs []byte) (bool, error) {
	if view.Restart(regs) != arch.RestartEINTR {
		return false, nil
	}
	handled, err := handlerPending(tid)
	if err != nil || handled {
		return false, err
	}
	nr, _ := view.SyscallNr(regs)
	view.RewindSyscall(regs, nr)
	return true, t.Do(func() error { return writeRegs(tid, regs) })
}

// RewindAll is Rewind for every seized task and returns the ids of those that were changed. a is
// the machine's architecture. Tasks that were found stopped by job control are included only on
// request, for a freezer that works by SIGSTOP: where a user had stopped them EINTR is due.
func (t *Tracer) RewindAll(a *arch.Arch, jobStopped bool) ([]int, error) {
	var changed []int
	err := t.Do(func() error {
		var errs []error
		for tid, s := range t.seized {
			if s.stop.State != Interrupted && !(jobStopped && s.stop.State == JobStopped) {
				continue
			}
			regs, view, err := t.ReadRegs(a, tid)
			if err == nil {
				var did bool
				if did, err = t.Rewind(view, tid, regs); did {
					changed = append(changed, tid)
				}
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return changed, err
}

// handlerPending says whether a signal is pending that the task would run a handler for. Others end
// no wait: blocked ones stay, ignored ones vanish, and what stops or kills the process does so
// whatever its call returns. The mask is the one in force during the call.
func handlerPending(tid int) (bool, error) {
	st, err := procfs.ReadStatus(tid)
	if err != nil {
		return false, fmt.Errorf("pid %d: reading pending signals: %w", tid, err)
	}
	return (st.SigPnd|st.ShdPnd)&^st.SigBlk&st.SigCgt != 0, nil
}
