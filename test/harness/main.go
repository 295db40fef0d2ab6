package harness

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs a package's tests as a child subreaper and fails when a descendant is left at the end.
func Main(m *testing.M) int {
	traceInstead()
	noPtraceMain()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "harness: becoming a subreaper:", err)
		return 1
	}
	// What the caller left open must not get into the jobs: a pipe held by others would be a leak that a dump refuses.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "harness: closing descriptors at exec:", err)
		return 1
	}
	go reapGuards()
	status := m.Run()
	var left []int
	if !eventually(3*time.Second, func() bool {
		left = left[:0]
		for _, pid := range Tree(os.Getpid()) {
			if pid == os.Getpid() {
				continue
			}
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // an orphan that nobody waited for
			if s := State(pid); s != 0 && s != 'Z' {
				left = append(left, pid)
			}
		}
		return len(left) == 0
	}) {
		for _, pid := range left {
			fmt.Fprintf(os.Stderr, "harness: stray process %d (%s), state %c\n", pid, Comm(pid), State(pid))
		}
		status = 1
	}
	if err := RemoveRunDir(); err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		status = 1
	}
	return status
}

// reapGuards waits for the guards of commands that have ended: they become our children, as of any subreaper. Hundreds of zombies
// would make every look at /proc slower.
func reapGuards() {
	for range time.Tick(time.Second / 5) {
		for _, pid := range children() {
			if comm := Comm(pid); State(pid) == 'Z' && (comm == "crpipe-guard" || comm == "exe") { // it executes /proc/self/exe
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // gone already: fine
			}
		}
	}
}

// NeedRoot skips a test of the whole pipeline when it cannot run.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: dumps other processes and makes namespaces and cgroups")
	}
}
