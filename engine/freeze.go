package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// FreezeOptions says what to freeze and how.
type FreezeOptions struct {
	PIDs    []int         // roots: each with all its descendants
	Cgroup  string        // or everything in this cgroup: its directory, or its path below the mount of a cgroup hierarchy
	Freezer string        // "v2", "v1", "sigstop"; empty: the best there is
	Timeout time.Duration // 0: 10 s
	Guard   *Guardian     // told of the freeze before it begins; may be nil
	stopped []int         // with freezeHeld: the processes that job control stops
	all     []int         // the same: all processes
	view    kernelview.View
	brief   bool // see freezer.Options
}

// Freeze stops whole trees of processes. After an error nothing is stopped that was not before.
//
// With a guard the tree is thawed again should this process die before g.Clear, so whoever calls Freeze to leave a tree
// frozen calls that once the ticket is in safe hands.
func Freeze(o FreezeOptions) (*Ticket, error) {
	lazy := lazyView{view: o.view}
	if o.view == nil {
		defer lazy.close()
	}
	st, err := freezer.Freeze(freezer.Options{
		Roots: o.PIDs, Cgroup: o.Cgroup, Way: freezer.Way(o.Freezer), Timeout: o.Timeout,
		Journal: o.Guard.journal(cureThaw), Interrupted: interrupted(lazy.open), Brief: o.brief, Kinship: kinship(o.view),
	})
	if err != nil {
		if !errors.Is(err, freezer.ErrNotUndone) { // otherwise the guard tries once more
			err = also(err, o.Guard.Clear())
		}
		return nil, freezeError(err)
	}
	return newTicket(st), nil
}

// also is errors.Join where there is a second error, and else the first alone, with its hint.
func also(err, second error) error {
	if second == nil {
		return err
	}
	return errors.Join(err, second)
}

// freezeError gives the errors of the freezer their exit status and hint.
func freezeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, freezer.ErrTraced):
		return &object.Unsupported{What: err.Error(), Do: "end the debugger first, or let it detach"}
	case errors.Is(err, freezer.ErrTimeout):
		return &hinted{err, "a task may be in uninterruptible sleep (state D in ps); give it more time with --timeout"}
	case errors.Is(err, freezer.ErrOwnTree):
		return &hinted{err, "start this command from outside of the tree, e.g. by setsid or from another shell"}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return &object.Lacking{What: err.Error(), Do: "run it as the owner of the processes or as root"}
	case errors.Is(err, freezer.ErrUnusable):
		return &object.Lacking{What: err.Error(), Do: "choose another way with --freezer v2, v1 or sigstop"}
	}
	return err
}

// hinted is an error with a hint.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }

// A treeHold is a frozen tree all of whose live threads are in a ptrace stop, or stand still without one (still.go).
type treeHold struct {
	*freezer.Held
	fresh  bool // frozen by this process, which lets it go on in the end
	tracer *tracee.Tracer
	guard  *Guardian
	ending bool // the tree is being ended: by the guard if not by this process

	// Of a hold without ptrace stops: who is held, and how they stood when it began.
	view  kernelview.RegisterView
	tids  []int
	marks []kernelview.Mark
}

// takeHold freezes the trees of pids, or takes over the frozen tree of a ticket. Every thread of it stands still then, in a ptrace
// stop where o.view cannot tell its registers. Release or Kill must follow.
func takeHold(ctx context.Context, pids []int, ticket *Ticket, o FreezeOptions, warn func(string)) (*treeHold, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	h := &treeHold{guard: o.Guard}
	cure := cureRefreeze
	rv, _ := o.view.(kernelview.RegisterView)
	if ticket == nil {
		o.PIDs, o.brief = pids, rv != nil
		var err error
		if ticket, err = Freeze(o); err != nil {
			return nil, err
		}
		h.fresh, cure = true, cureThaw
	}
	if !ticket.Frozen() {
		return nil, errors.New("the ticket's tree is not frozen: freeze it with cr-freeze first")
	}
	h.tracer = tracee.NewTracer()
	var err error
	// The guard is told of a ticket's tree only once it is known to be frozen, and ours.
	ho := freezer.HoldOptions{Timeout: o.Timeout, Warn: warn, Locked: o.Guard.journal(cure)}
	if rv != nil {
		h.view, ho.Fresh = rv, h.fresh
		ho.Interrupted = interrupted(func() (kernelview.View, error) { return o.view, nil })
	}
	h.Held, err = freezer.Hold(h.tracer, &ticket.state, ho)
	if err == nil {
		if err = failpoint.After("hold.noted", h.note()); err != nil {
			return nil, errors.Join(err, h.Release())
		}
	}
	if err != nil {
		h.tracer.Close()
		var undo error
		if h.fresh {
			undo = freezer.Thaw(&ticket.state, freezer.ThawOptions{Partial: true, Warn: warn})
		}
		if undo == nil { // otherwise the guard tries once more
			undo = o.Guard.Clear()
		}
		return nil, freezeError(also(err, undo))
	}
	return h, nil
}

// do runs f on the tracer's thread where ptrace may be needed.
func (h *treeHold) do(f func() error) error {
	if h.Detached() {
		return f()
	}
	return h.tracer.Do(f)
}

// Release leaves the tree as takeHold found it: running, or frozen as the ticket says.
func (h *treeHold) Release() error {
	err := h.Held.Release(!h.fresh)
	h.tracer.Close()
	if err != nil {
		return fmt.Errorf("letting the tree go: %w", err)
	}
	return h.guard.Clear()
}

// Kill ends the tree.
func (h *treeHold) Kill() error {
	if err := failpoint.After("kill.told", h.guard.journal(cureKill)(h.State())); err != nil {
		return errors.Join(err, h.Release())
	}
	h.ending = true
	err := h.Held.Kill()
	h.tracer.Close()
	if err != nil {
		return fmt.Errorf("ending the tree: %w", err)
	}
	return h.guard.Clear()
}

// freezeHeld makes the ticket of a new tree that the caller's tracer holds in ptrace stops and is going to detach from: with
// frozen its tasks are put into a freezer, where they stay at the detach. roots are numbers in the caller's pid namespace.
func freezeHeld(roots []int, frozen bool, o FreezeOptions) (*Ticket, error) {
	if !frozen {
		st, err := freezer.Describe(roots, o.all)
		if err != nil {
			return nil, err
		}
		// Each process is to be ended for itself: its parent may be dead when the guard comes to it.
		each := *st
		each.Roots = nil
		if err := failpoint.After("restore.noted", o.Guard.journal(cureKill)(&each)); err != nil {
			return nil, err
		}
		return newTicket(st), nil
	}
	journal := o.Guard.journal(cureKill)
	st, err := freezer.Freeze(freezer.Options{
		Roots: roots, Way: freezer.Way(o.Freezer), Timeout: o.Timeout, Held: true, Stopped: o.stopped, Journal: journal})
	if err == nil {
		err = failpoint.After("restore.told", journal(st)) // with all tasks: from the detach on nobody else ends them
		if err != nil {
			err = also(err, freezer.Thaw(st, freezer.ThawOptions{Partial: true})) // into ptrace stops, in which they end
		}
	}
	if err != nil {
		if !errors.Is(err, freezer.ErrNotUndone) {
			err = also(err, o.Guard.Clear())
		}
		return nil, freezeError(err)
	}
	return newTicket(st), nil
}
