package freezer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// tree is a growing set of processes: the roots and all their descendants
// seen so far.
type tree struct {
	roots []int
	procs map[int]uint64 // pid -> start time
	order []int          // parents before their children
	tids  map[int][]int  // threads, as the last pass has seen them where it has looked

	kinship Kinship      // nil: /proc tells
	traced  map[int]bool // as the last pass by kin has seen it; nil: there was none

	// With a cgroup as source instead of roots: everything in it.
	group string // its path in the hierarchy
	way   Way    // which hierarchy: v2, v1 (freezer), or none of them
	dir   *sys.FD
}

// newSource makes the set of processes that the options name.
func newSource(o Options) (*tree, error) {
	switch {
	case o.Cgroup != "" && len(o.Roots) > 0:
		return nil, errors.New("either processes or a cgroup can be named, not both")
	case o.Cgroup != "":
		return newGroupSource(o.Cgroup)
	case len(o.Roots) == 0:
		return nil, errors.New("no process was named")
	}
	return newTree(o.Roots)
}

// newGroupSource finds a cgroup by the path of its directory, or by its name
// below the mount of version 2 or of the v1 freezer.
func newGroupSource(name string) (*tree, error) {
	var whyNot []error
	for _, way := range []Way{WayV2, WayV1} {
		h, err := openHierarchy(way)
		if err != nil {
			whyNot = append(whyNot, err)
			continue
		}
		group := path.Join("/", h.mount.Root, name)
		if rest, ok := strings.CutPrefix(path.Clean(name), h.mount.Point); ok && (rest == "" || rest[0] == '/') {
			group = path.Join("/", h.mount.Root, rest)
		}
		dir, err := h.dir(group)
		h.Close()
		if err != nil {
			whyNot = append(whyNot, err)
			continue
		}
		t := &tree{procs: map[int]uint64{}, group: group, way: way, dir: dir}
		if group == "/" {
			t.close()
			return nil, fmt.Errorf("cgroup %s: the root of a hierarchy cannot be frozen", name)
		}
		_, err = t.pass()
		if err != nil {
			t.close()
			return nil, fmt.Errorf("listing cgroup %s: %w", name, err)
		}
		return t, nil
	}
	return nil, fmt.Errorf("looking for cgroup %s: %w", name, errors.Join(whyNot...))
}

func (t *tree) close() { _ = t.dir.Close() }

// passByGroup lists the cgroup.
func (t *tree) passByGroup() ([]int, error) {
	h := hierarchy{way: t.way}
	pids, err := h.members(t.dir, false)
	if err != nil {
		return nil, err
	}
	var found []int
	for _, pid := range pids {
		if t.addLive(pid) {
			found = append(found, pid)
		}
	}
	if t.roots == nil {
		// The roots are those whose parents are outside.
		for _, pid := range t.order {
			st, err := procfs.ReadStat(pid)
			if _, in := t.procs[st.PPID]; err == nil && !in {
				t.roots = append(t.roots, pid)
			}
		}
	}
	return found, nil
}

func newTree(roots []int) (*tree, error) {
	t := &tree{roots: roots, procs: map[int]uint64{}}
	for _, pid := range roots {
		if pid <= 0 {
			return nil, fmt.Errorf("pid %d: %w", pid, ErrGone)
		}
		st, err := procfs.ReadStat(pid)
		if procfs.IsGone(err) {
			return nil, fmt.Errorf("pid %d: %w", pid, ErrGone)
		}
		if err != nil {
			return nil, err
		}
		if err := notAThread(pid); err != nil {
			return nil, err
		}
		t.add(pid, st.Starttime)
	}
	return t, nil
}

// notAThread refuses the id of a thread that is no leader: /proc shows it, but
// it is not listed there and the tree would be named wrongly.
func notAThread(pid int) error {
	st, err := procfs.ReadStatus(pid)
	if procfs.IsGone(err) {
		return fmt.Errorf("pid %d: %w", pid, ErrGone)
	}
	if err != nil {
		return err
	}
	if st.Tgid != pid {
		return fmt.Errorf("%d is a thread of pid %d: name the process", pid, st.Tgid)
	}
	if st.Kthread {
		return fmt.Errorf("pid %d (%s) is a kernel thread", pid, st.Name)
	}
	return nil
}

func (t *tree) add(pid int, start uint64) bool {
	if old, ok := t.procs[pid]; ok && old == start {
		return false
	} else if ok {
		// The number was given to another process since: it counts as new
		// only if it is a descendant, and then add was called for it.
		t.procs[pid] = start
		return true
	}
	t.procs[pid] = start
	t.order = append(t.order, pid)
	return true
}

// grow looks for descendants that are not in the set yet, until a whole pass
// over all of them finds nothing, and returns the new ones. more is called
// between passes and may stop it.
func (t *tree) grow(more func() error) ([]int, error) {
	var fresh []int
	for {
		found, err := t.pass()
		if err != nil {
			return fresh, err
		}
		if len(found) == 0 {
			return fresh, nil
		}
		fresh = append(fresh, found...)
		if more != nil {
			if err := more(); err != nil {
				return fresh, err
			}
		}
	}
}

// fewThreads is up to where it is not worth counting the processes of the machine, which costs as much as reading the children of
// a third as many threads.
const fewThreads = 64

// pass looks once. There are two sources: the children files of every thread
// of the tree, or the parent of every process of the machine; the shorter list
// is read.
func (t *tree) pass() ([]int, error) {
	if t.dir.Valid() {
		return t.passByGroup()
	}
	t.traced = nil
	var found []int
	if t.kinship != nil {
		var err error
		if found, err = t.passByKin(); err == nil {
			return found, nil
		}
	}
	more, err := t.passByProc()
	return append(found, more...), err
}

func (t *tree) passByProc() ([]int, error) {
	threads := 0
	t.tids = make(map[int][]int, len(t.order))
	tids := make([][]int, len(t.order))
	for i, pid := range t.order {
		list, err := procfs.Threads(pid)
		if err != nil && !procfs.IsGone(err) {
			return nil, err
		}
		tids[i], t.tids[pid] = list, list
		threads += len(list)
	}
	if threads > fewThreads {
		all, err := procfs.Processes()
		if err != nil {
			return nil, err
		}
		if threads > len(all) {
			return t.passByParent(all)
		}
	}
	var found []int
	for i := 0; i < len(t.order); i++ {
		pid := t.order[i]
		list := []int(nil)
		if i < len(tids) {
			list = tids[i]
		} else {
			var err error
			if list, err = procfs.Threads(pid); err != nil && !procfs.IsGone(err) {
				return nil, err
			}
		}
		for _, tid := range list {
			children, err := procfs.ReadChildren(pid, tid)
			if errors.Is(err, unix.ENOENT) && hasTask(pid, tid) { // built without CONFIG_PROC_CHILDREN
				all, err := procfs.Processes()
				if err != nil {
					return nil, err
				}
				return t.passByParent(all)
			}
			if err != nil && !procfs.IsGone(err) {
				return nil, err
			}
			for _, child := range children {
				if t.addLive(child) {
					found = append(found, child)
				}
			}
		}
	}
	return found, nil
}

func hasTask(pid, tid int) bool {
	var st unix.Stat_t
	return unix.Stat(procfs.ThreadPath(pid, tid, "stat"), &st) == nil
}

func (t *tree) passByParent(all []int) ([]int, error) {
	parents := make(map[int]int, len(all))
	for _, pid := range all {
		st, err := procfs.ReadStat(pid)
		if procfs.IsGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parents[pid] = st.PPID
	}
	var found []int
	for grown := true; grown; {
		grown = false
		for _, pid := range all {
			if _, in := t.procs[pid]; in {
				continue
			}
			if _, in := t.procs[parents[pid]]; in && parents[pid] > 0 && t.addLive(pid) {
				found = append(found, pid)
				grown = true
			}
		}
	}
	return found, nil
}

// addLive adds a process that is still there.
func (t *tree) addLive(pid int) bool {
	st, err := procfs.ReadStat(pid)
	return err == nil && t.add(pid, st.Starttime)
}

// live drops processes that no longer exist and returns the others in order.
func (t *tree) live() []int {
	out := t.order[:0:0]
	for _, pid := range t.order {
		st, err := procfs.ReadStat(pid)
		if err != nil || st.Starttime != t.procs[pid] {
			delete(t.procs, pid)
			continue
		}
		out = append(out, pid)
	}
	t.order = out
	return slices.Clone(out)
}

// refuseOwn refuses a set of processes that holds this one or one that it
// descends from: nobody would be left to thaw it.
func refuseOwn(in func(pid int) bool) error {
	for pid := os.Getpid(); pid > 0; {
		if in(pid) {
			if pid == os.Getpid() {
				return ErrOwnTree
			}
			st, _ := procfs.ReadStat(pid)
			return fmt.Errorf("%w: it descends from pid %d (%s)", ErrOwnTree, pid, st.Comm)
		}
		st, err := procfs.ReadStat(pid)
		if err != nil {
			return fmt.Errorf("looking for own ancestors: %w", err)
		}
		pid = st.PPID
	}
	return nil
}

// describe reads the tasks of the processes. Processes that died since are
// left out.
func describe(pids []int, h *hierarchy) ([]Task, error) {
	var out []Task
	for _, pid := range pids {
		tids, err := procfs.Threads(pid)
		if procfs.IsGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// The leader first, even where it is not the lowest number (after an
		// exec by a thread, or with set_tid).
		if i := slices.Index(tids, pid); i > 0 {
			tids = slices.Insert(slices.Delete(tids, i, i+1), 0, pid)
		}
		for _, tid := range tids {
			task, err := describeThread(pid, tid, h)
			if procfs.IsGone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			out = append(out, task)
		}
	}
	return out, nil
}

func describeThread(pid, tid int, h *hierarchy) (Task, error) {
	st, err := procfs.ReadThreadStat(pid, tid)
	if err != nil {
		return Task{}, err
	}
	t := taskOf(pid, tid, &st)
	if h != nil {
		if t.Cgroup, err = h.of(pid, tid); err != nil {
			return Task{}, err
		}
	}
	return t, nil
}

func taskOf(pid, tid int, st *procfs.Stat) Task {
	t := Task{PID: pid, TID: tid, Start: st.Starttime, PPID: st.PPID, Comm: st.Comm, Before: BeforeRunning}
	switch st.State {
	case 'T':
		t.Before = BeforeStopped
	case 'Z', 'X':
		t.Before = BeforeZombie
	}
	return t
}
