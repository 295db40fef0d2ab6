//go:build amd64

package test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// run is the time a thread has been on a CPU, in nanoseconds: the first field of schedstat (proc_pid_schedstat in Documentation/scheduler/sched-stats.rst).
func run(t *testing.T, tids []int) uint64 {
	t.Helper()
	var sum uint64
	for _, tid := range tids {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/schedstat")
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// TestDumpRunsNothingInTarget: by the kernel's own count a dump by root makes its target execute no system call, take no signal and no page fault, nor
// does it attach to it: ptrace is forbidden to it (TestAttachingIsNoticed shows that this would be seen). The
// target is frozen before and thawed after the counting, so that whatever happens meanwhile is the dump's doing. A thread that computes, one in a
// blocking read, one that sleeps; then everything that the fixtures of each kind hold.
func TestDumpRunsNothingInTarget(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range []string{"quiet", "events", "posixtimers", "pending", "sigactions", "deleted", "pipes", "creds", "attributes", "sleeps", "memory"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, name, harness.Options{Args: special[name].args})
			begin := harness.Monotonic()
			j.MustSh("cr-freeze $PID > job.ticket")
			j.MustSh("cr-dump < job.ticket > first.cr") // the first dump on a machine learns about its kernel by ptrace, of its own children
			var tids []int
			for _, pid := range j.Tasks() {
				if harness.State(pid) != 'Z' {
					tids = append(tids, harness.Threads(pid)...)
				}
			}
			counter := harness.CountThreads(t, tids)
			before := run(t, tids)
			j.MustSh(harness.NoPtrace(t) + " cr-dump < job.ticket > image.cr")
			j.MustSh("cmp first.cr image.cr")
			got := counter.Read(t)
			t.Logf("%d threads: %v, %d ns on a CPU", len(tids), got, run(t, tids)-before)
			for _, what := range []string{"system calls", "signals delivered", "page faults"} {
				if got[what] != 0 {
					t.Errorf("the dump made its target do this: %s: %d", what, got[what])
				}
			}
			counter.Close()
			j.MustSh("cr-thaw < job.ticket")
			j.StoodStill(begin)
			j.Finish()
		})
	}
}

// TestAttachingIsNoticed shows that a dump cannot attach where the test above forbids it: one that has to, of a tree that SIGSTOP has stopped, fails.
func TestAttachingIsNoticed(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "quiet", harness.Options{})
	begin := harness.Monotonic()
	j.MustSh("cr-freeze --freezer sigstop $PID > job.ticket")
	if r := j.Sh(harness.NoPtrace(t) + " cr-dump < job.ticket > image.cr"); r.Status == 0 {
		t.Errorf("status 0, want a failure: %s", r.Stderr)
	}
	j.MustSh("cr-thaw < job.ticket")
	j.StoodStill(begin)
	j.Finish()
}

// TestInjectionIsNoticed shows that the test above can fail: one injected getpid() is counted.
func TestInjectionIsNoticed(t *testing.T) {
	harness.NeedRoot(t)
	j := harness.StartFixture(t, "quiet", harness.Options{})
	spinner := 0
	for _, tid := range harness.Threads(j.Pid) {
		if harness.State(tid) == 'R' && tid != j.Pid {
			spinner = tid
		}
	}
	if spinner == 0 {
		t.Fatal("no thread of the fixture computes")
	}
	counter := harness.CountThreads(t, []int{spinner})
	if n := counter.Read(t)["system calls"]; n != 0 {
		t.Fatalf("%d system calls of a thread that makes none", n)
	}
	if err := harness.InjectGetpid(spinner); err != nil {
		t.Fatal(err)
	}
	if n := counter.Read(t)["system calls"]; n != 1 {
		t.Errorf("%d system calls counted, want the injected one", n)
	}
	counter.Close()
	j.Finish()
}
