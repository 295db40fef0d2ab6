package freezer

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// openGroup is a group with its directory.
type openGroup struct {
	Group
	dir    *sys.FD
	frozen bool // we asked for it
}

// under reports whether a cgroup is g or lies below it.
func under(cgroup, g string) bool {
	return cgroup == g || g == "/" || strings.HasPrefix(cgroup, g+"/")
}

func parentOf(cgroup string) string { return path.Dir(cgroup) }

// byCgroup stops the tree with a cgroup freezer. Tasks are moved into the
// transient cgroups while they run, because that costs the tree nothing; only
// then are the cgroups frozen, and what was forked meanwhile follows into the
// frozen cgroup, where it stops at once. A tree that forks as fast as it can
// is caught because those who are in can fork no more.
func (f *freeze) byCgroup(way Way) (err error) {
	if f.h, err = openHierarchy(way); err != nil {
		return err
	}
	if f.tree.group != "" && f.tree.way == way {
		if err := f.addGroup(Group{Path: f.tree.group}); err != nil {
			return err
		}
	} else if err := f.gather(true); err != nil {
		return err
	}
	const passes = 2 // then it is one that forks as fast as it can
	for i := 0; !f.whole; i++ {
		fresh, err := f.tree.pass()
		if err != nil {
			return err
		}
		if len(fresh) == 0 {
			break
		}
		if i == passes && !f.o.Held {
			c, err := f.catch()
			if err != nil {
				return err
			}
			defer c.release() // when all of it is frozen, or after a failure
		}
		if err := f.gather(false); err != nil {
			return err
		}
		if err := f.late(); err != nil {
			return err
		}
	}
	if err := f.noteStopped(); err != nil {
		return err
	}
	for _, g := range f.groups {
		if g.Already {
			continue
		}
		if err := failpoint.After("freeze.told", f.journal()); err != nil {
			return err
		}
		g.frozen = true
		if err := failpoint.After("freeze.asked", f.h.setFrozen(g.dir, true)); err != nil {
			return usable(fmt.Errorf("freezing cgroup %s: %w", g.Path, err))
		}
	}
	for {
		if err := f.gather(false); err != nil {
			return err
		}
		if err := failpoint.After("freeze.frozen", f.waitFrozen()); err != nil {
			return err
		}
		fresh, err := f.tree.grow(f.late)
		if err != nil {
			return err
		}
		if len(fresh) == 0 {
			return f.describeAll()
		}
	}
}

// noteStopped remembers who is stopped by job control: once frozen by
// version 1 a stopped task looks like any other.
func (f *freeze) noteStopped() error {
	if f.h.way != WayV1 {
		return nil
	}
	tasks, err := describe(f.tree.live(), nil)
	for _, t := range tasks {
		if t.Before == BeforeStopped {
			f.before[t.TID] = BeforeStopped
		}
	}
	return err
}

// place is where a process is.
type place struct {
	pid    int
	tids   []int
	groups []string // of each thread
}

func (p *place) together() bool {
	return !slices.ContainsFunc(p.groups, func(g string) bool { return g != p.groups[0] })
}

// places finds the cgroup of every live process outside of the groups.
func (f *freeze) places() ([]place, error) {
	var out []place
	for _, pid := range f.tree.live() {
		tids, err := procfs.Threads(pid)
		if err != nil && !procfs.IsGone(err) {
			return nil, err
		}
		p := place{pid: pid}
		for _, tid := range tids {
			if f.h.way == WayV2 && len(p.tids) > 0 {
				break // v2 moves whole processes
			}
			st, err := procfs.ReadThreadStat(pid, tid)
			if procfs.IsGone(err) || (err == nil && (st.State == 'Z' || st.State == 'X')) {
				continue
			}
			if err != nil {
				return nil, err
			}
			g, err := f.h.of(pid, tid)
			if procfs.IsGone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if f.groupOf(g) == nil {
				p.tids = append(p.tids, tid)
				p.groups = append(p.groups, g)
			} else if f.h.way == WayV2 {
				break
			}
		}
		if len(p.tids) > 0 {
			out = append(out, p)
		}
	}
	return out, nil
}

func (f *freeze) groupOf(cgroup string) *openGroup {
	for _, g := range f.groups {
		if under(cgroup, g.Path) {
			return g
		}
	}
	return nil
}

// gather brings every process of the tree into one of the groups. At first it
// chooses the groups: a cgroup that holds nothing but the tree is frozen as it
// is, if possible one for all.
func (f *freeze) gather(first bool) error {
	if done, err := f.gathered(first); done || err != nil {
		return err
	}
	list, err := f.places()
	if err != nil {
		return err
	}
	if first && len(list) > 0 {
		common := list[0].groups[0]
		for _, p := range list {
			for _, g := range p.groups {
				for !under(g, common) {
					common = parentOf(common)
				}
			}
		}
		if done, err := f.asItIs(common); err != nil || done {
			return err
		}
	}
	for _, p := range list {
		for i, g := range p.groups {
			if i > 0 && p.together() {
				break
			}
			if f.groupOf(g) != nil {
				continue
			}
			if first {
				if done, err := f.asItIs(g); err != nil {
					return err
				} else if done {
					continue
				}
			}
			if err := f.move(p, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// asItIs takes a cgroup as a group when it is frozen already or holds nothing
// but the tree.
func (f *freeze) asItIs(cgroup string) (bool, error) {
	if cgroup == "/" {
		return false, nil // the root of a hierarchy cannot be frozen
	}
	dir, err := f.h.dir(cgroup)
	if err != nil {
		return false, usable(err)
	}
	defer dir.Close()
	frozen, err := f.h.isFrozen(dir)
	if err != nil {
		return false, usable(err)
	}
	if !frozen {
		pids, err := f.h.members(dir, false)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return false, fmt.Errorf("%w: cgroup %s is a threaded one", ErrUnusable, cgroup)
		}
		if err != nil {
			return false, usable(err)
		}
		for _, pid := range pids {
			if _, in := f.tree.procs[pid]; !in {
				return false, nil
			}
		}
	}
	return true, f.addGroup(Group{Path: cgroup, Already: frozen})
}

func (f *freeze) addGroup(g Group) error {
	dir, err := f.h.dir(g.Path)
	if err != nil {
		return usable(err)
	}
	if !g.Transient && !g.Already {
		// Asked for by somebody else and not reached yet: it is theirs.
		if g.Already, err = f.h.wanted(dir); err != nil {
			_ = dir.Close()
			return usable(err)
		}
	}
	f.groups = append(f.groups, &openGroup{Group: g, dir: dir})
	if !g.Transient {
		f.st.Groups = append(f.st.Groups, g)
	}
	return nil
}

// move brings one process (all threads where they are together, else thread
// number i) into the transient cgroup below its own, which it makes if need be.
func (f *freeze) move(p place, i int) error {
	want := Group{Path: path.Join(p.groups[i], TransientName(f.st.ID)), Transient: true}
	var g *openGroup
	for _, have := range f.groups {
		if have.Path == want.Path {
			g = have
		}
	}
	if g == nil {
		f.st.Groups = append(f.st.Groups, want)
		if err := f.journal(); err != nil {
			return err
		}
		if err := failpoint.After("freeze.made", f.mkdir(want.Path)); err != nil {
			return err
		}
		if err := f.addGroup(want); err != nil {
			return err
		}
		g = f.groups[len(f.groups)-1]
		if f.begun() { // the others are frozen already: whoever enters stops at once
			g.frozen = true
			if err := f.h.setFrozen(g.dir, true); err != nil {
				return usable(err)
			}
		}
	}
	err := failpoint.After("freeze.moved", f.h.attach(g.dir, p, i))
	if errors.Is(err, unix.ESRCH) {
		return nil // died meanwhile
	}
	if err != nil {
		return usable(fmt.Errorf("moving pid %d into cgroup %s: %w", p.pid, g.Path, err))
	}
	return nil
}

func (f *freeze) begun() bool {
	return slices.ContainsFunc(f.groups, func(g *openGroup) bool { return g.frozen })
}

func (f *freeze) mkdir(cgroup string) error {
	parent, err := f.h.dir(parentOf(cgroup))
	if err != nil {
		return usable(err)
	}
	defer parent.Close()
	if err := unix.Mkdirat(parent.Int(), path.Base(cgroup), 0o755); err != nil {
		return usable(fmt.Errorf("making cgroup %s: %w", cgroup, err))
	}
	return nil
}

func (h *hierarchy) attach(dir *sys.FD, p place, i int) error {
	if h.way == WayV1 && !p.together() {
		return writeAt(dir, "tasks", strconv.Itoa(p.tids[i]))
	}
	return writeAt(dir, "cgroup.procs", strconv.Itoa(p.pid))
}

// usable marks the errors after which another way may still work: no
// permission, a read-only or vanished hierarchy, limits on cgroups, and what
// the kernel refuses to move (cgroup-v2.rst: threaded, no internal processes).
func usable(err error) error {
	if err == nil || errors.Is(err, ErrUnusable) {
		return err
	}
	for _, e := range []error{unix.EACCES, unix.EPERM, unix.EROFS, unix.ENOENT, unix.EAGAIN, unix.EBUSY, unix.EOPNOTSUPP, unix.EINVAL, unix.ENOSPC} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrUnusable, err)
		}
	}
	return err
}

// eagerTime is how long a freeze is awaited without a sleep, which takes longer than most freezes do.
const eagerTime = 200 * time.Microsecond

// waitFrozen waits until all groups stand still. Version 2 announces it
// (cgroup.events can be polled), version 1 has to be asked.
func (f *freeze) waitFrozen() error {
	begin := time.Now()
	for _, g := range f.groups {
		pause := 20 * time.Microsecond
		for {
			still, err := f.h.frozenOrEmpty(g.dir)
			if err != nil {
				return err
			}
			if still {
				break
			}
			if time.Since(begin) < eagerTime {
				sys.Yield() // they may need this very processor to come to their stop
				continue
			}
			if err := f.late(); err != nil {
				return err
			}
			// Version 1 tries each task only once, and can miss one that is just falling asleep for long, as in vfork.
			if f.h.way == WayV1 && g.frozen && pause == time.Millisecond {
				if err := f.h.setFrozen(g.dir, true); err != nil {
					return err
				}
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Millisecond)
		}
	}
	return nil
}
