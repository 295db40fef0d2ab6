package engine

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

// printPlan writes what a restore would make: the tree first, as it would grow, then every object.
func (rs *restoration) printPlan(w io.Writer, pages, bytes uint64) error {
	var b strings.Builder
	h := rs.plan.Header
	fmt.Fprintf(&b, "image from Linux %s on %s\n", h.Kernel, h.Arch)
	for _, x := range rs.forest.All {
		indent := strings.Repeat("  ", x.Depth)
		switch {
		case x.Thread:
		case x.Ghost():
			fmt.Fprintf(&b, "%sstand-in %d, leaves again\n", indent, x.PID)
		case x.Process.Zombie:
			fmt.Fprintf(&b, "%szombie %d (%s), wait status %#x\n", indent, x.PID, x.Process.Comm, x.Process.WaitStatus)
		default:
			p := rs.byPID[x.PID]
			fmt.Fprintf(&b, "%sprocess %d (%s), %d threads, group %s, session %s\n", indent, x.PID, p.threads[0].state.Comm,
				len(p.threads), leaderName(x.Process.Group, x.Process.OutsideGroup), leaderName(x.Process.Session, x.Process.OutsideSession))
		}
	}
	for i := range rs.plan.Objects {
		o := &rs.plan.Objects[i]
		switch o.State.(type) {
		case *tasks.Process, *tasks.Thread:
			continue
		}
		line, err := object.Line(o.Type, o.Ref.ID, o.State)
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, line)
	}
	fmt.Fprintf(&b, "contents: %d pages, %d bytes\n", pages, bytes)
	_, err := io.WriteString(w, b.String())
	return err
}

func leaderName(id int32, outside bool) string {
	if outside {
		return "of cr-restore"
	}
	return strconv.Itoa(int(id))
}

// cgroups are those that all new tasks are in, and where cgroups are mounted.
type cgroups struct {
	mounts []procfs.Mount
	now    []procfs.Cgroup
	seen   map[string]string // directories that were looked at, and what keeps processes out of them, empty for nothing
}

// ownCgroups looks, once for all, at those of the thread that all are made from; nil when it cannot, which is said.
func (rs *restoration) ownCgroups() *cgroups {
	mounts, err := procfs.ReadSelfMountinfo()
	if err != nil {
		rs.o.Warn(fmt.Sprintf("finding the mounted cgroups: %v", err))
		return nil
	}
	tid := rs.tracer.Tid()
	if rs.ownCgroupNS { // the stub has been moved
		tid = rs.made[rs.forest.Roots[0]].Tid
	}
	now, err := procfs.ReadCgroups(tid)
	if err != nil {
		rs.o.Warn(fmt.Sprintf("reading the own cgroups: %v", err))
		return nil
	}
	return &cgroups{mounts, now, map[string]string{}}
}

// hindrance says why a cgroup cannot be joined, empty if it can.
func (o *cgroups) hindrance(dir string) string {
	if why, ok := o.seen[dir]; ok {
		return why
	}
	why := ""
	if _, err := os.Stat(dir); err != nil {
		why = "not here"
	} else if frozenCgroup(dir) {
		why = "frozen"
	}
	o.seen[dir] = why
	return why
}

// in says whether all are in a cgroup already.
func (o *cgroups) in(c *tasks.Cgroup) bool {
	return slices.ContainsFunc(o.now, func(have procfs.Cgroup) bool { return have.Controllers == c.Controllers && have.Path == c.Path })
}

// dir is the directory of a cgroup, "" where it is not mounted here, or outside of the cgroup namespace that the dump was made in.
func (o *cgroups) dir(c *tasks.Cgroup) string {
	root := cgroupRoot(o.mounts, c.Controllers)
	if root == "" || strings.Contains(c.Path, "/..") || !strings.HasPrefix(c.Path, "/") || strings.ContainsRune(c.Path, 0) {
		return ""
	}
	return root + strings.TrimSuffix(c.Path, "/")
}

// joinCgroups puts a process into the cgroups that it was in, where they exist. Where one does not, the process stays in
// cr-restore's, which is said.
func (rs *restoration) joinCgroups(p *process, own *cgroups) {
	if own == nil {
		return
	}
	for i := range p.state.Cgroups {
		c := &p.state.Cgroups[i]
		if own.in(c) {
			continue // moving a task waits for all processors
		}
		dir := own.dir(c)
		if dir == "" {
			continue
		}
		if why := own.hindrance(dir); why != "" {
			rs.o.Warn(fmt.Sprintf("pid %d: cgroup %s is %s; it stays in cr-restore's", p.state.PID, dir, why))
			continue
		}
		if err := os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(p.task.Tid)), 0); err != nil {
			rs.o.Warn(fmt.Sprintf("pid %d: joining cgroup %s: %v; it stays in cr-restore's", p.state.PID, dir, err))
		}
	}
}

// frozenCgroup says whether tasks in a cgroup, of either version, stand still: one under construction must not.
func frozenCgroup(dir string) bool {
	v2, err := os.ReadFile(dir + "/cgroup.events")
	if err == nil && strings.Contains(string(v2), "frozen 1") {
		return true
	}
	v1, err := os.ReadFile(dir + "/freezer.state")
	return err == nil && strings.TrimSpace(string(v1)) != "THAWED"
}

// cgroupRoot finds where the hierarchy with these controllers is mounted; empty controllers are version 2.
func cgroupRoot(mounts []procfs.Mount, controllers string) string {
	for i := range mounts {
		m := &mounts[i]
		if m.Root != "/" {
			continue
		}
		if controllers == "" && m.FSType == "cgroup2" {
			return m.Point
		}
		if controllers != "" && m.FSType == "cgroup" {
			first, _, _ := strings.Cut(controllers, ",")
			if m.HasSuper(first) {
				return m.Point
			}
		}
	}
	return ""
}
