package sys

import (
	"os"
	"os/exec"
	"os/signal"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestQuietStops: of a child's stop this process hears nothing any more, of its end it does.
func TestQuietStops(t *testing.T) {
	heard := make(chan os.Signal, 16)
	signal.Notify(heard, unix.SIGCHLD)
	defer signal.Stop(heard)
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	stop := func() {
		t.Helper()
		for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Wait4(cmd.Process.Pid, nil, unix.WUNTRACED|unix.WCONTINUED, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Fatal("no signal of a stop before")
	}
	time.Sleep(100 * time.Millisecond) // a second one, of the continuation
	for len(heard) > 0 {
		<-heard
	}
	if err := QuietStops(); err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case <-heard:
		t.Error("a signal of a stop")
	case <-time.After(200 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("no signal of the child's end")
	}
}
