package test

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// ordinary is a user without any privilege.
const ordinary = 65534

// asUser starts a fixture as the ordinary user, whose commands are too.
func asUser(t *testing.T, fixture string) *harness.Job {
	t.Helper()
	harness.NeedRoot(t)
	if b, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && strings.TrimSpace(string(b)) != "0" {
		t.Skip("Yama lets ordinary users trace their own children only (kernel.yama.ptrace_scope)")
	}
	return harness.StartFixture(t, fixture, harness.Options{User: ordinary, AsUser: true})
}

// TestOrdinaryUser dumps and restores a user's own processes without any privilege.
func TestOrdinaryUser(t *testing.T) {
	for _, name := range []string{"counter", "sigactions", "threads", "pipes", "files", "altstack"} {
		t.Run(name+"/goes-on", func(t *testing.T) {
			t.Parallel()
			j := asUser(t, name)
			before := j.Footprint()
			begin := harness.Monotonic()
			j.MustSh("cr-dump $PID > image.cr")
			j.StoodStill(begin)
			j.Check("image.cr")
			j.CheckUnharmed(before)
			j.Finish()
		})
		t.Run(name+"/userns", func(t *testing.T) {
			t.Parallel()
			j := asUser(t, name)
			j.DumpKill("cr-dump --kill $PID > image.cr")
			restoreInUserNS(t, j)
		})
		t.Run(name+"/in-place", func(t *testing.T) {
			t.Parallel()
			j := asUser(t, name)
			j.DumpKill("cr-dump --kill $PID > image.cr")
			r := j.Sh("cr-restore < image.cr > restored.ticket")
			if r.Status != 5 || !strings.Contains(r.Stderr, "CAP_CHECKPOINT_RESTORE") || !strings.Contains(r.Stderr, "--userns") {
				t.Fatalf("without any privilege cr-restore says, with status %d: %s", r.Status, r.Stderr)
			}
			j.RestoreSh(capable(t, j) + " < image.cr > restored.ticket")
			j.Finish()
		})
	}
}

// capable returns the path of a cr-restore that has CAP_CHECKPOINT_RESTORE, as setcap(8) gives it.
func capable(t *testing.T, j *harness.Job) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(harness.Binaries(t), "cr-restore"))
	if err != nil {
		t.Fatal(err)
	}
	path := j.Image("cr-restore")
	if err := os.WriteFile(path, b, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	// struct vfs_cap_data (linux/capability.h): revision 2, effective; the low and the high words of permitted and inheritable.
	const capability = 40
	data := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, w := range []uint32{0, 0, 1 << (capability - 32), 0} {
		data = binary.LittleEndian.AppendUint32(data, w)
	}
	if err := unix.Setxattr(path, "security.capability", data, 0); err != nil {
		t.Skip("files cannot be given capabilities here: ", err)
	}
	return path
}

// restoreInUserNS restores with --userns and has the program judge itself. The tree is nobody's child here: it is the new init's.
func restoreInUserNS(t *testing.T, j *harness.Job) {
	t.Helper()
	if r := j.Sh("unshare -Ur true"); r.Status != 0 {
		t.Skip("this machine does not let ordinary users make user namespaces: " + r.Stderr)
	}
	j.MustSh("cr-restore --userns --pid-file root.pid < image.cr")
	b, err := os.ReadFile(j.Image("root.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = harness.Kill(pid, syscall.SIGKILL) }) // it has ended by then if all is well
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), fmt.Sprintf("\t%d\n", j.Pid)) {
		t.Errorf("pid %d is not %d inside: %v\n%s", pid, j.Pid, err, status)
	}
	if err := os.WriteFile(filepath.Join(j.Dir, "check"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	done := filepath.Join(j.Dir, "done")
	for end := time.Now().Add(harness.Patience); ; time.Sleep(20 * time.Millisecond) {
		if b, err := os.ReadFile(done); err == nil && len(b) > 0 {
			if got := strings.TrimSpace(string(b)); got != "ok" {
				t.Fatalf("it says %q%s", got, j.Evidence())
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it does not say how it is%s", j.Evidence())
		}
	}
}

// TestOrdinaryUserRefused: what an ordinary user cannot do is refused by name.
func TestOrdinaryUserRefused(t *testing.T) {
	j := asUser(t, "counter")
	if r := j.Sh("cr-dump --source bpf $PID > image.cr"); r.Status != 5 {
		t.Errorf("reading the kernel's memory: status %d: %s", r.Status, r.Stderr)
	}
	other := exec.Command("sleep", "1000") // root's
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	})
	if r := j.Sh(fmt.Sprintf("cr-dump %d > image.cr", other.Process.Pid)); r.Status != 5 {
		t.Errorf("somebody else's process: status %d: %s", r.Status, r.Stderr)
	}
	j.Finish()
}
