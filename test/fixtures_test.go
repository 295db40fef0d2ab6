package test

import (
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// fixture is a program of testdata/prog and what is special about running it.
type fixture struct {
	args  []string
	pidns bool // runs only as init of a pid namespace
}

// special are the fixtures that are not run plainly; every other .c file is.
var special = map[string]fixture{
	"orphans": {pidns: true},
	"sleeps":  {args: []string{"4000"}},
}

// own are programs that have a test of their own instead of the flavours.
var own = map[string]bool{"stdfds": true, "quiet": true, "refused": true}

func fixtures(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(harness.Root(), "test", "testdata", "prog", "*.c"))
	if err != nil || len(files) == 0 {
		t.Fatalf("finding fixtures: %v", err)
	}
	var names []string
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".c"); !own[name] {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// TestFixtures runs every fixture in every flavour. One of them:
//
//	go test ./test -run 'TestFixtures/memory/kill-restore$'
func TestFixtures(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range fixtures(t) {
		t.Run(name, func(t *testing.T) {
			fx := special[name]
			for _, f := range harness.Flavours {
				if fx.pidns && !f.PidNS && f.Cgroup {
					continue // a cgroup of its own would hold unshare too
				}
				t.Run(f.Name, func(t *testing.T) {
					t.Parallel()
					harness.Through(t, name, f, harness.Options{Args: fx.args, PidNS: fx.pidns})
				})
			}
		})
	}
}
