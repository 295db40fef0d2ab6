package tracee

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

func newTracer(t testing.TB) *Tracer {
	t.Helper()
	native(t)
	tr := NewTracer()
	t.Cleanup(tr.Close)
	return tr
}

func scanThreads(pid int) func() ([]int, error) {
	return func() ([]int, error) { return procfs.Threads(pid) }
}

const stopTimeout = 10 * time.Second

// TestStopTree stops a program of many threads again and again; each time everything holds still, and then it goes on.
func TestStopTree(t *testing.T) {
	tr := newTracer(t)
	cmd, _, out := helper(t, "threads")
	pid := cmd.Process.Pid
	counter := func() int {
		t.Helper()
		var line string
		var err error
		for range 3 { // lines that were under way
			if line, err = out.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for round := range 20 {
		before := counter()
		stops, err := tr.StopTree(scanThreads(pid), stopTimeout)
		if err != nil {
			t.Fatal(err)
		}
		tids, err := procfs.Threads(pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(stops) < len(tids) || len(tids) < 30 {
			t.Fatalf("%d stops, %d threads", len(stops), len(tids))
		}
		for _, tid := range tids {
			if st, err := procfs.ReadThreadStat(pid, tid); err != nil || st.State != 't' {
				t.Fatalf("round %d: thread %d is in state %c, %v", round, tid, st.State, err)
			}
			st, err := procfs.ReadThreadStatus(pid, tid)
			if err != nil || st.TracerPID != tr.Tid() {
				t.Fatalf("round %d: thread %d is traced by %d, %v", round, tid, st.TracerPID, err)
			}
		}
		if _, err := tr.RewindAll(native(t), false); err != nil {
			t.Fatal(err)
		}
		if err := tr.Detach(); err != nil {
			t.Fatal(err)
		}
		if got := tr.Seized(); len(got) != 0 {
			t.Fatalf("still attached: %v", got)
		}
		if after := counter(); after <= before {
			t.Fatalf("round %d: the program does not go on: %d, then %d", round, before, after)
		}
	}
}

// signalCounter counts real-time signals in a handler and prints the number on SIGUSR1. Go's os/signal merges signals, so it is in C.
const signalCounter = `
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>
static atomic_int n;
static void count(int s) { (void)s; n++; }
static void *doze(void *p) { for (;;) if (usleep(100) > 0) return p; }
int main(void) {
	struct sigaction a = { .sa_handler = count };
	sigaction(40, &a, 0);
	pthread_t t;
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, 0);
	pthread_create(&t, 0, doze, 0);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int sig;
		sigwait(&s, &sig);
		printf("%d\n", n);
		fflush(stdout);
	}
}
`

// TestStopLosesNoSignal sends signals, which are counted, as fast as it can while the program is stopped and let go.
func TestStopLosesNoSignal(t *testing.T) {
	tr := newTracer(t)
	cmd, out := compiled(t, signalCounter)
	pid := cmd.Process.Pid
	const total = 10000
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < total && err == nil; i++ {
			for {
				if err = unix.Kill(pid, 40); !errors.Is(err, unix.EAGAIN) { // the queue is full while it is stopped
					break
				}
				time.Sleep(time.Millisecond)
			}
			if i%10 == 0 {
				time.Sleep(100 * time.Microsecond)
			}
		}
		sent <- err
	}()
	stopped, delivered := 0, 0
	for done := false; !done; {
		select {
		case err := <-sent:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		stops, err := tr.StopTree(scanThreads(pid), stopTimeout)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range stops {
			if s.State != Interrupted {
				t.Fatalf("thread %d: %v", s.Tid, s.State)
			}
			delivered += s.Delivered
		}
		stopped++
		if err := tr.Detach(); err != nil {
			t.Fatal(err)
		}
	}
	got := 0
	for deadline := time.Now().Add(stopTimeout); got < total && time.Now().Before(deadline); {
		if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if got, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
			t.Fatal(err)
		}
	}
	if got != total {
		t.Errorf("%d of %d signals arrived, with %d stops", got, total, stopped)
	}
	t.Logf("%d stops, %d signals taken on the way to one", stopped, delivered)
}

// TestJobStopped: a process in job control stop is found so, and is so again when it has been let go; SIGCONT then works.
func TestJobStopped(t *testing.T) {
	tr := newTracer(t)
	for _, sig := range []syscall.Signal{unix.SIGSTOP, unix.SIGTSTP} {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		state := func(want byte) {
			t.Helper()
			var st procfs.Stat
			var err error
			for deadline := time.Now().Add(stopTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if st, err = procfs.ReadStat(pid); err == nil && st.State == want {
					return
				}
			}
			t.Fatalf("%v: state %c, want %c (%v)", sig, st.State, want, err)
		}
		state('S')
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		state('T')
		for range 3 {
			stops, err := tr.StopAll([]int{pid}, stopTimeout)
			if err != nil {
				t.Fatal(err)
			}
			if stops[0].State != JobStopped || stops[0].Signal != sig {
				t.Errorf("%v: found %v by %v", sig, stops[0].State, stops[0].Signal)
			}
			state('t')
			if err := tr.Detach(); err != nil {
				t.Fatal(err)
			}
			state('T')
		}
		// A stop by job control that comes while it is held takes effect too.
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		state('S')
		if stops, err := tr.StopAll([]int{pid}, stopTimeout); err != nil || stops[0].State != Interrupted {
			t.Fatalf("%v: %v, %v", sig, stops, err)
		}
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		if err := tr.Detach(); err != nil {
			t.Fatal(err)
		}
		state('T')
	}
}

func TestStopGoneAndRefused(t *testing.T) {
	tr, other := newTracer(t), newTracer(t)
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
		st, err := procfs.ReadStat(cmd.Process.Pid)
		if err == nil && st.State == 'Z' {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no zombie: %v", err)
		}
	}
	stops, err := tr.StopAll([]int{cmd.Process.Pid}, stopTimeout)
	if err != nil || stops[0].State != Gone {
		t.Errorf("a zombie: %v, %v", stops, err)
	}
	_ = cmd.Wait() // it is known to have exited
	if err := tr.Detach(); err != nil {
		t.Error(err)
	}
	if err := tr.Seize([]int{-1}); err == nil {
		t.Error("seized pid -1")
	}
	if err := tr.Seize([]int{2}); err == nil || !strings.Contains(err.Error(), "thread of the kernel") {
		t.Logf("seizing pid 2: %v", err) // in a pid namespace it may be anything
	}

	helped, _, _ := helper(t, "idle")
	pid := helped.Process.Pid
	if _, err := other.StopAll([]int{pid}, stopTimeout); err != nil {
		t.Fatal(err)
	}
	if err := tr.Seize([]int{pid}); !errors.Is(err, ErrTraced) || !strings.Contains(err.Error(), strconv.Itoa(other.Tid())) {
		t.Errorf("seizing a traced process: %v", err)
	}
}

// TestStopTimeout: a parent in vfork does not stop; it is named, and goes on as soon as the tracer is closed.
func TestStopTimeout(t *testing.T) {
	cmd, line, _ := helper(t, "vfork")
	tr := NewTracer()
	tid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
		if st, err := procfs.ReadThreadStat(cmd.Process.Pid, tid); err == nil && st.State == 'D' {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the helper is not in vfork")
		}
	}
	_, err = tr.StopAll([]int{tid}, 50*time.Millisecond)
	if !errors.Is(err, unix.ETIMEDOUT) || !strings.Contains(err.Error(), line) || !strings.Contains(err.Error(), "state D") {
		t.Errorf("stopping a task in vfork: %v", err)
	}
	if err := tr.Detach(); err == nil {
		t.Error("a task that cannot stop was let go")
	}
	tr.Close()
	st, err := procfs.ReadThreadStatus(cmd.Process.Pid, tid)
	if err != nil || st.TracerPID != 0 {
		t.Errorf("traced by %d after Close, %v", st.TracerPID, err)
	}
}

// A holder stops and continues a process around the tracer's stop.
type holder struct {
	name   string
	freeze func(t *testing.T, pid int)
	// thaw comes when all are stopped; with thawFirst before the tracer waits for that (a frozen task cannot stop); with thawLast when it has let go.
	thaw      func(t *testing.T, pid int)
	thawFirst bool
	thawLast  bool
	job       bool // it is job control
}

func nothing(*testing.T, int) {}

// cgroupHolder freezes by writing a word to a file of a cgroup that it makes; the process joins it. It skips where there is no such hierarchy.
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

// TestStopIsInvisible stops a thread in each of many blocking calls, twice, and finds that every call ends as if nothing had been.
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
	words := strings.Fields(line)
	if len(words) != len(blockingCalls) {
		t.Fatalf("helper said %q", line)
	}
	tids := make([]int, len(words))
	for i, w := range words {
		tids[i], _ = strconv.Atoi(w)
		waitAsleep(t, pid, tids[i], blockingCalls[i].nr())
	}
	for round := range 2 {
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

// waitAsleep waits until a thread sleeps in a certain system call.
func waitAsleep(t *testing.T, pid, tid, nr int) {
	t.Helper()
	k := &Task{Pid: pid, Tid: tid}
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
		if in, err := sleepsIn(k, nr); err == nil && in {
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
