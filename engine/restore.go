package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/sockets"
	"crpipe/engine/tasks"
	"crpipe/engine/terminals"
	"crpipe/stream"
)

// RestoreOptions says how to restore.
type RestoreOptions struct {
	Frozen  bool           // leave the tree stopped
	Wait    bool           // the caller stays until the root ends: its standard descriptors stand in for external ones
	DryRun  bool           // read and check the whole image, print the plan, make nothing
	Plan    io.Writer      // with DryRun
	Inherit map[string]int // descriptors of the caller for external objects, by name
	// AllowChanged are patterns of the paths of files that may have changed since the dump.
	AllowChanged []string
	DropTCP      bool // every TCP connection comes back as one that its peer has reset
	// StdinTaken says that the image comes from standard input: with Wait that is not given to the tree.
	StdinTaken bool
	// Groups are the caller's supplementary groups where it cannot find them out itself: in a user namespace in which they have no
	// numbers. nil: as it finds them.
	Groups   []uint32
	Progress func(Progress)
	Warn     func(string)
	// Guard is asked for a guard where one is needed; may be nil. It ends a tree that is left stopped should this process die before
	// Guard.Clear, which the caller calls once somebody has the ticket, and one of several processes that is let run should this
	// process die when some of them are tied to it still and some are not. What runs, or has not come so far, needs none: the kernel
	// ends it with its tracer.
	Guard func() *Guardian
	// Tell is called with what has been made before any of it runs; may be nil. An error undoes the restore: a tree of which nobody
	// can be told must not have done anything, for it may go on elsewhere instead.
	Tell func(*Restored) error
}

// Restored is a tree that has been made.
type Restored struct {
	Root   int     // pid of the root, in the caller's pid namespace
	Ticket *Ticket // what was made, and how it is stopped

	foreground *foreground // what Wait looks after; nil: nothing
}

// restoration is a restore under way.
type restoration struct {
	o      *RestoreOptions
	plan   *object.Plan
	r      *object.Restorer
	arch   *arch.Arch
	spaces map[stream.Ref]*memory.Space
	bank   *memory.Bank // pages that processes inherit, nil for none
	needs  map[*tasks.Birth]memory.Needs
	compat *compat // of trees with 32-bit code, else nil

	tracer *tracee.Tracer
	arena  *tracee.Arena
	base   arch.Addr

	// ttys are the controlling terminals of sessions, by session.
	ttys    map[int32]*terminals.Controlled
	outside []*terminals.Outside

	forest     *tasks.Forest
	procs      []*process // in the order of the image
	numberer   *tracee.Task
	numbererID int32
	holders    []*tracee.Task // of the numbers of those in last
	last       []*process     // whose parents wait for them in vfork: see vfork.go
	byPID      map[int32]*process
	made       map[*tasks.Birth]*tracee.Task
	small      map[*tasks.Birth]bool // who gets a small slot of the arena
	users      map[stream.Ref]int    // of an address space or table of signal actions: processes that still need the arena
	stub       *tracee.Task
	ownPIDs    bool
	mounts     []namespaces.Mount // that the root has to mount inside
	outer      namespaces.Outer   // what the tree's mounts are to propagate with
	homeNet    *sys.FD            // the network namespace of cr-restore, while its tracer is in another
	ahead      procfs.TimeOffsets // how far the tree's clocks are ahead of cr-restore's

	ownCgroupNS bool    // its tasks are in a cgroup namespace of their own
	home        *sys.FD // the mount namespace of cr-restore, while its tracer is in another
	contents    *bulk   // nil: contents are read when there is room for them
	sysv        sysvObjects
	initial     initialState
	committed   bool
	acted       int // acts (object.Act) that have been done
	rings       []*events.URing
	ringMakers  map[*events.URing]*thread
	guard       *Guardian // nil: not needed
}

// process is a thread group that is being made.
type process struct {
	ref     stream.Ref
	state   *tasks.Process
	birth   *tasks.Birth
	threads []*thread // the leader first unless it is dead; none of a zombie
	space   *memory.Space
	task    *tracee.Task // of the first of them; of a zombie its own
	clean   bool         // its traces have been removed
}

type thread struct {
	process *process
	state   *tasks.Thread
	birth   *tasks.Birth
	task    *tracee.Task
}

// files and fs are what the thread has, be it its own or its process's.
func (t *thread) files() stream.Ref { return orElse(t.state.Files, t.process.state.Files) }
func (t *thread) fs() stream.Ref    { return orElse(t.state.FS, t.process.state.FS) }

func orElse(ref, other stream.Ref) stream.Ref {
	if ref.IsZero() {
		return other
	}
	return ref
}

// Restore reads an image and makes its tree. Nothing of the tree runs before the end of the image has been verified; on
// any error everything made is undone.
func Restore(ctx context.Context, in io.Reader, o RestoreOptions) (*Restored, error) {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	reader, err := stream.NewReader(&progressReader{ctx: ctx, r: in, report: o.Progress})
	if err != nil {
		return nil, err
	}
	rs := &restoration{o: &o}
	if err := failpoint.After("restore.header", rs.checkHeader(reader.Header())); err != nil {
		return nil, err
	}
	plan, first, err := object.ReadPlan(reader, allKinds())
	if err != nil {
		return nil, err
	}
	rs.plan = plan
	if err := failpoint.After("restore.planned", rs.planTree()); err != nil {
		return nil, err
	}
	if o.DryRun {
		return nil, rs.dryRun(reader, first)
	}
	if err := failpoint.After("restore.numbers", rs.checkPIDs(ctx)); err != nil {
		return nil, err
	}
	if err := rs.checkSysV(ctx); err != nil {
		return nil, err
	}
	if o.Guard != nil && (o.Frozen || len(rs.procs) > 1) {
		rs.guard = o.Guard()
	}
	rs.tracer = tracee.NewTracer()
	defer rs.close()
	if err := rs.build(ctx, reader, first); err != nil {
		return nil, err
	}
	return rs.letGo()
}

func (rs *restoration) checkHeader(h *stream.Header) error {
	native, err := arch.Native()
	if err != nil {
		return &object.Lacking{What: err.Error()}
	}
	switch {
	case h.Content != "image":
		return object.BadImagef("this is a %s, not an image", h.Content)
	case h.Arch != native.Name:
		return &object.Lacking{What: fmt.Sprintf("the image is of architecture %s, this machine is %s", h.Arch, native.Name)}
	case h.PageSize != unix.Getpagesize():
		return &object.Lacking{What: fmt.Sprintf("the image has pages of %d bytes, this machine of %d", h.PageSize, unix.Getpagesize())}
	}
	rs.arch = native
	return sameFeatures(h)
}

// planTree turns the records into what is to be made, and checks whatever can be checked without making anything.
func (rs *restoration) planTree() error {
	rs.byPID = map[int32]*process{}
	rs.ownPIDs = len(object.All[namespaces.PID](rs.plan)) > 0
	byRef := map[uint32]*process{}
	for _, f := range object.All[tasks.Process](rs.plan) {
		p := &process{ref: f.Ref, state: f.State}
		byRef[f.Ref.ID] = p
		rs.procs = append(rs.procs, p)
		rs.byPID[f.State.PID] = p
	}
	if len(rs.procs) == 0 {
		return object.BadImagef("it has no process")
	}
	seen := map[int32]bool{}
	for _, f := range object.All[tasks.Thread](rs.plan) {
		p := byRef[f.State.Process.ID]
		if p == nil || p.state.Zombie {
			return object.BadImagef("thread %d belongs to no live process", f.State.TID)
		}
		if f.State.TID <= 0 || seen[f.State.TID] {
			return object.BadImagef("thread %d: twice, or not a number", f.State.TID)
		}
		if other := rs.byPID[f.State.TID]; f.State.TID > tasks.MaxPID || other != nil && other != p {
			return object.BadImagef("thread %d has the number of another process, or none that a task can have", f.State.TID)
		}
		if (f.State.TID == p.state.PID) != (len(p.threads) == 0 && !p.state.LeaderDead) {
			return object.BadImagef("process %d: its leader is not its first thread", p.state.PID)
		}
		seen[f.State.TID] = true
		p.threads = append(p.threads, &thread{process: p, state: f.State})
		if err := f.State.Check(rs.arch); err != nil {
			return fmt.Errorf("thread %d: %w", f.State.TID, err)
		}
	}
	for _, p := range rs.procs {
		if err := rs.checkProcess(p); err != nil {
			return fmt.Errorf("process %d: %w", p.state.PID, err)
		}
	}
	if err := rs.checkOrder(); err != nil {
		return err
	}
	init := int32(0)
	if rs.ownPIDs {
		init = 1
		if rs.byPID[1] == nil || rs.byPID[1].state.Parent != 0 {
			return object.BadImagef("a pid namespace without its init")
		}
	}
	families := make([]tasks.Family, len(rs.procs))
	for i, p := range rs.procs {
		families[i].Process = p.state
		for _, t := range p.threads {
			families[i].Threads = append(families[i].Threads, t.state)
		}
	}
	var err error
	if rs.forest, err = tasks.PlanForest(families, init); err != nil {
		return err
	}
	if rs.ownPIDs && len(rs.forest.Roots) != 1 {
		return object.BadImagef("a pid namespace with %d roots", len(rs.forest.Roots))
	}
	for _, p := range rs.procs {
		p.birth = rs.forest.Of(p.state.PID)
		for _, t := range p.threads {
			if t.birth = rs.forest.OfThread(t.state.TID); t.birth == nil {
				t.birth = p.birth
			}
		}
	}
	if err := rs.planMemory(); err != nil {
		return err
	}
	if err := rs.planSysV(); err != nil {
		return err
	}
	return rs.planCompat()
}

// planMemory reads the address spaces and finds a place for the arena that is free in all of them.
func (rs *restoration) planMemory() error {
	spaces, err := memory.Spaces(rs.plan, rs.arch)
	if err != nil {
		return err
	}
	rs.spaces = spaces
	if rs.bank, err = memory.NewBank(rs.plan, spaces); err != nil {
		return err
	}
	if !rs.o.DryRun {
		if err := memory.CheckHost(spaces, rs.arch); err != nil {
			return err
		}
	}
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		if p.space = spaces[p.state.MM]; p.space == nil {
			return object.BadImagef("process %d has no address space", p.state.PID)
		}
	}
	return nil
}

// dryRun checks the rest of the stream and prints the plan.
func (rs *restoration) dryRun(reader *stream.Reader, rec *stream.Record) error {
	var pages, bytes uint64
	for err := error(nil); ; rec, err = reader.Next() {
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if rec == nil {
			continue
		}
		if !object.IsBulk(rec.Type) && rec.Flags&stream.FlagOptional == 0 {
			return object.BadImagef("record %d (%s) after the contents", rec.Index, rec.Type)
		}
		data, err := rec.Data()
		if err != nil {
			return err
		}
		bytes += uint64(len(data))
		switch rec.Type {
		case object.TypePages:
			pages += uint64(len(data) / unix.Getpagesize())
			err = rs.checkPages(rec)
		case object.TypeData:
			var d object.Data
			if err = rec.Decode(&d); err == nil {
				_, err = rs.plan.Lookup(d.Of)
			}
		}
		if err != nil {
			return fmt.Errorf("record %d (%s): %w", rec.Index, rec.Type, err)
		}
	}
	return rs.printPlan(rs.o.Plan, pages, bytes)
}

// build makes everything, up to the point where the tree can be let go; its end is the table in ending.go.
func (rs *restoration) build(ctx context.Context, reader *stream.Reader, first *stream.Record) error {
	if err := rs.planLast(); err != nil {
		return err
	}
	if err := failpoint.After("restore.objects", rs.makeObjects()); err != nil {
		return err
	}
	if err := rs.planTerminals(); err != nil {
		return err
	}
	report(rs.o.Progress, "making tasks", 0)
	if rs.bank == nil { // else what it holds comes first, and must be there before the tasks
		if err := rs.readAhead(reader, first); err != nil {
			return err
		}
		defer rs.dropAhead()
	}
	first, err := rs.makeTree(ctx, reader, first)
	if err = failpoint.After("restore.tree", err); err != nil {
		return err
	}
	if err := failpoint.After("restore.held", rs.holdNumbers(ctx)); err != nil {
		return err
	}
	if err := failpoint.After("restore.groups", rs.joinGroups()); err != nil {
		return err
	}
	if err := failpoint.After("restore.terminals", rs.settleTerminals()); err != nil {
		return err
	}
	if err := failpoint.After("restore.leaders", rs.endLeaders()); err != nil {
		return err
	}
	if err := rs.makeSysV(); err != nil {
		return err
	}
	if err := rs.makeRings(); err != nil {
		return err
	}
	if err := failpoint.After("restore.mapped", rs.layOut()); err != nil {
		return err
	}
	if err := rs.settleSegments(); err != nil {
		return err
	}
	if err := failpoint.After("restore.pidfds", rs.openPidfds()); err != nil {
		return err
	}
	if err := failpoint.After("restore.locks", rs.takeLocks(files.PoolLockCalls)); err != nil {
		return err
	}
	if err := failpoint.After("restore.filled", rs.fill(ctx, reader, first)); err != nil {
		return err
	}
	if err := failpoint.After("restore.connected", rs.inNetwork(func() error { return sockets.ConnectTCP(rs.r) })); err != nil {
		return err
	}
	report(rs.o.Progress, "finishing", 0)
	return rs.finish()
}

// makeTree makes all processes. A number may still be held by a session of which only zombies are left; then it starts over
// until they are gone. It reads what the first task is filled with, and returns the record behind that.
func (rs *restoration) makeTree(ctx context.Context, reader *stream.Reader, first *stream.Record) (*stream.Record, error) {
	for deadline := time.Now().Add(zombieTime); ; {
		if rs.stub == nil {
			if err := failpoint.After("restore.spawned", rs.spawn()); err != nil {
				return nil, err
			}
			if rs.bank != nil {
				var err error
				first, err = rs.fillBank(reader, first)
				if err = failpoint.After("restore.bank", err); err != nil {
					return nil, err
				}
			}
		}
		err := rs.makeProcesses()
		var taken *PIDTakenError
		if !errors.As(err, &taken) || !taken.zombie || rs.home != nil || rs.homeNet != nil || time.Now().After(deadline) {
			return first, err
		}
		if rs.bank != nil { // what it holds has been read and will not come again
			if err := rs.tracer.KillAllBut(rs.stub); err != nil {
				return nil, err
			}
		} else {
			if err := rs.tracer.KillAll(); err != nil {
				return nil, err
			}
			if err := rs.arena.Close(); err != nil {
				return nil, err
			}
			rs.arena, rs.stub = nil, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// makeObjects opens every open file, on the tracer's thread, which is in the tree's mount namespace from here until the
// first task has been started there.
func (rs *restoration) makeObjects() error {
	var warning sync.Mutex // files are opened by several threads
	rs.r = &object.Restorer{Plan: rs.plan, Arch: rs.arch, Inherit: rs.o.Inherit, AllowChanged: rs.o.AllowChanged, DropTCP: rs.o.DropTCP, Wait: rs.o.Wait, StdinTaken: rs.o.StdinTaken,
		PoolBase: files.MaxFD(rs.plan) + 1, Number: rs.numberOf,
		Warn: func(format string, args ...any) {
			warning.Lock()
			defer warning.Unlock()
			rs.o.Warn(fmt.Sprintf(format, args...))
		}}
	return rs.tracer.Do(func() error {
		if err := rs.enterNames(); err != nil { // while /proc is the own one
			return err
		}
		for _, m := range object.All[namespaces.Mounts](rs.plan) {
			var err error
			if rs.home == nil {
				if rs.home, err = sys.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
					return fmt.Errorf("opening the own mount namespace: %w", err)
				}
			}
			rs.r.Elsewhere = true
			rs.outer.Close()
			if rs.mounts, rs.outer, err = namespaces.MakeMounts(m.State); err != nil {
				return err
			}
			if len(rs.mounts) > 0 && !rs.ownPIDs {
				return object.BadImagef("a /proc of its own without a pid namespace of its own")
			}
		}
		if err := rs.enterIPC(); err != nil {
			return err
		}
		return rs.r.MakeObjects()
	})
}

// bulk is the reading of contents, by a goroutine of its own.
type bulk struct {
	filler *memory.Filler
	ended  chan error
}

// readAhead begins to read the contents while the tasks that they belong to are made.
func (rs *restoration) readAhead(reader *stream.Reader, rec *stream.Record) error {
	var all []stream.Ref
	for ref := range rs.mapped() {
		all = append(all, ref)
	}
	filler := memory.NewFiller(rs.r, rs.spaces)
	if err := filler.Hold(all); err != nil {
		return errors.Join(err, filler.Wait())
	}
	rs.contents = &bulk{filler, make(chan error, 1)}
	go func(ended chan error) {
		ended <- errors.Join(rs.readBulk(reader, rec, filler), filler.Wait())
	}(rs.contents.ended)
	return nil
}

// mapped are the address spaces that are filled, and for each a process that has it.
func (rs *restoration) mapped() map[stream.Ref]*process {
	all := map[stream.Ref]*process{}
	for _, p := range rs.procs {
		if !p.state.Zombie && all[p.state.MM] == nil {
			all[p.state.MM] = p
		}
	}
	return all
}

// dropAhead gives up what readAhead has begun, unless fill has seen its end. It does not wait for a reader who waits for input.
func (rs *restoration) dropAhead() {
	if rs.contents != nil {
		rs.contents.filler.Drop()
	}
}

// fill streams the contents of memory and files into what has been made, until the end of the stream is proved.
func (rs *restoration) fill(ctx context.Context, reader *stream.Reader, rec *stream.Record) error {
	release, err := rs.holdEnded(ctx)
	if err != nil {
		return err
	}
	filler := (*memory.Filler)(nil)
	if rs.contents != nil {
		filler = rs.contents.filler
	} else {
		filler = memory.NewFiller(rs.r, rs.spaces)
	}
	err = rs.mapAll(filler)
	switch {
	case rs.contents == nil:
		if err == nil {
			err = rs.readBulk(reader, rec, filler)
		}
		err = errors.Join(err, filler.Wait())
	case err == nil:
		filler.Release()
		err = <-rs.contents.ended
		rs.contents = nil
	}
	if err != nil {
		return err
	}
	if err := rs.r.Finish(); err != nil {
		return err
	}
	return release()
}

// mapAll tells the filler which task has which address space.
func (rs *restoration) mapAll(filler *memory.Filler) error {
	for ref, p := range rs.mapped() {
		if err := filler.Map(ref, p.task.Tid); err != nil {
			return err
		}
	}
	return rs.closeBank(filler)
}

func (rs *restoration) readBulk(reader *stream.Reader, rec *stream.Record, filler *memory.Filler) error {
	reader.SetBuffers(filler.Buffer)
	for err := error(nil); ; rec, err = reader.Next() {
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if rec == nil { // an image without contents: only its end is still to be verified
			continue
		}
		switch {
		case rec.Type == object.TypePages:
			if err := filler.Put(rec); err != nil {
				return err
			}
		case rec.Type == object.TypeData:
			var d object.Data
			if err := rec.Decode(&d); err != nil {
				return &object.BadImage{Err: err}
			}
			data, err := rec.Data()
			if err != nil {
				return err
			}
			if err := filler.Await(); err != nil {
				return err
			}
			if err := failpoint.After("restore.data", rs.r.Content(&d, data)); err != nil {
				return err
			}
		case rec.Flags&stream.FlagOptional == 0:
			return object.BadImagef("record %d (%s) after the contents", rec.Index, rec.Type)
		}
	}
}

// close ends whatever has not been let go.
func (rs *restoration) close() {
	if !rs.committed {
		// Everything made dies here; what cannot be killed dies with the tracer (PTRACE_O_EXITKILL).
		if err := rs.tracer.KillAll(); err != nil {
			rs.o.Warn(err.Error())
		} else if !rs.o.Frozen {
			_ = rs.guard.Clear() // else it would look for those who are gone
		}
		rs.removeSysV()
	}
	rs.tracer.Close()
	if rs.r != nil {
		rs.r.Close()
		if !rs.committed {
			sockets.UndoneTCP(rs.r)
			rs.r.Undone()
		}
	}
	if rs.compat != nil {
		rs.compat.close()
	}
	if rs.arena != nil {
		_ = rs.arena.Close() // memory of ours only
	}
	rs.outer.Close()
	if rs.homeNet != nil {
		_ = rs.homeNet.Close()
	}
	if rs.home != nil {
		_ = rs.home.Close()
	}
}

// progressReader counts what is read and stops when ctx is done.
type progressReader struct {
	ctx    context.Context
	r      io.Reader
	report func(Progress)
	bytes  uint64
}

func (p *progressReader) Read(b []byte) (int, error) {
	if p.ctx.Err() != nil {
		return 0, context.Cause(p.ctx)
	}
	n, err := p.r.Read(b)
	p.bytes += uint64(n)
	report(p.report, "reading", p.bytes)
	return n, err
}

// CheckPattern refuses what cannot be one of RestoreOptions.AllowChanged.
func CheckPattern(pattern string) error { return object.CheckPattern(pattern) }
