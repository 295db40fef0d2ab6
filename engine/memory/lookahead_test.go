package memory

import (
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
)

// TestLookAhead: what a second thread has read is what is read without it, in whatever order it is asked for, and nobody waits for
// what does not come.
func TestLookAhead(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("nothing is read ahead on one processor")
	}
	var pids []int
	for range lookAheadFrom + 2 {
		cmd := exec.Command("sleep", "100")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if cmd.Process.Pid > 0 {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		})
		waitSleeping(t, cmd.Process.Pid)
		pids = append(pids, cmd.Process.Pid)
	}
	for _, tt := range []struct {
		name  string
		order []int // of indices
		stop  int   // after so many
	}{
		{"in order", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}, 18},
		{"some left out", []int{1, 2, 9, 17}, 4},
		{"backwards", []int{17, 16, 0, 5}, 4},
		{"stopped early", []int{0, 3, 4, 5, 17}, 2},
		{"twice", []int{0, 0, 1, 1}, 4},
	} {
		d := newDumper(t)
		for i, pid := range pids {
			p := process(t, pid)
			p.View.MM.V.ID = kernelview.ID(i + 1) // also where the view does not know
			p.View.MM.V.TaskSize = kernelview.Is(d.Arch.TaskSize)
			d.Processes = append(d.Processes, p)
		}
		end := LookAhead(d)
		for n, i := range tt.order {
			if n == tt.stop {
				end()
			}
			m := &mmDump{d: d, arch: d.Arch, tid: pids[i]}
			got, want := m.lookOf(), lookAt(pids[i], d.Arch.TaskSize)
			if got.err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: of process %d: %+v, want %+v", tt.name, i, got, want)
			}
		}
		if tt.stop == len(tt.order) {
			end()
		}
	}
}

// waitSleeping waits until a process has come to its sleep: its mappings are what they stay.
func waitSleeping(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(procfs.Path(pid, "wchan"))
		if err == nil && strings.Contains(string(b), "nanosleep") {
			return
		}
	}
	t.Fatalf("process %d does not come to its sleep", pid)
}
