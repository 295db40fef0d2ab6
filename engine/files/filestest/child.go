// Package filestest has what the tests of the kinds of open files share: a program that holds files, its dump, the
// restore of its descriptor table into a task, and the comparison of two images. Only tests import it.
package filestest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

const programVariable = "CRPIPE_FILESTEST_PROGRAM"

// Main is for TestMain. A test binary that Start has started plays one of the programs: it sets up its files, says that
// it is ready, and then waits for its end.
func Main(m *testing.M, programs map[string]func() error) {
	name := os.Getenv(programVariable)
	if name == "" {
		// Whatever the test was started with is not for its programs.
		if fds, err := procfs.Descriptors(os.Getpid()); err == nil {
			for _, fd := range fds {
				if fd > 2 {
					unix.CloseOnExec(fd)
				}
			}
		}
		os.Exit(m.Run())
	}
	err := errors.New("no such program")
	if f := programs[name]; f != nil {
		err = f()
	}
	if err != nil {
		fmt.Printf("%s: %v\n", name, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	for { // not through os.File: its poller would be a file too
		var b [1]byte
		if n, err := unix.Read(0, b[:]); n == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			os.Exit(0)
		}
	}
}

// OwnMounts asks Start for a mount namespace.
const OwnMounts = "CRPIPE_FILESTEST_MOUNTS=own"

// StdinVariable says which descriptor of the test becomes stdin, instead of a pipe.
const StdinVariable = "CRPIPE_FILESTEST_STDIN"

// Child is a program that holds files, stopped.
type Child struct {
	PID int
}

// Start starts the program and stops it when it is ready. Its stdin and stdout are pipes to the test, its stderr is
// /dev/null. With OwnMounts among env it is in a mount namespace of its own.
func Start(t testing.TB, program string, env ...string) *Child {
	t.Helper()
	runtime.LockOSThread() // the child dies with the thread that made it
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), programVariable+"="+program), env...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	if slices.Contains(env, OwnMounts) {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	given := false
	for _, v := range env {
		if n, ok := strings.CutPrefix(v, StdinVariable+"="); ok {
			fd, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			f, err := dupFile(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.Stdin, given = f, true
		}
	}
	if !given {
		// Closed by Wait, which the cleanup calls: the child ends by then at the latest.
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &Child{PID: cmd.Process.Pid}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been ended by the test
		_ = cmd.Wait()
		runtime.UnlockOSThread()
	})
	line, err := bufio.NewReader(io.LimitReader(stdout, 4096)).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("program %s: %q, %v", program, strings.TrimSpace(line), err)
	}
	c.Stop(t)
	return c
}

func dupFile(fd int) (*os.File, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), "stdin"), nil
}

// End ends the child, before the test does.
func (c *Child) End(t testing.TB) {
	t.Helper()
	if err := unix.Kill(c.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, c.PID, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
}

// Stop stops the child, all its threads.
func (c *Child) Stop(t testing.TB) {
	t.Helper()
	stop(t, c.PID)
}

func stop(t testing.TB, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if allStopped(t, pid) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("pid %d does not stop", pid)
		}
	}
}

func allStopped(t testing.TB, pid int) bool {
	tids, err := procfs.Threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		st, err := procfs.ReadThreadStat(pid, tid)
		if err != nil {
			t.Fatal(err)
		}
		if st.State != 'T' && st.State != 't' {
			return false
		}
	}
	return true
}

// View opens the kernel view, or skips the test with what is lacking.
func View(t testing.TB) kernelview.View {
	t.Helper()
	v, err := kernelview.Open(kernelview.Options{})
	var missing *kernelview.MissingError
	if errors.As(err, &missing) {
		t.Skipf("needs the kernel view: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// Dumper returns a dump of the given processes, the first of them the root.
func Dumper(t testing.TB, v kernelview.View, pids ...int) *object.Dumper {
	t.Helper()
	d := &object.Dumper{View: v, Kinds: FileKinds(), Warn: func(format string, args ...any) { t.Logf("warning: "+format, args...) }}
	for _, pid := range pids {
		p, err := process(v, pid)
		if err != nil {
			t.Fatal(err)
		}
		d.Processes = append(d.Processes, p)
	}
	d.Root = d.Processes[0]
	return d
}

func process(v kernelview.View, pid int) (*object.Process, error) {
	p := &object.Process{PID: pid, ID: pid}
	var err error
	if p.Stat, err = procfs.ReadStat(pid); err != nil {
		return nil, err
	}
	if p.Status, err = procfs.ReadStatus(pid); err != nil {
		return nil, err
	}
	tids, err := procfs.Threads(pid)
	if err != nil {
		return nil, err
	}
	views, err := v.Threads(tids)
	if err != nil {
		return nil, err
	}
	for i, tid := range tids {
		status, err := procfs.ReadThreadStatus(pid, tid)
		if err != nil {
			return nil, err
		}
		p.Threads = append(p.Threads, &object.Thread{Process: p, TID: tid, ID: tid, Status: status, View: &views[i]})
	}
	return p, nil
}
