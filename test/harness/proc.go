package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic is CLOCK_MONOTONIC in nanoseconds, the clock that fixtures use too.
func Monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("harness: internal error: clock_gettime: " + err.Error())
	}
	return ts.Nano()
}

// stat is what the harness needs of /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	comm  string
	state byte
	ppid  int
	sid   int
	start uint64 // clock ticks since boot: with the pid, who a task is
}

func parseStat(data []byte) (stat, error) {
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return stat{}, errors.New("parsing stat: no name in it")
	}
	f := strings.Fields(string(data[end+1:]))
	if len(f) < 20 {
		return stat{}, fmt.Errorf("parsing stat: %d fields", len(f))
	}
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return stat{}, err
	}
	sid, err := strconv.Atoi(f[3])
	if err != nil {
		return stat{}, err
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, err
	}
	return stat{comm: string(data[open+1 : end]), state: f[0][0], ppid: ppid, sid: sid, start: start}, nil
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// State is the state letter of a task, 0 when there is none.
func State(tid int) byte {
	s, err := readStat(tid)
	if err != nil {
		return 0
	}
	return s.state
}

// Comm is a task's name.
func Comm(pid int) string {
	s, _ := readStat(pid)
	return s.comm
}

func allPids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Tree is pid and all its descendants, in ascending order.
func Tree(pid int) []int {
	kids := map[int][]int{}
	for _, p := range allPids() {
		if s, err := readStat(p); err == nil {
			kids[s.ppid] = append(kids[s.ppid], p)
		}
	}
	if _, err := readStat(pid); err != nil {
		return nil
	}
	tree, seen := []int{pid}, map[int]bool{pid: true}
	for i := 0; i < len(tree); i++ {
		for _, k := range kids[tree[i]] {
			if !seen[k] {
				seen[k] = true
				tree = append(tree, k)
			}
		}
	}
	sort.Ints(tree)
	return tree
}

// Threads are the thread ids of a process.
func Threads(pid int) []int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	var tids []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}

// children are the child processes of this one.
func children() []int {
	var pids []int
	for _, tid := range Threads(os.Getpid()) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", tid))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// StatusLine is the value of a line of /proc/TID/status.
func StatusLine(tid int, name string) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// marked are the processes whose environment holds the mark; a restored task's does, as its memory does.
func marked(mark string) []int {
	var pids []int
	self := os.Getpid()
	for _, pid := range allPids() {
		if pid == self {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || len(data) == 0 { // a leader that has ended may have left threads
			if tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/environ", pid)); err == nil && len(tasks) > 1 {
				data, _ = os.ReadFile(tasks[len(tasks)-1])
			}
		}
		if bytes.Contains(data, []byte(mark)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Slow is CR_TEST_SLOW: how many times longer than on a real machine things may take (1 when it is not set). tools/vm sets it.
var Slow = sync.OnceValue(func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("CR_TEST_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
})

// eventually polls until ok says true; false when it did not within the time, on a real machine. What may take a minute there gets no more.
func eventually(limit time.Duration, ok func() bool) bool {
	limit = max(limit, min(limit*Slow(), 2*time.Minute))
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// Patience is how long something may take that takes no time: on a busy machine a move between cgroups, which nothing can
// interrupt, has taken a minute. CR_TEST_PATIENCE is another time, for those who look for a failure.
var Patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("CR_TEST_PATIENCE")); err == nil {
		return d
	}
	return 3 * time.Minute
}()

// Kill sends a signal to exactly one process.
func Kill(pid int, sig syscall.Signal) error {
	if pid <= 1 {
		return fmt.Errorf("killing pid %d: refused", pid)
	}
	return syscall.Kill(pid, sig)
}
