package engine

import (
	"os"
	"os/exec"
	"testing"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// TestRehearse: whatever it is shown, it neither fails, nor leaves a descriptor open, nor shows in the process.
func TestRehearse(t *testing.T) {
	pid, _ := python(t, "r, w = os.pipe(); os.write(w, b'x'); up('ready')")
	view, err := kernelview.Open(kernelview.Options{})
	if err != nil {
		t.Skip(err)
	}
	defer view.Close()
	a, err := arch.Native()
	if err != nil {
		t.Skip(err)
	}
	before, err := procfs.ReadMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	if err := awaitEnd(dead.Process.Pid); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dead.Wait() }()
	open := sys.OpenFDs()
	for _, p := range []int{pid, os.Getpid(), 1 << 30, 2, dead.Process.Pid} { // nobody, a kernel thread, a zombie
		rehearse(view, a, p)
	}
	if now := sys.OpenFDs(); now != open {
		t.Errorf("%d descriptors are open, were %d", now, open)
	}
	after, err := procfs.ReadMaps(pid)
	if err != nil || len(after) != len(before) {
		t.Errorf("%d mappings, were %d: %v", len(after), len(before), err)
	}
}

// awaitEnd waits until a child is a zombie.
func awaitEnd(pid int) error {
	fd, err := sys.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	_, err = sys.PidfdWaitExit(fd, -1)
	return err
}
