package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// These tests take from the commands, or from their target, what they need: room, a reader, numbers, memory, descriptors.

// failed checks the end of a command that was to fail.
func failed(t *testing.T, r harness.Result, what string, words ...string) {
	t.Helper()
	if r.Status != 1 {
		t.Errorf("%s: status %d, want 1: %s", what, r.Status, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("%s: it does not say %q: %s", what, w, r.Stderr)
		}
	}
}

// small mounts a file system of so many bytes, in AUX/small.
func small(t *testing.T, j *harness.Job, size int) string {
	t.Helper()
	dir := j.Image("small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the small file system: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// TestNoSpace: the disk is full.
func TestNoSpace(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "memory", harness.Options{})
	before := j.Footprint()
	dir := small(t, j, 64<<10)
	const full = "no space left on device"
	for _, line := range []string{
		"cr-dump -o small/image $PID", "cr-dump --kill -o small/image $PID", "cr-dump --freezer v1 -o small/image $PID", "cr-dump $PID > small/out", "cr-dump --kill $PID > small/out",
	} {
		failed(t, j.Sh(line), line, full)
		j.CheckUnharmed(before)
		if _, err := os.Stat(filepath.Join(dir, "image")); err == nil {
			t.Errorf("%s: there is an image", line)
		}
		if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
			if r := j.Sh("cr-filter check < small/out"); r.Status != 4 {
				t.Errorf("%s: what was written is said to be, by status %d: %s", line, r.Status, r.Stderr)
			}
			j.MustSh("rm small/out")
		}
		onlyNames(t, dir)
	}
	j.MustSh("cr-dump $PID > image; head -c 70000 /dev/zero > small/fill 2> /dev/null || true")
	r := j.Sh("cr-freeze -o small/ticket $PID")
	failed(t, r, "cr-freeze -o", full)
	j.CheckUnharmed(before)
	failed(t, j.Sh("cr-freeze $PID > small/ticket"), "cr-freeze >", full)
	j.CheckUnharmed(before)
	failed(t, j.Sh("cr-filter lz4 -i image -o small/image"), "cr-filter", full)
	j.MustSh("rm small/ticket")
	onlyNames(t, dir, "fill")

	j.DumpKill("cr-dump --kill $PID > image")
	for _, line := range []string{"cr-restore -i image -o small/ticket", "cr-restore -i image > small/out", "cr-restore --frozen -i image -o small/ticket", "cr-restore -i image -o ticket --pid-file small/pid"} {
		failed(t, j.Sh(line), line, full)
		j.Restore++
		if left := j.Settled(harness.Patience); left != 0 {
			t.Errorf("%s: %d processes are there", line, left)
		}
		j.WaitGone()
		j.CheckCgroups()
	}
	j.MustSh("rm -f small/out")
	onlyNames(t, dir, "fill")
	j.RestoreSh("cr-restore < image > ticket")
	j.Finish()
}

// onlyNames fails when there is more in a directory.
func onlyNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := filesIn(t, dir); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %v, want %v", dir, got, want)
	}
}

// readSome runs a command whose reader takes n bytes and goes, before the command can write the last; -1: it has gone before the command starts.
func readSome(t *testing.T, j *harness.Job, n int, name string, args ...string) harness.Result {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if n < 0 {
		_ = r.Close()
	} else if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	cmd := j.Command(name, args...)
	var words bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if n >= 0 {
		buf := make([]byte, n)
		for got := 0; got < n; {
			k, err := r.Read(buf[got:])
			if err != nil {
				t.Errorf("%s %v wrote %d bytes only: %v", name, args, got, err)
				break
			}
			got += k
		}
		_ = r.Close()
	}
	err = cmd.Wait()
	res := harness.Result{Stderr: words.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		res.Status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if !j.CommandsGone(harness.Patience) {
		t.Fatalf("%s %v: processes are left: %v", name, args, j.Commands())
	}
	return res
}

// TestReaderThatGoes: at whatever byte the reader of a stream goes, the command says so and leaves everything as it was.
func TestReaderThatGoes(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "memory", harness.Options{})
	before := j.Footprint()
	pid := strconv.Itoa(j.Pid)
	j.MustSh("cr-dump $PID > image")
	info, err := os.Stat(j.Image("image"))
	if err != nil {
		t.Fatal(err)
	}
	const pipe = 1 << 20 // what cr-dump widens its pipe to
	size := int(info.Size())
	if size < 3*pipe {
		t.Fatalf("an image of %d bytes fits into pipes", size)
	}
	for _, n := range []int{-1, 0, 1, 100, 5000, 20000, 100000, size / 2, size - pipe - 300<<10} {
		for _, args := range [][]string{{pid}, {"--kill", pid}, {"--freezer", "v1", pid}} {
			failed(t, readSome(t, j, n, "cr-dump", args...), fmt.Sprintf("cr-dump %v, %d bytes read", args, n), "broken pipe")
			j.CheckUnharmed(before)
		}
	}
	for _, verb := range []string{"lz4", "json"} {
		for _, n := range []int{-1, 0, 100, 5000} {
			r := readSome(t, j, n, "cr-filter", verb, "-i", j.Image("image"))
			if verb == "lz4" {
				failed(t, r, "cr-filter lz4", "broken pipe")
			} else if r.Status != 1 || r.Stderr != "" { // text: its reader has had enough
				t.Errorf("cr-filter json into head: status %d, %s", r.Status, r.Stderr)
			}
		}
	}
	for _, way := range []string{"v2", "v1", "sigstop"} {
		failed(t, readSome(t, j, -1, "cr-freeze", "--freezer", way, pid), "cr-freeze", "broken pipe")
		j.CheckUnharmed(before)
	}
	j.MustSh("cr-freeze $PID > ticket")
	failed(t, readSome(t, j, 20000, "cr-dump", "-i", j.Image("ticket")), "cr-dump of a ticket", "broken pipe")
	j.MustSh("cr-dump -i ticket > image; cr-thaw < ticket")
	j.CheckUnharmed(before)

	j.DumpKill("cr-dump --kill $PID > image")
	for _, args := range [][]string{{"-i", j.Image("image")}, {"--frozen", "-i", j.Image("image")}} {
		failed(t, readSome(t, j, -1, "cr-restore", args...), fmt.Sprintf("cr-restore %v", args), "broken pipe")
		j.Restore++
		if left := j.Settled(harness.Patience); left != 0 {
			t.Errorf("cr-restore %v: %d processes are there", args, left)
		}
		j.WaitGone()
		j.CheckCgroups()
	}
	// Nor does a stream that ends too early leave anything: the reader of one that has gone, one step on.
	if info, err = os.Stat(j.Image("image")); err != nil {
		t.Fatal(err)
	}
	size = int(info.Size())
	for _, n := range []int{0, 1, 60, 1000, 20000, 100000, size / 2, size - 30000, size - 1} {
		r := j.Sh(fmt.Sprintf("head -c %d image > short; cr-restore < short > ticket", n))
		if r.Status != 4 {
			t.Errorf("cr-restore of the first %d bytes: status %d: %s", n, r.Status, r.Stderr)
		}
		j.Restore++
		if left := j.Settled(harness.Patience); left != 0 {
			t.Errorf("cr-restore of the first %d bytes: %d processes are there", n, left)
		}
		j.WaitGone()
	}
	j.RestoreSh("cr-restore < image > ticket")
	j.Finish()
}

// pidsCgroup makes a cgroup with a limit on tasks and returns the shell's words for entering it.
func pidsCgroup(t *testing.T, j *harness.Job) (dir string) {
	t.Helper()
	for _, mount := range []string{"/sys/fs/cgroup/pids", harness.V2()} {
		if mount == "" {
			continue
		}
		dir = filepath.Join(mount, fmt.Sprintf("crtest-pids-%d-%d", os.Getpid(), j.Pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "pids.max")); err != nil {
			_ = os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte("+pids"), 0) // it is looked at below
		}
		if _, err := os.Stat(filepath.Join(dir, "pids.max")); err == nil {
			t.Cleanup(func() {
				for end := time.Now().Add(harness.Patience); unix.Rmdir(dir) != nil; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Errorf("cgroup %s cannot be removed", dir)
						return
					}
				}
			})
			return dir
		}
		_ = unix.Rmdir(dir)
	}
	t.Skip("needs a hierarchy of cgroups with the controller pids")
	return ""
}

func write(t *testing.T, dir, file, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// inFull runs a command in a cgroup with so few tasks.
func inFull(t *testing.T, j *harness.Job, dir string, n int, line string) harness.Result {
	t.Helper()
	for end := time.Now().Add(harness.Patience); ; time.Sleep(5 * time.Millisecond) {
		if now, err := os.ReadFile(filepath.Join(dir, "pids.current")); err != nil {
			t.Fatal(err)
		} else if strings.TrimSpace(string(now)) == "0" {
			break // zombies count
		}
		if time.Now().After(end) {
			t.Fatalf("tasks are left in %s", dir)
		}
	}
	write(t, dir, "pids.max", strconv.Itoa(n))
	r := j.Sh("echo $$ > " + dir + "/cgroup.procs; exec " + line)
	if !j.CommandsGone(harness.Patience) {
		t.Fatalf("%s with %d tasks: processes are left: %v", line, n, j.Commands())
	}
	return r
}

// TestFullPids: no more tasks may be made, by the target or by a command. A command that can make no thread ends as it may: with any status
// but 0, or killed by its own runtime. With few more it fails here and there; with enough it works.
func TestFullPids(t *testing.T) {
	harness.NeedRoot(t)
	if os.Getenv("CRPIPE_FAILPOINTS") != "all" {
		t.Skip("takes a minute: make stress runs it")
	}
	j := harness.StartFixture(t, "busy", harness.Options{User: ordinary})
	goesOn(t, j, -1)
	dir := pidsCgroup(t, j)
	for _, pid := range j.Tasks() {
		write(t, dir, "cgroup.procs", strconv.Itoa(pid))
	}
	before := j.Footprint()
	write(t, dir, "pids.max", "1") // less than there are
	for _, source := range []string{"bpf", "classical"} {
		j.MustSh("cr-dump --source " + source + " $PID > image; cr-filter check < image")
		j.CheckUnharmed(before)
	}
	goesOn(t, j, 0)

	// The command in a full cgroup, with room for so many more.
	j.MustSh("rm -f image")
	for _, pid := range j.Tasks() {
		write(t, filepath.Dir(dir), "cgroup.procs", strconv.Itoa(pid))
	}
	before = j.Footprint()
	commands := []string{"cr-freeze $PID > ticket", "cr-dump $PID > image", "cr-dump --source classical $PID > image"}
	enough := 0
	for _, n := range []int{1, 2, 4, 5, 6, 7, 8, 9, 10, 12, 64} {
		for _, line := range commands {
			r := inFull(t, j, dir, n, line)
			if r.Status == 0 && strings.HasPrefix(line, "cr-freeze") {
				j.MustSh("cr-thaw < ticket")
			}
			j.CheckUnharmed(before)
			j.CheckCgroups()
			if t.Failed() {
				t.Fatalf("%s with %d tasks: status %d: %s", line, n, r.Status, r.Stderr)
			}
			if r.Status == 0 {
				enough++
			}
			if r.Status == 0 && strings.HasPrefix(line, "cr-dump") {
				j.Check("image")
			}
		}
		goesOn(t, j, n)
	}
	t.Logf("%d of the commands with few tasks have worked", enough)
	if enough < len(commands) {
		t.Error("even with 64 some did not")
	}

	tasks := len(j.Tasks())
	j.DumpKill("cr-dump --kill $PID > image")
	outcome := map[bool]int{}
	for _, n := range []int{2, 6, 8, 10, 12, 16, 20, 24, 28, 64} {
		r := inFull(t, j, dir, n, "cr-restore -i image -o ticket")
		j.Restore++
		left := j.Settled(harness.Patience)
		if left != 0 && left != tasks || (left != 0) != (r.Status == 0) {
			t.Fatalf("cr-restore with %d tasks: status %d and %d processes: %s%s", n, r.Status, left, r.Stderr, j.Evidence())
		}
		outcome[left != 0]++
		if left != 0 {
			goesOn(t, j, n)
			j.DumpKill("cr-dump --kill $PID > image")
		}
		j.WaitGone()
		j.CheckCgroups()
	}
	t.Logf("restored, with few tasks allowed: %v", outcome)
	if outcome[true] == 0 || outcome[false] == 0 {
		t.Errorf("restores with few tasks allowed: %v", outcome)
	}
	j.RestoreSh("cr-restore -i image > ticket")
	goesOn(t, j, 99)
	j.Finish()
}

// TestNoMemoryInTarget: the target may map nothing more. A dump that only looks does not mind; one that has it execute calls, for which it
// needs a little room, says what it lacks.
func TestNoMemoryInTarget(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "deaf", harness.Options{User: ordinary, Args: []string{"full"}})
	before := j.Footprint()
	r := j.Sh("cr-dump --source classical $PID > image")
	failed(t, r, "classical", "cannot allocate memory", "pid "+strconv.Itoa(j.Pid)+" (deaf)")
	j.CheckUnharmed(before)
	for _, way := range []string{"v2", "v1"} {
		j.MustSh("cr-dump --freezer " + way + " $PID > image; cr-filter check < image")
		j.CheckUnharmed(before)
	}
	// And the tree comes back with its limit.
	j.DumpKill("cr-dump --kill $PID > image")
	j.RestoreSh("cr-restore < image > ticket")
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", j.Pid))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max address space 1048576 1048576 bytes") {
		t.Errorf("the limits are %s, %v", limits, err)
	}
	j.Finish()
}

// TestFewDescriptors: a command that may open hardly any file says so before it does anything, and one that may open just enough works.
func TestFewDescriptors(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "busy", harness.Options{User: ordinary})
	goesOn(t, j, -1)
	before := j.Footprint()
	j.MustSh("cr-dump $PID > image; cr-freeze $PID > ticket; cr-thaw < ticket")
	dumps := []string{
		"cr-freeze $PID > made", "cr-freeze -o made $PID", "cr-freeze --freezer v1 $PID > made", "cr-freeze --freezer sigstop $PID > made",
		"cr-dump -o made $PID", "cr-dump --source classical -o made $PID", "cr-dump --freezer v1 -o made $PID", "cr-dump --freezer sigstop -o made $PID",
	}
	for _, n := range []int{10, 63} {
		for _, line := range append([]string{"cr-thaw < ticket", "cr-dump -n $PID"}, dumps...) {
			r := j.Sh(fmt.Sprintf("rm -f made; ulimit -n %d; exec %s", n, line))
			if r.Status != 5 || !strings.Contains(r.Stderr, fmt.Sprintf("only %d files", n)) || !strings.Contains(r.Stderr, "hint: ulimit -n") {
				t.Errorf("%s with %d descriptors: status %d: %s", line, n, r.Status, r.Stderr)
			}
			if info, err := os.Stat(j.Image("made")); err == nil && info.Size() > 0 {
				t.Errorf("%s with %d descriptors made something", line, n)
			}
			if !j.CommandsGone(harness.Patience) {
				t.Fatalf("%s: processes are left: %v", line, j.Commands())
			}
		}
		j.CheckUnharmed(before)
		j.MustSh(fmt.Sprintf("ulimit -n %d; cr-filter check < image", n)) // which needs two
	}
	for _, line := range dumps {
		j.MustSh("rm -f made; ulimit -n 64; " + line + "; if [[ \"" + line + "\" = cr-freeze* ]]; then cr-thaw < made; fi")
		j.CheckUnharmed(before)
		j.CheckCgroups()
	}
	goesOn(t, j, 0)
	j.Finish()
}

// TestFewDescriptorsRestore: the same of a restore, of a program that may open no more itself.
func TestFewDescriptorsRestore(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.Start(t, "/usr/bin/prlimit", harness.Options{Name: "busy", Before: []string{"--nofile=64:64", harness.Prog(t, "busy")}})
	j.WaitFile("ready", 30*time.Second)
	goesOn(t, j, -1)
	j.DumpKill("ulimit -n 64; cr-dump --kill $PID > image")
	for i, flag := range []string{"", "--frozen "} {
		r := j.Sh("ulimit -n 10; exec cr-restore " + flag + "-i image -o made")
		if r.Status != 5 || !strings.Contains(r.Stderr, "only 10 files") || j.Settled(harness.Patience) != 0 {
			t.Errorf("cr-restore %swith 10 descriptors: status %d: %s", flag, r.Status, r.Stderr)
		}
		j.RestoreSh("ulimit -n 64; cr-restore " + flag + "-i image -o made")
		if flag != "" {
			j.MustSh("ulimit -n 64; cr-thaw < made")
		}
		goesOn(t, j, i)
		j.DumpKill("cr-dump --kill $PID > image")
	}
	j.RestoreSh("cr-restore -i image > ticket")
	goesOn(t, j, 99)
	j.Finish()
}

// TestDebugged: what a debugger has is refused by name, and the debugger keeps it.
func TestDebugged(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "traced", harness.Options{})
	tracer := harness.StatusLine(j.Pid, "TracerPid")
	for _, line := range []string{
		"cr-dump $PID > image", "cr-dump --kill $PID > image", "cr-dump --source classical $PID > image", "cr-freeze $PID > ticket",
		"cr-freeze --freezer v1 $PID > ticket", "cr-freeze --freezer sigstop $PID > ticket",
	} {
		r := j.Sh(line)
		if r.Status != 3 || !strings.Contains(r.Stderr, "traced by pid "+tracer+" (debugger)") || !strings.Contains(r.Stderr, "pid "+strconv.Itoa(j.Pid)+" (traced)") {
			t.Errorf("%s: status %d: %s", line, r.Status, r.Stderr)
		}
		if now := harness.StatusLine(j.Pid, "TracerPid"); now != tracer {
			t.Errorf("%s: it is traced by %s, was by %s", line, now, tracer)
		}
		if s := harness.State(j.Pid); s != 'S' && s != 'R' {
			t.Errorf("%s: it is in state %c", line, s)
		}
		j.CheckCgroups()
	}
	j.Finish()
}

// TestPendingStop: what a SIGSTOP or SIGCONT would take away is not frozen by them.
func TestPendingStop(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "deaf", harness.Options{})
	before := j.Footprint()
	for _, line := range []string{"cr-freeze --freezer sigstop $PID > ticket", "cr-dump --freezer sigstop $PID > image"} {
		r := j.Sh(line)
		if r.Status != 5 || !strings.Contains(r.Stderr, "has a blocked SIGTSTP pending") {
			t.Errorf("%s: status %d: %s", line, r.Status, r.Stderr)
		}
		j.CheckUnharmed(before)
	}
	j.Finish()
}

// TestVforkOfItsOwn: a child that has opened a file cannot be made again from what its parent has. It is refused by name, also from a ticket.
func TestVforkOfItsOwn(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "vfork", harness.Options{Args: []string{"open"}})
	before := j.Footprint()
	for _, line := range []string{"cr-dump $PID > image", "cr-freeze $PID > t; cr-dump < t > image && s=0 || s=$?; cr-thaw < t; exit $s"} {
		r := j.Sh(line)
		if r.Status != 3 || !strings.Contains(r.Stderr, "its parent waits for it in vfork, and it has opened a file of its own (fd ") {
			t.Errorf("%s: status %d: %s", line, r.Status, r.Stderr)
		}
		j.CheckUnharmed(before)
	}
	j.Finish()
}

// TestUninterruptible: a task that waits in vfork can be neither stopped by a signal nor attached to. Where the kernel's memory does not
// tell what ptrace would, it is refused by name, within the time, or frozen where the freezer can; and waits on.
func TestUninterruptible(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "vfork", harness.Options{})
	before := j.Footprint()
	ownPending := harness.StatusLine(j.Pid, "ShdPnd")
	if s := harness.State(j.Pid); s != 'D' {
		t.Fatalf("the parent is in state %c, not D: this test tests nothing", s)
	}
	for _, line := range []string{
		"cr-dump --freezer v1 $PID > image", "cr-dump --source classical $PID > image", "cr-dump --freezer sigstop --timeout 300ms $PID > image",
	} {
		begin := time.Now()
		r := j.Sh(line)
		want := 3
		if strings.Contains(line, "sigstop") {
			want = 1
		}
		if r.Status != want || !strings.Contains(r.Stderr, "vfork") || !strings.Contains(r.Stderr, strconv.Itoa(j.Pid)) {
			t.Errorf("%s: status %d, want %d: %s", line, r.Status, want, r.Stderr)
		}
		if d := time.Since(begin); d > harness.Patience/6 {
			t.Errorf("%s: it took %v", line, d)
		}
		if info, err := os.Stat(j.Image("image")); err != nil || info.Size() != 0 {
			t.Errorf("%s: something was written: %v, %v", line, info, err)
		}
		j.CheckUnharmed(before)
		j.CheckCgroups()
	}
	for _, way := range []string{"v2", "v1", "sigstop"} {
		r := j.Sh("cr-freeze --timeout 300ms --freezer " + way + " $PID > ticket")
		switch r.Status {
		case 0:
			j.MustSh("cr-thaw < ticket")
		case 1:
			if !strings.Contains(r.Stderr, "hint: a task may be in uninterruptible sleep") {
				t.Errorf("cr-freeze by %s gives no hint: %s", way, r.Stderr)
			}
			if !strings.Contains(r.Stderr, "not frozen after 300ms: pid ") || !strings.Contains(r.Stderr, "pid "+strconv.Itoa(j.Pid)+" (vfork)") {
				t.Errorf("cr-freeze by %s: %s", way, r.Stderr)
			}
		default:
			t.Errorf("cr-freeze by %s: status %d: %s", way, r.Status, r.Stderr)
		}
		for _, pid := range j.Tasks() {
			if pending := harness.StatusLine(pid, "ShdPnd"); strings.Trim(pending, "0") != "" && pending != ownPending {
				t.Errorf("cr-freeze by %s: pid %d has pending signals %s", way, pid, pending)
			}
		}
		j.CheckUnharmed(before)
		j.CheckCgroups()
	}
	j.Finish()
}

// TestCrowd dumps and restores very many threads (CRPIPE_THREADS; make stress: 10,000), in memory that they account for.
func TestCrowd(t *testing.T) {
	harness.NeedRoot(t)
	n := number(t, "CRPIPE_THREADS", 2000)
	j := harness.StartFixture(t, "crowd", harness.Options{Args: []string{strconv.Itoa(n)}})
	before := j.Footprint()
	measure := func(name string, args ...string) {
		t.Helper()
		begin := time.Now()
		// What a process had in memory before its execve(2), this one's share, counts as its own: a small one starts the command.
		cmd := j.CommandIn("/usr/bin", "python3", append([]string{"-c", `import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)`, j.Image("maxrss"), filepath.Join(harness.Binaries(t), name)}, args...)...)
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s: %v%s", name, err, j.Evidence())
		}
		text, err := os.ReadFile(j.Image("maxrss"))
		if err != nil {
			t.Fatal(err)
		}
		used, err := strconv.Atoi(string(text)) // KiB
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s of %d threads: %v, %d MiB", name, n, time.Since(begin).Round(time.Millisecond), used>>10)
		if most := 100<<10 + 32*n; used > most {
			t.Errorf("%s of %d threads takes %d KiB of memory, more than %d", name, n, used, most)
		}
	}
	measure("cr-dump", "-o", j.Image("image"), strconv.Itoa(j.Pid))
	j.CheckUnharmed(before)
	j.Check("image")
	if got := len(harness.Threads(j.Pid)); got != n+1 {
		t.Errorf("%d threads, were %d", got, n+1)
	}
	measure("cr-freeze", "-o", j.Image("ticket"), strconv.Itoa(j.Pid))
	measure("cr-thaw", "-i", j.Image("ticket"))
	j.CheckUnharmed(before)
	j.DumpKill("cr-dump --kill $PID > image")
	measure("cr-restore", "-i", j.Image("image"), "-o", j.Image("ticket"))
	j.Restore++
	if got := len(harness.Threads(j.Pid)); got != n+1 {
		t.Errorf("%d threads, were %d", got, n+1)
	}
	j.Finish()
}
