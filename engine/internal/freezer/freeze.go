package freezer

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// freeze is one attempt to stop a set of processes by one way.
type freeze struct {
	o        Options
	tree     *tree
	st       *State
	deadline time.Time

	h      *hierarchy // nil with sigstop
	groups []*openGroup
	before map[int]Before // by tid, as read before the freeze
	whole  bool           // the one group holds the tree and nothing else, and did so before it was frozen
}

// Freeze stops what o names and says how. After an error nothing is frozen
// that was not before. An error that matches ErrTimeout names tasks.
func Freeze(o Options) (*State, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	ways := []Way{WayV2, WayV1, WaySigstop}
	if o.Way != "" {
		ways = []Way{o.Way}
	}
	var whyNot []error
	for _, way := range ways {
		st, err := freezeBy(o, way)
		if err == nil {
			return st, nil
		}
		if !errors.Is(err, ErrUnusable) || o.Way != "" {
			return nil, err
		}
		whyNot = append(whyNot, err)
	}
	return nil, fmt.Errorf("freezing: %w", errors.Join(whyNot...))
}

func freezeBy(o Options, way Way) (_ *State, err error) {
	f := &freeze{o: o, deadline: time.Now().Add(o.Timeout), before: map[int]Before{}}
	if f.tree, err = newSource(o); err != nil {
		return nil, err
	}
	defer f.tree.close()
	f.tree.kinship = o.Kinship
	if f.st, err = newState(way); err != nil {
		return nil, err
	}
	if _, err := f.tree.pass(); err != nil {
		return nil, err
	}
	f.st.Roots = f.tree.roots
	if !f.tree.anyLive() {
		if o.Cgroup == "" {
			return nil, fmt.Errorf("pid %d has ended: %w", o.Roots[0], ErrGone)
		}
		return nil, fmt.Errorf("cgroup %s is empty", o.Cgroup)
	}
	if err := f.check(way); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("freeze.begin"); err != nil {
		return nil, err
	}
	switch way {
	case WayV2, WayV1:
		err = f.byCgroup(way)
	case WaySigstop:
		err = f.byStop()
	default:
		return nil, fmt.Errorf("unknown freezer %q: there are v2, v1 and sigstop", way)
	}
	if err = failpoint.After("freeze.done", err); err == nil && o.Brief && way == WayV2 {
		f.st.open = &openState{f.h, f.groups}
		f.h, f.groups = nil, nil
	}
	f.close()
	if err != nil {
		// Whatever was stopped goes on as if nothing had been.
		if undo := Thaw(f.st, ThawOptions{Partial: true, Interrupted: o.Interrupted}); undo != nil {
			err = fmt.Errorf("%w (%w: %w)", err, ErrNotUndone, undo)
		}
		return nil, err
	}
	if f.st.At, err = sys.Now(); err != nil {
		f.st.open.close()
		if undo := Thaw(f.st, ThawOptions{Partial: true, Interrupted: o.Interrupted}); undo != nil {
			err = fmt.Errorf("%w (%w: %w)", err, ErrNotUndone, undo)
		}
		return nil, err
	}
	return f.st, nil
}

// Describe makes the state of trees that run, or that the caller holds and is
// going to let run. pids are all their processes where the caller knows them,
// in any order; nil: they are looked for.
func Describe(roots, pids []int) (*State, error) {
	if pids == nil {
		t, err := newTree(roots)
		if err != nil {
			return nil, err
		}
		if _, err := t.grow(nil); err != nil {
			return nil, err
		}
		pids = t.live()
	}
	st, err := newState(WayNone)
	if err != nil {
		return nil, err
	}
	st.Roots = roots
	// Processes only: threads of a tree that runs come and go.
	for _, pid := range pids {
		task, err := describeThread(pid, pid, nil)
		if procfs.IsGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		st.Tasks = append(st.Tasks, task)
	}
	st.Tasks = parentsFirst(st.Tasks)
	return st, nil
}

// parentsFirst sorts processes: those whose parents are not among them, their
// children, the children of these, and so on.
func parentsFirst(all []Task) []Task {
	in := make(map[int]bool, len(all))
	for i := range all {
		in[all[i].PID] = true
	}
	children := map[int][]Task{}
	out := make([]Task, 0, len(all))
	for _, t := range all {
		if in[t.PPID] {
			children[t.PPID] = append(children[t.PPID], t)
		} else {
			out = append(out, t)
		}
	}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i].PID]...)
	}
	return out
}

func newState(way Way) (*State, error) {
	st := &State{Way: way}
	var err error
	if st.BootID, err = procfs.BootID(); err != nil {
		return nil, err
	}
	if st.PIDNS, err = ownPIDNS(); err != nil {
		return nil, err
	}
	var id [6]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	st.ID = hex.EncodeToString(id[:])
	return st, nil
}

func ownPIDNS() (uint64, error) { return procfs.Namespace(unix.Getpid(), "pid") }

func (f *freeze) close() {
	(&openState{f.h, f.groups}).close()
	f.h, f.groups = nil, nil
}

func (o *openState) close() {
	if o == nil {
		return
	}
	for _, g := range o.groups {
		_ = g.dir.Close()
	}
	if o.h != nil {
		o.h.Close()
	}
}

// late is an error once the time is up.
func (f *freeze) late() error {
	if time.Now().Before(f.deadline) {
		return nil
	}
	e := &TimeoutError{After: f.o.Timeout}
	tasks, _ := describe(f.tree.live(), nil)
	for _, t := range tasks {
		if t.Before != BeforeZombie && !f.still(t) {
			e.Tasks = append(e.Tasks, t)
		}
	}
	return e
}

// still guesses whether a task stands still, for a message only: the kernel
// tells it of a whole cgroup, and of a task by where it waits.
func (f *freeze) still(t Task) bool {
	if f.st.Way == WaySigstop {
		return t.Before == BeforeStopped
	}
	var r procfs.Reader
	b, err := r.Thread(t.PID, t.TID, "wchan")
	switch string(b) {
	case "do_freezer_trap", "__refrigerator", "do_signal_stop", "ptrace_stop":
		return err == nil
	}
	return t.Before == BeforeStopped
}

// check refuses what must not or cannot be frozen.
func (f *freeze) check(way Way) error {
	if err := refuseOwn(func(pid int) bool { _, in := f.tree.procs[pid]; return in }); err != nil {
		return err
	}
	v1, _ := openHierarchy(WayV1)
	if v1 != nil {
		defer v1.Close()
		if groups, err := subdirs(v1.root); err == nil && len(groups) == 0 && v1.mount.Root == "/" {
			v1 = nil // all are in the root of the hierarchy, which cannot be frozen
		}
	}
	for _, pid := range f.tree.order {
		if traced, known := f.tree.traced[pid]; known && !traced && v1 == nil && way == WayV2 {
			continue
		}
		st, err := procfs.ReadStatus(pid)
		if procfs.IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if st.TracerPID != 0 && !f.o.Held {
			tracer, _ := procfs.ReadStat(st.TracerPID)
			return fmt.Errorf("pid %d (%s) is %w by pid %d (%s)", pid, st.Name, ErrTraced, st.TracerPID, tracer.Comm)
		}
		if way == WaySigstop && st.State != 'Z' {
			if err := losesSignals(pid); err != nil {
				return err
			}
		}
		if v1 == nil || way == WayV1 || st.State == 'Z' {
			continue
		}
		// A task that the v1 freezer holds never reaches the v2 one, nor a stop.
		if cg, err := v1.of(pid, pid); err == nil && cg != "/" {
			if dir, err := v1.dir(cg); err == nil {
				b, _ := readAt(dir, "freezer.state")
				_ = dir.Close()
				if len(b) > 0 && b[0] == 'F' { // FROZEN or FREEZING
					return fmt.Errorf("%w: pid %d (%s) is frozen by the v1 cgroup %s", ErrUnusable, pid, st.Name, cg)
				}
			}
		}
	}
	return nil
}

// journal tells the guard what is about to be changed.
func (f *freeze) journal() error {
	if f.o.Journal == nil {
		return nil
	}
	if err := f.o.Journal(f.st); err != nil {
		return fmt.Errorf("telling the guard: %w", err)
	}
	return nil
}

// describeAll fills in the tasks of the state once everything stands still.
func (f *freeze) describeAll() error {
	if f.o.Brief && f.h.way == WayV2 && !slices.ContainsFunc(f.groups, func(g *openGroup) bool { return g.Already }) {
		var err error
		f.st.Tasks, f.st.Stats, err = f.tree.describeBriefly()
		return err
	}
	tasks, err := describe(f.tree.live(), f.h)
	if err != nil {
		return err
	}
	for i := range tasks {
		t := &tasks[i]
		if b, ok := f.before[t.TID]; ok && t.Before != BeforeZombie {
			t.Before = b
		}
		if slices.Contains(f.o.Stopped, t.PID) && t.Before == BeforeRunning {
			t.Before = BeforeStopped
		}
		for _, g := range f.groups {
			if !under(t.Cgroup, g.Path) {
				continue
			}
			if g.Already {
				t.Before = BeforeFrozen
			}
			if g.Transient {
				t.Cgroup = parentOf(g.Path)
			}
			break
		}
	}
	f.st.Tasks = tasks
	return nil
}

// byStop is the third way. Parents are stopped before their children, so that
// the SIGCHLD about a child's stop finds its parent standing still and can be
// taken away before the parent goes on. A stopped task can still be continued
// by anybody who sends SIGCONT; nothing prevents that.
func (f *freeze) byStop() error {
	sent := map[int]bool{}
	const most = 2 // passes that find new processes; then it is a tree that forks as fast as it can
	grown := 0
	var caught *catcher
	defer func() { caught.release() }()
	for {
		if grown == most && !f.o.Held {
			grown++ // once
			var err error
			if caught, err = f.catch(); err != nil {
				return err
			}
		}
		batch, err := f.nextToStop(sent)
		if err != nil {
			return err
		}
		if len(batch) > 0 {
			if err := f.journal(); err != nil {
				return err
			}
		}
		for _, pid := range batch {
			if err := sys.Kill(pid, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return usable(fmt.Errorf("stopping pid %d: %w", pid, err))
			}
			if err := failpoint.Hit("freeze.signalled"); err != nil {
				return err
			}
		}
		if caught != nil && len(batch) == 0 {
			caught.release() // what was caught stops as it is let go
			caught = nil
		}
		if caught == nil {
			if err := failpoint.After("freeze.stopped", f.waitStopped(sent)); err != nil {
				return err
			}
		}
		fresh, err := f.tree.pass()
		if err != nil {
			return err
		}
		if err := f.late(); err != nil {
			return err
		}
		if len(fresh) > 0 && grown < most {
			grown++
		}
		if caught == nil && len(fresh) == 0 && !slices.ContainsFunc(f.tree.live(), func(pid int) bool { return !sent[pid] }) {
			return f.describeStopped()
		}
	}
}

// nextToStop finds the processes that are not stopped yet and whose parents
// are, notes what they were, and returns those that need a signal.
func (f *freeze) nextToStop(sent map[int]bool) ([]int, error) {
	var batch, all []int
	for _, pid := range f.tree.live() {
		if sent[pid] {
			continue
		}
		tasks, err := describe([]int{pid}, nil)
		if err != nil {
			return nil, err
		}
		if len(tasks) == 0 {
			continue
		}
		if _, in := f.tree.procs[tasks[0].PPID]; in && !sent[tasks[0].PPID] {
			continue
		}
		stopped := slices.Contains(f.o.Stopped, pid) ||
			slices.ContainsFunc(tasks, func(t Task) bool { return t.Before == BeforeStopped })
		for i := range tasks {
			if stopped && tasks[i].Before == BeforeRunning {
				tasks[i].Before = BeforeStopped // on its way into the group stop
			}
			f.before[tasks[i].TID] = tasks[i].Before
		}
		f.st.Tasks = append(f.st.Tasks, tasks...)
		all = append(all, pid)
		if !stopped {
			batch = append(batch, pid)
		}
	}
	for _, pid := range all {
		sent[pid] = true
	}
	return batch, nil
}

// waitStopped waits until every thread of those that were told to is stopped.
func (f *freeze) waitStopped(sent map[int]bool) error {
	if f.o.Held {
		return nil // they stop when the caller detaches
	}
	pause := 50 * time.Microsecond
	for {
		var told []int
		for _, pid := range f.tree.live() {
			if sent[pid] {
				told = append(told, pid)
			}
		}
		tasks, err := describe(told, nil)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(tasks, func(t Task) bool { return t.Before == BeforeRunning }) {
			return nil
		}
		if err := f.late(); err != nil {
			return err
		}
		time.Sleep(pause)
		pause = min(2*pause, 2*time.Millisecond)
	}
}

// describeStopped is describeAll for sigstop: new threads of a process that
// was running when it was told to stop were running too.
func (f *freeze) describeStopped() error {
	was := map[int]Before{}
	for pid := range f.tree.procs {
		was[pid] = f.before[pid]
	}
	tasks, err := describe(f.tree.live(), nil)
	if err != nil {
		return err
	}
	for i := range tasks {
		t := &tasks[i]
		switch b, known := f.before[t.TID]; {
		case t.Before == BeforeZombie:
		case known && b != BeforeZombie:
			t.Before = b
		case was[t.PID] == BeforeStopped:
			t.Before = BeforeStopped
		default:
			t.Before = BeforeRunning
		}
	}
	f.st.Tasks = tasks
	return nil
}
