package test

import (
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// piped starts stdfds with pipes to the test as its three standard descriptors.
func piped(t *testing.T, want string) (j *harness.Job, output *os.File) {
	t.Helper()
	var ours, theirs [3]*os.File
	for i := range ours {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if ours[i], theirs[i] = r, w; i == 0 {
			ours[i], theirs[i] = w, r
		}
		t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	}
	j = harness.StartFixture(t, "stdfds", harness.Options{Args: []string{want}, Stdin: theirs[0], Stdout: theirs[1], Stderr: theirs[2]})
	for _, f := range theirs {
		_ = f.Close()
	}
	return j, ours[1]
}

// TestStandardDescriptors: pipes to outside of the tree are external. After a restore they are /dev/null; with --wait they are cr-restore's own; a tree
// that goes on keeps them.
func TestStandardDescriptors(t *testing.T) {
	harness.NeedRoot(t)
	t.Run("go-on", func(t *testing.T) {
		t.Parallel()
		j, out := piped(t, "same")
		j.MustSh("cr-dump $PID > image.cr")
		j.Finish()
		if data, err := io.ReadAll(out); err != nil || string(data) != "before\nafter\n" {
			t.Errorf("the program's output: %q, %v", data, err)
		}
	})
	t.Run("null", func(t *testing.T) {
		t.Parallel()
		j, out := piped(t, "null")
		j.DumpKill("cr-dump --kill $PID > image.cr")
		j.RestoreSh("cr-restore < image.cr > ticket")
		j.Finish()
		if data, err := io.ReadAll(out); err != nil || string(data) != "before\n" {
			t.Errorf("the program's output: %q, %v", data, err)
		}
	})
	t.Run("wait", func(t *testing.T) {
		t.Parallel()
		j, _ := piped(t, "pipe")
		j.DumpKill("cr-dump --kill $PID > image.cr")
		r := waited(t, j, "mkfifo in; exec 9<>in; cr-restore --wait -i image.cr -o ticket <&9 9<&- 2> >(cat > err) | cat > out; exit ${PIPESTATUS[0]}")
		if r.Status != 0 {
			t.Errorf("status %d: %s%s", r.Status, r.Stderr, j.Evidence())
		}
		if data, err := os.ReadFile(j.Image("out")); err != nil || string(data) != "after\n" {
			t.Errorf("the program's output through cr-restore's: %q, %v", data, err)
		}
	})
}

// waited runs a script that holds cr-restore --wait, and tells the program to look at itself as soon as it runs.
func waited(t *testing.T, j *harness.Job, script string) harness.Result {
	t.Helper()
	done := make(chan harness.Result, 1)
	go func() { done <- j.Sh("set +e; " + script) }()
	for end := time.Now().Add(20 * time.Second); !j.Alive() && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if len(done) > 0 {
			break
		}
	}
	if err := os.WriteFile(j.Dir+"/downtime", nil, 0o644); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(j.Dir+"/check", nil, 0o644); err != nil {
		t.Error(err)
	}
	return <-done
}

// TestWaitCopiesStatus: cr-restore --wait ends as the root of the tree does, by its status or its signal.
func TestWaitCopiesStatus(t *testing.T) {
	harness.NeedRoot(t)
	for _, c := range []struct {
		how  string
		want int
	}{{"exit 0", 0}, {"exit 37", 37}, {"kill -TERM $$", 128 + 15}, {"kill -KILL $$", 128 + 9}} {
		t.Run(strings.ReplaceAll(c.how, " ", "-"), func(t *testing.T) {
			t.Parallel()
			j := harness.Start(t, "/bin/bash", harness.Options{Name: "status", Shell: "echo > $1/ready; while [ ! -e $1/check ]; do sleep 0.01; done; " + c.how})
			j.WaitFile("ready", 10*time.Second)
			j.DumpKill("cr-dump --kill $PID > image.cr")
			r := waited(t, j, "cr-restore --wait --pid-file pid -i image.cr -o ticket")
			if r.Status != c.want {
				t.Errorf("status %d, want %d: %s", r.Status, c.want, r.Stderr)
			}
			if data, err := os.ReadFile(j.Image("pid")); err != nil || strings.TrimSpace(string(data)) != strconv.Itoa(j.Pid) {
				t.Errorf("the pid file holds %q, want %d: %v", data, j.Pid, err)
			}
		})
	}
}

// TestPlan: cr-restore -n prints what would be made and makes nothing.
func TestPlan(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "tree", harness.Options{})
	j.DumpKill("cr-dump --kill $PID > image.cr")
	out := j.MustSh("cr-restore -n < image.cr")
	if !strings.Contains(out, strconv.Itoa(j.Pid)) {
		t.Errorf("the plan does not name the root, pid %d:\n%s", j.Pid, out)
	}
	if n := j.Settled(time.Second); n != 0 {
		t.Errorf("-n made %d tasks", n)
	}
	j.RestoreSh("cr-restore < image.cr > ticket")
	j.Finish()
}
