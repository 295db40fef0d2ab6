package freezer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
)

// Held is a frozen tree all of whose live threads are in a ptrace stop of one
// tracer, or stand still without (Detached). Release or Kill ends it; if the
// tracer dies instead, the tree is frozen as before, or (version 1 while held)
// runs.
type Held struct {
	st      *State
	tr      *tracee.Tracer
	lock    *Lock
	h       *hierarchy
	groups  []*openGroup
	procs   []int
	threads []*thread
	strict  bool
	leaving bool // threads are held to set their calls back, and let go
	warn    func(string)

	fresh       bool
	detached    bool
	tids        map[int][]int // of a fresh one, by process
	interrupted Interrupted
	events      []*sys.FD // of a detached hold: cgroup.events of each group
}

// thread is one thread that has been seized.
type thread struct {
	pid, tid int
	before   Before
	stopped  bool // in a ptrace stop: it can be asked and detached
	dead     bool
	sig      unix.Signal // to be given at the detach
	job      unix.Signal // the signal of the job control stop that it is in; 0: none

	interrupted []byte // its registers, of a call that Loosen has set back
}

// HoldOptions are the options of Hold.
type HoldOptions struct {
	// Lenient holds what can be held, for a thaw: tasks that are gone, that a
	// debugger has or that may not be traced are let be. Otherwise each is an
	// error.
	Lenient bool
	// Partial says that the freeze may not have come to its end, for the cure
	// after the death of whoever froze: what is not there needs no thaw.
	Partial bool
	Timeout time.Duration // 0: DefaultTimeout
	Warn    func(string)  // told of what a lenient hold leaves out; may be nil
	// Locked is as in ThawOptions.
	Locked func(*State) error
	// Interrupted, when not nil, lets a tree that version 2 has frozen be held
	// without attaching to it.
	Interrupted Interrupted
	// Fresh says that the state is that of a freeze which has ended this moment:
	// it is true.
	Fresh bool
}

// Hold brings every live thread of a frozen tree into a ptrace stop of tr and
// takes the state's lock. Nothing about the tasks is changed; a tree frozen by
// version 1 is thawed while it is held, since its tasks stop only then.
func Hold(tr *tracee.Tracer, st *State, o HoldOptions) (*Held, error) {
	h := &Held{st: st, tr: tr, strict: !o.Lenient, warn: o.Warn, interrupted: o.Interrupted, fresh: o.Fresh}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if h.warn == nil {
		h.warn = func(string) {}
	}
	var err error
	if o.Fresh && st.open != nil {
		err = h.takeOver()
	} else if err = st.check(); err == nil {
		err = h.open(o.Partial)
	} else {
		return nil, err
	}
	err = failpoint.After("hold.locked", err)
	if err == nil && o.Locked != nil {
		err = o.Locked(st)
	}
	if err == nil {
		err = h.findProcesses(o.Partial)
	}
	if err == nil && h.canDetach() {
		h.detached = true
		err = failpoint.After("hold.watched", h.watch())
	} else if err == nil {
		err = tr.Do(func() error { return h.seizeAll(time.Now().Add(o.Timeout)) })
	}
	if err != nil {
		return nil, errors.Join(err, h.letGo(true))
	}
	return h, nil
}

// Here says whether the state is of this boot and this pid namespace.
func (s *State) Here() bool { return s.check() == nil }

// check refuses a state of another boot or pid namespace: its numbers mean
// other tasks here.
func (s *State) check() error {
	boot, err := procfs.BootID()
	if err != nil {
		return err
	}
	if boot != s.BootID {
		return fmt.Errorf("%w: it was made before the last boot of this machine, or on another one", ErrStale)
	}
	ns, err := ownPIDNS()
	if err != nil {
		return err
	}
	if ns != s.PIDNS {
		return fmt.Errorf("%w: it was made in another pid namespace", ErrStale)
	}
	return nil
}

// takeOver takes over what a freeze that has ended this moment has open, and takes the lock.
func (h *Held) takeOver() (err error) {
	h.h, h.groups = h.st.open.h, h.st.open.groups
	h.st.open = nil
	if len(h.groups) == 0 {
		return h.staleOrThawed()
	}
	for _, g := range h.groups {
		if g.Already {
			if g.frozen, err = h.h.wanted(g.dir); err != nil {
				return err
			}
		}
	}
	fd, err := sys.OpenAt(h.groups[0].dir.Int(), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	h.lock, err = flock(fd)
	return err
}

// open opens the groups and takes the lock.
func (h *Held) open(partial bool) error {
	var err error
	if h.st.Way != WayV1 && h.st.Way != WayV2 {
		h.lock, err = h.st.Lock()
		if errors.Is(err, ErrGone) && partial {
			return nil
		}
		if errors.Is(err, ErrGone) {
			return fmt.Errorf("%w: its tasks are gone", ErrStale)
		}
		return err
	}
	if h.h, err = openHierarchy(h.st.Way); err != nil {
		return err
	}
	for i, g := range h.st.Groups {
		dir, err := h.h.dir(g.Path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return err
		}
		h.groups = append(h.groups, &openGroup{Group: g, dir: dir})
		if i > 0 {
			continue
		}
		if h.lock, err = h.st.Lock(); err != nil {
			return err
		}
	}
	for _, g := range h.groups {
		if g.frozen, err = h.h.wanted(g.dir); err != nil {
			return err
		}
	}
	if partial {
		return nil
	}
	if len(h.groups) == 0 {
		return h.staleOrThawed()
	}
	for _, g := range h.groups {
		if !g.Already && !g.frozen {
			return fmt.Errorf("%w: cgroup %s is not frozen any more", ErrStale, g.Path)
		}
	}
	if h.strict && len(h.groups) < len(h.st.Groups) {
		return h.staleOrThawed()
	}
	return nil
}

func (h *Held) staleOrThawed() error {
	if live, _ := h.st.living(); len(live) > 0 {
		return fmt.Errorf("%w: pid %d (%s) is not frozen any more", ErrStale, live[0].PID, live[0].Comm)
	}
	return fmt.Errorf("%w: its tasks are gone", ErrStale)
}

// living splits the tasks of the state into those that are still there and
// those that are not.
func (s *State) living() (live, gone []Task) {
	for _, t := range s.Tasks {
		st, err := procfs.ReadThreadStat(t.PID, t.TID)
		if err != nil || st.Starttime != t.Start {
			gone = append(gone, t)
		} else {
			live = append(live, t)
		}
	}
	return live, gone
}

// findProcesses lists what has to be held: what is in the groups, which
// nobody can leave, and of groups that somebody else froze, or of a tree that
// was stopped by signals, the tasks of the state.
func (h *Held) findProcesses(partial bool) error {
	if h.fresh {
		h.procs = h.st.Processes()
		return nil // the freeze has refused a tree that we are in
	}
	live, gone := h.st.living()
	if len(gone) > 0 && h.strict {
		return fmt.Errorf("%w: pid %d (%s) is gone", ErrStale, gone[0].TID, gone[0].Comm)
	}
	if len(live) == 0 && !partial && len(h.st.Tasks) > 0 {
		return fmt.Errorf("%w: its tasks are gone", ErrStale)
	}
	if h.st.Way == WaySigstop && !partial && !slices.ContainsFunc(live, isStopped) {
		return h.staleOrThawed()
	}
	for _, t := range live {
		if !slices.Contains(h.procs, t.PID) {
			h.procs = append(h.procs, t.PID)
		}
	}
	for _, g := range h.groups {
		if g.Already {
			continue
		}
		pids, err := h.h.members(g.dir, false)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
		for _, pid := range pids {
			if !slices.Contains(h.procs, pid) {
				h.procs = append(h.procs, pid)
			}
		}
	}
	return refuseOwn(func(pid int) bool { return slices.Contains(h.procs, pid) })
}

// isStopped reports whether a task is in job control stop.
func isStopped(t Task) bool {
	st, err := procfs.ReadThreadStat(t.PID, t.TID)
	return err == nil && st.State == 'T'
}

// needed reports whether the threads have to be stopped at all: a group that
// was made but never frozen holds tasks that run.
func (h *Held) needed() bool {
	if h.h == nil || h.strict {
		return true
	}
	return slices.ContainsFunc(h.groups, func(g *openGroup) bool { return g.frozen || g.Already })
}

// seizeAll runs on the tracer's thread.
func (h *Held) seizeAll(deadline time.Time) error {
	if !h.needed() {
		return nil
	}
	before := h.befores()
	// Attaching to a task in job control stop waits for it to enter the ptrace
	// stop (JOBCTL_TRAPPING in kernel/ptrace.c), which it cannot while version 1
	// holds it: these come behind the thaw, and stay stopped meanwhile.
	var later []*thread
	seen := map[int]bool{}
	for grown := true; grown; {
		grown = false
		for _, pid := range h.procs {
			tids, err := procfs.Threads(pid)
			if procfs.IsGone(err) {
				continue
			}
			if err != nil {
				return err
			}
			for _, tid := range tids {
				if seen[tid] {
					continue
				}
				seen[tid], grown = true, true
				t := &thread{pid: pid, tid: tid, before: before(pid, tid)}
				if h.st.Way == WayV1 && (t.before == BeforeStopped || waitsIn(t, "do_signal_stop")) {
					later = append(later, t)
				} else if err := h.seize(t); err != nil {
					return err
				}
			}
		}
	}
	if err := failpoint.Hit("hold.seized"); err != nil {
		return err
	}
	if err := failpoint.After("hold.thawed", h.thawForStop()); err != nil {
		return err
	}
	for _, t := range later {
		if err := h.seize(t); err != nil {
			return err
		}
	}
	for _, t := range h.threads {
		if err := h.awaitStop(t, deadline); err != nil {
			return err
		}
	}
	return failpoint.Hit("hold.stopped")
}

// inVfork says whether a thread waits in vfork(2) for its child.
func inVfork(t *thread, st *procfs.Stat) bool {
	return st.State == 'D' && (waitsIn(t, "wait_for_vfork_done", "kernel_clone") || inClone(t))
}

func vforkError(t *thread, st *procfs.Stat) error {
	return fmt.Errorf("pid %d (%s): %w", t.tid, st.Comm, ErrVfork)
}

// seize attaches to one thread and asks it to stop.
func (h *Held) seize(t *thread) error {
	st, err := procfs.ReadThreadStat(t.pid, t.tid)
	if procfs.IsGone(err) || (err == nil && (st.State == 'Z' || st.State == 'X')) {
		return nil
	}
	if err != nil {
		return err
	}
	if inVfork(t, &st) {
		// It cannot stop before its child has ended or called execve, and it
		// has no call to set back.
		if h.strict && !h.leaving {
			return vforkError(t, &st)
		}
		return nil
	}
	err = sys.PtraceSeize(t.tid, 0)
	if err == nil {
		err = sys.PtraceInterrupt(t.tid)
		h.threads = append(h.threads, t)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		err = fmt.Errorf("attaching to pid %d (%s): %w", t.tid, st.Comm, err)
		if s, e := procfs.ReadThreadStatus(t.pid, t.tid); e == nil && s.TracerPID != 0 {
			tracer, _ := procfs.ReadStat(s.TracerPID)
			err = fmt.Errorf("pid %d (%s) is %w by pid %d (%s)", t.tid, st.Comm, ErrTraced, s.TracerPID, tracer.Comm)
		}
		if h.strict {
			return err
		}
		h.warn(err.Error() + ": an interrupted call of it may return EINTR")
	}
	return nil
}

// inClone reports whether a thread sleeps in a call that makes a task. Where it sleeps wchan does not tell of one that has just fallen
// asleep (it may be on a run queue still: get_wchan in kernel/sched/core.c), but this waits for it.
func inClone(t *thread) bool {
	a, err := arch.Native()
	if err != nil {
		return false
	}
	var r procfs.Reader
	b, err := r.Thread(t.pid, t.tid, "syscall")
	word, _, _ := strings.Cut(string(b), " ")
	nr, e := strconv.Atoi(word)
	return err == nil && e == nil && nr >= 0 && (nr == a.Sys.Vfork || nr == a.Sys.Clone || nr == a.Sys.Clone3)
}

// waitsIn reports whether a thread sleeps in one of these kernel functions.
// Without the right to know it does not seem to.
func waitsIn(t *thread, functions ...string) bool {
	var r procfs.Reader
	b, err := r.Thread(t.pid, t.tid, "wchan")
	return err == nil && slices.Contains(functions, string(b))
}

// thawForStop lets a tree that version 1 has frozen run into the stops that
// wait for it.
func (h *Held) thawForStop() error {
	if h.st.Way != WayV1 {
		return nil
	}
	for _, g := range h.groups {
		if !g.frozen {
			if g.Already {
				return fmt.Errorf("cgroup %s is frozen by one above it: thaw that first", g.Path)
			}
			continue
		}
		if g.Already {
			pids, err := h.h.members(g.dir, false)
			if err != nil {
				return err
			}
			for _, pid := range pids {
				if !slices.Contains(h.procs, pid) {
					return fmt.Errorf("cgroup %s, which somebody else froze, also holds pid %d: thaw it first", g.Path, pid)
				}
			}
		}
		if err := h.h.setFrozen(g.dir, false); err != nil {
			return err
		}
	}
	return nil
}

// awaitStop waits until a thread has entered its stop or died.
func (h *Held) awaitStop(t *thread, deadline time.Time) error {
	pause := 10 * time.Microsecond
	for {
		tid, status, err := sys.Wait(t.tid, unix.WNOHANG)
		switch {
		case errors.Is(err, unix.ECHILD):
			t.dead = true
			return nil
		case err != nil:
			return fmt.Errorf("waiting for pid %d to stop: %w", t.tid, err)
		case tid == 0:
			if time.Now().After(deadline) {
				if !h.strict {
					h.warn(fmt.Sprintf("pid %d does not stop", t.tid))
					return nil
				}
				st, _ := procfs.ReadThreadStat(t.pid, t.tid)
				return &TimeoutError{Tasks: []Task{{PID: t.pid, TID: t.tid, Comm: st.Comm}}}
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Millisecond)
			continue
		case status.Dead():
			t.dead = true
			return nil
		case status.EventStop():
			t.stopped = true
			if status.GroupStop() {
				t.job = status.Signal()
			}
			return nil
		}
		// A signal came first. It is delivered as it would have been, and the
		// stop follows behind its handler's frame.
		sig := unix.Signal(0)
		if status.SignalStop() {
			sig = status.Signal()
		}
		if err := sys.PtraceInterrupt(t.tid); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if err := sys.PtraceCont(t.tid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
}

// Tracer is the tracer that holds the threads.
func (h *Held) Tracer() *tracee.Tracer { return h.tr }

// PIDs returns the processes that are held, zombies included, in the order of
// the state: parents before their children.
func (h *Held) PIDs() []int { return slices.Clone(h.procs) }

// Before returns the state that a process had before the freeze.
func (h *Held) Before(pid int) Before {
	for i := range h.st.Tasks {
		if t := &h.st.Tasks[i]; t.PID == pid && t.TID == pid {
			return t.Before
		}
	}
	return BeforeRunning
}

// State is what is held.
func (h *Held) State() *State { return h.st }

// FormerCgroup returns the path of the cgroup that line shows as it would be
// without the freeze.
func (h *Held) FormerCgroup(_ int, line procfs.Cgroup) string { return h.st.FormerCgroup(line) }

// FormerCgroup returns the path of the cgroup that line shows as it would be
// without the freeze.
func (s *State) FormerCgroup(line procfs.Cgroup) string {
	if (s.Way == WayV2 && line.Hierarchy == 0) || (s.Way == WayV1 && line.Has("freezer")) {
		for _, g := range s.Groups {
			if g.Transient && under(line.Path, g.Path) {
				return parentOf(g.Path)
			}
		}
	}
	return line.Path
}

// setBack makes the stop invisible to a call that would return EINTR because
// of it, unless a signal is pending that the thread would take.
func (h *Held) setBack(t *thread) error {
	var buf [1024]byte
	n, err := sys.PtraceGetRegs(t.tid, buf[:])
	if err != nil {
		return fmt.Errorf("reading the registers of pid %d: %w", t.tid, err)
	}
	native, err := arch.Native()
	if err != nil {
		return nil //nolint:nilerr // a port that knows no calls yet sets none back
	}
	regs := buf[:n]
	a, err := tracee.CallArch(native, t.tid, regs)
	if err != nil {
		return err
	}
	if a.Restart(regs) != arch.RestartEINTR {
		return nil // the kernel sets the other classes back by itself
	}
	st, err := procfs.ReadThreadStatus(t.pid, t.tid)
	if err != nil {
		return err
	}
	if deliverable(st) {
		return nil
	}
	a.Rewind(regs)
	if err := sys.PtraceSetRegs(t.tid, regs); err != nil {
		return fmt.Errorf("setting the registers of pid %d: %w", t.tid, err)
	}
	return nil
}

// deliverable reports whether a signal is pending that the thread would act
// on. A caught signal interrupts the call as it always did; one that is
// ignored, by default or by wish, never would have.
func deliverable(st *procfs.Status) bool {
	return Deliverable(st.SigPnd|st.ShdPnd, st.SigBlk, st.SigIgn, st.SigCgt)
}

// Deliverable reports whether of these pending signals one would be acted on,
// given what is blocked, ignored and caught.
func Deliverable(pending, blocked, ignored, caught uint64) bool {
	harmless := bit(unix.SIGCHLD) | bit(unix.SIGCONT) | bit(unix.SIGURG) | bit(unix.SIGWINCH)
	return pending&^blocked&^ignored&^(harmless&^caught) != 0
}
