package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// TestStateKept reads everything that /proc shows of a frozen tree, dumps, kills and restores it, and reads everything again: no difference but
// those in harness/ignored.go. The fixture then says what it has found itself.
func TestStateKept(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range fixtures(t) {
		fx := special[name]
		if fx.pidns {
			continue // its pids differ from outside by nature
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, name, harness.Options{Args: fx.args})
			compareState(t, j)
			j.Finish()
		})
	}
}

// TestStateOfRealPrograms is the same for the real programs, at a random moment of their work.
func TestStateOfRealPrograms(t *testing.T) {
	harness.NeedRoot(t)
	for _, p := range programs() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			rnd := seeded(t)
			j := p.start(t)
			time.Sleep(time.Duration(rnd.Int63n(int64(p.takes))))
			if !j.Ended() {
				compareState(t, j)
			}
			j.Verdict(120 * time.Second)
		})
	}
}

// compareState freezes, dumps, kills and restores the job, and compares what is seen before and after.
func compareState(t *testing.T, j *harness.Job) {
	t.Helper()
	j.Freezes()
	if r := j.Sh("cr-freeze $PID > job.ticket"); r.Status != 0 {
		if !j.Ended() {
			t.Fatalf("cr-freeze: status %d: %s", r.Status, r.Stderr)
		}
		return
	}
	before := j.TakeSnapshot()
	if !j.DumpKill("cr-dump < job.ticket > image.cr && cr-thaw --kill < job.ticket || { s=$?; cr-thaw < job.ticket; exit $s; }") {
		return
	}
	j.RestoreSh("cr-restore --frozen < image.cr > frozen.ticket")
	after := j.TakeSnapshot()
	j.MustSh("cr-thaw < frozen.ticket")
	j.Thawed()
	if diff := before.Diff(after); len(diff) > 0 {
		more := ""
		if n := len(diff); n > 60 {
			diff, more = diff[:60], fmt.Sprintf("\n... and %d more", n-60)
		}
		t.Errorf("state differs after the restore:\n%s%s", strings.Join(diff, "\n"), more)
	}
}

// What the comparison lets pass is what crpipe(7) says, to the name.
func TestIgnoredIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(harness.Root(), "man", "crpipe.7"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n.Ss What /proc shows afterwards\n")
	section, _, _ = strings.Cut(section, "\n.S")
	var said []string
	for _, line := range strings.Split(section, "\n") {
		if names, ok := strings.CutPrefix(line, ".It Va "); ok {
			for _, name := range strings.Split(names, " , ") {
				said = append(said, strings.TrimSpace(name))
			}
		}
	}
	slices.Sort(said)
	if want := harness.IgnoredNames(); !slices.Equal(said, want) {
		t.Errorf("crpipe(7) names\n%q, the comparison lets pass\n%q", said, want)
	}
}

// TestSnapshotSeesDifferences proves that the comparison can fail: two looks at a running program that counts, maps and opens.
func TestSnapshotSeesDifferences(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "busy", harness.Options{})
	before := j.TakeSnapshot()
	other := harness.StartFixture(t, "busy", harness.Options{})
	after := other.TakeSnapshot()
	if len(before) < 500 {
		t.Errorf("a snapshot of two processes with 16 threads has %d values only", len(before))
	}
	if diff := before.Diff(after); len(diff) < 500 {
		t.Errorf("two different trees differ in %d values only", len(diff))
	}
	if diff := before.Diff(before); len(diff) != 0 {
		t.Errorf("a snapshot differs from itself: %v", diff)
	}
	j.Finish()
	other.Finish()
}
