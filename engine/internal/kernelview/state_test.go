//go:build amd64

package kernelview

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func waitStatus(t *testing.T, pid int, options int) unix.WaitStatus {
	t.Helper()
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, options, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
}

func TestStopAndContinue(t *testing.T) {
	v, c := view(t), newChild(t)
	pid := c.pid()
	check := func(when string, stopped bool, signal, unwaited int32, continued bool) {
		t.Helper()
		k, p := oneThread(t, v, pid), oneProcess(t, v, pid)
		same(t, when+": job stopped", k.State.JobStopped, stopped)
		same(t, when+": stop signal", k.State.StopSignal, signal)
		same(t, when+": stopped", p.Stopped, stopped)
		same(t, when+": stop not waited for", p.StopUnwaited, unwaited)
		same(t, when+": continue not waited for", p.ContUnwaited, continued)
		same(t, when+": group exit", p.GroupExit, false)
	}
	check("running", false, 0, 0, false)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitState(t, pid, "T")
	check("stopped", true, int32(unix.SIGSTOP), int32(unix.SIGSTOP), false)
	if s := waitStatus(t, pid, unix.WUNTRACED); s.StopSignal() != unix.SIGSTOP {
		t.Fatalf("wait says %v", s)
	}
	check("stopped and waited for", true, int32(unix.SIGSTOP), 0, false)
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.must(unix.SYS_GETPID)
	check("continued", false, 0, 0, true)
	if s := waitStatus(t, pid, unix.WCONTINUED); !s.Continued() {
		t.Fatalf("wait says %v", s)
	}
	check("continued and waited for", false, 0, 0, false)

	// The same seen through ptrace, as cr-dump holds its tasks.
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if err := unix.PtraceSeize(pid); err != nil {
		t.Skipf("needs ptrace: %v", err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, pid, unix.WALL)
	k := oneThread(t, v, pid)
	same(t, "seized: job stopped", k.State.JobStopped, true)
	same(t, "seized: stop signal", k.State.StopSignal, int32(unix.SIGSTOP))
}

func TestZombie(t *testing.T) {
	v, c := view(t), newChild(t)
	before := oneThread(t, v, c.pid())
	if err := c.send(unix.SYS_EXIT_GROUP, 7); err != nil {
		t.Fatal(err)
	}
	waitState(t, c.pid(), "Z")
	k, p := oneThread(t, v, c.pid()), oneProcess(t, v, c.pid())
	same(t, "zombie", k.State.Zombie, true)
	same(t, "exit code", k.State.ExitCode, 7<<8)
	same(t, "address space", k.MM, 0)
	same(t, "descriptor table", k.Files, 0)
	same(t, "process", k.Signal, before.Signal.V)
	same(t, "group exit", p.GroupExit, true)
	same(t, "group exit code", p.GroupExitCode, 7<<8)
	if !p.MM.Known || p.MM.V.ID != 0 {
		t.Errorf("address space of a zombie: %+v", p.MM)
	}
	tables, err := v.Files([]int{c.pid()})
	if err != nil || len(tables) != 1 || tables[0].ID != Is(ID(0)) || tables[0].FDs != nil {
		t.Errorf("descriptor table of a zombie: %+v %v", tables, err)
	}
}

func TestVforkChild(t *testing.T) {
	v, c := view(t), newChild(t)
	if err := c.send(unix.SYS_VFORK); err != nil {
		t.Fatal(err)
	}
	if r, err := c.receive(); err != nil || r != 0 { // the child's: the parent waits
		t.Fatalf("vfork: %d %v", r, err)
	}
	pid := int(c.must(unix.SYS_GETPID))
	if pid == c.pid() {
		t.Fatal("the parent of a vfork did not wait")
	}
	same(t, "vfork child", oneThread(t, v, pid).State.VforkChild, true)
	same(t, "vfork parent", oneThread(t, v, c.pid()).State.VforkChild, false)
	if oneThread(t, v, pid).MM != oneThread(t, v, c.pid()).MM {
		t.Error("a vfork child has its own address space")
	}
	if err := c.send(unix.SYS_EXIT, 0); err != nil {
		t.Fatal(err)
	}
	if r, err := c.receive(); err != nil || int(r) != pid {
		t.Fatalf("vfork in the parent: %d %v", r, err)
	}
}

// freezeV2 puts a process into a frozen cgroup of its own.
func freezeV2(t *testing.T, pid int) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		root += "/unified"
	}
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		t.Skip("needs a cgroup v2 mount")
	}
	dir := filepath.Join(root, fmt.Sprintf("kernelview-test-%d-%d", os.Getpid(), pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs a cgroup of its own: %v", err)
	}
	home, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(dir+"/cgroup.freeze", []byte("0"), 0)
		// The child is killed by its own cleanup later: move it out first.
		for _, line := range splitLines(home) {
			if len(line) > 3 && line[:3] == "0::" {
				_ = os.WriteFile(filepath.Join(root, line[3:], "cgroup.procs"), fmt.Append(nil, pid), 0)
			}
		}
		if err := os.Remove(dir); err != nil {
			t.Errorf("removing the test's cgroup: %v", err)
		}
	})
	if err := os.WriteFile(dir+"/cgroup.procs", fmt.Append(nil, pid), 0); err != nil {
		t.Skipf("needs to move a process between cgroups: %v", err)
	}
	if err := os.WriteFile(dir+"/cgroup.freeze", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		b, err := os.ReadFile(dir + "/cgroup.events")
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range splitLines(b) {
			if line == "frozen 1" {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the cgroup does not freeze")
}

func splitLines(b []byte) []string {
	var lines []string
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != '\n' {
			i++
		}
		lines = append(lines, string(b[:i]))
		b = b[min(i+1, len(b)):]
	}
	return lines
}

func TestFrozenAndSavedMask(t *testing.T) {
	v, c := view(t), newChild(t)
	user := uint64(1 << (unix.SIGUSR2 - 1))
	c.must(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, c.putWords(0, user), 0, 8)
	temporary := uint64(1 << (unix.SIGUSR1 - 1))
	same(t, "frozen", oneThread(t, v, c.pid()).State.Frozen, false)
	if err := c.send(unix.SYS_RT_SIGSUSPEND, c.putWords(0x40, temporary), 8); err != nil {
		t.Fatal(err)
	}
	waitBlocked(t, c.pid(), unix.SYS_RT_SIGSUSPEND)
	freezeV2(t, c.pid())
	k := oneThread(t, v, c.pid())
	same(t, "frozen", k.State.Frozen, true)
	same(t, "on a CPU", k.State.OnCPU, false)
	same(t, "mask in force", k.Blocked, temporary)
	same(t, "saved mask in use", k.HasSavedMask, true)
	same(t, "saved mask", k.SavedMask, user)
}

func TestRealBlocked(t *testing.T) {
	v, c := view(t), newChild(t)
	set := uint64(1 << (unix.SIGUSR1 - 1))
	c.must(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, c.putWords(0, set), 0, 8)
	if err := c.send(unix.SYS_RT_SIGTIMEDWAIT, c.page, 0, 0, 8); err != nil {
		t.Fatal(err)
	}
	waitBlocked(t, c.pid(), unix.SYS_RT_SIGTIMEDWAIT)
	k := oneThread(t, v, c.pid())
	same(t, "mask in force", k.Blocked, 0)
	same(t, "mask that the program set", k.RealBlocked, set)
}

// waitBlocked waits until a task sleeps in a system call.
func waitBlocked(t *testing.T, pid int, nr int) {
	t.Helper()
	for range 5000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if err != nil {
			t.Fatal(err)
		}
		var now int
		if n, _ := fmt.Sscanf(string(b), "%d", &now); n == 1 && now == nr && procStat(t, pid)[2] == "S" {
			time.Sleep(time.Millisecond) // it says so a moment before it counts its time
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("process %d never sleeps in call %d", pid, nr)
}
