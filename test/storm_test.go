package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// startStorm starts a tree that forks as fast as it can.
func startStorm(t *testing.T) *harness.Job {
	t.Helper()
	return harness.StartFixture(t, "storm", harness.Options{Args: []string{"12"}})
}

// born is how many processes the storm has made.
func born(t *testing.T, j *harness.Job) (n uint64) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(j.Dir, "beat"))
	if err == nil {
		_, err = fmt.Sscan(string(data), &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// stormGoesOn fails when no more processes are born, or when one of those that are there does not run.
func stormGoesOn(t *testing.T, j *harness.Job) {
	t.Helper()
	was := born(t, j)
	for end := time.Now().Add(harness.Patience); born(t, j) <= was; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing is born any more%s", j.Evidence())
		}
	}
	for _, pid := range j.Tasks() {
		if tracer := harness.StatusLine(pid, "TracerPid"); tracer != "0" && tracer != "" {
			t.Errorf("process %d is traced by %s", pid, tracer)
		}
		if s := harness.State(pid); s == 'T' || s == 't' {
			t.Errorf("process %d is in state %c", pid, s)
		}
	}
}

// TestStorm freezes, dumps, kills and restores it: nothing may escape, and what was frozen makes nothing new.
func TestStorm(t *testing.T) {
	harness.NeedRoot(t)
	j := startStorm(t)
	for range 3 {
		begin := time.Now()
		j.MustSh("cr-freeze $PID > ticket")
		freeze := time.Since(begin)
		tasks := j.Tasks()
		was := born(t, j)
		time.Sleep(30 * time.Millisecond)
		if now := j.Tasks(); len(now) != len(tasks) || born(t, j) != was {
			t.Errorf("%d processes became %d while frozen, and %d births %d%s", len(tasks), len(now), was, born(t, j), j.Evidence())
		}
		j.MustSh("cr-dump < ticket > image; cr-thaw < ticket")
		j.Check("image")
		if n := strings.Count(j.MustSh("cr-filter json < image"), `"type":"process"`); n < 2 || n > len(tasks) {
			t.Errorf("%d processes in the image, there were %d", n, len(tasks))
		}
		t.Logf("%d processes, frozen in %v", len(tasks), freeze)
		stormGoesOn(t, j)
	}
	j.DumpKill("cr-dump --kill $PID > image")
	j.RestoreSh("cr-restore < image > ticket")
	stormGoesOn(t, j)
	j.CheckCgroups()
	j.Finish()
}
