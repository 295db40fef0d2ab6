package engine

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/sockets"
)

// The hold of TCP connections that belongs to a ticket (package sockets): cr-dump leaves it, cr-thaw lifts it or has it last.

// hold is the name of the ticket's hold: that of no other ticket.
func (t *Ticket) hold() string {
	s := &t.state
	of := fmt.Sprintf("%q %d %q %v %v", s.BootID, s.PIDNS, s.ID, s.At, s.Roots)
	for _, k := range s.Tasks {
		of += fmt.Sprintf(" %d/%d", k.TID, k.Start)
	}
	return sockets.HoldName([]byte(of))
}

// liftHold is a step of a thaw under the lock: the guard is told of the thaw, and the connections are let go just before the processes are.
func (g *Guardian) liftHold(name string) func(*freezer.State) error {
	return func(st *freezer.State) error {
		if err := g.tell(entry{Cure: cureThaw, State: st, Unhold: name}); err != nil {
			return err
		}
		return failpoint.After("thaw.lifted", inNetOf(st, func() error { return sockets.LiftTicket(name) }))
	}
}

// keepHold is a step of a thaw that ends the processes, under the lock: their connections stay held, and the guard is told of the end.
func (g *Guardian) keepHold(name string, ending **sockets.Ending) func(*freezer.State) error {
	return func(st *freezer.State) error {
		err := inNetOf(st, func() (err error) {
			*ending, err = sockets.EndTicket(name, st.Processes())
			return err
		})
		if err := failpoint.After("thaw.kept", err); err != nil {
			return err
		}
		return g.journal(cureKill)(st)
	}
}

// leaveHold has the connections of a ticket's tree, which is about to be left frozen, held on. name is that of the hold, "" of none. It says
// whether the hold is new: an earlier dump by the same ticket may have left it, whose image needs it still.
func (h *treeHold) leaveHold(d *object.Dumper, name string) (bool, error) {
	if name == "" {
		return false, nil
	}
	old, err := sockets.Holds(name)
	if err != nil {
		return false, err
	}
	if !old {
		err = h.guard.alsoUnhold(name)
	}
	if err == nil {
		err = failpoint.After("dump.left", sockets.KeepHeld(d))
	}
	if err != nil && !old {
		err = errors.Join(err, sockets.DropHeld(name))
	}
	return !old, err
}

// inNetOf runs f in the network namespace of a tree.
func inNetOf(st *freezer.State, f func() error) error {
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("looking at the own network namespace: %w", err)
	}
	for _, pid := range st.Processes() {
		net, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/net")
		if err != nil || net == own { // gone, a zombie, or not to be seen
			continue
		}
		err = namespaces.InNet(pid, f)
		if errors.Is(err, unix.EPERM) { // whoever may not go there has left nothing there
			return f()
		}
		return err
	}
	return f()
}
