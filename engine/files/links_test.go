package files

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// SetSearch is how many names a search for hard links looks at, until the test ends.
func SetSearch(t *testing.T, n int) {
	was := searchEntries
	searchEntries = n
	t.Cleanup(func() { searchEntries = was })
}

// A search ends when its time is up, however much it could still look at, and all of a dump have one time together.
func TestSearchTime(t *testing.T) {
	dir := t.TempDir()
	name, other := filepath.Join(dir, "gone"), filepath.Join(dir, "a", "b", "other")
	if err := os.MkdirAll(filepath.Dir(other), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(name, other); err != nil {
		t.Fatal(err)
	}
	root := func() *object.Process {
		p := &object.Process{PID: os.Getpid()}
		p.Threads = []*object.Thread{{Process: p, TID: os.Getpid()}}
		return p
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	p := root()
	if got := otherName(&object.OpenFile{Process: p, Stat: st}, dir); got != other {
		t.Errorf("found %q", got)
	}
	object.Note[found](p).spent = searchTime
	if got := otherName(&object.OpenFile{Process: p, Stat: st}, dir); got != other {
		t.Errorf("what was found before is %q now", got)
	}
	p = root()
	object.Note[found](p).spent = searchTime + time.Second
	if got := otherName(&object.OpenFile{Process: p, Stat: st}, dir); got != "" {
		t.Errorf("found %q though the time was up", got)
	}
}
