package engine

import (
	"errors"
	"time"

	"crpipe/engine/internal/freezer"
	"crpipe/engine/sockets"
)

// ThawOptions says how to thaw.
type ThawOptions struct {
	Kill    bool          // end the tree instead, and wait until it is gone
	Timeout time.Duration // 0: 10 s
	Guard   *Guardian     // ends what this process began should it die half-way; may be nil
	Warn    func(string)  // may be nil
}

// Thaw lets the tree of a ticket go on in the state that each task had before the freeze, or ends it. A tree that runs already,
// as a plain restore leaves it, is let be. It refuses while somebody dumps the tree.
func Thaw(t *Ticket, o ThawOptions) error {
	hold := t.hold()
	var ending *sockets.Ending
	act, locked := freezer.Thaw, o.Guard.liftHold(hold)
	if o.Kill {
		act, locked = freezer.Kill, o.Guard.keepHold(hold, &ending)
	}
	defer func() { ending.Forget() }()
	// The guard is told only once it is known that the tree is ours to thaw: another's dump must not be cured away.
	var lazy lazyView
	defer lazy.close()
	opts := freezer.ThawOptions{Timeout: o.Timeout, Warn: o.Warn, Locked: locked, Interrupted: interrupted(lazy.open)}
	if err := act(&t.state, opts); err != nil {
		// What was begun, if anything, stays written down: the guard tries once more.
		if errors.Is(err, freezer.ErrStale) {
			if !o.Kill && t.state.Here() {
				err = also(err, sockets.LiftStale(hold))
			}
			err = &hinted{err, "the tree may have been thawed, killed or restored since: freeze it again"}
		}
		return freezeError(err)
	}
	return errors.Join(ending.End(), o.Guard.Clear())
}

// IsBusy reports whether an error says that the tree is being dumped or thawed by another process.
func IsBusy(err error) bool { return errors.Is(err, freezer.ErrBusy) }

// IsStale reports whether an error says that a ticket no longer describes any tasks.
func IsStale(err error) bool { return errors.Is(err, freezer.ErrStale) }
