package tracee

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// A holder stops and continues a process around the tracer's stop.
type holder struct {
	name   string
	freeze func(t *testing.T, pid int)
	// thaw comes when all are stopped; with thawFirst before the tracer waits for that (a frozen
	// task cannot stop); with thawLast when it has let go.
	thaw      func(t *testing.T, pid int)
	thawFirst bool
	thawLast  bool
	job       bool // it is job control
}

func nothing(*testing.T, int) {}

// cgroupHolder freezes by writing a word to a file of a cgroup that it makes; the process joins it.
// It skips where there is no such hierarchy.
func cgroupHolder(t *testing.T, name, root, file, freeze, thaw, state, frozen string, thawFirst bool) holder {
	write := func(t *testing.T, pid int, file, word string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, "crpipe-tracee-"+itoa(pid), file), []byte(word), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return holder{
		name: name,
		freeze: func(t *testing.T, pid int) {
			t.Helper()
			dir := filepath.Join(root, "crpipe-tracee-"+itoa(pid))
			if err := os.Mkdir(dir, 0o755); err != nil {
				if !errors.Is(err, os.ErrExist) {
					t.Skip(err)
				}
			} else {
				t.Cleanup(func() {
					_ = os.WriteFile(filepath.Join(dir, file), []byte(thaw), 0o644) // it may be thawed already
					_ = unix.Kill(pid, unix.SIGKILL)                                // the helper's pid; it is not waited for before
					for deadline := time.Now().Add(stopTimeout); time.Now().Before(deadline) && os.Remove(dir) != nil; {
						time.Sleep(time.Millisecond)
					}
				})
				write(t, pid, "cgroup.procs", itoa(pid))
			}
			write(t, pid, file, freeze)
			for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
				b, err := os.ReadFile(filepath.Join(dir, state))
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(b), frozen) {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s does not freeze: %s", name, b)
				}
			}
		},
		thaw:      func(t *testing.T, pid int) { t.Helper(); write(t, pid, file, thaw) },
		thawFirst: thawFirst,
	}
}

func frozenAtDetach(h holder) holder {
	h.thawLast = true
	return h
}

// TestStopIsInvisible stops a thread in each of many blocking calls, twice, and finds that every
// call ends as if nothing had been.
func TestStopIsInvisible(t *testing.T) {
	a := native(t)
	if a.Name != "amd64" {
		t.Skip("the table has amd64's system calls")
	}
	for _, h := range []holder{
		{name: "ptrace", freeze: nothing, thaw: nothing},
		{
			name: "SIGSTOP", job: true, thawLast: true,
			freeze: func(t *testing.T, pid int) {
				t.Helper()
				if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
					if st, err := procfs.ReadStat(pid); err == nil && st.State == 'T' {
						return
					}
					if time.Now().After(deadline) {
						t.Fatal("it does not stop")
					}
				}
			},
			thaw: func(t *testing.T, pid int) {
				t.Helper()
				if err := unix.Kill(pid, unix.SIGCONT); err != nil {
					t.Fatal(err)
				}
			},
		},
		cgroupHolder(t, "cgroup v2", "/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1", false),
		frozenAtDetach(cgroupHolder(t, "cgroup v2, frozen throughout", "/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1", false)),
		cgroupHolder(t, "cgroup v1", "/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN", true),
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			stopInvisibly(t, h)
		})
	}
}

func stopInvisibly(t *testing.T, h holder) {
	a := native(t)
	tr := newTracer(t)
	cmd, line, out := helper(t, "calls")
	pid := cmd.Process.Pid
	ids, ipc, _ := strings.Cut(line, " [")
	t.Cleanup(func() { removeIPC(listed(ipc)) })
	words := strings.Fields(ids)
	if len(words) != len(blockingCalls) {
		t.Fatalf("helper said %q", line)
	}
	tids := make([]int, len(words))
	for i, w := range words {
		tids[i], _ = strconv.Atoi(w)
		waitAsleep(t, pid, tids[i], blockingCalls[i].nr())
	}
	for round := range 2 {
		for i, c := range blockingCalls { // those that were rewound must be back in their calls
			waitAsleep(t, pid, tids[i], c.nr())
		}
		h.freeze(t, pid)
		if h.thawFirst {
			threads, err := procfs.Threads(pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.Seize(threads); err != nil {
				t.Fatal(err)
			}
			h.thaw(t, pid)
		}
		if _, err := tr.StopTree(scanThreads(pid), stopTimeout); err != nil {
			t.Fatal(err)
		}
		want := map[int]bool{}
		for i, c := range blockingCalls {
			regs, view, err := tr.ReadRegs(a, tids[i])
			if err != nil {
				t.Fatal(err)
			}
			class := view.Restart(regs).String()
			if class != c.class {
				t.Errorf("round %d: %s shows %s, want %s (result %d)", round, c.name, class, c.class, view.Result(regs))
			}
			want[tids[i]] = class == "EINTR"
		}
		if !h.thawFirst && !h.thawLast {
			h.thaw(t, pid)
		}
		changed, err := tr.RewindAll(a, h.job)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range changed {
			if w, ours := want[tid]; ours && !w {
				t.Errorf("thread %d was rewound", tid)
			}
			delete(want, tid)
		}
		for tid, w := range want {
			if w {
				t.Errorf("thread %d was not rewound", tid)
			}
		}
		if err := tr.Detach(); err != nil {
			t.Fatal(err)
		}
		if h.thawLast {
			h.thaw(t, pid)
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, c := range blockingCalls {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(line); got != c.want {
			t.Errorf("%s ended with %s, want %s", c.name, got, c.want)
		}
	}
}

// listed reads what helperCalls says of its System V objects: "1 2] [3]".
func listed(s string) (semaphores, messages []uintptr) {
	sems, msgs, _ := strings.Cut(s, "] [")
	for _, l := range []struct {
		text string
		to   *[]uintptr
	}{{sems, &semaphores}, {strings.TrimSuffix(msgs, "]"), &messages}} {
		for _, w := range strings.Fields(l.text) {
			if id, err := strconv.Atoi(w); err == nil && id >= 0 {
				*l.to = append(*l.to, uintptr(id))
			}
		}
	}
	return semaphores, messages
}

// waitAsleep waits until a thread sleeps in a certain system call.
func waitAsleep(t *testing.T, pid, tid, nr int) {
	t.Helper()
	k := &Task{Pid: pid, Tid: tid}
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
		if in, err := sleepsIn(k, nr); err == nil && in {
			return
		}
		// A call that was interrupted before may go on through its restart block.
		if in, err := sleepsIn(k, native(t).Sys.RestartSyscall); err == nil && in {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %d does not block in system call %d", tid, nr)
		}
	}
}

// TestRewindLeavesHandlers: EINTR is due where a handler is about to run, and only there.
func TestRewindLeavesHandlers(t *testing.T) {
	a := native(t)
	tr := newTracer(t)
	cmd, line, out := helper(t, "handler")
	tid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	waitAsleep(t, cmd.Process.Pid, tid, a.Sys.EpollPwait)
	for _, tt := range []struct {
		sig    unix.Signal
		rewind bool
	}{{0, true}, {unix.SIGUSR2, true}, {unix.SIGWINCH, true}, {unix.SIGUSR1, false}} {
		if _, err := tr.StopAll([]int{tid}, stopTimeout); err != nil {
			t.Fatal(err)
		}
		if tt.sig != 0 { // SIGUSR2 is blocked, SIGWINCH is ignored by default but blocked here as well
			if err := unix.Tgkill(cmd.Process.Pid, tid, tt.sig); err != nil {
				t.Fatal(err)
			}
		}
		regs, view, err := tr.ReadRegs(a, tid)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tr.Rewind(view, tid, regs); err != nil || got != tt.rewind {
			t.Errorf("with signal %d pending: rewound %v, %v", int(tt.sig), got, err)
		}
		if err := tr.Detach(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	got, err := out.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != "EINTR" {
		t.Errorf("epoll_wait ended with %q, %v", got, err)
	}
}
