package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"crpipe/stream"
)

// report prints an error: a line for each error of a list, then the hints, each
// once.
func (a *App) report(err error) {
	if err == nil || errors.Is(err, errQuiet) {
		return
	}
	var hints []string
	for _, leaf := range split(err) {
		a.say("error: ", leaf.Error())
		for _, hint := range strings.Split(hintOf(leaf), "\n") {
			if hint != "" && !slices.Contains(hints, hint) {
				hints = append(hints, hint)
			}
		}
	}
	for _, hint := range hints {
		a.say("hint: ", hint)
	}
}

// say prints each line of a text with the command's name before it. Names of
// processes and files in it come from whoever made them and may hold escape
// sequences: they are made harmless.
func (a *App) say(label, text string) {
	a.progress.clear()
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintf(a.messages, "%s: %s%s\n", a.Name, label, stream.Printable(line))
	}
}

// hintOf gives the advice that comes with an error of split, or with the list
// that it was part of.
func hintOf(err error) string {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if h, ok := e.(interface{ Hint() string }); ok {
			return h.Hint()
		}
	}
	var l *listed
	if errors.As(err, &l) {
		return hintOf(l.whole)
	}
	return ""
}

// errQuiet marks an error that changes the status but is not worth a line.
var errQuiet = errors.New("standard output was closed by its reader")

// split gives the single errors of an errors.Join list, also of one inside a
// wrapping error, whose text then stands before each of them.
func split(err error) []error {
	for e, outer := err, false; e != nil; e, outer = errors.Unwrap(e), true {
		list, ok := e.(interface{ Unwrap() []error })
		if !ok {
			continue
		}
		children := list.Unwrap()
		if len(children) == 0 || joined(children) != e.Error() {
			// fmt.Errorf with several %w: one sentence, not a list.
			return []error{err}
		}
		prefix := ""
		if outer {
			var found bool
			if prefix, found = strings.CutSuffix(err.Error(), e.Error()); !found {
				return []error{err}
			}
		}
		var out []error
		for _, child := range children {
			for _, leaf := range split(child) {
				out = append(out, &listed{prefix, leaf, err})
			}
		}
		return out
	}
	return []error{err}
}

func joined(errs []error) string {
	texts := make([]string, len(errs))
	for i, e := range errs {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "\n")
}

// listed is one error of a list, with what was said of the list as a whole.
type listed struct {
	prefix string
	err    error
	whole  error
}

func (l *listed) Error() string { return l.prefix + l.err.Error() }
func (l *listed) Unwrap() error { return l.err }
