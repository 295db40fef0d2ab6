package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// TestSendersOutside: a message that waits in a unix socket has the number of its sender, which lives outside of the tree: while it still
// lives, when it has ended before the restore, and not if another process has its number.
func TestSendersOutside(t *testing.T) {
	harness.NeedRoot(t)
	for _, what := range []string{"lives", "ended", "another"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, "unixsenders", harness.Options{Args: []string{"outside"}})
			sender := exec.Command(harness.Prog(t, "unixsenders"), j.Dir, "send")
			in, err := sender.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := sender.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := sender.Start(); err != nil {
				t.Fatal(err)
			}
			end := func() {
				_ = in.Close()
				_ = sender.Wait() // what it says counts
			}
			defer end()
			if _, err := out.Read(make([]byte, 1)); err != nil {
				t.Fatalf("the sender said nothing: %v", err)
			}
			if err := os.WriteFile(filepath.Join(j.Dir, "sender"), []byte(fmt.Sprint(sender.Process.Pid)), 0o600); err != nil {
				t.Fatal(err)
			}
			j.DumpKill("cr-dump --kill $PID > image.cr")
			switch what {
			case "ended":
				end()
			case "another":
				r := j.Sh(`cr-filter json < image.cr | sed -E 's/("began": *)[0-9]+/\11/' | cr-filter unjson | cr-restore > restored.ticket`)
				if want := fmt.Sprintf("process %d, whose number another one has", sender.Process.Pid); r.Status != 5 || !strings.Contains(r.Stderr, want) {
					t.Errorf("status %d: %s", r.Status, r.Stderr)
				}
			}
			j.RestoreSh("cr-restore < image.cr > restored.ticket")
			j.Finish()
		})
	}
}
