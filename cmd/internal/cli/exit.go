package cli

import (
	"errors"
	"os/exec"

	"crpipe/stream"
)

// Exit statuses, the same in all commands. 2 is what Go's runtime uses for a
// crash and is never chosen. A caller must take any other status as a failure.
const (
	StatusDone        = 0
	StatusFailed      = 1
	StatusUnsupported = 3
	StatusBadStream   = 4
	StatusMissing     = 5
	StatusUsage       = 80
)

// StatusText says what an exit status means, as the manual pages do.
type StatusText struct {
	Status int
	Text   string
}

// Statuses is the table in the EXIT STATUS section of every manual page; a test
// keeps the two in step.
var Statuses = []StatusText{
	{StatusDone, "Done."},
	{StatusFailed, "Failed."},
	{StatusUnsupported, "The process tree holds something that cannot be checkpointed; it is named."},
	{StatusBadStream, "The stream is damaged, cut short, of another kind or version, or its producer failed."},
	{StatusMissing, "The kernel or the privileges lack something; it is named."},
	{StatusUsage, "The command line is wrong."},
}

// Status gives the exit status for an error. An error chooses its own by a
// method ExitCode() int; what package stream reports about a stream's content is
// status 4. Of several errors (errors.Join) that disagree, the most general
// status wins: plain failure before bad stream, missing feature and
// unsupported object, so that no status promises more than is known.
func Status(err error) int {
	if err == nil {
		return StatusDone
	}
	result := 0
	for _, leaf := range split(err) {
		s := statusOfOne(leaf)
		if result == 0 || rank(s) < rank(result) {
			result = s
		}
	}
	return result
}

func rank(status int) int {
	for i, s := range []int{StatusFailed, StatusUsage, StatusBadStream, StatusMissing, StatusUnsupported} {
		if s == status {
			return i
		}
	}
	return 0
}

func statusOfOne(err error) int {
	// A read or write that failed says nothing about the stream's content,
	// whatever package stream says around it.
	if errors.As(err, new(*ioError)) {
		return StatusFailed
	}
	if s := claimed(err); s != 0 {
		return s
	}
	if stream.BadStream(err) {
		return StatusBadStream
	}
	// What is said of the list that it is part of. errors.Unwrap stops at a
	// list, so that one member is not judged by another.
	for l := (*listed)(nil); errors.As(err, &l); err = l.err {
		for e := l.whole; e != nil; e = errors.Unwrap(e) {
			if coder, ok := e.(interface{ ExitCode() int }); ok {
				return known(coder.ExitCode())
			}
		}
	}
	return StatusFailed
}

// known takes only the statuses of the table from an error.
func known(status int) int {
	switch status {
	case StatusUnsupported, StatusBadStream, StatusMissing, StatusUsage:
		return status
	}
	return StatusFailed
}

// claimed gives the status that an error or one inside it asks for by a method
// ExitCode, 0 if none does. errors.As would not do: an *exec.ExitError has such
// a method too, with the status of some other program.
func claimed(err error) int {
	if _, ok := err.(*exec.ExitError); err == nil || ok {
		return 0
	}
	if coder, ok := err.(interface{ ExitCode() int }); ok {
		return known(coder.ExitCode())
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return claimed(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, child := range e.Unwrap() {
			if s := claimed(child); s != 0 {
				return s
			}
		}
	}
	return 0
}

// exitError is a status that needs no words.
type exitError int

func (e exitError) Error() string { return "" }

// ExitWith makes an error that ends the command with the status of another
// program, which it stood in for. Nothing is printed; outputs are completed.
func ExitWith(status int) error { return exitError(status) }

// usageError is a command line that parses but makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }
func (e *usageError) ExitCode() int { return StatusUsage }

// UsageError makes an error with status 80 and, if hint is not empty, a hint.
func UsageError(text, hint string) error {
	return WithHint(&usageError{text}, hint)
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }

// WithHint adds advice to an error: what the user can do about it.
func WithHint(err error, hint string) error {
	if err == nil || hint == "" {
		return err
	}
	return &hinted{err, hint}
}
