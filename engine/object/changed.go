package object

import (
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ChangedError says that a file is not what it was when it was dumped.
type ChangedError struct {
	Path string
	What string // "it has 12 bytes, 10 when it was dumped"
}

func (e *ChangedError) Error() string {
	return fmt.Sprintf("%s has changed since the dump: %s", e.Path, e.What)
}

// Hint says what to do about it.
func (e *ChangedError) Hint() string {
	return fmt.Sprintf("put the file of that time back, or pass --allow-changed '%s' if the processes can go on with this one", e.Path)
}

// Unchanged refuses a file that has another size or modification time (ns since 1970) than at the dump, unless the user
// allows it. A time of 0 was not worth noting: nothing is compared.
func (r *Restorer) Unchanged(name string, now *unix.Stat_t, size, modified int64) error {
	if modified == 0 || now.Size == size && now.Mtim.Nano() == modified || MatchPath(r.AllowChanged, name) {
		return nil
	}
	e := &ChangedError{Path: name}
	if now.Size != size {
		e.What = fmt.Sprintf("it has %d bytes, %d when it was dumped", now.Size, size)
	} else {
		e.What = fmt.Sprintf("it was modified %s, and was of %s when it was dumped", when(now.Mtim.Nano()), when(modified))
	}
	return e
}

func when(ns int64) string { return time.Unix(0, ns).UTC().Format("2006-01-02 15:04:05.000000000 UTC") }

// MatchPath says whether a path matches one of the patterns, which are those of sh(1) in a case statement: an asterisk
// stands for slashes too.
func MatchPath(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(flat(p), flat(name)); err == nil && ok {
			return true
		}
	}
	return false
}

// CheckPattern refuses a pattern that MatchPath could not use.
func CheckPattern(pattern string) error {
	_, err := path.Match(flat(pattern), "")
	return err
}

// flat puts another byte, which no path has, in the place of slashes, which path.Match treats apart.
func flat(s string) string { return strings.ReplaceAll(s, "/", "\x00") }
