package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type bench struct {
	work, bin string
	rounds    int
}

func becomeSubreaper() error {
	// what our caller left open must not get into the targets
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	// restored tasks become our children when cr-restore ends, and can be waited for
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// target is a process that holds memory and does nothing.
type target struct {
	cmd  *exec.Cmd
	pid  int
	addr uint64
}

// self is a command that runs this program in another role: the memory that a role needs is not ours then, and a child's peak, which begins at
// its parent's size (exec keeps the high-water mark of the memory it replaces), stays small.
func self(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{roleFlag}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.Env = []string{"PATH=/usr/bin:/bin", "GOMAXPROCS=1"}
	return cmd
}

func (b *bench) start(kind string, size int64) (*target, error) {
	return b.startTarget(self(kind, strconv.FormatInt(size, 10)))
}

// startTarget starts a role that says an address when it is ready.
func (b *bench) startTarget(cmd *exec.Cmd) (*target, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = nil
	ready := filepath.Join(b.work, "ready")
	f, err := os.Create(ready)
	if err != nil {
		return nil, err
	}
	cmd.Stdout = f
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	_ = f.Close()
	t := &target{cmd: cmd, pid: cmd.Process.Pid}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		data, err := os.ReadFile(ready)
		if err == nil && bytes.HasSuffix(data, []byte("\n")) {
			_, err = fmt.Sscanf(string(data), "%x", &t.addr)
			return t, err
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("the target did not become ready")
		}
	}
}

func (t *target) end() {
	if t.pid > 1 {
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
		_ = t.cmd.Wait()
	}
}

// piped runs a command into a 1 MiB pipe that we empty, and gives its time, its peak in KiB and the bytes.
func piped(cmd *exec.Cmd, sink io.Writer) (took time.Duration, peak, n int64, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { _ = r.Close() }()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		return 0, 0, 0, err
	}
	cmd.Stdout = w
	begin := time.Now()
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return 0, 0, 0, err
	}
	buf := make([]byte, 1<<20)
	for {
		k, err := r.Read(buf)
		n += int64(k)
		if sink != nil && k > 0 {
			if _, err := sink.Write(buf[:k]); err != nil {
				return 0, 0, 0, err
			}
		}
		if err != nil {
			break
		}
	}
	err = cmd.Wait()
	took = time.Since(begin)
	return took, maxrss(cmd), n, err
}

// maxrss counts the processes that the command has waited for too (wait4's rusage is of both).
func maxrss(cmd *exec.Cmd) int64 {
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		return int64(u.Maxrss)
	}
	return 0
}

// timed runs a raw measurement in a process of its own, which prints nanoseconds on descriptor 3.
func timed(cmd *exec.Cmd, run func(*exec.Cmd) error) (time.Duration, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	cmd.ExtraFiles = []*os.File{w}
	err = run(cmd)
	_ = w.Close()
	if err != nil {
		return 0, err
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return 0, fmt.Errorf("reading a raw time: %w", err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return time.Duration(ns), err
}

func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(b.bin, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + os.Getenv("HOME")}
	cmd.Stderr = os.Stderr
	return cmd
}

func (b *bench) size(size int64) ([]figure, error) {
	t, err := b.start("random", size)
	if err != nil {
		return nil, err
	}
	defer t.end()
	name := fmt.Sprintf("%d MiB", size>>20)
	dump := figure{what: "dump " + name, bytes: size, limit: ">= 0.80"}
	restore := figure{what: "restore " + name, bytes: size, limit: ">= 0.70"}
	var rawRead, rawSeize, rawExec, rawCopy []time.Duration
	for i := -1; i < b.rounds; i++ {
		raw, err := timed(self("readv", strconv.Itoa(t.pid), strconv.FormatUint(t.addr, 16), strconv.FormatInt(size, 10)), func(c *exec.Cmd) error {
			_, _, _, err := piped(c, nil)
			return err
		})
		if err != nil {
			return nil, err
		}
		took, peak, n, err := piped(b.command("cr-dump", strconv.Itoa(t.pid)), nil)
		if err != nil {
			return nil, fmt.Errorf("cr-dump: %w", err)
		}
		if n < size {
			return nil, fmt.Errorf("the image of %d random bytes has %d", size, n)
		}
		seize, err := timed(self("seize", strconv.Itoa(t.pid)), (*exec.Cmd).Run)
		if err != nil {
			return nil, err
		}
		if i >= 0 {
			dump.raw, dump.ours, dump.peak = append(dump.raw, raw), append(dump.ours, took), max(dump.peak, peak)
			rawRead, rawSeize = append(rawRead, raw), append(rawSeize, seize)
		}
	}
	image, err := os.Create(filepath.Join(b.work, "image.cr"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close(); _ = os.Remove(image.Name()) }()
	if _, _, _, err := piped(b.command("cr-dump", "--kill", strconv.Itoa(t.pid)), image); err != nil {
		return nil, fmt.Errorf("cr-dump --kill: %w", err)
	}
	_ = t.cmd.Wait()
	for i := -1; i < b.rounds; i++ {
		copied, err := timed(self("memcpy", strconv.FormatInt(size, 10)), (*exec.Cmd).Run)
		if err != nil {
			return nil, err
		}
		in, err := os.Open(image.Name())
		if err != nil {
			return nil, err
		}
		cmd := b.command("cr-restore")
		cmd.Stdin = in
		begin := time.Now()
		err = cmd.Run()
		took := time.Since(begin)
		_ = in.Close()
		if err != nil {
			return nil, fmt.Errorf("cr-restore: %w", err)
		}
		if err := syscall.Kill(t.pid, syscall.SIGKILL); err != nil {
			return nil, fmt.Errorf("killing the restored target: %w", err)
		}
		if _, err := unix.Wait4(t.pid, nil, 0, nil); err != nil {
			return nil, fmt.Errorf("waiting for the restored target: %w", err)
		}
		execed, err := timed(self("exec"), (*exec.Cmd).Run)
		if err != nil {
			return nil, err
		}
		if i >= 0 {
			restore.raw, restore.ours, restore.peak = append(restore.raw, copied), append(restore.ours, took), max(restore.peak, maxrss(cmd))
			rawCopy, rawExec = append(rawCopy, copied), append(rawExec, execed)
		}
	}
	t.pid = 0
	both := []figure{dump, restore}
	if size <= 16<<20 { // small: what a process costs counts, too
		d, r := dump, restore
		d.what, d.limit, d.raw = "dump "+name+" / (readv+write + seize)", "<= 2.00", sums(rawRead, rawSeize)
		r.what, r.limit, r.raw = "restore "+name+" / (exec + memcpy)", "<= 3.00", sums(rawExec, rawCopy)
		both = append(both, d, r)
	}
	return both, nil
}

func sums(a, b []time.Duration) []time.Duration {
	s := make([]time.Duration, len(a))
	for i := range a {
		s[i] = a[i] + b[i]
	}
	return s
}

func (b *bench) zeros(size int64) (figure, error) {
	t, err := b.start("zeros", size)
	if err != nil {
		return figure{}, err
	}
	defer t.end()
	took, peak, n, err := piped(b.command("cr-dump", strconv.Itoa(t.pid)), nil)
	if err != nil {
		return figure{}, fmt.Errorf("cr-dump: %w", err)
	}
	return figure{what: fmt.Sprintf("image of %d MiB of zeros", size>>20), other: fmt.Sprintf("%.3f MiB in %s", float64(n)/(1<<20), ms(took)), limit: "< 2 MiB", peak: peak}, nil
}
