package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"
)

// Footprint is what a command that leaves a tree alone must leave as it was: for each process that lives through it
// the mappings, the descriptors and the cgroups.
type Footprint map[int]footprint

type footprint struct {
	start   uint64
	maps    []string
	fds     []string
	cgroup  string
	stopped bool
}

// Footprint reads the tree's: what is there in several looks in a row. A running program maps and opens for moments.
func (j *Job) Footprint() Footprint {
	fp := j.look()
	for range 4 {
		time.Sleep(7 * time.Millisecond)
		again := j.look()
		for pid, f := range fp {
			if g, ok := again[pid]; ok {
				f.maps, f.fds = common(f.maps, g.maps), common(f.fds, g.fds)
				fp[pid] = f
			}
		}
	}
	return fp
}

// common are the elements of a that are in b.
func common(a, b []string) []string {
	var both []string
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}

func (j *Job) look() Footprint {
	fp := Footprint{}
	for _, pid := range j.Tasks() {
		s, err := readStat(pid)
		if err != nil || s.state == 'Z' {
			continue
		}
		cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		fp[pid] = footprint{start: s.start, maps: mappings(pid), fds: descriptors(pid), cgroup: string(cg), stopped: s.state == 'T'}
	}
	return fp
}

// mappings are the address ranges with permissions and name; the main heap and stacks, which grow, without their size.
func mappings(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func descriptors(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var fds []string
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil {
			fds = append(fds, e.Name()+" -> "+link)
		}
	}
	sort.Strings(fds)
	return fds
}

// CheckUnharmed fails the test when a process that was there is gone, traced, stopped, frozen, in another cgroup, or has
// a mapping or a descriptor more or less. A running program changes mappings and descriptors itself, so a
// difference counts only when it stays: a fixture that waits for its check makes none.
func (j *Job) CheckUnharmed(before Footprint) {
	j.T.Helper()
	var wrong []string
	if !eventually(Patience, func() bool { wrong = j.harm(before); return len(wrong) == 0 }) {
		j.T.Errorf("%s was harmed:\n%s", j.Name, strings.Join(wrong, "\n"))
	}
}

func (j *Job) harm(before Footprint) []string {
	var wrong []string
	for pid, b := range before {
		s, err := readStat(pid)
		if err != nil || s.start != b.start || s.state == 'Z' {
			wrong = append(wrong, fmt.Sprintf("pid %d is gone", pid))
			continue
		}
		for _, tid := range Threads(pid) {
			if tracer := StatusLine(tid, "TracerPid"); tracer != "0" && tracer != "" {
				wrong = append(wrong, fmt.Sprintf("task %d is traced by %s (%s)", tid, tracer, Comm(atoi(tracer))))
			}
			if st := State(tid); (st == 'T') != b.stopped && st != 0 || st == 't' {
				wrong = append(wrong, fmt.Sprintf("task %d is in state %c", tid, st))
			}
		}
		cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if string(cg) != b.cgroup {
			wrong = append(wrong, fmt.Sprintf("pid %d is in other cgroups: %q, was %q", pid, cg, b.cgroup))
		}
		if frozen := frozenBy(string(cg)); frozen != "" {
			wrong = append(wrong, fmt.Sprintf("pid %d is in the frozen cgroup %s", pid, frozen))
		}
		if now := mappings(pid); !slices.Equal(now, b.maps) {
			wrong = append(wrong, fmt.Sprintf("pid %d: mappings: %s", pid, listDiff(b.maps, now)))
		}
		if now := descriptors(pid); !slices.Equal(now, b.fds) {
			wrong = append(wrong, fmt.Sprintf("pid %d: descriptors: %s", pid, listDiff(b.fds, now)))
		}
	}
	return wrong
}

// frozenBy names the cgroup among the lines of /proc/PID/cgroup that is frozen.
func frozenBy(lines string) string {
	for _, line := range strings.Split(lines, "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[0] == "0" && V2() != "":
			if data, err := os.ReadFile(filepath.Join(V2(), f[2], "cgroup.events")); err == nil && strings.Contains(string(data), "frozen 1") {
				return f[2]
			}
		case f[1] == "freezer" && V1() != "":
			if data, err := os.ReadFile(filepath.Join(V1(), f[2], "freezer.state")); err == nil && !strings.HasPrefix(string(data), "THAWED") {
				return f[2]
			}
		}
	}
	return ""
}

// listDiff names what is only in one of two lists.
func listDiff(a, b []string) string {
	count := map[string]int{}
	for _, s := range a {
		count[s]--
	}
	for _, s := range b {
		count[s]++
	}
	var out []string
	for s, n := range count {
		if n < 0 {
			out = append(out, "gone: "+s)
		} else if n > 0 {
			out = append(out, "new: "+s)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "; ")
}

func atoi(s string) int {
	n := 0
	_, _ = fmt.Sscan(s, &n)
	return n
}
