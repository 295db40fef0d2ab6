package object

import (
	"errors"
	"fmt"
	"strings"
)

// Exit statuses of the five commands, the same in all of them (design.md section 1).
const (
	ExitFailed      = 1
	ExitUnsupported = 3
	ExitBadStream   = 4
	ExitSystem      = 5
)

// Error says which object of which process an error is about, as a person would look for it.
type Error struct {
	PID  int    // 0: about no process in particular
	Comm string // the process's name; may be empty
	FD   int    // -1: about no descriptor
	What string // what the object is, e.g. a descriptor's link target; may be empty
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.PID > 0 {
		fmt.Fprintf(&b, "pid %d", e.PID)
		if e.Comm != "" {
			fmt.Fprintf(&b, " (%s)", e.Comm)
		}
		b.WriteString(": ")
	}
	if e.FD >= 0 {
		fmt.Fprintf(&b, "fd %d", e.FD)
		if e.What != "" {
			fmt.Fprintf(&b, " -> %s", e.What)
		}
		b.WriteString(": ")
	} else if e.What != "" {
		b.WriteString(e.What + ": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Unsupported is an error about state that cannot be checkpointed; the tree is refused with exit status 3.
type Unsupported struct {
	What string // a whole sentence without a full stop: "character device 195:0 cannot be checkpointed"
	Do   string // what the user can do about it; may be empty

	// Passes says that it mostly passes by itself within moments: the dump lets the tree go on and looks again, for a while.
	Passes bool
}

func (e *Unsupported) Error() string { return e.What }
func (e *Unsupported) Hint() string  { return e.Do }
func (e *Unsupported) ExitCode() int { return ExitUnsupported }

// Unsupportedf returns an *Unsupported without a hint.
func Unsupportedf(format string, args ...any) error {
	return &Unsupported{What: fmt.Sprintf(format, args...)}
}

// BadImage is an error about an image whose framing is right but whose records make no sense together; exit status 4.
type BadImage struct{ Err error }

func (e *BadImage) Error() string { return "image: " + e.Err.Error() }
func (e *BadImage) Unwrap() error { return e.Err }
func (e *BadImage) ExitCode() int { return ExitBadStream }

// BadImagef returns a *BadImage.
func BadImagef(format string, args ...any) error {
	return &BadImage{fmt.Errorf(format, args...)}
}

// Lacking is an error about something that this kernel or the caller's privileges lack; exit status 5.
type Lacking struct {
	What string
	Do   string
	Err  error // may be nil
}

func (e *Lacking) Error() string {
	if e.Err != nil {
		return e.What + ": " + e.Err.Error()
	}
	return e.What
}
func (e *Lacking) Unwrap() error { return e.Err }
func (e *Lacking) Hint() string  { return e.Do }
func (e *Lacking) ExitCode() int { return ExitSystem }

// Refusals is the list of everything in a tree that cannot be checkpointed.
type Refusals []error

func (r Refusals) Error() string {
	lines := make([]string, len(r))
	for i, err := range r {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is and errors.As look at each refusal.
func (r Refusals) Unwrap() []error { return r }

// Pass says whether every refusal is about state that passes by itself.
func (r Refusals) Pass() bool {
	for _, err := range r {
		var u *Unsupported
		if !errors.As(err, &u) || !u.Passes {
			return false
		}
	}
	return len(r) > 0
}

// ExitCode is 3 when every refusal is about state that cannot be checkpointed, else the status of the first that is
// not, since that one must be mended before the others mean anything.
func (r Refusals) ExitCode() int {
	for _, err := range r {
		var c interface{ ExitCode() int }
		if !errors.As(err, &c) {
			return ExitFailed
		}
		if code := c.ExitCode(); code != ExitUnsupported {
			return code
		}
	}
	return ExitUnsupported
}
