package engine

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/object"
)

// unified finds where cgroup version 2 is mounted.
func unified(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		mount, fs, _ := strings.Cut(line, " - ")
		if strings.HasPrefix(fs, "cgroup2 ") {
			return strings.Fields(mount)[4]
		}
	}
	t.Skip("needs cgroup version 2")
	return ""
}

// groupOf is the directory of the cgroup of version 2 that a process is in.
func groupOf(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(unified(t), p)
		}
	}
	t.Skip("needs cgroup version 2")
	return ""
}

func put(t *testing.T, path, what string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(what), 0); err != nil {
		t.Error(err)
	}
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("in a minute: not %s", what)
			return
		}
	}
}

// A meddler does something to the tree when the first byte of the image is written: all has been looked at then.
type meddler struct {
	io.Writer
	meddle func()
	done   bool
}

func (m *meddler) Write(b []byte) (int, error) {
	if !m.done {
		m.done = true
		m.meddle()
	}
	return m.Writer.Write(b)
}

// A ptrace stop would keep the tree from running, whatever others do. A dump that attaches to nobody has to notice it.
func TestDumpNoticesThatTheTreeRan(t *testing.T) {
	writeAtOnce(t)
	// It counts as fast as it can, with SIGUSR1 blocked; a second thread sleeps.
	const script = `
import threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
up('ready')
while True: pass
`
	for _, c := range []struct {
		name   string
		meddle func(t *testing.T, pid int, group string)
		want   string // in the error; empty: the dump succeeds
		gone   bool   // the target is dead in the end
	}{
		{"nothing", func(*testing.T, int, string) {}, "", false},
		{"a-blocked-signal", func(t *testing.T, pid int, _ string) {
			if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
				t.Error(err)
			}
		}, "", false},
		{"thawed", func(t *testing.T, _ int, group string) {
			put(t, group+"/cgroup.freeze", "0")
			within(t, "thawed", func() bool { return !frozen(t, group) })
		}, "did not stand still", false},
		{"thawed-and-frozen-again", func(t *testing.T, _ int, group string) {
			put(t, group+"/cgroup.freeze", "0")
			within(t, "thawed", func() bool { return !frozen(t, group) })
			put(t, group+"/cgroup.freeze", "1")
			within(t, "frozen again", func() bool { return frozen(t, group) })
		}, "did not stand still", false},
		{"moved-away", func(t *testing.T, pid int, group string) {
			put(t, filepath.Dir(group)+"/cgroup.procs", strconv.Itoa(pid))
		}, "did not stand still", false},
		{"moved-away-and-back", func(t *testing.T, pid int, group string) {
			put(t, filepath.Dir(group)+"/cgroup.procs", strconv.Itoa(pid))
			put(t, group+"/cgroup.procs", strconv.Itoa(pid))
			within(t, "frozen again", func() bool { return frozen(t, group) })
		}, "did not stand still", false},
		{"killed", func(t *testing.T, pid int, _ string) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			within(t, "dead", func() bool { return state(pid) == 'Z' })
		}, "pid ", true}, // its memory cannot be read any more
	} {
		t.Run(c.name, func(t *testing.T) {
			unified(t)
			runtime.LockOSThread() // the target dies with the thread that has made it
			defer runtime.UnlockOSThread()
			pid, _ := python(t, script)
			var out bytes.Buffer
			var traced int
			err := dumpTree(pid, &meddler{Writer: &out, meddle: func() {
				traced = tracerOf(t, pid)
				c.meddle(t, pid, groupOf(t, pid))
			}}, false)
			if traced != 0 {
				t.Error("the dump has attached to its target")
			}
			switch {
			case c.want == "" && err != nil:
				t.Errorf("dump: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("dump: %v, want an error with %q", err, c.want)
			case c.want != "" && !bytes.Contains(out.Bytes(), []byte(c.want)):
				t.Error("the image does not say that it failed")
			}
			if c.gone {
				return
			}
			if s := state(pid); tracerOf(t, pid) != 0 || s == 'Z' || s == 0 {
				t.Errorf("afterwards: tracer %d, state %c", tracerOf(t, pid), s)
			}
			within(t, "running", func() bool { return state(pid) == 'R' && !frozen(t, groupOf(t, pid)) })
		})
	}
}

// TestDumpNoticesThatTheKernelWentOn: what the kernel did meanwhile for a tree that stood still, as a request of io_uring that completes, fails
// the dump, and whoever reads the image is told, large or small.
func TestDumpNoticesThatTheKernelWentOn(t *testing.T) {
	a, err := arch.Native()
	if err != nil {
		t.Skip(err)
	}
	for _, limit := range []int{0, holdBackMost} {
		var out bytes.Buffer
		image, err := newImage(&out, a)
		if err != nil {
			t.Fatal(err)
		}
		d := &object.Dumper{Root: &object.Process{PID: 7}, Steady: []func() error{func() error { return errors.New("a request has completed") }}}
		err = image.end(image.copyTree(d, nil, limit), d)
		image.free()
		if err == nil || !strings.Contains(err.Error(), "a request has completed") || !bytes.Contains(out.Bytes(), []byte("a request has completed")) {
			t.Errorf("%d bytes are kept: %v, image %q", limit, err, out.Bytes())
		}
	}
}

func frozen(t *testing.T, group string) bool {
	t.Helper()
	b, err := os.ReadFile(group + "/cgroup.events")
	return err == nil && strings.Contains(string(b), "frozen 1")
}

// state is the letter of /proc/PID/stat, 0: it is gone.
func state(pid int) byte {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	i := bytes.LastIndexByte(b, ')')
	if err != nil || i < 0 || i+2 >= len(b) {
		return 0
	}
	return b[i+2]
}

func tracerOf(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "TracerPid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}
