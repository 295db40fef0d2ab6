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

// roles are the processes of a command.
var roles = map[string]string{"crpipe-guard": "guard", "crpipe-mover": "mover"}

// TestKilledDumpHarmsNothing kills a random process of cr-dump, the command or what is beside it, with SIGKILL at a random moment, many times, while a program
// with threads that check themselves runs. Afterwards the program must be right, untraced, running, in its cgroups, with no mapping or descriptor more or less.
func TestKilledDumpHarmsNothing(t *testing.T) {
	harness.NeedRoot(t)
	rnd := seeded(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	whole := time.Minute // how long a dump takes at the least: later moments would mostly meet nobody
	for range 3 {
		cmd := j.Command("cr-dump", strconv.Itoa(j.Pid))
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("cr-dump: %v%s", err, j.Evidence())
		}
		whole = min(whole, time.Since(begin))
	}
	before := j.Footprint()
	killed := map[string]int{}
	kills := number(t, "CR_TEST_KILLS", 200)
	for round := 0; killed["command"]+killed["guard"]+killed["mover"] < kills && round < 10*kills; round++ {
		cmd := j.Command("cr-dump", "-v", strconv.Itoa(j.Pid))
		if round%2 == 0 {
			cmd = j.Command("cr-dump", strconv.Itoa(j.Pid))
		}
		out, err := os.Create(j.Image("killed.cr"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = out.Close()
		time.Sleep(time.Duration(rnd.Int63n(int64(whole) + 1)))
		procs := j.Commands()
		who, victim := "nobody", 0
		if len(procs) > 0 {
			victim = procs[rnd.Intn(len(procs))]
			if who = roles[harness.Comm(victim)]; who == "" { // so it is called until it has been killed
				who = "command"
			}
			if err := harness.Kill(victim, syscall.SIGKILL); err != nil && err != syscall.ESRCH { //nolint:errorlint // a bare errno
				t.Fatal(err)
			}
		}
		killed[who]++
		err = cmd.Wait()
		if !j.CommandsGone(harness.Patience) {
			t.Fatalf("round %d (%s killed): processes of cr-dump left: %v", round, who, j.Commands())
		}
		if err == nil { // what became of those beside it does not touch the image
			if r := j.Sh("cr-filter check < killed.cr"); r.Status != 0 {
				t.Errorf("round %d: the %s was killed and cr-dump says 0, but: %s", round, who, r.Stderr)
			}
		} else if who == "guard" || who == "mover" {
			t.Errorf("round %d: without its %s cr-dump says %v", round, who, err)
		}
		j.CheckUnharmed(before)
		goesOn(t, j, round)
		if t.Failed() {
			t.Fatalf("harmed in round %d, by the death of the %s", round, who)
		}
	}
	t.Logf("killed: %v; a whole dump takes %v", killed, whole)
	for _, who := range []string{"command", "guard", "mover"} {
		if killed[who] < kills/20 {
			t.Errorf("the %s was hardly ever met", who)
		}
	}
	j.Finish()
}

// TestKilledRestoreLeavesNothing kills cr-restore at random moments: either no task of the tree is there, or, when it had let them go already, all of them.
func TestKilledRestoreLeavesNothing(t *testing.T) {
	harness.NeedRoot(t)
	rnd := seeded(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	goesOn(t, j, -1)
	tasks := len(j.Tasks())
	j.DumpKill("cr-dump --kill $PID > image.cr")
	begin := time.Now()
	j.RestoreSh("cr-restore < image.cr > ticket")
	whole := time.Since(begin)
	goesOn(t, j, -2)
	j.DumpKill("cr-dump --kill $PID > image.cr")
	outcome := map[string]int{}
	for round := range number(t, "CR_TEST_RESTORE_KILLS", 60) {
		cmd := j.Command("cr-restore", "-i", j.Image("image.cr"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rnd.Int63n(int64(whole) + 1)))
		if err := cmd.Process.Kill(); err != nil {
			t.Logf("round %d: it had ended: %v", round, err)
		}
		err := cmd.Wait()
		j.Restore++
		if !j.CommandsGone(harness.Patience) {
			t.Fatalf("round %d: processes of cr-restore left: %v%s", round, j.Commands(), j.Evidence())
		}
		left := j.Settled(3 * time.Second)
		switch {
		case left == 0:
			outcome["none"]++
		case left == tasks:
			outcome["all"]++
			goesOn(t, j, round)
			j.DumpKill("cr-dump --kill $PID > image.cr")
		default:
			t.Fatalf("round %d: %d of %d tasks are there after the death of cr-restore (%v)%s", round, left, tasks, err, j.Evidence())
		}
		if err == nil && left == 0 {
			t.Fatalf("round %d: cr-restore says 0 and nothing is there", round)
		}
		j.WaitGone()
	}
	t.Logf("left after a kill: %v; a whole restore takes %v", outcome, whole)
	j.RestoreSh("cr-restore < image.cr > ticket")
	goesOn(t, j, -3)
	j.Finish()
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

// TestReaderSeesTheEnd looks at the processes of a running cr-dump: those beside it are in sessions of their own and hold nothing of the pipeline.
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
		who := roles[harness.Comm(p)]
		met[who]++
		if who == "" {
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
	if met[""] != 1 || met["guard"] != 1 || met["mover"] > 1 {
		t.Errorf("cr-dump has the processes %v, want itself, a guard and a mover", met)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	j.Finish()
}
