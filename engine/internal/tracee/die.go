package tracee

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// DieBy ends a task that batches were run in by a signal, so that its parent will find that wait status. The signal's action must be the default
// one, and ending; Run, which keeps signals away from tasks, could not do it. No core is dumped if RLIMIT_CORE is 0.
func (t *Tracer) DieBy(k *Task, sig unix.Signal) error {
	return t.Do(func() error {
		if k.state != taskReady && k.state != taskAside {
			return fmt.Errorf("pid %d: the task is not stopped: %w", k.Tid, unix.EBUSY)
		}
		if err := sys.PtraceSetSigmask(k.Tid, ^uint64(1<<(sig-1))); err != nil {
			return fmt.Errorf("pid %d: setting the signal mask: %w", k.Tid, err)
		}
		if err := sys.Tgkill(k.Pid, k.Tid, sig); err != nil {
			return fmt.Errorf("pid %d: sending it %s: %w", k.Tid, sys.SignalName(sig), err)
		}
		give := unix.Signal(0)
		for {
			k.state = taskRunning
			if err := sys.PtraceCont(k.Tid, give); err != nil && sig != unix.SIGKILL {
				return fmt.Errorf("pid %d: continuing it: %w", k.Tid, err)
			}
			ws, err := t.await(k)
			if err != nil {
				return err
			}
			if ws.Dead() { // await has noted it
				if ws.TermSignal() != sig {
					return fmt.Errorf("pid %d: %s instead of being killed by %s", k.Tid, ws, sys.SignalName(sig))
				}
				return nil
			}
			// Its own stop for this signal comes next, whatever else came before it.
			give = 0
			if ws.SignalStop() && ws.Signal() == sig {
				give = sig
			}
		}
	})
}
