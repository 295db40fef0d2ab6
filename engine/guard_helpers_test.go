package engine

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// notifyTerm catches the signal by which a worker is told to end.
func notifyTerm(c chan os.Signal) { signal.Notify(c, unix.SIGTERM) }
