package tracee

import (
	"errors"
	"os/exec"
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

// TestStopTree stops a program of many threads again and again; each time everything holds still,
// and then it goes on.
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
	for round := range 10 {
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

// signalCounter counts real-time signals in a handler and prints the number on SIGUSR1. Go's
// os/signal merges signals, so it is in C.
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

// TestStopLosesNoSignal sends signals, which are counted, as fast as it can while the program is
// stopped and let go.
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

// TestJobStopped: a process in job control stop is found so, and is so again when it has been let
// go; SIGCONT then works.
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
