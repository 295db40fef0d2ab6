package harness

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Counter counts what a set of threads do, by perf events that belong to each thread (perf_event_open(2)): the kernel counts, whoever
// makes the thread do it.
type Counter struct {
	events []counted
}

type counted struct {
	tid  int
	what string
	fd   int
}

// tracepoint is the number of a tracepoint, from a tracefs mounted for the moment.
func tracepoint(name string) (uint64, error) {
	dir, err := os.MkdirTemp("", "crpipe-tracefs-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(dir) }()
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		return 0, fmt.Errorf("mounting tracefs: %w", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	data, err := os.ReadFile(filepath.Join(dir, "events", name, "id"))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

// CountThreads begins to count system calls, delivered signals, page faults and context switches of every thread given. The
// test is skipped where the kernel has no such events.
func CountThreads(t testing.TB, tids []int) *Counter {
	t.Helper()
	calls, err := tracepoint("raw_syscalls/sys_enter")
	if err != nil {
		t.Skipf("needs the tracepoint raw_syscalls:sys_enter: %v", err)
	}
	signals, err := tracepoint("signal/signal_deliver")
	if err != nil {
		t.Skipf("needs the tracepoint signal:signal_deliver: %v", err)
	}
	c := &Counter{}
	t.Cleanup(c.Close)
	for _, tid := range tids {
		for _, e := range []struct {
			what   string
			typ    uint32
			config uint64
		}{
			{"system calls", unix.PERF_TYPE_TRACEPOINT, calls},
			{"signals delivered", unix.PERF_TYPE_TRACEPOINT, signals},
			{"page faults", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_PAGE_FAULTS},
			{"context switches", unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_CONTEXT_SWITCHES},
		} {
			attr := unix.PerfEventAttr{Type: e.typ, Config: e.config}
			attr.Size = uint32(unsafe.Sizeof(attr))
			fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err != nil {
				t.Skipf("needs perf events of another task (%s): %v", e.what, err)
			}
			c.events = append(c.events, counted{tid, e.what, fd})
		}
	}
	return c
}

// Read gives the counts so far, by kind, summed over the threads.
func (c *Counter) Read(t testing.TB) map[string]uint64 {
	t.Helper()
	sum := map[string]uint64{}
	for _, e := range c.events {
		var buf [8]byte
		if n, err := unix.Read(e.fd, buf[:]); err != nil || n != 8 {
			t.Fatalf("reading the count of %s of thread %d: %d bytes, %v", e.what, e.tid, n, err)
		}
		sum[e.what] += binary.NativeEndian.Uint64(buf[:])
	}
	return sum
}

// Close ends the counting.
func (c *Counter) Close() {
	for _, e := range c.events {
		_ = unix.Close(e.fd) // a counter has nothing to lose
	}
	c.events = nil
}
