package freezer

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// losesSignals refuses to stop a process by signals that would lose some of its own: SIGSTOP takes away a SIGCONT that is pending, and
// SIGCONT the stop signals (prepare_signal in kernel/signal.c). Only blocked ones stay pending; others are about to be taken.
func losesSignals(pid int) error {
	lost := bit(unix.SIGCONT) | bit(unix.SIGTSTP) | bit(unix.SIGTTIN) | bit(unix.SIGTTOU)
	tids, err := procfs.Threads(pid)
	if err != nil {
		return ignoreGone(err)
	}
	for _, tid := range tids {
		st, err := procfs.ReadThreadStatus(pid, tid)
		if procfs.IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		for sig := unix.Signal(1); sig < 32; sig++ {
			if (st.SigPnd|st.ShdPnd)&lost&st.SigBlk&bit(sig) != 0 {
				return fmt.Errorf("%w: pid %d (%s) has a blocked %s pending, which stopping it by SIGSTOP would take away", ErrUnusable, tid, st.Name, sys.SignalName(sig))
			}
		}
	}
	return nil
}
