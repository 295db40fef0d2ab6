//go:build !linux

package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// catchSignals removes what is half written and ends the process.
func (a *App) catchSignals(context.CancelCauseFunc) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	go func() {
		s := <-stop
		for _, o := range a.outputs {
			o.abort()
		}
		a.report(&SignalError{s})
		os.Exit(StatusFailed)
	}()
}

// forward is for the commands that make processes: they need Linux.
type forward struct{}

func dieOf(os.Signal) {}
