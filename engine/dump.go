package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/ipc"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/sockets"
	"crpipe/engine/tasks"
	"crpipe/engine/terminals"
	"crpipe/stream"
)

// DumpOptions says what to dump and how.
type DumpOptions struct {
	PIDs     []int         // roots of the trees to dump; empty: Ticket
	Ticket   *Ticket       // a tree that is frozen already
	Kill     bool          // end the tree once the whole image has been written
	Freezer  string        // "v2", "v1", "sigstop"; empty: the best there is
	Timeout  time.Duration // for the freeze; 0: 10 s
	External []string      // names of objects outside of the tree that a restore will be given
	// Container says that the tree is a container, which must share nothing with the outside: what it does, by the counts in
	// the kernel, is refused unless External names it.
	Container bool
	// IPC are the System V objects in the caller's IPC namespace that belong to the tree: "all", TYPE:ID or TYPE:0xKEY.
	IPC []string
	// TCP is what becomes of TCP connections: "keep" (or empty), "drop", "listen-only".
	TCP      string
	DryRun   bool      // look and refuse, but write nothing
	Plan     io.Writer // with DryRun: what would be dumped, one object a line
	Source   string    // of what only the kernel knows: "bpf", "classical"; empty: the best there is
	Progress func(Progress)
	Warn     func(string)

	// Commit makes the output durable. It is called when everything has been written, before Kill ends the tree.
	Commit func() error
	// Guard undoes the freeze should this process die; may be nil.
	Guard *Guardian
	// View is what StartView returned, or nil.
	View *View

	patient bool // what passes by itself is waited for
	ports   any  // object.Dumper.Ports of the try before
}

// Dump writes the image of a tree. It leaves the tree as it found it, or, with Kill, ends it once the whole image has
// been written and committed. All refusals come before the first byte, and nothing is changed then.
func Dump(ctx context.Context, w io.Writer, o DumpOptions) error {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	a, err := arch.Native()
	if err != nil {
		return &object.Lacking{What: err.Error()}
	}
	view, err := o.View.take(o.Source) // what takes time is done before the freeze
	if err != nil {
		return err
	}
	defer view.Close()
	if err := failpoint.Hit("dump.opened"); err != nil {
		return err
	}
	defer func() { _ = sockets.OpenPorts(o.ports) }() // else they go with this process
	begin := time.Now()
	for pause := time.Millisecond; ; pause *= 2 {
		o.patient = o.Ticket == nil && time.Since(begin) < transientTime
		err := dumpOnce(ctx, w, a, view, &o, o.Ticket != nil || time.Since(begin) > vforkTime)
		var vfork *vforkError
		var passing *passingError
		switch late := time.Since(begin); {
		case errors.As(err, &vfork) && (late > transientTime || o.Ticket != nil):
			return vfork.refusal
		case errors.As(err, &passing) && (late > transientTime || o.Ticket != nil):
			return passing.refusals
		case !errors.Is(err, errTransient) || late > transientTime || o.Ticket != nil:
			return err
		}
		// The tree runs again; what it was caught in passes by itself.
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// passingError is refusals of nothing but what passes by itself.
type passingError struct{ refusals error }

func (e *passingError) Error() string { return e.refusals.Error() }
func (e *passingError) Unwrap() error { return errTransient }

// transientTime is how long a dump waits for a state to pass that cannot be dumped and does not last.
const transientTime = 2 * time.Second

// vforkTime is how long it waits for a vfork to come to its exec, which mostly takes less than a millisecond, before it keeps what it
// can of it.
const vforkTime = 200 * time.Millisecond

func dumpOnce(ctx context.Context, w io.Writer, a *arch.Arch, view kernelview.View, o *DumpOptions, keepVforks bool) (err error) {
	report(o.Progress, "freezing", 0)
	for _, pid := range o.PIDs {
		if st, err := procfs.ReadStat(pid); err == nil && st.State == 'Z' && st.NumThreads <= 1 {
			return ended(&st)
		}
	}
	if len(o.PIDs) > 0 && o.Ticket == nil {
		prepare(o.PIDs[0])
	}
	out := &gatherer{out: countProgress(ctx, w, o.Progress)}
	defer out.Free()
	image, err := newImage(out, a)
	if err != nil {
		return err
	}
	defer image.free()
	held, err := takeHold(ctx, o.PIDs, o.Ticket, FreezeOptions{Freezer: o.Freezer, Timeout: o.Timeout, Guard: o.Guard, view: view}, o.Warn)
	if errors.Is(err, freezer.ErrVfork) {
		return &vforkError{&object.Unsupported{What: err.Error(), Do: vforkHint}}
	}
	if err != nil {
		return err
	}
	hold := ""
	if o.Ticket != nil {
		hold = o.Ticket.hold()
	}
	gone := false // let go, or ended
	defer func() {
		if !gone {
			err = errors.Join(err, held.Release())
		}
	}()
	view.SetNow(held.State().At)
	if v, ok := view.(kernelview.NeedsRemote); ok {
		v.SetRemote(&remote{held: held, arch: a})
	}
	d := &object.Dumper{View: view, Arch: a, At: held.State().At, Kinds: fileKinds(), External: o.External, Container: o.Container, IPCNames: o.IPC,
		TCP: o.TCP, Kill: o.Kill, Hold: hold, Patient: o.patient, Ports: o.ports, Warn: func(format string, args ...any) { o.Warn(fmt.Sprintf(format, args...)) }, Undo: o.Guard.alsoPeek}
	defer d.Close()
	report(o.Progress, "looking", 0)
	defer func() { err = errors.Join(err, sockets.Unhold(d)) }()
	err = lookAtTree(d, held, keepVforks)
	if o.ports = d.Ports; err != nil {
		return err
	}
	if err := failpoint.After("dump.looked", d.Refusals()); err != nil {
		var refused object.Refusals
		if errors.As(err, &refused) && refused.Pass() {
			return &passingError{err}
		}
		return err
	}
	lasting, err := sockets.LooksDone(d)
	if err != nil {
		return err
	}
	if o.DryRun {
		return d.Describe(o.Plan)
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	err = failpoint.After("dump.kept", image.copyTree(d, held, expect(out, d, o)))
	left := false
	var late error
	if image.Holding() && !o.Kill {
		if err == nil {
			left, late = held.leaveHold(d, lasting)
		}
		gone = true
		late = errors.Join(late, held.Release())
	}
	if err := failpoint.After("dump.written", errors.Join(late, image.end(err, d), out.Flush())); err != nil {
		if left {
			err = errors.Join(err, sockets.DropHeld(lasting))
		}
		return err
	}
	if o.Commit != nil {
		if err := failpoint.After("dump.committed", o.Commit()); err != nil {
			return err
		}
	}
	if o.Kill {
		gone = true
		err := endTree(d, held, lasting)
		for _, f := range d.Ended {
			if err == nil {
				err = f()
			}
		}
		return err
	}
	if !gone {
		_, err = held.leaveHold(d, lasting)
	}
	return err
}

// endTree ends the processes, and with them their TCP connections, of which nobody hears: they go on elsewhere. lasting is the hold
// that outlives this process, "" for none.
func endTree(d *object.Dumper, held *treeHold, lasting string) error {
	if lasting != "" {
		// From here on, and until the kill is under way, the guard undoes it too.
		err := held.guard.alsoUnhold(lasting)
		if err == nil {
			err = failpoint.After("dump.held", sockets.KeepHeld(d))
		}
		if err != nil {
			return errors.Join(err, sockets.DropHeld(lasting), held.Release())
		}
	}
	if err := held.Kill(); err != nil {
		if lasting != "" && !held.ending {
			err = errors.Join(err, sockets.DropHeld(lasting))
		}
		return err // its sockets may be in use
	}
	return sockets.EndTCP(d)
}

// lookAtTree finds out everything but the bulk, and refuses what cannot be kept.
func lookAtTree(d *object.Dumper, held *treeHold, keepVforks bool) error {
	if err := failpoint.After("look.tree", collectTree(d, held)); err != nil {
		return err
	}
	if err := findVforks(d, keepVforks); err != nil {
		return err
	}
	if err := failpoint.After("look.checks", checkTree(d)); err != nil {
		return err
	}
	err := failpoint.After("look.network", sockets.HoldTCP(d))
	var pending *sockets.PendingError
	if errors.As(err, &pending) && d.Patient {
		return fmt.Errorf("%w: %w", err, errTransient)
	}
	if err != nil && pending == nil { // else they are refused, or given up
		return err
	}
	if d.Container {
		d.Leaks = map[kernelview.ID]bool{}
		if err := failpoint.After("look.leaks", checkContainer(d)); err != nil {
			return err
		}
	}
	d.SocketOutside = sockets.Outside
	if err := sockets.Enter(d); err != nil {
		return err
	}
	for _, step := range []func(*object.Dumper) error{namespaces.Check, namespaces.DumpPID, namespaces.DumpMounts, namespaces.DumpUTS, namespaces.DumpNet, namespaces.DumpTime, namespaces.DumpCgroup, ipc.Dump, tasks.CheckLabels, tasks.CheckCookies, tasks.DumpKeyrings} {
		if err := failpoint.After("look.whole", step(d)); err != nil {
			return err
		}
	}
	if held.Detached() {
		var leaders []int
		for _, p := range d.Processes {
			if !p.Zombie {
				leaders = append(leaders, p.Leader().TID)
			}
		}
		held.view.AreasAhead(leaders)
		defer memory.LookAhead(d)()
	}
	// Objects first, for all processes, then the processes and threads that use them (design.md section 2).
	for _, p := range d.Processes {
		if p.Zombie {
			continue
		}
		for _, step := range []func(*object.Dumper, *object.Process) error{
			files.DumpTable, files.DumpFS, signals.DumpActions, memory.Dump} {
			if err := failpoint.After("look.process", step(d, p)); err != nil {
				d.Refuse(err)
			}
		}
	}
	if err := failpoint.After("look.shared", memory.Share(d)); err != nil {
		return err
	}
	for _, step := range []func(*object.Dumper) error{memory.DumpSegments, ipc.DumpMqueues, ipc.CheckNames} {
		if err := failpoint.After("look.ipc", step(d)); err != nil {
			return err
		}
	}
	if err := sockets.DumpUnix(d); err != nil {
		return err
	}
	for _, step := range []func(*object.Dumper) error{files.CheckOwners, files.CheckLocks, terminals.DumpOutside} {
		if err := failpoint.After("look.locks", step(d)); err != nil {
			return err
		}
	}
	online, err := tasks.Online()
	if err != nil {
		return fmt.Errorf("reading the processors that are online: %w", err)
	}
	shared := shareNumbers(d)
	var families []tasks.Family
	for _, p := range d.Processes {
		s := &tasks.Process{MM: p.MM, Files: p.Files, FS: p.FS, Sighand: p.Sighand, Keyring: p.Session}
		family := tasks.Family{Process: s}
		ref, err := dumpProcess(d, p, s, held)
		if err != nil {
			d.Refuse(err)
			continue
		}
		err = held.do(func() error {
			for _, t := range p.Threads {
				thread, err := dumpThread(d, t, ref, online, shared)
				if err = failpoint.After("look.thread", err); err != nil {
					return err
				}
				family.Threads = append(family.Threads, thread)
			}
			return nil
		})
		if err != nil {
			d.Refuse(err)
			continue
		}
		families = append(families, family)
	}
	if len(families) == len(d.Processes) {
		if err := checkVforks(d, families); err != nil {
			return err
		}
		d.Refuse(checkShared(d, families))
	}
	return nil
}

// expect prepares for the size of the tree, and returns how much of it is kept in memory while it stands still: all of a small one, and
// nothing of one that is too large.
//
// While a large tree is written nobody needs cheap moves between cgroups, which cost every fork and exit of the machine a little; only shortly
// before its end again.
func expect(out *gatherer, d *object.Dumper, o *DumpOptions) int {
	const shortly = 48 << 20 // bytes: longer than a grace period of RCU takes
	var size uint64
	for _, p := range d.Processes {
		size += ownMemory(p.Status)
	}
	if size > shortly {
		o.Guard.expectMoves(false)
		if !o.Kill { // it is not moved back
			out.nearly, out.nearlyAt = func() { o.Guard.expectMoves(true) }, size-shortly
		}
	}
	if size > 2*uint64(holdBackMost) { // some of it may be zeros, which are left out
		return 0
	}
	return holdBackMost
}

// ownMemory is how many bytes of anonymous memory a process has.
func ownMemory(s *procfs.Status) uint64 {
	for _, line := range s.Memory {
		if line.Key == "RssAnon" {
			kib, _ := strconv.ParseUint(strings.TrimSuffix(line.Value, " kB"), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// imageWriter writes the stream of a dump.
type imageWriter struct {
	*stream.Writer
	chunks [][]byte
}

func newImage(out io.Writer, a *arch.Arch) (*imageWriter, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("reading the kernel's version: %w", err)
	}
	w, err := stream.NewWriter(out, stream.Header{
		Content: "image", Arch: a.Name, PageSize: unix.Getpagesize(), Kernel: unix.ByteSliceToString(uts.Release[:])})
	return &imageWriter{Writer: w}, err
}

// copyTree copies the contents, and makes sure that nothing of the tree has run while it was looked at. Up to limit bytes are kept in memory:
// then the tree is not needed any more. Of more, all is written behind the records.
func (i *imageWriter) copyTree(d *object.Dumper, held *treeHold, limit int) error {
	i.Hold(limit, i.chunk, func() error { return failpoint.After("dump.records", d.WriteRecords(i.Writer)) })
	if err := d.WriteBulk(i.Writer); err != nil {
		return err
	}
	for _, steady := range d.Steady {
		if err := steady(); err != nil {
			return err
		}
	}
	return failpoint.After("dump.proved", held.stoodStill())
}

// end writes what was kept, and the end of the stream, or why it ends.
func (i *imageWriter) end(err error, d *object.Dumper) error {
	if err == nil {
		err = i.End()
	}
	if err != nil {
		// Best effort: where writing itself has failed the reader sees a truncated stream instead.
		var errno unix.Errno
		errors.As(err, &errno)
		_ = i.Fail(err.Error(), int(errno), "pid "+strconv.Itoa(d.Root.PID))
	}
	return err
}

func (i *imageWriter) chunk() []byte {
	c := sys.TakeChunk()
	i.chunks = append(i.chunks, c)
	return c
}

func (i *imageWriter) free() {
	for _, c := range i.chunks {
		sys.GiveChunk(c)
	}
	i.chunks = nil
}
