package engine

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// The records of processes and threads.

func dumpProcess(d *object.Dumper, p *object.Process, s *tasks.Process, held *treeHold) (stream.Ref, error) {
	if err := tasks.Place(p, s, d.InTree, aliveIn(d)); err != nil {
		return stream.Ref{}, err
	}
	var err error
	if s.Cgroups, err = cgroupsOf(p, held); err != nil {
		return stream.Ref{}, p.Error("", err)
	}
	if p.Zombie {
		if err := tasks.DumpZombie(p, s); err != nil {
			return stream.Ref{}, err
		}
		return d.Add(tasks.ProcessKind.Type, s), nil
	}
	if p.Stat.State == 'Z' {
		// While the process is stopped by job control, stat shows the stop signal instead.
		lead, err := d.View.Threads([]int{p.PID})
		if err != nil {
			return stream.Ref{}, fmt.Errorf("looking at a dead leader: %w", err)
		}
		code, ok := lead[0].State.ExitCode.Get()
		if !ok {
			code = int32(p.Stat.ExitCode)
		}
		if err := tasks.DumpDeadLeader(p, s, uint32(code)); err != nil {
			return stream.Ref{}, err
		}
	}
	if s.ParentThread, err = parentThread(p); err != nil {
		return stream.Ref{}, err
	}
	if s.Limits, err = tasks.DumpLimits(p); err != nil {
		return stream.Ref{}, err
	}
	if s.OOMScore, err = tasks.DumpOOMScore(p); err != nil {
		return stream.Ref{}, err
	}
	s.LoginUID = tasks.DumpLogin(d, p)
	if s.AutoNice, err = tasks.DumpAutogroup(p, s); err != nil {
		return stream.Ref{}, err
	}
	subreaper, ok := p.View.Subreaper.Get()
	if !ok {
		return stream.Ref{}, p.Error("", &object.Lacking{What: "the kernel view does not know whether it is a subreaper"})
	}
	s.Subreaper, s.StopSignal, s.Unwaited, s.Continued = subreaper, p.Job.StopSignal, p.Job.Unwaited, p.Job.Continued
	if err := held.do(func() (err error) { s.Signals, err = signals.DumpProcess(d.View, p); return err }); err != nil {
		return stream.Ref{}, err
	}
	return d.Add(tasks.ProcessKind.Type, s), nil
}

// aliveIn says whether a number of the tree's pid namespace belongs to any task outside of the tree.
func aliveIn(d *object.Dumper) func(id int) bool {
	own := len(d.Root.Status.NSpid) > 1
	return func(id int) bool {
		if own { // the tree is the whole namespace
			return false
		}
		_, err := procfs.ReadStat(id)
		return err == nil
	}
}

// parentThread returns the thread of the parent whose child p is, 0 for its leader.
func parentThread(p *object.Process) (int32, error) {
	if p.Parent == nil {
		return 0, nil
	}
	tid, ok := p.Leader().View.Parent.Get()
	for _, t := range p.Parent.Threads {
		switch {
		case ok:
		case len(p.Parent.Threads) == 1:
			tid = t.TID
		default:
			children, err := procfs.ReadChildren(p.Parent.PID, t.TID)
			if err != nil {
				return 0, p.Error("", fmt.Errorf("looking for the thread of its parent that it is a child of: %w", err))
			}
			if slices.Contains(children, p.PID) {
				tid = t.TID
			}
		}
		if t.TID == tid && t.TID != p.Parent.PID {
			return int32(t.ID), nil
		}
	}
	return 0, nil
}

// sharing are the numbers by which the image says which threads share I/O contexts and lists of semaphore adjustments.
type sharing struct{ io, sem map[kernelview.ID]uint32 }

// shareNumbers gives every such object that several threads of the tree have the number of the first of them.
func shareNumbers(d *object.Dumper) sharing {
	number := func(of func(*kernelview.Thread) kernelview.Maybe[kernelview.ID]) map[kernelview.ID]uint32 {
		first, shared := map[kernelview.ID]uint32{}, map[kernelview.ID]uint32{}
		for _, p := range d.Processes {
			for _, t := range p.Threads {
				id, ok := of(t.View).Get()
				if !ok || id == 0 {
					continue
				}
				if n, met := first[id]; met {
					shared[id] = n
				} else {
					first[id] = uint32(t.ID)
				}
			}
		}
		return shared
	}
	return sharing{
		io:  number(func(v *kernelview.Thread) kernelview.Maybe[kernelview.ID] { return v.IOContext }),
		sem: number(func(v *kernelview.Thread) kernelview.Maybe[kernelview.ID] { return v.SysVSem }),
	}
}

// dumpThread runs on the tracer's thread where there is one.
func dumpThread(d *object.Dumper, t *object.Thread, process stream.Ref, online []byte, shared sharing) (*tasks.Thread, error) {
	s := &tasks.Thread{Process: process, TID: int32(t.ID), Comm: t.Status.Name, Files: t.Files, FS: t.FS,
		IOContext: shared.io[t.View.IOContext.V], SysVSem: shared.sem[t.View.SysVSem.V]}
	if t.Child != nil {
		s.Vfork = int32(t.Child.ID)
	}
	var err error
	if s.Creds, err = tasks.DumpCredentials(t); err != nil {
		return nil, err
	}
	if s.Sched, err = tasks.DumpScheduling(t, online); err != nil {
		return nil, err
	}
	if err := tasks.DumpSeccomp(d, t, s); err != nil {
		return nil, err
	}
	s.Prctls = tasks.DumpPrctls(d, t)
	s.Dispatch, s.Keys = tasks.DumpDispatch(d, t), tasks.DumpOwnKeys(t)
	if err := tasks.DumpPointers(d, t, s); err != nil {
		return nil, err
	}
	if s.Signals, err = signals.DumpThread(t, d.Arch, d.Offsets); err != nil {
		return nil, err
	}
	if s.Regs, err = dumpRegsets(d.Arch, t); err != nil {
		return nil, t.Process.Error("", fmt.Errorf("reading registers of thread %d: %w", t.TID, passing(err)))
	}
	d.AddPlain(tasks.ThreadKind.Type, s)
	return s, nil
}

// dumpRegsets reads every register set; NT_PRSTATUS is as readRegisters and the restart left it.
func dumpRegsets(a *arch.Arch, t *object.Thread) ([]tasks.Regset, error) {
	var out []tasks.Regset
	for _, rs := range a.Regsets {
		if rs.Note == arch.NTPRStatus {
			out = append(out, tasks.Regset{Note: rs.Note, Data: t.Regs})
			continue
		}
		if t.Kernel != nil {
			if data, ok := regset(t.Kernel, rs.Note); ok {
				out = append(out, tasks.Regset{Note: rs.Note, Data: data})
			}
			continue
		}
		size := rs.Size
		if size == 0 {
			size = 16 << 10 // above the xsave area with AMX tiles, about 11 KiB
		}
		buf := make([]byte, size)
		n, err := sys.PtraceGetRegset(t.TID, rs.Note, buf)
		if rs.Optional && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO)) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rs.Name, err)
		}
		if n == len(buf) && rs.Size == 0 {
			return nil, fmt.Errorf("%s: more than %d bytes", rs.Name, n)
		}
		out = append(out, tasks.Regset{Note: rs.Note, Data: append([]byte(nil), buf[:n]...)})
	}
	return out, nil
}

// cgroupTask is a live thread of a process: a dead leader stays where it was when the others are moved.
func cgroupTask(p *object.Process) int {
	if len(p.Threads) > 0 {
		return p.Leader().TID
	}
	return p.PID
}

// cgroupsOf returns the memberships of a process, those from before the freeze where the freezer has moved it.
func cgroupsOf(p *object.Process, held *treeHold) ([]tasks.Cgroup, error) {
	lines, err := procfs.ReadCgroups(cgroupTask(p))
	if err != nil {
		return nil, err
	}
	var out []tasks.Cgroup
	for _, l := range lines {
		out = append(out, tasks.Cgroup{Controllers: l.Controllers, Path: held.FormerCgroup(p.PID, l)})
	}
	return out, nil
}
