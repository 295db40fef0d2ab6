package engine

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/memory"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// checkProcess refuses a process whose parts are not there or make no sense. An image is hostile until proved otherwise:
// what is wrong with it is found here, before anything is made.
func (rs *restoration) checkProcess(p *process) error {
	if err := p.state.Check(); err != nil {
		return err
	}
	if p.state.Zombie {
		return nil
	}
	if len(p.threads) == 0 {
		return object.BadImagef("it has no thread")
	}
	if err := rs.checkSeccomp(p); err != nil {
		return err
	}
	for _, t := range p.threads {
		if _, err := object.State[files.TableState](rs.plan, t.files()); err != nil {
			return err
		}
		if _, err := object.State[files.FSState](rs.plan, t.fs()); err != nil {
			return err
		}
	}
	if !p.state.Keyring.IsZero() {
		k, err := object.State[tasks.Keyring](rs.plan, p.state.Keyring)
		if err != nil {
			return err
		}
		if err := k.Check(); err != nil {
			return err
		}
	}
	s, err := object.State[signals.Sighand](rs.plan, p.state.Sighand)
	if err != nil {
		return err
	}
	return s.Check()
}

// checkOrder makes sure that parents come before their children, which the order of several steps of a restore relies on.
func (rs *restoration) checkOrder() error {
	if rs.procs[0].state.Zombie {
		return object.BadImagef("its first process, %d, is a zombie", rs.procs[0].state.PID)
	}
	seen := map[int32]bool{0: true}
	for _, p := range rs.procs {
		if !seen[p.state.Parent] {
			return object.BadImagef("process %d comes before its parent %d, or that is not in the image", p.state.PID, p.state.Parent)
		}
		seen[p.state.PID] = true
	}
	return nil
}

// checkPages says whether a run of pages is of memory that the image has. Where in it they belong is found out when they
// are written.
func (rs *restoration) checkPages(rec *stream.Record) error {
	var m memory.Pages
	if err := rec.Decode(&m); err != nil {
		return err
	}
	if rs.spaces[m.Of] != nil || rs.bank != nil && rs.bank.Ref == m.Of {
		return nil
	}
	if m.Of.Class == memory.TypeSegment.Class() {
		_, err := object.State[memory.Segment](rs.plan, m.Of)
		return err
	}
	if _, err := object.State[memory.Shm](rs.plan, m.Of); err != nil {
		return object.BadImagef("pages of object %d, which is no memory", m.Of.ID)
	}
	return nil
}

// checkHost refuses what this cr-restore could not give to the tree's threads, before anything is made.
func (rs *restoration) checkHost() error {
	if err := rs.checkOwnSeccomp(); err != nil {
		return err
	}
	if rs.o.Groups != nil {
		rs.initial.creds.Groups = rs.o.Groups
	}
	if err := rs.checkRights(); err != nil {
		return err
	}
	var missing uint64
	for _, p := range rs.procs {
		for _, t := range p.threads {
			lacks, err := t.state.Creds.Reach(&rs.initial.creds)
			if err != nil {
				return &object.Error{PID: int(p.state.PID), Comm: p.threads[0].state.Comm, FD: -1, Err: err}
			}
			missing |= lacks
			if t.state.Prctls.IOFlusher && rs.initial.creds.Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
				return &object.Error{PID: int(p.state.PID), Comm: p.threads[0].state.Comm, FD: -1,
					Err: &object.Lacking{What: "it was an I/O flusher (PR_SET_IO_FLUSHER), which only CAP_SYS_RESOURCE can make of it again"}}
			}
		}
	}
	if missing != 0 {
		rs.o.Warn("the bounding sets of the new processes lack " + tasks.CapNames(missing) + ", as cr-restore's does")
	}
	return nil
}

// checkShared refuses, in a dump, a tree that could not be made again: the plan of a restore is made as a rehearsal.
func checkShared(d *object.Dumper, families []tasks.Family) error {
	for _, s := range families {
		if s.PID == 0 || !s.Zombie && (s.MM.IsZero() || s.Files.IsZero() || s.FS.IsZero() || s.Sighand.IsZero()) {
			return nil // it has been refused for that already
		}
	}
	init := int32(0)
	if len(d.Root.Status.NSpid) > 1 && d.Root.ID == 1 {
		init = 1
	}
	if _, err := tasks.PlanForest(families, init); err != nil {
		return d.Root.Error("", object.Unsupportedf("the tree of processes cannot be made again: %s", strings.TrimPrefix(err.Error(), "image: ")))
	}
	return nil
}

// resetInherited adds the calls by which the first task gives up what it has of cr-restore itself and what no record says
// when it is the default: signals ignored by whoever started cr-restore (nohup(1)), which exec(2) keeps, and an I/O
// priority (ionice(1)). All tasks are made from it.
func (rs *restoration) resetInherited() error {
	b := rs.arena.NewBatch()
	rs.identityCalls(b, nil)
	n := b.Sys()
	standard := b.Data(make([]byte, 32)) // struct kernel_sigaction: SIG_DFL, no flags, empty mask
	for sig := unix.Signal(1); sig <= 64; sig++ {
		if !slices.Contains([]unix.Signal{unix.SIGKILL, unix.SIGSTOP}, sig) {
			b.Call(n.RtSigaction, sig, standard, 0, 8).Note("rt_sigaction of signal %d", int(sig))
		}
	}
	const who = 1 // IOPRIO_WHO_PROCESS: the caller
	b.Call(n.IoprioSet, who, 0, 0)
	return rs.tracer.RunOne(rs.stub, b)
}

// sameFeatures refuses an image that requires what this build does not know: at present there is no such feature beyond
// those of the framing, which the reader itself knows.
func sameFeatures(h *stream.Header) error {
	if err := h.CheckFeatures(func(string) bool { return false }); err != nil {
		return &object.BadImage{Err: fmt.Errorf("%w; a newer cr-restore may know it", err)}
	}
	return nil
}
