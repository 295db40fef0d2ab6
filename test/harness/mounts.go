package harness

import (
	"fmt"
	"os"
	"strings"
)

// mounts puts the mounts of a process's namespace into the snapshot, where it is another one than ours: by mount point and the order in
// which they lie on each other, with the point of the parent in place of numbers that the kernel gives.
func (s Snapshot) mounts(pid int) {
	mine, err := os.Readlink("/proc/self/ns/mnt")
	its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil || err2 != nil || mine == its {
		return
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	point := map[string]string{}
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 5 {
			point[f[0]] = f[4]
		}
	}
	seen := map[string]int{}
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) <= 5 {
			continue
		}
		seen[f[4]]++
		device := f[2]
		if strings.Contains(line, " - proc ") {
			device = "proc" // a number of its own for every one that is mounted
		}
		s[fmt.Sprintf("%d mountinfo %s %d", pid, f[4], seen[f[4]])] = fmt.Sprintf("on %s, %s %s %s", point[f[1]], device, f[3], strings.Join(f[5:], " "))
	}
}
