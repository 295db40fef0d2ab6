package cli

import (
	"context"
	"os"
	"os/signal"

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
		s := <-stop
		signal.Reset(caught...)
		cancel(&SignalError{s})
	}()
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
