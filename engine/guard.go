package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/beside"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/object"
	"crpipe/engine/sockets"
)

// A command that stops other people's processes has a guard: a process of its own (package beside) that waits for the
// command's end and undoes what that left, however it came. Before each step the command writes down what would have to be
// undone. The guard may be killed too: the command notices, and starts another.
//
// A stop signal from the terminal (Ctrl-Z) would leave a frozen tree standing for as long as the command stands, so the
// command ignores it once it has begun.

// guardMark is the environment variable of a guard that has been executed.
const guardMark = "CRPIPE_GUARD"

// cure is what has to be done when the command is dead.
type cure string

const (
	cureNone     cure = ""
	cureThaw     cure = "thaw"     // let the tree go on
	cureRefreeze cure = "refreeze" // the tree was frozen before: leave it frozen
	cureKill     cure = "kill"     // the tree was being ended: end it
	cureOnly     cure = "only"     // nothing but what stands beside
)

// entry is what the command writes down.
type entry struct {
	Cure  cure           `json:"cure"`
	State *freezer.State `json:"state,omitempty"`
	// Unhold is a hold of TCP connections that is to be lifted before.
	Unhold string `json:"unhold,omitempty"`
	// Peek is an option of a socket that is to be set back before.
	Peek *object.PeekOff `json:"peek,omitempty"`
}

// A Guardian is the command's side of its guard. A nil one, of an unguarded process, does nothing.
type Guardian struct {
	started chan struct{} // closed when the fields below are set
	err     error

	mu      sync.Mutex
	last    entry
	watch   *beside.Watch
	telling bool // something is to be undone
	waiting bool // awaitDeath runs
}

// RunGuard must be the first thing that the main function of a guarded command calls. It returns at once, unless this process
// is the guard of a command that has died: then it does what is to be done, and ends.
func RunGuard() {
	b, orphaned, err := beside.Orphaned(guardMark)
	if !orphaned {
		return
	}
	if err == nil {
		var e entry
		if err = json.Unmarshal(b, &e); err == nil {
			err = runCure(e)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: it ended too early, and mending what it left failed: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// StartGuard starts a guard for this process, and does not wait for it. Of args, which have not been looked at yet, it takes what may
// be pids: if those are going to be moved between cgroups, the guard makes that cheap.
func StartGuard(args []string) *Guardian {
	g := &Guardian{started: make(chan struct{})}
	go func() {
		defer close(g.started)
		var pids []int
		for _, a := range args {
			if pid, err := strconv.Atoi(a); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		g.watch, g.err = beside.NewWatch(guardMark, freezer.MovesAhead(pids))
	}()
	return g
}

// journal returns the function that writes down what to do about a state.
func (g *Guardian) journal(c cure) func(*freezer.State) error {
	return func(st *freezer.State) error { return g.tell(entry{Cure: c, State: st}) }
}

// alsoUnhold adds a hold of TCP connections to what is to be undone, until the tree is being ended.
func (g *Guardian) alsoUnhold(name string) error {
	if g == nil {
		return nil
	}
	e := g.last
	e.Unhold = name
	return g.tell(e)
}

// alsoPeek adds an option of a socket to what is to be undone; nil takes it away.
func (g *Guardian) alsoPeek(p *object.PeekOff) error {
	if g == nil {
		return nil
	}
	e := g.last
	if !g.telling {
		e = entry{Cure: cureOnly} // as with a ticket: the tree is somebody else's
	}
	if e.Peek = p; p == nil && e.Cure == cureOnly {
		e = entry{}
	}
	return g.tell(e)
}

// Clear says that nothing has to be undone any more.
func (g *Guardian) Clear() error { return g.tell(entry{}) }

// tell returns when what it says is in safe hands.
func (g *Guardian) tell(e entry) error {
	if g == nil {
		return nil
	}
	<-g.started
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.Cure == cureNone {
		if g.telling {
			g.telling = false
			g.watch.Clear()
		}
		return nil
	}
	if g.err != nil {
		return g.err
	}
	g.last = e
	b, err := json.Marshal(e)
	if err == nil {
		err = g.watch.Write(b)
	}
	if err != nil {
		return fmt.Errorf("telling the guard: %w", err)
	}
	if !g.telling {
		g.telling = true
		ignoreStops()
	}
	if err := g.watch.Ensure(); err != nil {
		return err
	}
	if !g.waiting {
		g.waiting = true
		go g.replaceDead(g.watch.GuardPID())
	}
	return nil
}

// replaceDead starts another guard as soon as one has died, as long as there is something to undo.
func (g *Guardian) replaceDead(pid int) {
	for again := true; again; {
		beside.AwaitDeath(pid)
		g.mu.Lock()
		again = g.telling && g.watch.Ensure() == nil // an error: the next step says it
		g.waiting, pid = again, g.watch.GuardPID()
		g.mu.Unlock()
	}
}

// ignoreStops makes the terminal's stop signals do nothing. They are ignored, not caught: a write to a terminal that does not
// want it from the background would be repeated for ever otherwise.
func ignoreStops() { signal.Ignore(unix.SIGTSTP, unix.SIGTTOU, unix.SIGTTIN) }

// expectMoves says whether moves between cgroups are to be expected soon.
func (g *Guardian) expectMoves(soon bool) {
	if g != nil {
		<-g.started
		g.watch.ExpectMoves(soon)
	}
}

// runCure does what a dead command left to do.
func runCure(e entry) error {
	if e.Unhold != "" {
		name := e.Unhold
		unhold := inNetOf(e.State, func() error { return sockets.LiftTicket(name) })
		e.Unhold = ""
		return errors.Join(unhold, runCure(e))
	}
	if e.Peek != nil {
		peek := sockets.SetBack(e.Peek)
		e.Peek = nil
		return errors.Join(peek, runCure(e))
	}
	switch e.Cure {
	case cureThaw:
		return freezer.Thaw(e.State, freezer.ThawOptions{Partial: true})
	case cureRefreeze:
		return freezer.Refreeze(e.State)
	case cureKill:
		err := freezer.Kill(e.State, freezer.ThawOptions{Partial: true})
		if errors.Is(err, freezer.ErrStale) {
			return nil // all gone: that was the wish
		}
		return err
	case cureNone, cureOnly:
		return nil
	}
	return fmt.Errorf("unknown cure %q", e.Cure)
}
