package test

import (
	"fmt"
	"strings"
	"testing"

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
			j.Freezes()
			j.MustSh("cr-freeze $PID > job.ticket")
			before := j.TakeSnapshot()
			j.DumpKill("cr-dump < job.ticket > image.cr; cr-thaw --kill < job.ticket")
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
			j.Finish()
		})
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
