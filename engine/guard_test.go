package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/procfs"
)

// TestGuardChild is not a test: TestGuard starts this binary again to run it, as front and worker.
func TestGuardChild(t *testing.T) {
	job := strings.Fields(os.Getenv("GUARD_TEST_JOB"))
	if len(job) == 0 {
		t.Skip("only run by TestGuard")
	}
	os.Exit(Guard(func(ctx context.Context, g *Guardian) int {
		if err := guardJob(ctx, g, job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			if errors.Is(err, ErrFrontDied) {
				return 0
			}
			return 1
		}
		return 0
	}))
}

func guardJob(ctx context.Context, g *Guardian, job []string) error {
	term := make(chan os.Signal, 1)
	notifyTerm(term)
	switch job[0] {
	case "status":
		n, err := strconv.Atoi(job[1])
		fmt.Println("pid", os.Getpid(), g.FrontPID())
		os.Exit(n)
		return err
	case "wait":
		fmt.Println("ready")
		select {
		case <-term:
			fmt.Println("terminated")
		case <-ctx.Done():
			fmt.Println("front died")
		}
		return nil
	case "cycle", "ticket": // WAY PID: hold and release until told to stop
		pid, err := strconv.Atoi(job[2])
		if err != nil {
			return err
		}
		var ticket *Ticket
		o := FreezeOptions{Freezer: job[1], Guard: g}
		if job[0] == "ticket" {
			b, err := os.ReadFile(job[3])
			if err == nil {
				ticket, err = ReadTicket(bytes.NewReader(b))
			}
			if err != nil {
				return err
			}
		}
		for i := 0; ; i++ {
			h, err := takeHold(ctx, []int{pid}, ticket, o, func(string) {})
			if err != nil {
				return err
			}
			if err := h.Release(); err != nil {
				return err
			}
			if i == 0 {
				fmt.Println("ready")
			}
		}
	}
	return errors.New("unknown job")
}

// startGuarded starts a job under a guard and returns the front and the worker once the job has said a line.
func startGuarded(t *testing.T, job string) (front *exec.Cmd, worker int, line string, out *bufio.Scanner) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^TestGuardChild$")
	c.Env = append(os.Environ(), "GUARD_TEST_JOB="+job)
	c.Stderr = os.Stderr
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out = bufio.NewScanner(pipe)
	if !out.Scan() {
		_ = c.Wait()
		t.Fatal("the job said nothing")
	}
	tids, _ := procfs.Threads(c.Process.Pid)
	for _, tid := range tids {
		children, _ := procfs.ReadChildren(c.Process.Pid, tid)
		if len(children) > 0 {
			worker = children[0]
		}
	}
	return c, worker, out.Text(), out
}

func TestGuardPassesStatusAndSignals(t *testing.T) {
	c, _, line, _ := startGuarded(t, "status 42")
	var pid, front int
	if _, err := fmt.Sscanf(line, "pid %d %d", &pid, &front); err != nil || front != c.Process.Pid || pid == front {
		t.Errorf("the worker says %q, the front is %d", line, c.Process.Pid)
	}
	_ = c.Wait()
	if s := c.ProcessState.ExitCode(); s != 42 {
		t.Errorf("status %d, want the worker's 42", s)
	}

	c, _, _, out := startGuarded(t, "wait")
	_ = c.Process.Signal(unix.SIGTERM)
	if out.Scan(); out.Text() != "terminated" {
		t.Errorf("after SIGTERM the worker says %q", out.Text())
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}

	c, _, _, out = startGuarded(t, "wait")
	_ = c.Process.Kill()
	_ = c.Process.Release()
	// SIGTERM and the end of the context come together; either may win.
	if out.Scan(); out.Text() != "front died" && out.Text() != "terminated" {
		t.Errorf("after the front's death the worker says %q", out.Text())
	}

	c, worker, _, _ := startGuarded(t, "wait")
	if worker <= 0 {
		t.Fatal("no worker")
	}
	_ = unix.Kill(worker, unix.SIGKILL)
	if err := c.Wait(); c.ProcessState.ExitCode() != 1 {
		t.Errorf("a killed worker gives %v, want status 1", err)
	}
}

// TestGuardKilled kills front or worker at random moments while they freeze, hold and thaw a program that complains about every
// call that is interrupted.
func TestGuardKilled(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for _, way := range []string{"v2", "v1", "sigstop"} {
		t.Run(way, func(t *testing.T) {
			g := startBlocked(t)
			for i := range rounds {
				c, worker, _, _ := startGuarded(t, "cycle "+way+" "+strconv.Itoa(g.pid))
				if worker <= 0 {
					t.Fatal("no worker")
				}
				time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
				victim := worker
				if i%2 == 0 {
					victim = c.Process.Pid
				}
				fd, err := unix.PidfdOpen(worker, 0)
				if err != nil {
					t.Fatal(err)
				}
				_ = unix.Kill(victim, unix.SIGKILL)
				_ = c.Wait()
				waitDead(t, fd)
				g.mustRun(t)
				g.mustBeTidy(t)
			}
			// Version 1 thaws before it can set anything back: see freezer.Hold.
			if way != "v1" {
				g.mustBeSilent(t)
			}
		})
	}
}

func waitDead(t *testing.T, pidfd int) {
	t.Helper()
	defer unix.Close(pidfd)
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 20_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatal("the worker does not end after its front was killed")
		}
		return
	}
}

// blocked is the program of the freezer's tests, running.
type blocked struct {
	pid        int
	log, beats string
	cgroup     string
}

func startBlocked(t *testing.T) *blocked {
	t.Helper()
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "blocked")
	if out, err := exec.Command(cc, "-O1", "-pthread", "-o", bin, "internal/freezer/testdata/blocked.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	g := &blocked{log: filepath.Join(dir, "log"), beats: filepath.Join(dir, "beats")}
	c := exec.Command(bin, g.log, "3", g.beats)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	g.pid = c.Process.Pid
	t.Cleanup(func() {
		for range 100 {
			left := 0
			pids, _ := procfs.Processes()
			for _, pid := range pids {
				if st, err := procfs.ReadStat(pid); err == nil && st.Session == g.pid && st.State != 'Z' && g.pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL)
					left++
				}
			}
			if left == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		_ = c.Wait()
	})
	out := bufio.NewScanner(pipe)
	if !out.Scan() {
		t.Fatal("the program did not start")
	}
	if f := strings.Fields(out.Text()); len(f) == 4 {
		t.Cleanup(func() { _ = exec.Command("ipcrm", "-s", f[1], "-q", f[3]).Run() })
	}
	b, err := os.ReadFile(procfs.Path(g.pid, "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	g.cgroup = string(b)
	return g
}

func (g *blocked) counts(t *testing.T) (uint64, uint64) {
	t.Helper()
	b, err := os.ReadFile(g.beats)
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])
}

func (g *blocked) mustRun(t *testing.T) {
	t.Helper()
	w, s := g.counts(t)
	for range 2000 {
		time.Sleep(5 * time.Millisecond)
		if w2, s2 := g.counts(t); w2 > w && s2 > s {
			return
		}
	}
	t.Fatal("the program does not run")
}

func (g *blocked) mustBeSilent(t *testing.T) {
	t.Helper()
	if b, err := os.ReadFile(g.log); err != nil || len(b) > 0 {
		t.Errorf("the program saw %v:\n%s", err, b)
	}
}

// mustBeTidy checks that every process runs untraced in its former cgroup.
func (g *blocked) mustBeTidy(t *testing.T) {
	t.Helper()
	tree, err := freezer.Describe([]int{g.pid})
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Tasks) != 3*24 {
		t.Errorf("%d tasks, want %d", len(tree.Tasks), 3*24)
	}
	for _, k := range tree.Tasks {
		st, err := procfs.ReadThreadStatus(k.PID, k.TID)
		if err != nil {
			t.Fatal(err)
		}
		if st.TracerPID != 0 || st.State == 'T' || st.State == 't' {
			t.Errorf("task %d: state %c, traced by %d", k.TID, st.State, st.TracerPID)
		}
		b, err := os.ReadFile(procfs.ThreadPath(k.PID, k.TID, "cgroup"))
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != g.cgroup {
			t.Errorf("task %d is in the cgroups\n%s, was in\n%s", k.TID, b, g.cgroup)
		}
	}
}
