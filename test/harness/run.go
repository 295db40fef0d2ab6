package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Result is how a shell script of commands ended.
type Result struct {
	Status int // exit status; 128+N when a signal ended it; -1 when it did not end in time
	Stdout string
	Stderr string
}

// CommandTimeout is how long a pipeline of commands may take before the test calls it hung.
const CommandTimeout = 90 * time.Second

// Sh runs a bash script with pipefail whose PATH begins with the five commands. In its environment: PID (the root),
// DIR and AUX of the job; TMPDIR is a directory that must be empty afterwards.
func (j *Job) Sh(script string, env ...string) Result {
	j.T.Helper()
	bin := Binaries(j.T) // the first to ask builds them, which is not part of the script's time
	ctx, cancel := context.WithTimeout(context.Background(), max(CommandTimeout, min(CommandTimeout*Slow(), 3*time.Minute)))
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/bash", "-c", "set -euo pipefail\n"+script)
	cmd.Dir = j.Aux
	cmd.Env = append([]string{
		"PATH=" + bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + os.Getenv("HOME"), "LC_ALL=C.UTF-8",
		fmt.Sprintf("PID=%d", j.Pid), "DIR=" + j.Dir, "AUX=" + j.Aux, "TMPDIR=" + j.tmp(), "GOCOVERDIR=" + os.Getenv("GOCOVERDIR"), j.cmdMark,
	}, env...)
	cmd.SysProcAttr = j.attributes(false)
	cmd.Cancel = func() error {
		// The shell leads a group; its commands are in it. Their guards are not, and cure the target when they die.
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second // a task that inherited standard error must not hang the test
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errs.String()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.Status = -1
	case err == nil:
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			r.Status = 128 + int(ws.Signal())
		} else {
			r.Status = exit.ExitCode()
		}
	case errors.Is(err, exec.ErrWaitDelay):
		j.T.Errorf("%s: a process still holds the standard error of: %s", j.Name, script)
	default:
		j.T.Fatalf("running a script: %v", err)
	}
	return r
}

// MustSh is Sh for a script that must succeed, without a word on standard error.
func (j *Job) MustSh(script string, env ...string) string {
	j.T.Helper()
	r := j.Sh(script, env...)
	j.must(script, r)
	return r.Stdout
}

func (j *Job) must(script string, r Result) {
	j.T.Helper()
	if r.Status == 3 { // a refusal explains itself
		j.T.Fatalf("%s: refused: %s\n%s", j.Name, script, strings.TrimSpace(r.Stderr))
	}
	if r.Status != 0 {
		j.T.Fatalf("%s: status %d of: %s\n%s%s", j.Name, r.Status, script, strings.TrimSpace(r.Stderr), j.Evidence())
	}
	if msg := strings.TrimSpace(r.Stderr); msg != "" {
		j.T.Logf("%s said: %s", script, msg)
	}
}

// DumpKill (false: the program had ended before) runs a script that ends in the death of the tree and notes when.
func (j *Job) DumpKill(script string) bool {
	j.T.Helper()
	begin := Monotonic()
	// The program may fork until the very freeze: those who must be reaped are learnt while it is frozen.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				j.Tasks()
			}
		}
	}()
	j.Tasks()
	r := j.Sh(script)
	close(stop)
	<-stopped
	end := Monotonic()
	if r.Status != 0 && j.Ended() {
		j.T.Logf("%s had ended before the dump: %s", j.Name, strings.TrimSpace(r.Stderr))
		return false
	}
	j.must(script, r)
	if j.frozen != 0 {
		begin, j.frozen = j.frozen, 0
	}
	j.away = append(j.away, away{begin, end, end, end})
	j.WaitGone()
	return true
}

// Ended says whether the program has done its work and said so.
func (j *Job) Ended() bool {
	_, err := os.Stat(filepath.Join(j.Dir, "done"))
	return err == nil
}

// StoodStill notes that the tree may have been frozen at any time since begin.
func (j *Job) StoodStill(begin int64) {
	j.away = append(j.away, away{begin, begin, begin, Monotonic()})
}

// away is a time that the tree was not running: the instants at which the dump (or the freeze before it) began, the dump had ended, the restore
// began, and the tree ran again, in nanoseconds of CLOCK_MONOTONIC.
type away [4]int64

func (j *Job) downtime() []byte {
	var b []byte
	for _, a := range j.away {
		b = fmt.Appendf(b, "%d %d %d %d\n", a[0], a[1], a[2], a[3])
	}
	return b
}

// Freezes says that the test is about to freeze the tree, before it calls DumpKill.
func (j *Job) Freezes() { j.frozen = Monotonic() }

// Thawed says that the test has thawed a tree that RestoreSh had left frozen.
func (j *Job) Thawed() {
	if n := len(j.away); n > 0 {
		j.away[n-1][3] = Monotonic()
	}
}

// RestoreSh runs a script that makes the tree again, and notes when. Another program may have taken one of its pids in
// the meantime (the machine is shared): that is told by name and tried again for a while.
func (j *Job) RestoreSh(script string) {
	j.T.Helper()
	begin := Monotonic()
	for try := 0; ; try++ {
		r := j.Sh(script)
		if r.Status == 0 {
			if msg := strings.TrimSpace(r.Stderr); msg != "" {
				j.T.Logf("%s said: %s", script, msg)
			}
			break
		}
		if try < 3 && strings.Contains(r.Stderr, "in use") {
			j.T.Logf("trying again: %s", strings.TrimSpace(r.Stderr))
			time.Sleep(time.Second / 2)
			j.reap() // what a restore that failed had made is our child now
			begin = Monotonic()
			continue
		}
		j.T.Fatalf("%s: status %d of: %s\n%s", j.Name, r.Status, script, strings.TrimSpace(r.Stderr))
	}
	if n := len(j.away); n > 0 {
		j.away[n-1][2], j.away[n-1][3] = begin, Monotonic()
	}
	j.Restore++
	j.findRoot()
}

// findRoot finds the root of a tree that was restored in a pid namespace of its own: its pid is another one for us.
func (j *Job) findRoot() {
	if !j.opts.PidNS {
		return
	}
	for _, pid := range marked(j.mark) {
		ids := strings.Fields(StatusLine(pid, "NSpid"))
		if len(ids) > 1 && ids[len(ids)-1] == "1" {
			j.Pid = pid
			return
		}
	}
	if _, err := os.Stat(filepath.Join(j.Dir, "done")); err != nil {
		j.T.Fatalf("%s: no init of a pid namespace after the restore%s", j.Name, j.Evidence())
	}
}

// Check runs cr-filter check on an image or ticket.
func (j *Job) Check(name string) {
	j.T.Helper()
	j.MustSh(fmt.Sprintf("cr-filter check < %q >/dev/null", j.Image(name)))
}

func (j *Job) isKnown(pid int) bool {
	j.lock.Lock()
	defer j.lock.Unlock()
	return j.known[pid]
}

// Migrate runs a script that sends the tree elsewhere, makes DIR/AUX "sent" when the old tree is dead, and ends with the
// new tree's end. The program is told to look at itself in between.
func (j *Job) Migrate(script string, env ...string) {
	j.T.Helper()
	j.Tasks()
	begin := Monotonic()
	var result Result
	done := make(chan struct{})
	go func() {
		defer close(done)
		result = j.Sh(script, env...)
	}()
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	restored := func() bool {
		if _, err := os.Stat(j.Image("sent")); err != nil {
			return false
		}
		for _, pid := range marked(j.mark) {
			if !j.isKnown(pid) && State(pid) != 0 {
				return true
			}
		}
		return false
	}
	eventually(CommandTimeout, func() bool { return ended() || restored() })
	if ended() {
		j.T.Fatalf("%s: the pipeline ended early, with status %d:\n%s%s", j.Name, result.Status, strings.TrimSpace(result.Stderr), j.Evidence())
	}
	// The program is told when it was away: from the beginning at most; the least is not known from here.
	now := Monotonic()
	line := fmt.Sprintf("%d %d %d %d\n", begin, now, now, now)
	if err := os.WriteFile(filepath.Join(j.Dir, "downtime"), []byte(line), 0o644); err != nil {
		j.T.Error(err)
	}
	if err := os.WriteFile(filepath.Join(j.Dir, "check"), nil, 0o644); err != nil {
		j.T.Error(err)
	}
	<-done
	if result.Status != 0 {
		j.T.Errorf("%s: the pipeline ended with status %d:\n%s%s", j.Name, result.Status, strings.TrimSpace(result.Stderr), j.Evidence())
	}
	data, err := os.ReadFile(filepath.Join(j.Dir, "done"))
	if err != nil || strings.TrimSpace(string(data)) != "ok" {
		j.T.Errorf("%s says %q (%v)%s", j.Name, strings.TrimSpace(string(data)), err, j.Evidence())
	}
}

// Command is one of the five commands, to be started by the test itself, in a session of its own. Its words go to AUX/stderr.
func (j *Job) Command(name string, args ...string) *exec.Cmd {
	j.T.Helper()
	return j.CommandIn(Binaries(j.T), name, args...)
}

// CommandIn is Command of one that was built in another way.
func (j *Job) CommandIn(dir, name string, args ...string) *exec.Cmd {
	j.T.Helper()
	cmd := exec.Command(filepath.Join(dir, name), args...)
	cmd.Dir = j.Aux
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + os.Getenv("HOME"), "TMPDIR=" + j.tmp(), j.cmdMark}
	cmd.SysProcAttr = j.attributes(false)
	errs := j.output(nil, "stderr")
	cmd.Stderr = errs
	j.T.Cleanup(func() { _ = errs.Close() })
	return cmd
}

// Commands are the processes of commands that work on the job now.
func (j *Job) Commands() []int {
	var live []int
	for _, pid := range marked(j.cmdMark) {
		if s := State(pid); s != 0 && s != 'Z' {
			live = append(live, pid)
		}
	}
	return live
}

// CommandsGone waits until no command works on the job any more, and reaps those that became our children.
func (j *Job) CommandsGone(limit time.Duration) bool {
	return eventually(limit, func() bool { return len(j.Commands()) == 0 })
}

// Settled is how many tasks of the job there are once that number has stood still for a moment.
func (j *Job) Settled(limit time.Duration) int {
	last, since := -1, time.Now()
	eventually(limit, func() bool {
		j.reap()
		n := 0
		for _, pid := range j.Tasks() {
			if s := State(pid); s != 0 && s != 'Z' {
				n++
			}
		}
		if n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 100*time.Millisecond
	})
	return last
}
