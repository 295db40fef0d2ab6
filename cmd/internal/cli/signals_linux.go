package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// catchSignals makes INT, TERM and HUP cancel the context, once: the next one
// ends the process at once, which is safe for the processes being handled. One
// that was ignored from the start (nohup) stays ignored. USR1 prints progress.
// PIPE is only caught, so that a write gives EPIPE and what was begun is put
// right; ignoring it would be inherited by every process that is started.
func (a *App) catchSignals(cancel context.CancelCauseFunc) {
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, unix.SIGUSR1)
	go func() {
		for range usr1 {
			a.printNow()
		}
	}()
	stop := make(chan os.Signal, 1)
	var caught []os.Signal
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(s) {
			caught = append(caught, s)
			signal.Notify(stop, s)
		}
	}
	go func() {
		for s := range stop {
			if a.forward.send(s) {
				continue
			}
			signal.Reset(caught...)
			cancel(&SignalError{s})
		}
	}()
}

// forward is where signals go instead of ending this command.
type forward struct {
	mu    sync.Mutex
	pidfd int // 0: nowhere
}

func (f *forward) send(s os.Signal) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	sig, ok := s.(unix.Signal)
	return ok && f.pidfd > 0 && unix.PidfdSendSignal(f.pidfd, sig, nil, 0) == nil
}

// ForwardSignals passes INT, TERM and HUP on to a process from now on, as long as
// there is one.
func (a *App) ForwardSignals(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("opening process %d to pass signals on to it: %w", pid, err)
	}
	a.forward.mu.Lock()
	defer a.forward.mu.Unlock()
	a.forward.pidfd = fd
	return nil
}

// dieOf ends the process by a signal, so that its parent sees why it ended: a
// shell then stops its loop too.
func dieOf(s os.Signal) {
	sig, ok := s.(unix.Signal)
	if !ok {
		return
	}
	signal.Reset(sig)
	if unix.Kill(unix.Getpid(), sig) == nil {
		select {} // the signal may arrive on any thread, a moment later
	}
}

// StatusOf is the status to end with in the place of a process that has ended: its own, or 128 more than the number of the signal that
// ended it.
func StatusOf(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
