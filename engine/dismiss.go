package engine

import (
	"os/signal"

	"golang.org/x/sys/unix"
)

// Dismiss ends the guard, for a command that stays although there is nothing to undo any more.
func (g *Guardian) Dismiss() {
	if g == nil {
		return
	}
	<-g.started
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil && !g.telling {
		g.watch.Close()
		signal.Reset(unix.SIGTSTP, unix.SIGTTOU, unix.SIGTTIN)
	}
}
