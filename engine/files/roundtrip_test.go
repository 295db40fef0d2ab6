package files_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
	"crpipe/stream"
)

// pipes gives stdin and stdout as pipes whose other ends stay with the test.
func pipes(t *testing.T) map[string]int {
	t.Helper()
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{inR, inW, outR, outW} {
			_ = f.Close() // a test's pipe
		}
	})
	return map[string]int{"stdin": int(inR.Fd()), "stdout": int(outW.Fd())}
}

// The strongest test of all kinds at once: what a program holds is dumped, restored into a task, and dumped again from
// that task. Both images must say the same, contents, positions, flags, sharing, attributes and times included.
func TestRoundTrip(t *testing.T) {
	view := filestest.View(t)
	dir := t.TempDir()
	c := filestest.Start(t, "files", "DIR="+dir)
	first := filestest.Dump(t, filestest.Dumper(t, view, c.PID))
	if again := filestest.Dump(t, filestest.Dumper(t, view, c.PID)); string(again) != string(first) {
		t.Error("two dumps of the same stopped program differ")
	}
	killAndReap(t, c.PID)

	inherit := pipes(t)
	r, err := filestest.Restore(t, first, func(r *object.Restorer) { r.Inherit = inherit })
	if err != nil {
		t.Fatal(err)
	}
	pid := r.Task(t)
	second := filestest.Dump(t, filestest.Dumper(t, view, pid))
	drop := func(typ stream.Type, field string) bool { return typ == "file.external" && field == "name" }
	want, got := filestest.Describe(t, first, drop), filestest.Describe(t, second, drop)
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("restored state differs (-dumped +restored):\n%s", diff)
	}
	if testing.Verbose() {
		t.Log(want)
	}
	for _, fd := range []int{20, 28, 31, 40, 44, 46, 48, 34} { // the test can fail: what is compared is there
		if !strings.Contains(want, fmt.Sprintf("fd=%d ", fd)) {
			t.Errorf("descriptor %d is not in the image", fd)
		}
	}
	leftovers(t, dir, "fifo", "many", "other", "plain", "symlink")
}

func killAndReap(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Leave it a zombie: the test's cleanup waits for it. Its files are closed when it is one.
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err == nil {
			return
		} else if err != unix.EINTR { //nolint:errorlint // a bare errno
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

// leftovers checks that a directory holds what it should and nothing half-made.
func leftovers(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files in the directory (-want +got):\n%s", diff)
	}
}
