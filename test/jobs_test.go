package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// TestJobOfAShell: what runs in the foreground of a shell goes on in the terminal in which cr-restore --wait is a job of another: with its
// modes, the new size and the keyboard, through Ctrl-Z and fg; and a whole shell in a terminal that cr-restore leads. And a tmux server
// goes on with the screens that it had.
func TestJobOfAShell(t *testing.T) {
	harness.NeedRoot(t)
	need(t, "/usr/bin/python3", "bash", "vim")
	for _, what := range []string{"watcher", "editor", "session", "tmux"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if what == "tmux" {
				need(t, "tmux")
			}
			dir := filepath.Join(t.TempDir(), "d")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second*time.Duration(harness.Slow()))
			defer cancel()
			cmd := exec.CommandContext(ctx, "/usr/bin/python3", script("jobs.py"), dir, what)
			cmd.Env = []string{"PATH=" + harness.Binaries(t) + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + dir, "PYTHONDONTWRITEBYTECODE=1"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
			out, err := os.Create(filepath.Join(dir, "out")) // not a pipe: what is left behind would hold it open
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout, cmd.Stderr = out, out
			err = cmd.Run()
			said, _ := os.ReadFile(out.Name())
			report, _ := os.ReadFile(filepath.Join(dir, "report")) // absent: the error says why
			if err != nil {
				t.Errorf("%v: %s%s", err, said, report)
			}
		})
	}
}
