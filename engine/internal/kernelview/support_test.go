//go:build amd64

package kernelview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var shared struct {
	once sync.Once
	v    *bpfView
	err  error
}

// view opens the BPF source once for all tests, or skips with the reason.
func view(t testing.TB) *bpfView {
	t.Helper()
	shared.once.Do(func() {
		shared.v, shared.err = openBPF(Options{NoCache: true})
	})
	var missing *MissingError
	if errors.As(shared.err, &missing) {
		t.Skipf("needs the BPF source: %v", shared.err)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.v
}

// A child is a helper with a page of memory that tests read and write.
type child struct {
	*helper
	t    testing.TB
	page uint64 // 64 KiB, private, zero
}

// newChild starts a child that ends with the test.
func newChild(t testing.TB) *child {
	t.Helper()
	runtime.LockOSThread() // the child dies with the thread that made it
	h, err := startHelper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.close()
		runtime.UnlockOSThread()
	})
	c := &child{helper: h, t: t}
	c.page = uint64(c.must(unix.SYS_MMAP, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0))
	return c
}

// must makes a call that has to succeed.
func (c *child) must(nr uintptr, args ...uint64) int64 {
	c.t.Helper()
	r, err := c.call(nr, args...)
	if err != nil {
		c.t.Fatalf("system call %d %x: %v", nr, args, err)
	}
	return r
}

// put writes at an offset of the page and returns the address.
func (c *child) put(at uint64, b []byte) uint64 {
	c.t.Helper()
	if err := c.write(c.page+at, b); err != nil {
		c.t.Fatal(err)
	}
	return c.page + at
}

func (c *child) putWords(at uint64, words ...uint64) uint64 {
	c.t.Helper()
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	return c.put(at, b)
}

// get reads words at an offset of the page.
func (c *child) get(at uint64, n int) []uint64 {
	c.t.Helper()
	return words(c.bytes(c.page+at, n*8))
}

func (c *child) bytes(addr uint64, n int) []byte {
	c.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.pid()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, int64(addr)); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// clone starts a task with these flags. It answers once, and is then stopped
// with all that share its process. What a stopped one would read stays unread.
func (c *child) clone(flags uint64, at uint64) int {
	c.t.Helper()
	if err := c.send(unix.SYS_CLONE, flags, c.page+at, 0, 0, 0); err != nil {
		c.t.Fatal(err)
	}
	pid := 0
	for range 2 { // the parent's answer and the child's, in whatever order
		r, err := c.receive()
		if err != nil || r < 0 {
			c.t.Fatalf("clone with flags %x: %d %v", flags, r, err)
		}
		if r > 0 {
			pid = int(r)
		}
	}
	if flags&unix.CLONE_THREAD == 0 {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() {
			if pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL) // ours: nobody else reaps it before the helper dies
			}
		})
		waitState(c.t, pid, "T")
	}
	return pid
}

// waitState waits until a process is in a state of /proc/PID/stat.
func waitState(t testing.TB, pid int, states string) {
	t.Helper()
	for range 10000 {
		if s := procStat(t, pid)[2]; strings.Contains(states, s) {
			return
		}
		runtime.Gosched()
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	t.Fatalf("process %d is never in a state of %q", pid, states)
}

// procStat returns the fields of /proc/PID/stat, numbered from 0.
func procStat(t testing.TB, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	s := string(b)
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	return append([]string{strings.TrimSpace(s[:open]), s[open : end+1]}, strings.Fields(s[end+1:])...)
}

// procStatus returns a line of /proc/PID/status.
func procStatus(t testing.TB, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of %d", name, pid)
	return ""
}

func oneThread(t testing.TB, v *bpfView, tid int) *Thread {
	t.Helper()
	all, err := v.Threads([]int{tid})
	if err != nil {
		t.Fatal(err)
	}
	return &all[0]
}

func oneProcess(t testing.TB, v *bpfView, tid int) *Process {
	t.Helper()
	all, err := v.Processes([]int{tid})
	if err != nil {
		t.Fatal(err)
	}
	return &all[0]
}

// same checks one known value.
func same[T comparable](t testing.TB, what string, got Maybe[T], want T) {
	t.Helper()
	if !got.Known {
		t.Errorf("%s: unknown, want %v", what, want)
	} else if got.V != want {
		t.Errorf("%s: %v, want %v", what, got.V, want)
	}
}
