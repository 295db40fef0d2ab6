//go:build amd64

package kernelview

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKin compares with /proc/PID/task/TID/children what the kernel links the threads of a shell and of this process to, of which one
// has several children, among them a zombie, and others have none.
func TestKin(t *testing.T) {
	v := view(t)
	runtime.LockOSThread() // the children are this thread's
	defer runtime.UnlockOSThread()
	start := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if cmd.Process.Pid > 0 {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		})
		return cmd
	}
	for range 3 {
		start("sleep", "100")
	}
	zombie := start("true").Process.Pid
	waitState(t, zombie, "Z")
	shell := newChild(t)
	grandchild := shell.clone(uint64(unix.SIGCHLD)|unix.CLONE_VM, 0x8000)

	tids := []int{unix.Gettid(), shell.pid(), grandchild, zombie}
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil && tid != unix.Gettid() {
			tids = append(tids, tid)
		}
	}
	kin, err := v.Kin(tids)
	if err != nil {
		t.Fatal(err)
	}
	children := 0
	for i, tid := range tids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", tid, tid))
		if errors.Is(err, os.ErrNotExist) && i >= 4 {
			continue // a thread of the runtime's that has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		var want []int
		for _, w := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(w)
			want = append(want, pid)
		}
		if !slices.Equal(kin[i].Children, want) {
			t.Errorf("children of %d: %v, want %v", tid, kin[i].Children, want)
		}
		children += len(want)
		if n, _ := strconv.Atoi(procStatus(t, tid, "Threads")); i > 0 && i < 4 && kin[i].Threads != n {
			t.Errorf("threads of %d: %d, want %d", tid, kin[i].Threads, n)
		}
		if kin[i].Traced {
			t.Errorf("%d is traced", tid)
		}
	}
	if children < 6 {
		t.Errorf("%d children in all: nothing was tested", children)
	}
	if _, err := v.Kin([]int{unix.Getpid(), 1 << 30}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("of a thread that is not there: %v", err)
	}
}

// TestKinTraced attaches to a child.
func TestKinTraced(t *testing.T) {
	v, c := view(t), newChild(t)
	if err := unix.PtraceSeize(c.pid()); err != nil {
		t.Skipf("needs ptrace: %v", err)
	}
	kin, err := v.Kin([]int{c.pid()})
	if err != nil {
		t.Fatal(err)
	}
	if !kin[0].Traced {
		t.Error("a traced process seems not to be traced")
	}
}
