package harness

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// cgroupView is every directory of the hierarchies that a freezer can use.
type cgroupView map[string]bool

// V2 is the mount point of cgroup v2 and V1 of the v1 freezer; empty where there is none.
var (
	V2 = sync.OnceValue(func() string { return cgroupMount("cgroup2", "") })
	V1 = sync.OnceValue(func() string { return cgroupMount("cgroup", "freezer") })
)

// cgroupMount finds a mount in /proc/self/mountinfo: fields 5 (mount point), and after " - " type, source, options.
func cgroupMount(fstype, option string) string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for _, line := range strings.Split(string(data), "\n") {
		head, tail, ok := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 3 || t[0] != fstype {
			continue
		}
		if option == "" || strings.Contains(","+t[2]+",", ","+option+",") {
			return h[4]
		}
	}
	return ""
}

func viewCgroups() cgroupView {
	view := cgroupView{}
	for _, mount := range []string{V2(), V1()} {
		if mount == "" {
			continue
		}
		_ = filepath.WalkDir(mount, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != mount {
				view[path] = true
			}
			return nil // a cgroup that vanishes meanwhile is another test's
		})
	}
	return view
}

// leftCgroups are those below the job's own, and those that a freeze made since the job began (crpipe-ID) and that have
// been empty for a whole second: one in use holds tasks.
func (j *Job) leftCgroups() []string {
	suspects := func() map[string]bool {
		found := map[string]bool{}
		for path := range viewCgroups() {
			if j.before[path] {
				continue
			}
			for _, own := range j.cgroups {
				if strings.HasPrefix(path, own+"/") {
					found[path] = true
				}
			}
			procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if strings.HasPrefix(filepath.Base(path), "crpipe-") && err == nil && len(procs) == 0 {
				found[path] = true
			}
		}
		return found
	}
	left := suspects()
	for end := time.Now().Add(time.Second); len(left) > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		now := suspects()
		for path := range left {
			if !now[path] {
				delete(left, path)
			}
		}
	}
	var paths []string
	for path := range left {
		paths = append(paths, path)
	}
	return paths
}

// CheckCgroups fails the test for cgroups that commands have left.
func (j *Job) CheckCgroups() {
	j.T.Helper()
	if left := j.leftCgroups(); len(left) > 0 {
		j.T.Errorf("%s: cgroups left: %v", j.Name, left)
	}
}

func (j *Job) makeCgroups(cmd *exec.Cmd) {
	j.T.Helper()
	name := fmt.Sprintf("crtest-%d-%d", os.Getpid(), jobs.Add(1))
	for i, mount := range []string{V2(), V1()} {
		if mount == "" {
			continue
		}
		dir := filepath.Join(mount, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			j.T.Fatalf("making a cgroup: %v", err)
		}
		j.cgroups = append(j.cgroups, dir)
		if i == 0 {
			f, err := os.Open(dir)
			if err != nil {
				j.T.Fatal(err)
			}
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
			j.T.Cleanup(func() { _ = f.Close() })
		}
	}
}

func (j *Job) joinV1() {
	for _, dir := range j.cgroups {
		if V1() != "" && strings.HasPrefix(dir, V1()+"/") {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(j.started.Process.Pid)), 0); err != nil {
				j.T.Fatalf("entering the v1 cgroup: %v", err)
			}
		}
	}
}

// Cgroup is the job's own cgroup in the v2 (or v1 freezer) hierarchy.
func (j *Job) Cgroup(mount string) string {
	for _, c := range j.cgroups {
		if mount != "" && strings.HasPrefix(c, mount+"/") {
			return c
		}
	}
	return ""
}

func (j *Job) checkCgroups() {
	for _, path := range j.leftCgroups() {
		j.T.Errorf("%s: cgroup left: %s", j.Name, path)
		_ = syscall.Rmdir(path)
	}
	for _, own := range j.cgroups {
		if data, err := os.ReadFile(filepath.Join(own, "cgroup.freeze")); err == nil && strings.TrimSpace(string(data)) != "0" {
			j.T.Errorf("%s: cgroup left frozen: %s", j.Name, own)
		}
		if data, err := os.ReadFile(filepath.Join(own, "freezer.state")); err == nil && strings.TrimSpace(string(data)) != "THAWED" {
			j.T.Errorf("%s: cgroup left %s: %s", j.Name, strings.TrimSpace(string(data)), own)
		}
		eventually(2e9, func() bool { return syscall.Rmdir(own) == nil })
	}
}
