package test

import (
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crpipe/test/harness"
)

// number is an environment variable's number, or the default: how many rounds a test makes (fewer in CI).
func number(t *testing.T, name string, def int) int {
	t.Helper()
	if v := os.Getenv(name); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	return def
}

// seeded is a source of randomness whose seed is in the log; CR_TEST_SEED repeats a run.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := int64(number(t, "CR_TEST_SEED", int(time.Now().UnixNano()&0x7fffffff)))
	t.Logf("CR_TEST_SEED=%d", seed)
	return rand.New(rand.NewSource(seed))
}

// beat is how far the slowest of busy's threads is.
func beat(t *testing.T, j *harness.Job) uint64 {
	t.Helper()
	var least uint64 = 1 << 63
	for _, f := range []string{"beat", "beat.child"} {
		data, err := os.ReadFile(filepath.Join(j.Dir, f))
		if err != nil {
			return 0
		}
		first, _, _ := strings.Cut(string(data), "\n")
		n, err := strconv.ParseUint(first, 10, 64)
		if err != nil {
			t.Fatalf("reading %s: %v", f, err)
		}
		least = min(least, n)
	}
	return least
}

// goesOn fails when not every thread of busy gets on.
func goesOn(t *testing.T, j *harness.Job, round int) {
	t.Helper()
	was := beat(t, j)
	for end := time.Now().Add(harness.Patience); beat(t, j) <= was; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			data, _ := os.ReadFile(filepath.Join(j.Dir, "beat"))
			data2, _ := os.ReadFile(filepath.Join(j.Dir, "beat.child"))
			t.Fatalf("round %d: the program does not go on: %s%s%s", round, data, data2, j.Evidence())
		}
	}
}

// TestReaderThatDies lets the program behind the pipe die in mid-stream: the dump fails, and the target goes on, also when it should have been killed.
func TestReaderThatDies(t *testing.T) {
	harness.NeedRoot(t)
	for _, line := range []string{
		"cr-dump $PID | head -c 100000 > /dev/null", "cr-dump $PID | true", "cr-dump --kill $PID | head -c 100000 > /dev/null", "cr-dump --kill $PID | true",
		"cr-dump --kill $PID > /dev/full",
	} {
		t.Run(strings.ReplaceAll(line, "/", "_"), func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, "memory", harness.Options{})
			before := j.Footprint()
			r := j.Sh("set +e; " + line + "; echo ${PIPESTATUS[0]}")
			if got := strings.TrimSpace(r.Stdout); got != "1" {
				t.Errorf("cr-dump ended with status %s, want 1: %s", got, r.Stderr)
			}
			if !strings.Contains(r.Stderr, "cr-dump: ") {
				t.Errorf("cr-dump did not say why: %q", r.Stderr)
			}
			j.CheckUnharmed(before)
			j.Finish()
		})
	}
}

// TestInterruptedCommands sends SIGINT and SIGTERM, as Ctrl-C and a service manager do, instead of SIGKILL.
func TestInterruptedCommands(t *testing.T) {
	harness.NeedRoot(t)
	rnd := seeded(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	before := j.Footprint()
	for round, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		r, w := io.Pipe() // a slow reader: the dump is in the middle of its stream when the signal comes
		go func() {
			buf := make([]byte, 4096)
			for {
				if _, err := r.Read(buf); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		cmd := j.Command("cr-dump", strconv.Itoa(j.Pid))
		cmd.Stdout = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rnd.Intn(100)) * time.Millisecond)
		_ = cmd.Process.Signal(sig) // ended already: fine
		_ = cmd.Wait()
		_ = w.Close()
		if !j.CommandsGone(harness.Patience) {
			t.Fatalf("round %d (%v): processes of cr-dump left: %v", round, sig, j.Commands())
		}
		j.CheckUnharmed(before)
		goesOn(t, j, round)
	}
	j.Finish()
}

// TestRefusal: what cannot be kept is refused with status 3, all of it at once, by name, before a byte is written; and the sleeps of the refused tree are as they were.
func TestRefusal(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "refused", harness.Options{})
	before := j.Footprint()
	r := j.Sh("cr-dump $PID > got")
	if r.Status != 3 {
		t.Errorf("status %d, want 3: %s", r.Status, r.Stderr)
	}
	if info, err := os.Stat(j.Image("got")); err != nil || info.Size() != 0 {
		t.Errorf("something was written: %v, %v", info, err)
	}
	want := []string{"fd 37", "perf_event"}
	if _, err := os.Stat(filepath.Join(j.Dir, "secret")); err == nil {
		want = append(want, "fd 41", "secretmem")
	}
	for _, w := range append(want, "pid "+strconv.Itoa(j.Pid), "(refused)", "cr-dump: hint: ") {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("the refusal does not say %q:\n%s", w, r.Stderr)
		}
	}
	if r = j.Sh("cr-dump --kill $PID > got"); r.Status != 3 {
		t.Errorf("with --kill: status %d, want 3: %s", r.Status, r.Stderr)
	}
	if r = j.Sh("cr-freeze $PID > t; cr-dump < t > got"); r.Status != 3 {
		t.Errorf("by ticket: status %d, want 3: %s", r.Status, r.Stderr)
	}
	j.MustSh("cr-thaw < t")
	j.CheckUnharmed(before)
	j.Finish()
}

// TestRefusedTasks: what a task has that no call gives back is refused by name.
func TestRefusedTasks(t *testing.T) {
	harness.NeedRoot(t)
	for what, want := range map[string]string{
		"landlock": "is in a Landlock domain",
		"session":  "has keys (keyrings(7))",
		"thread":   "has keys in its thread keyring",
		"process":  "has keys in its process keyring",
		"threads":  "has a session keyring of its own",
		"listener": "SECCOMP_FILTER_FLAG_NEW_LISTENER",

		// a thread or process in another namespace than the root of its tree
		"net": "is in another namespace (net:[", "uts": "is in another namespace (uts:[", "ipc": "is in another namespace (ipc:[",
		"mnt": "is in another namespace (mnt:[", "cgroup": "is in another namespace (cgroup:[", "user": "is in another namespace (user:[",
		"pid_for_children": "has called unshare(CLONE_NEWPID)", "time_for_children": "is in another namespace (time:[",
		"setns": "is in another namespace (uts:[",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, "refusedtask", harness.Options{Args: []string{what}})
			if _, err := os.Stat(filepath.Join(j.Dir, "absent")); err == nil {
				t.Skipf("this kernel has no %s", what)
			}
			before := j.Footprint()
			r := j.Sh("cr-dump $PID > got")
			if r.Status != 3 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, "(refusedtask)") {
				t.Errorf("status %d, want 3 and %q: %s", r.Status, want, r.Stderr)
			}
			j.CheckUnharmed(before)
			j.Finish()
		})
	}
}

// TestPidInUse: a restore over a live process names the pid and who holds it, and makes nothing.
func TestPidInUse(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "tree", harness.Options{})
	j.MustSh("cr-dump $PID > image.cr")
	before := j.Footprint()
	r := j.Sh("cr-restore < image.cr")
	if r.Status != 1 || !strings.Contains(r.Stderr, fmt.Sprint(j.Pid)) || !strings.Contains(r.Stderr, "tree") {
		t.Errorf("status %d, want 1 and the pid %d with its holder (tree) named: %s", r.Status, j.Pid, r.Stderr)
	}
	j.CheckUnharmed(before)
	j.Finish()
}

// TestReaderSeesTheEnd looks at the processes of a running cr-dump: the guard is in a session of its own and holds nothing of the pipeline.
func TestReaderSeesTheEnd(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "memory", harness.Options{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := j.Command("cr-dump", strconv.Itoa(j.Pid))
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	buf := make([]byte, 10)
	if _, err := io.ReadFull(r, buf); err != nil { // it now waits for us: the image is larger than a pipe
		t.Fatal(err)
	}
	ours, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	met := map[string]int{}
	for _, p := range j.Commands() {
		who := harness.Comm(p)
		met[who]++
		if who == "cr-dump" {
			continue
		}
		sid, err := exec.Command("ps", "-o", "sid=", "-p", strconv.Itoa(p)).Output()
		if err == nil && strings.TrimSpace(string(sid)) != strconv.Itoa(p) {
			t.Errorf("the %s %d is in session %s, not its own", who, p, strings.TrimSpace(string(sid)))
		}
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p))
		if err != nil || len(fds) == 0 {
			t.Errorf("the descriptors of %s %d: %v, %v", who, p, fds, err)
		}
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && target == ours {
				t.Errorf("the %s holds the pipe, as %s", who, filepath.Base(fd))
			}
		}
	}
	if met["cr-dump"] != 1 || met["crpipe-guard"] != 1 || len(met) != 2 {
		t.Errorf("cr-dump has the processes %v, want itself and a guard", met)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	j.Finish()
}
