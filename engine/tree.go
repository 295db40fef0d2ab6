package engine

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// errTransient says that the tree was caught in a state that passes by itself within moments, such as a vfork whose
// child has not called exec yet: letting it go on for a moment and looking again cures it.
var errTransient = errors.New("transient state")

// collectTree reads, from outside, what /proc and the kernel view say of every process of a stopped tree. pids come in
// any order.
func collectTree(d *object.Dumper, held *treeHold) error {
	byPID := map[int]*object.Process{}
	for _, pid := range held.PIDs() {
		p, err := readProcess(d, held, pid)
		if err != nil {
			return err
		}
		byPID[pid] = p
		d.Processes = append(d.Processes, p)
	}
	for _, p := range d.Processes {
		p.Parent = byPID[p.Stat.PPID]
	}
	orderByAncestry(d.Processes)
	if len(d.Processes) == 0 {
		return errors.New("internal error: a tree without processes")
	}
	d.Root = d.Processes[0]
	for _, p := range d.Processes {
		if p.Zombie && p.Parent == nil {
			return ended(&p.Stat)
		}
	}
	if err := numberTree(d); err != nil {
		return err
	}
	if err := viewTree(d, held); err != nil {
		return err
	}
	return held.readRegisters(d)
}

// ended refuses a zombie that nobody in the image could wait for.
func ended(st *procfs.Stat) error {
	return &object.Error{PID: st.PID, Comm: st.Comm, FD: -1,
		Err: object.Unsupportedf("has ended, and its parent, pid %d, is not part of what is dumped", st.PPID)}
}

func readProcess(d *object.Dumper, held *treeHold, pid int) (*object.Process, error) {
	p := &object.Process{PID: pid}
	var err error
	if p.Stat, err = held.Stat(pid); err != nil {
		return nil, err
	}
	if p.Status, err = procfs.ReadStatus(pid); err != nil {
		return nil, err
	}
	tids, err := held.TIDs(pid)
	if err != nil {
		return nil, err
	}
	siblings, err := held.siblings(d, p, tids)
	if err != nil {
		return nil, err
	}
	// The leader comes first, also where numbers have wrapped around and a later thread has a lower one.
	sort.SliceStable(tids, func(i, j int) bool { return tids[i] == pid && tids[j] != pid })
	for _, tid := range tids {
		t := &object.Thread{Process: p, TID: tid, Status: p.Status, Stat: p.Stat}
		if s := siblings[tid]; s != nil {
			t.Status, t.Stat.State = s, s.State
		} else if tid != pid {
			if t.Status, err = procfs.ReadThreadStatus(pid, tid); err != nil {
				return nil, err
			}
			if t.Stat, err = procfs.ReadThreadStat(pid, tid); err != nil {
				return nil, err
			}
		}
		if worker, err := isIOWorker(t); err != nil {
			return nil, err
		} else if worker {
			p.IOWorkers++
			continue
		}
		if t.Stat.State == 'Z' || t.Stat.State == 'X' {
			if tid != pid {
				return nil, p.Error("", fmt.Errorf("thread %d is ending: %w", tid, errTransient))
			}
			continue
		}
		p.Threads = append(p.Threads, t)
	}
	p.Zombie = p.Stat.State == 'Z' && len(p.Threads) == 0
	if !p.Zombie && len(p.Threads) == 0 {
		return nil, p.Error("", fmt.Errorf("has no live thread in state %c: %w", p.Stat.State, errTransient))
	}
	return p, nil
}

// isIOWorker says whether a thread is one that the kernel has made to work for io_uring (create_io_thread in kernel/fork.c). It runs no
// code of the program, comes by itself when it is needed, and while no request is in flight it has nothing to do.
func isIOWorker(t *object.Thread) (bool, error) {
	const ioWorker = 0x10 // PF_IO_WORKER, linux/sched.h, since Linux 5.12
	if t.TID == t.Process.PID || !strings.HasPrefix(t.Status.Name, "iou-") {
		return false, nil
	}
	st, err := procfs.ReadThreadStat(t.Process.PID, t.TID) // any thread may be called so
	return st.Flags&ioWorker != 0, err
}

// orderByAncestry sorts parents before children, roots first, by start time and then pid among equals.
func orderByAncestry(procs []*object.Process) {
	depth := map[*object.Process]int{}
	for _, p := range procs {
		n := 0
		for a := p.Parent; a != nil && n <= len(procs); a = a.Parent {
			n++
		}
		depth[p] = n
	}
	sort.SliceStable(procs, func(i, j int) bool {
		a, b := procs[i], procs[j]
		switch {
		case depth[a] != depth[b]:
			return depth[a] < depth[b]
		case a.Stat.Starttime != b.Stat.Starttime:
			return a.Stat.Starttime < b.Stat.Starttime
		}
		return a.PID < b.PID
	})
}

// numberTree gives every task its number in the pid namespace of the tree's root.
func numberTree(d *object.Dumper) error {
	levels := len(d.Root.Status.NSpid)
	if levels == 0 {
		return d.Root.Error("", &object.Lacking{What: "the kernel does not tell pids by namespace (NSpid, Linux 4.1)"})
	}
	for _, p := range d.Processes {
		if len(p.Status.NSpid) == 0 {
			return p.Error("", fmt.Errorf("has been reaped: %w", errTransient))
		}
		if len(p.Status.NSpid) != levels {
			d.Refuse(p.Error("", object.Unsupportedf("is in another pid namespace than the root of its tree, pid %d", d.Root.PID)))
		}
		p.ID = p.Status.NSpid[len(p.Status.NSpid)-1]
		for _, t := range p.Threads {
			if len(t.Status.NSpid) == 0 {
				return p.Error("", fmt.Errorf("thread %d is ending: %w", t.TID, errTransient))
			}
			t.ID = t.Status.NSpid[len(t.Status.NSpid)-1]
		}
	}
	return nil
}

// viewTree asks the kernel view about all live threads and processes at once.
func viewTree(d *object.Dumper, held *treeHold) error {
	var threads []*object.Thread
	var tids, leaders []int
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			threads, tids = append(threads, t), append(tids, t.TID)
		}
		if !p.Zombie {
			leaders = append(leaders, p.Leader().TID)
		}
	}
	tv, err := d.View.Threads(tids)
	if err != nil {
		return fmt.Errorf("looking at threads: %w", err)
	}
	for i := range tv {
		threads[i].View = &tv[i]
	}
	pv, err := d.View.Processes(leaders)
	if err != nil {
		return fmt.Errorf("looking at processes: %w", err)
	}
	i := 0
	for _, p := range d.Processes {
		if !p.Zombie {
			p.View = &pv[i]
			i++
			p.Job.StopSignal = 0
			// A freeze by SIGSTOP looks the same, so the freezer says who was stopped before it came.
			if stopped, ok := p.View.Stopped.Get(); ok && stopped && before(held, p.Leader()) == freezer.BeforeStopped {
				p.Job.StopSignal, _ = p.Leader().View.State.StopSignal.Get()
				unwaited, known := p.View.StopUnwaited.Get()
				if !known {
					d.Warn("pid %d (%s): whether its parent has been told that it is stopped cannot be known: it is taken to have been", p.PID, p.Comm())
				}
				p.Job.Unwaited = unwaited != 0
			} else {
				p.Job.Continued, _ = p.View.ContUnwaited.Get()
			}
		}
	}
	return nil
}

// before is the state that a thread had before the freeze.
func before(held *treeHold, t *object.Thread) freezer.Before {
	for i := range held.State().Tasks {
		if b := &held.State().Tasks[i]; b.TID == t.TID {
			return b.Before
		}
	}
	return held.Before(t.Process.PID)
}

// readRegisters reads by ptrace. It runs on the tracer's thread.
func readRegisters(d *object.Dumper) error {
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			buf := make([]byte, d.Arch.PRStatusSize)
			n, err := sys.PtraceGetRegs(t.TID, buf)
			if err == nil {
				err = d.Arch.CheckPRStatus(buf[:n])
			}
			if err == nil {
				t.Regs = buf[:n]
				t.ABI, err = tracee.CallArch(d.Arch, t.TID, t.Regs)
			}
			if err != nil {
				return p.Error("", fmt.Errorf("reading registers of thread %d: %w", t.TID, passing(err)))
			}
			rewindInterrupted(d, t)
		}
	}
	return nil
}

// passing makes it a transient error that a thread which was there is gone: nothing stops one that is on its way to its end.
func passing(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%w: %w", err, errTransient)
	}
	return err
}

// rewindInterrupted: where the stop alone made a call return EINTR, it is about to be made again in the image.
func rewindInterrupted(d *object.Dumper, t *object.Thread) {
	if t.ABI.Restart(t.Regs) == arch.RestartEINTR && (t.Status.SigPnd|t.Status.ShdPnd)&^t.Status.SigBlk&t.Status.SigCgt == 0 {
		nr, _ := t.ABI.SyscallNr(t.Regs)
		t.ABI.RewindSyscall(t.Regs, nr)
	}
}

// checkTree refuses what no family looks at: states of whole processes.
func checkTree(d *object.Dumper) error {
	for _, p := range d.Processes {
		if p.Zombie {
			continue
		}
		for _, t := range p.Threads {
			if !t.View.SemUndo.Known {
				d.Refuse(p.Error("", &object.Unsupported{
					What: fmt.Sprintf("thread %d may have System V semaphore adjustments to undo (SEM_UNDO): there are semaphores that it can use, and only the BPF source knows", t.TID),
					Do:   "dump it as root on a kernel with BTF (--source bpf), or when no semaphores are in use (ipcs -s)"}))
			}
		}
		if id, ok := p.Leader().View.MM.Get(); !ok || id == 0 {
			return p.Error("", fmt.Errorf("has no address space: %w", errTransient))
		}
		if exiting, ok := p.View.GroupExit.Get(); ok && exiting {
			return p.Error("", fmt.Errorf("is ending: %w", errTransient))
		}
	}
	return nil
}
