package engine

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// A tree in a frozen cgroup of version 2 is dumped without attaching to it: what ptrace would tell is read from the kernel's
// memory, and before the image is ended it is proved that nothing ran meanwhile, which a ptrace stop would have prevented. What the
// view does not know of a single thread makes the whole hold an attached one.

// interrupted makes of a view what tells the freezer whose call has returned EINTR because of the freeze alone. open may be called
// again and again.
func interrupted(open func() (kernelview.View, error)) freezer.Interrupted {
	return func(tids []int) ([]int, error) {
		a, err := arch.Native()
		if err != nil {
			return nil, err
		}
		view, err := open()
		if err != nil {
			return nil, err
		}
		rv, ok := view.(kernelview.RegisterView)
		if !ok {
			return nil, errors.ErrUnsupported
		}
		calls, err := rv.Calls(tids)
		if err != nil {
			return nil, err
		}
		var hold []int
		for i := range calls {
			if mayReturnEINTR(a, &calls[i]) {
				hold = append(hold, calls[i].Tid)
			}
		}
		return hold, nil
	}
}

// mayReturnEINTR says whether a thread, let go as it is, would or could see EINTR that no signal explains. One that has not reached its
// freezer yet may still be on the way to it, out of such a call.
func mayReturnEINTR(a *arch.Arch, c *kernelview.Call) bool {
	known := c.PRStatus.Known && c.Frozen.Known && c.Pending.Known && c.SharedPending.Known && c.Blocked.Known && c.Ignored.Known && c.Caught.Known
	if !known || !c.Frozen.V || a.CheckPRStatus(c.PRStatus.V) != nil {
		return true
	}
	return a.Restart(c.PRStatus.V) == arch.RestartEINTR &&
		!freezer.Deliverable(c.Pending.V|c.SharedPending.V, c.Blocked.V, c.Ignored.V, c.Caught.V)
}

// kinship makes of a view what tells the freezer who descends from whom; nil where it does not.
func kinship(view kernelview.View) freezer.Kinship {
	kv, ok := view.(kernelview.KinView)
	if !ok {
		return nil
	}
	return func(tids []int) ([]freezer.Kin, error) {
		all, err := kv.Kin(tids)
		if err != nil {
			return nil, err
		}
		out := make([]freezer.Kin, len(all))
		for i := range all {
			out[i] = freezer.Kin(all[i])
		}
		return out, nil
	}
}

// A lazyView is a view that is opened when it is first needed.
type lazyView struct {
	view kernelview.View
	err  error
}

func (l *lazyView) open() (kernelview.View, error) {
	if l.view == nil && l.err == nil {
		l.view, l.err = kernelview.Open(kernelview.Options{})
	}
	return l.view, l.err
}

func (l *lazyView) close() {
	if l.view != nil {
		_ = l.view.Close()
		l.view = nil
	}
}

// note remembers how each live thread stands, before anything else is looked at.
func (h *treeHold) note() error {
	if !h.Detached() {
		return nil
	}
	var tids []int
	var marks []kernelview.Mark
	for try := 0; ; try++ {
		var err error
		if tids, err = h.Threads(); err != nil {
			return err
		}
		marks, err = h.view.Marks(tids)
		if errors.Is(err, unix.ESRCH) && try < 3 {
			continue // a zombie that its parent has waited for
		}
		if err != nil {
			return fmt.Errorf("looking at the frozen tree: %w", err)
		}
		break
	}
	for i := range marks {
		switch {
		case marks[i].Dead:
		case !marks[i].Known:
			return h.attach()
		default:
			h.tids, h.marks = append(h.tids, tids[i]), append(h.marks, marks[i])
		}
	}
	return nil
}

// attach brings all threads into ptrace stops: what the view does not know ptrace does.
func (h *treeHold) attach() error {
	err := h.Attach(0)
	if errors.Is(err, freezer.ErrVfork) {
		return &vforkError{&object.Unsupported{What: err.Error(), Do: vforkHint}}
	}
	if err != nil {
		return freezeError(err)
	}
	return nil
}

// readRegisters reads the registers of all threads, from the kernel's memory or by ptrace.
func (h *treeHold) readRegisters(d *object.Dumper) error {
	if h.Detached() {
		if !breakpoints(d) { // those ptrace tells
			done, err := h.viewRegisters(d)
			if done || err != nil {
				return err
			}
		}
		if err := h.attach(); err != nil {
			return err
		}
	}
	return h.tracer.Do(func() error { return readRegisters(d) })
}

// breakpoints says whether a thread has hardware breakpoints.
func breakpoints(d *object.Dumper) bool {
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			if on, _ := t.View.Breakpoints.Get(); on {
				return true
			}
		}
	}
	return false
}

// viewRegisters reads them from the kernel's memory; it is not done when something is unknown.
func (h *treeHold) viewRegisters(d *object.Dumper) (done bool, err error) {
	var threads []*object.Thread
	var tids []int
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			threads, tids = append(threads, t), append(tids, t.TID)
		}
	}
	all, err := h.view.Registers(tids)
	if err != nil {
		return false, fmt.Errorf("reading registers: %w", err)
	}
	for i := range all {
		if !complete(d.Arch, &all[i]) {
			return false, nil
		}
	}
	for i, t := range threads {
		t.Kernel, t.Regs, t.ABI = &all[i], all[i].PRStatus.V, d.Arch
		const enosys = -38 // what the result register holds as long as the call goes on
		if nr, in := t.ABI.SyscallNr(t.Regs); in && t.ABI.Result(t.Regs) == enosys {
			// A frozen task stands still between a call and its return but for this one, in whose middle it counts as frozen.
			t.InVfork = slices.Contains([]string{"vfork", "clone", "clone3"}, t.ABI.SyscallName(nr))
		}
		rewindInterrupted(d, t)
	}
	return true, nil
}

// complete says whether nothing has to be asked by ptrace.
func complete(a *arch.Arch, k *kernelview.Registers) bool {
	if !k.PRStatus.Known || a.CheckPRStatus(k.PRStatus.V) != nil || !k.Frozen.V || !k.Mask.Known || !k.Sets.Known ||
		!k.Queue.Known || !k.SharedQueue.Known || !k.Rseq.Known {
		return false
	}
	for _, want := range a.Regsets {
		if _, ok := regset(k, want.Note); !ok && !want.Optional {
			return false
		}
	}
	return true
}

// regset finds a register set.
func regset(k *kernelview.Registers, note uint32) ([]byte, bool) {
	if note == arch.NTPRStatus {
		return k.PRStatus.V, true
	}
	for _, s := range k.Sets.V {
		if s.Note == note {
			return s.Data, true
		}
	}
	return nil, false
}

// stoodStill proves that no thread has run since the look began. A thread that a signal has woken in its freezer was on a processor
// for a moment, without leaving the kernel: then it is the cgroup that tells whether anything was let go.
func (h *treeHold) stoodStill() error {
	if !h.Detached() {
		return nil // ptrace stops hold them
	}
	changed, refrozen, err := h.compare()
	if err != nil || !changed || refrozen == sameFreeze {
		return err
	}
	if refrozen == otherFreeze {
		return ran("its cgroup was thawed")
	}
	// An older kernel says only that there was news of the cgroup, which may be that of our own freeze, told late.
	stirred, err := h.Stirred()
	if err != nil {
		return err
	}
	if stirred {
		return ran("its cgroup was thawed")
	}
	_, _, err = h.compare()
	return err
}

// What is known of the freeze of a thread that was on a processor.
type freezeNews int

const (
	unknownFreeze freezeNews = iota
	sameFreeze               // its cgroup has not been thawed since
	otherFreeze
)

// compare says whether a thread was on a processor, and what is known of the freeze of those; one that has changed otherwise is an
// error.
func (h *treeHold) compare() (changed bool, news freezeNews, err error) {
	now, err := h.view.Marks(h.tids)
	if errors.Is(err, unix.ESRCH) {
		return false, 0, ran("a task of it has ended")
	}
	if err != nil {
		return false, 0, fmt.Errorf("making sure that nothing ran: %w", err)
	}
	news = sameFreeze
	for i := range now {
		was, is := h.marks[i], now[i]
		if was == is {
			continue
		}
		st, _ := procfs.ReadStat(h.tids[i])
		name := fmt.Sprintf("pid %d (%s)", h.tids[i], st.Comm)
		switch {
		case is.Dead:
			return false, 0, ran(name + " has ended")
		case was.Group != is.Group:
			return false, 0, ran(name + " was moved to another cgroup")
		case !is.Known, !is.Frozen, was.Regs != is.Regs, was.Traced != is.Traced:
			return false, 0, ran(name + " was let run")
		}
		changed = true
		switch {
		case !was.FrozenSince.Known || !is.FrozenSince.Known || was.FrozenSince.V == 0:
			news = min(news, unknownFreeze)
		case was.FrozenSince != is.FrozenSince:
			return true, otherFreeze, nil
		}
	}
	return changed, news, nil
}

// ran is the error of a tree that did not stand still.
func ran(what string) error {
	return &hinted{fmt.Errorf("the tree did not stand still while it was dumped: %s; the image is of no use", what),
		"something else let its tasks go on (a service manager, another freezer, a kill): keep it from doing so, and dump again"}
}
