package freezer

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// states reads the states of all processes of a session.
func states(t *testing.T, sid int) map[int]byte {
	t.Helper()
	out := map[int]byte{}
	pids, err := procfs.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if st, err := procfs.ReadStat(pid); err == nil && st.Session == sid {
			out[pid] = st.State
		}
	}
	return out
}

// TestForker freezes a tree that forks as fast as it can, thaws it and freezes it again: nothing may escape. Only
// version 2 stops what is born meanwhile by itself; the other ways may not succeed in time, and then the tree runs on.
func TestForker(t *testing.T) {
	for _, way := range allWays {
		t.Run(string(way), func(t *testing.T) {
			needRoot(t, way)
			g := start(t, "", build(t, "forker"), "12")
			for range 3 {
				st, err := Freeze(Options{Roots: []int{g.pid}, Way: way, Timeout: 4 * time.Second})
				var late *TimeoutError
				if way != WayV2 && errors.As(err, &late) {
					for pid, s := range states(t, g.pid) {
						if s == 'T' || s == 't' {
							t.Errorf("process %d is in state %c after a freeze that failed", pid, s)
						}
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				// All of the session is in the state, and no process comes or goes.
				seen := states(t, g.pid)
				for pid := range seen {
					if !slices.ContainsFunc(st.Tasks, func(k Task) bool { return k.PID == pid }) {
						t.Errorf("process %d is not in the state", pid)
					}
				}
				time.Sleep(30 * time.Millisecond)
				after := states(t, g.pid)
				if len(after) != len(seen) {
					t.Errorf("%d processes became %d while frozen", len(seen), len(after))
				}
				for pid := range after {
					if _, ok := seen[pid]; !ok {
						t.Errorf("process %d was born while the tree was frozen", pid)
					}
				}
				if err := Thaw(st, ThawOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			st, err := Freeze(Options{Roots: []int{g.pid}, Way: way})
			if err != nil {
				t.Fatal(err)
			}
			if err := Kill(st, ThawOptions{}); err != nil {
				t.Fatal(err)
			}
			for pid, s := range states(t, g.pid) {
				if s != 'Z' {
					t.Errorf("process %d is alive (%c) after the kill", pid, s)
				}
			}
			noTransient(t, st)
		})
	}
}

// noTransient checks that the cgroups of a freeze are gone.
func noTransient(t *testing.T, st *State) {
	t.Helper()
	for _, g := range st.Groups {
		h, err := openHierarchy(st.Way)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := h.dir(g.Path)
		h.Close()
		if g.Transient && !errors.Is(err, unix.ENOENT) {
			t.Errorf("cgroup %s is still there (%v)", g.Path, err)
			_ = dir.Close()
		}
	}
}

// sleeper starts a shell tree: a shell with a child in job control stop and one that runs.
func sleeper(t *testing.T) (root, stopped, running int) {
	t.Helper()
	c := exec.Command("/bin/sh", "-c", "sleep 1000 & sleep 1001 & wait")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	root = c.Process.Pid
	t.Cleanup(func() { killSession(t, root); _ = c.Wait() })
	for range 2000 {
		kids, _ := procfs.ReadChildren(root, root)
		n := 0
		for _, k := range kids {
			if st, err := procfs.ReadStat(k); err == nil && st.Comm == "sleep" && st.State == 'S' {
				n++
			}
		}
		if n == 2 {
			stopped, running = kids[0], kids[1]
			if err := unix.Kill(stopped, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			awaitState(t, stopped, 'T')
			return root, stopped, running
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the shell did not start its children")
	return 0, 0, 0
}

func awaitState(t *testing.T, pid int, want byte) {
	t.Helper()
	var st procfs.Stat
	for range 2000 {
		st, _ = procfs.ReadStat(pid)
		if st.State == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("process %d is in state %c, want %c", pid, st.State, want)
}

// TestStoppedStayStopped freezes a tree with a process that job control has stopped.
func TestStoppedStayStopped(t *testing.T) {
	for _, way := range allWays {
		t.Run(string(way), func(t *testing.T) {
			needRoot(t, way)
			root, stopped, running := sleeper(t)
			for range 3 {
				st, err := Freeze(Options{Roots: []int{root}, Way: way})
				if err != nil {
					t.Fatal(err)
				}
				for _, k := range st.Tasks {
					want := BeforeRunning
					if k.PID == stopped {
						want = BeforeStopped
					}
					if k.Before != want {
						t.Errorf("%s %d was %s, want %s", k.Comm, k.PID, k.Before, want)
					}
				}
				if err := Thaw(st, ThawOptions{}); err != nil {
					t.Fatal(err)
				}
				awaitState(t, stopped, 'T')
				awaitState(t, running, 'S')
				awaitState(t, root, 'S')
			}
			if err := unix.Kill(stopped, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			awaitState(t, stopped, 'S')
		})
	}
}

// TestFrozenStayFrozen freezes what somebody else has frozen already.
func TestFrozenStayFrozen(t *testing.T) {
	for _, way := range []Way{WayV2, WayV1} {
		t.Run(string(way), func(t *testing.T) {
			needRoot(t, way)
			g := start(t, "", build(t, "blocked"), "LOG", "1", "BEATS")
			first, err := Freeze(Options{Roots: []int{g.pid}, Way: way})
			if err != nil {
				t.Fatal(err)
			}
			second, err := Freeze(Options{Roots: []int{g.pid}})
			if err != nil {
				t.Fatal(err)
			}
			if second.Way != way || !second.Groups[0].Already || second.Tasks[0].Before != BeforeFrozen {
				t.Errorf("the second freeze found way %s, groups %+v, task %s", second.Way, second.Groups, second.Tasks[0].Before)
			}
			if err := Thaw(second, ThawOptions{}); err != nil {
				t.Fatal(err)
			}
			g.mustStand(t)
			if err := Thaw(first, ThawOptions{}); err != nil {
				t.Fatal(err)
			}
			g.mustRun(t)
			g.mustBeSilent(t)
		})
	}
}

// TestWholeCgroup freezes by cgroup: by the path of its directory and by its name.
func TestWholeCgroup(t *testing.T) {
	for _, way := range []Way{WayV2, WayV1} {
		t.Run(string(way), func(t *testing.T) {
			needRoot(t, way)
			dir := mkcgroup(t, way)
			if _, err := Freeze(Options{Cgroup: dir}); err == nil {
				t.Error("an empty cgroup was frozen")
			}
			a := start(t, dir, build(t, "blocked"), "LOG", "1", "BEATS")
			b := start(t, dir, build(t, "blocked"), "LOG", "2", "BEATS")
			for _, name := range []string{dir, filepath.Base(dir)} {
				st, err := Freeze(Options{Cgroup: name, Way: way})
				if err != nil {
					t.Fatal(err)
				}
				a.mustStand(t)
				b.mustStand(t)
				slices.Sort(st.Roots)
				if want := []int{a.pid, b.pid}; !slices.Equal(st.Roots, want) {
					t.Errorf("roots %v, want %v", st.Roots, want)
				}
				if st.Groups[0].Transient || len(st.Groups) != 1 {
					t.Errorf("groups %+v", st.Groups)
				}
				if err := Thaw(st, ThawOptions{}); err != nil {
					t.Fatal(err)
				}
				a.mustRun(t)
				b.mustRun(t)
			}
			// A cgroup of one hierarchy can be frozen by another way.
			st, err := Freeze(Options{Cgroup: dir, Way: WaySigstop})
			if err != nil {
				t.Fatal(err)
			}
			a.mustStand(t)
			if err := Thaw(st, ThawOptions{}); err != nil {
				t.Fatal(err)
			}
			a.mustBeSilent(t)
			b.mustBeSilent(t)
		})
	}
}

// TestRefusals checks what must not be frozen, and that nothing is left behind.
func TestRefusals(t *testing.T) {
	needRoot(t, WayV2)
	for name, test := range map[string]struct {
		o    Options
		want error
	}{
		"itself":       {Options{Roots: []int{os.Getpid()}}, ErrOwnTree},
		"its parent":   {Options{Roots: []int{os.Getppid()}}, ErrOwnTree},
		"nobody":       {Options{Roots: []int{1 << 22}}, ErrGone},
		"pid 0":        {Options{Roots: []int{0}}, ErrGone},
		"pid -1":       {Options{Roots: []int{-1}}, ErrGone},
		"unknown way":  {Options{Roots: []int{os.Getpid()}, Way: "v3"}, nil},
		"nothing":      {Options{}, nil},
		"root cgroup":  {Options{Cgroup: "/"}, nil},
		"out of mount": {Options{Cgroup: "../../proc"}, nil},
	} {
		st, err := Freeze(test.o)
		if err == nil || (test.want != nil && !errors.Is(err, test.want)) {
			t.Errorf("%s: %v, %v; want %v", name, st, err, test.want)
		}
	}
	if got := strings.Join(listTransient(t), " "); got != "" {
		t.Logf("transient cgroups of others: %s", got)
	}
}

func listTransient(t *testing.T) []string {
	t.Helper()
	h, err := openHierarchy(WayV2)
	if err != nil {
		t.Skip(err)
	}
	defer h.Close()
	found, _ := filepath.Glob(filepath.Join(h.mount.Point, transientPrefix+"*"))
	return found
}

// TestTraced refuses a tree that a debugger holds, by name.
func TestTraced(t *testing.T) {
	needRoot(t, WayV2)
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace")
	}
	c := exec.Command("strace", "-f", "-o", "/dev/null", "sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killSession(t, c.Process.Pid); _ = c.Wait() })
	for range 2000 {
		kids, _ := procfs.ReadChildren(c.Process.Pid, c.Process.Pid)
		if len(kids) == 1 {
			if st, err := procfs.ReadStatus(kids[0]); err == nil && st.TracerPID != 0 && st.Name == "sleep" {
				_, err := Freeze(Options{Roots: []int{kids[0]}})
				if !errors.Is(err, ErrTraced) || !strings.Contains(err.Error(), "strace") || !strings.Contains(err.Error(), "sleep") {
					t.Errorf("%v", err)
				}
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("strace does not trace")
}

// TestLock checks that a held tree is neither held nor thawed by others, who are told by whom.
func TestLock(t *testing.T) {
	for _, way := range allWays {
		t.Run(string(way), func(t *testing.T) {
			needRoot(t, way)
			g := start(t, "", build(t, "blocked"), "LOG", "1", "BEATS")
			st, err := Freeze(Options{Roots: []int{g.pid}, Way: way})
			if err != nil {
				t.Fatal(err)
			}
			l, err := st.Lock()
			if err != nil {
				t.Fatal(err)
			}
			var busy *BusyError
			if err := Thaw(st, ThawOptions{}); !errors.As(err, &busy) || busy.PID != os.Getpid() {
				t.Errorf("thawing a locked tree: %v", err)
			}
			if err := Kill(st, ThawOptions{}); !errors.Is(err, ErrBusy) {
				t.Errorf("killing a locked tree: %v", err)
			}
			g.mustStand(t)
			l.Unlock()
			if err := Thaw(st, ThawOptions{}); err != nil {
				t.Fatal(err)
			}
			g.mustRun(t)
			if err := Thaw(st, ThawOptions{}); !errors.Is(err, ErrStale) {
				t.Errorf("thawing a second time: %v", err)
			}
			g.mustBeSilent(t)
		})
	}
}

// TestStale checks that a state of other tasks is recognised.
func TestStale(t *testing.T) {
	needRoot(t, WayV2)
	g := start(t, "", build(t, "blocked"), "LOG", "1", "BEATS")
	for name, change := range map[string]func(*State){
		"boot":      func(s *State) { s.BootID = "00000000-0000-0000-0000-000000000000" },
		"namespace": func(s *State) { s.PIDNS++ },
		"tasks": func(s *State) {
			for i := range s.Tasks {
				s.Tasks[i].Start++
			}
		},
	} {
		st, err := Freeze(Options{Roots: []int{g.pid}})
		if err != nil {
			t.Fatal(err)
		}
		stale := *st
		stale.Tasks = slices.Clone(st.Tasks)
		change(&stale)
		if err := Thaw(&stale, ThawOptions{}); !errors.Is(err, ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
		if err := Kill(&stale, ThawOptions{}); !errors.Is(err, ErrStale) {
			t.Errorf("%s: %v", name, err)
		}
		g.mustStand(t)
		if err := Thaw(st, ThawOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	g.mustRun(t)
	g.mustBeSilent(t)
}
