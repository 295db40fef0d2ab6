package freezer

import (
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// childMain is what the test binary does when a test runs it as a child.
func childMain() { os.Exit(0) }

var allWays = []Way{WayV2, WayV1, WaySigstop}

// TestInvisible freezes and thaws a tree of three processes with a thread
// blocked in every kind of call that a stop interrupts.
func TestInvisible(t *testing.T) {
	for _, way := range allWays {
		for _, own := range []bool{true, false} {
			name := string(way) + map[bool]string{true: "/own", false: "/transient"}[own]
			if way == WaySigstop && own {
				continue
			}
			t.Run(name, func(t *testing.T) {
				needRoot(t, way)
				cgroup := ""
				if own {
					cgroup = mkcgroup(t, way)
				}
				g := start(t, cgroup, build(t, "blocked"), "LOG", "3", "BEATS")
				g.mustRun(t)
				tree, err := newTree([]int{g.pid})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tree.grow(nil); err != nil {
					t.Fatal(err)
				}
				if len(tree.order) != 3 {
					t.Fatalf("a tree of %d processes, want 3", len(tree.order))
				}
				before := cgroupsOf(t, tree.order)
				for range 5 {
					st, err := Freeze(Options{Roots: []int{g.pid}, Way: way})
					if err != nil {
						t.Fatal(err)
					}
					g.mustStand(t)
					if len(st.Tasks) != 3*24 {
						t.Errorf("the state has %d tasks, want %d", len(st.Tasks), 3*24)
					}
					for _, task := range st.Tasks {
						if task.Before != BeforeRunning {
							t.Errorf("task %d was %s, want running", task.TID, task.Before)
						}
					}
					if own && st.Groups[0].Transient {
						t.Errorf("groups %+v, want the own cgroup", st.Groups)
					}
					if err := Thaw(st, ThawOptions{Warn: func(s string) { t.Error(s) }}); err != nil {
						t.Fatal(err)
					}
					g.mustRun(t)
					time.Sleep(10 * time.Millisecond)
				}
				g.mustBeSilent(t)
				if diff := cmp.Diff(before, cgroupsOf(t, tree.order)); diff != "" {
					t.Errorf("cgroups changed (-before +after):\n%s", diff)
				}
			})
		}
	}
}
