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

// startShared starts a program with System V objects in the IPC namespace of everybody, and sees to it that none of them stays.
func startShared(t *testing.T, args ...string) (j *harness.Job, shm, sem, msg, bare int) {
	t.Helper()
	j = harness.StartFixture(t, "ipcshared", harness.Options{Args: args})
	b, err := os.ReadFile(filepath.Join(j.Dir, "ids"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &shm, &sem, &msg, &bare); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { left(t, shm, sem, msg, bare) })
	return j, shm, sem, msg, bare
}

// left removes what is still there of the objects, and returns which those were.
func left(t *testing.T, shm, sem, msg, bare int) (out []string) {
	t.Helper()
	for _, o := range []struct {
		file, flag string
		id         int
	}{{"shm", "-m", shm}, {"sem", "-s", sem}, {"msg", "-q", msg}, {"shm", "-m", bare}} {
		b, err := os.ReadFile("/proc/sysvipc/" + o.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 2 && f[1] == fmt.Sprint(o.id) {
				out = append(out, fmt.Sprintf("%s %d", o.file, o.id))
				_ = exec.Command("ipcrm", o.flag, f[1]).Run()
			}
		}
	}
	if exec.Command("python3", "-c", fmt.Sprintf("import ctypes, sys; sys.exit(ctypes.CDLL(None).mq_unlink(b'/crpipe-test-%d') != 0)", shm)).Run() == nil {
		out = append(out, "the POSIX queue")
	}
	return out
}

func nothingLeft(t *testing.T, shm, sem, msg, bare int) {
	t.Helper()
	if l := left(t, shm, sem, msg, bare); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

// A tree in the IPC namespace of everybody takes its objects along when it is moved, and gets them back under their ids.
func TestSharedIPC(t *testing.T) {
	harness.NeedRoot(t)
	t.Run("kill-restore", func(t *testing.T) {
		j, shm, sem, msg, bare := startShared(t)
		j.DumpKill("cr-dump --kill $PID > image.cr")
		nothingLeft(t, shm, sem, msg, bare)
		j.RestoreSh("cr-restore < image.cr > restored.ticket")
		j.Finish()
		nothingLeft(t, shm, sem, msg, bare)
	})
	t.Run("named", func(t *testing.T) {
		j, shm, sem, msg, bare := startShared(t, "named")
		j.DumpKill(fmt.Sprintf("cr-dump --ipc msg:%d --ipc shm:%d --kill $PID > image.cr", msg, bare))
		nothingLeft(t, shm, sem, msg, bare)
		j.RestoreSh("cr-restore < image.cr > restored.ticket")
		j.Finish()
		nothingLeft(t, shm, sem, msg, bare)
	})
	t.Run("left behind", func(t *testing.T) {
		j, shm, sem, msg, bare := startShared(t)
		j.DumpKill("cr-freeze $PID | tee job.ticket | cr-dump > image.cr; cr-thaw --kill < job.ticket")
		for _, remove := range []string{fmt.Sprintf("ipcrm -m %d", shm), fmt.Sprintf("ipcrm -s %d", sem)} {
			r := j.Sh("cr-restore < image.cr > restored.ticket")
			if r.Status != 1 || !strings.Contains(r.Stderr, remove) || !strings.Contains(r.Stderr, "made by user 0") {
				t.Fatalf("status %d: %s", r.Status, r.Stderr)
			}
			j.MustSh(remove)
		}
		r := j.Sh("cr-restore < image.cr > restored.ticket")
		if r.Status != 1 || !strings.Contains(r.Stderr, fmt.Sprintf("/crpipe-test-%d", shm)) || !strings.Contains(r.Stderr, "hint: ") {
			t.Fatalf("status %d: %s", r.Status, r.Stderr)
		}
		if l := left(t, shm, sem, msg, bare); len(l) != 1 {
			t.Errorf("left behind: %v", l)
		}
		j.RestoreSh("cr-restore < image.cr > restored.ticket")
		j.Finish()
		nothingLeft(t, shm, sem, msg, bare)
	})
	t.Run("refused", func(t *testing.T) {
		j, shm, sem, _, _ := startShared(t)
		other := exec.Command("python3", "-c", fmt.Sprintf(`
import ctypes, sys
c = ctypes.CDLL(None)
c.shmat.restype = ctypes.c_void_p
assert c.shmat(%d, None, 0o10000) != ctypes.c_void_p(-1).value
b = (ctypes.c_short * 3)(1, 1, 0x1000)
assert c.semop(%d, ctypes.byref(b), ctypes.c_size_t(1)) == 0
print("there", flush=True)
sys.stdin.read()`, shm, sem))
		in, err := other.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := other.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = in.Close()
			_ = other.Wait()
		}()
		if _, err := out.Read(make([]byte, 16)); err != nil {
			t.Fatal("the other process did not come up")
		}
		before := j.Footprint()
		r := j.Sh("cr-dump $PID > image.cr")
		if r.Status != 3 || !strings.Contains(r.Stderr, fmt.Sprintf("by pid %d (python3)", other.Process.Pid)) || !strings.Contains(r.Stderr, "so has somebody outside") {
			t.Errorf("status %d: %s", r.Status, r.Stderr)
		}
		j.CheckUnharmed(before)
		if r := j.Sh("cr-dump --ipc sem:0x7fffffff $PID > image.cr"); r.Status == 0 || !strings.Contains(r.Stderr, "sem:0x7fffffff") {
			t.Errorf("status %d: %s", r.Status, r.Stderr)
		}
		_ = in.Close()
		_ = other.Wait()
		j.MustSh("cr-dump $PID > image.cr")
		j.Finish()
	})
	// What a failed restore has made goes again.
	t.Run("undone", func(t *testing.T) {
		j, shm, sem, msg, bare := startShared(t, "named")
		j.DumpKill(fmt.Sprintf("cr-dump --ipc msg:%d --ipc shm:%d --kill $PID > image.cr", msg, bare))
		r := j.Sh("head -c -100 image.cr | cr-restore > restored.ticket")
		if r.Status != 4 {
			t.Errorf("status %d: %s", r.Status, r.Stderr)
		}
		nothingLeft(t, shm, sem, msg, bare)
		j.RestoreSh("cr-restore < image.cr > restored.ticket")
		j.Finish()
	})
}
