package tracee

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// A Visitor has stopped tasks that are not ours execute system calls. At every instant a task survives the death of the
// tracer: whatever it needs to go back to where it was is in place before it leaves there, and it goes by itself, at the
// latest half a second after the tracer's death (arch.VisitCode). All its methods belong on the tracer's thread, and all threads
// of the visited processes must be in ptrace stops of it, or the code of one could be written over while another executes it.
type Visitor struct {
	a     *arch.Arch
	tails map[int]*visitTail // by process
	// Begin is called before anything is written into a process, with what would have to be wiped should this
	// process die; may be nil.
	Begin func(Tail) error
}

// A Tail is the piece of a process's memory that holds the code of visits.
type Tail struct {
	PID  int
	Addr arch.Addr
	Size int
}

type visitTail struct {
	Tail
	mem   *os.File
	used  bool // something has been written
	stuck bool // a task may still be executing it
}

// ErrStillAway is matched when a task is on its way home from a visit whose tracer was killed: it is there within moments.
var ErrStillAway = errors.New("is on its way home from a dump that was killed")

// NewVisitor returns a Visitor for tasks of a. An architecture without code for visits is an error.
func NewVisitor(a *arch.Arch) (*Visitor, error) {
	if a.Visit == nil {
		return nil, fmt.Errorf("having tasks on %s execute system calls: %w", a.Name, arch.ErrUnsupported)
	}
	return &Visitor{a: a, tails: map[int]*visitTail{}}, nil
}

// Close wipes what the visits have left in the processes. A process in which one has failed is left as it is: a task may
// need it to go home, and nobody else ever looks there.
func (v *Visitor) Close() error {
	var errs []error
	for _, t := range v.tails {
		if t.used && !t.stuck {
			if _, err := t.mem.WriteAt(make([]byte, t.Size), int64(t.Addr)); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("pid %d: wiping what was put behind its vdso: %w", t.PID, err))
			}
		}
		_ = t.mem.Close() // nothing is buffered
	}
	v.tails = map[int]*visitTail{}
	return errors.Join(errs...)
}

func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EIO) || procfs.IsGone(err)
}

// tail finds the room behind the vdso of a process.
func (v *Visitor) tail(pid, tid int) (*visitTail, error) {
	if t := v.tails[pid]; t != nil {
		return t, nil
	}
	maps, err := procfs.ReadMaps(tid) // a leader that has ended has none
	if err != nil {
		return nil, err
	}
	for i := range maps {
		m := &maps[i]
		if m.Path != v.a.VDSO.Code {
			continue
		}
		mem, err := os.OpenFile(procfs.Path(tid, "mem"), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		t, err := v.tailOf(pid, mem, m)
		if err != nil {
			_ = mem.Close()
			return nil, fmt.Errorf("pid %d: %w", pid, err)
		}
		v.tails[pid] = t
		return t, nil
	}
	return nil, fmt.Errorf("pid %d: it has no vdso, behind which there would be room for code", pid)
}

func (v *Visitor) tailOf(pid int, mem *os.File, m *procfs.VMA) (*visitTail, error) {
	const most = 1 << 19
	if m.Size() > most {
		return nil, fmt.Errorf("its vdso has %d bytes", m.Size())
	}
	image := make([]byte, m.Size())
	if _, err := mem.ReadAt(image, int64(m.Start)); err != nil {
		return nil, fmt.Errorf("reading the vdso: %w", err)
	}
	at, left, err := v.a.Visit.Tail(image)
	if err != nil {
		return nil, err
	}
	t := &visitTail{Tail: Tail{PID: pid, Addr: m.Start + arch.Addr(at), Size: v.a.Visit.Size}, mem: mem}
	if !left {
		return t, nil
	}
	tids, err := procfs.Threads(pid)
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		regs, err := readRegs(v.a, tid)
		if errors.Is(err, unix.ESRCH) {
			continue // ended
		}
		if err != nil {
			return nil, err
		}
		if t.Holds(v.a.PC(regs)) {
			return nil, fmt.Errorf("thread %d %w", tid, ErrStillAway)
		}
	}
	t.used = true // to be wiped, whoever has left it
	return t, nil
}

// Holds says whether an address lies in it.
func (t *Tail) Holds(p arch.Addr) bool { return p >= t.Addr && p-t.Addr < arch.Addr(t.Size) }

// A Visit is one task's.
type Visit struct {
	v      *Visitor
	t      *visitTail
	tid    int
	regs   []byte // as they were
	mask   uint64
	stops  []unix.Signal // stop signals that came meanwhile
	base   arch.Addr     // of the room
	filled int           // bytes of it beyond the table's that are taken
	leave  bool          // whether the task has the room
}

// VisitCall is one system call of a visit and its result, a negative errno for a failure.
type VisitCall struct {
	Nr     int
	Args   [6]uint64
	Result int64
}

// Err is the call's failure.
func (c *VisitCall) Err() error {
	if c.Result < 0 && c.Result >= -4095 {
		return unix.Errno(-c.Result)
	}
	return nil
}

const (
	visitTimeout = 20 * time.Second
	maxVisits    = 200 // calls in one run
)

// Visit has thread tid of process pid, which is in a ptrace stop, execute system calls, as f says, and brings it back to where
// it was, into the same stop.
func (v *Visitor) Visit(pid, tid int, f func(*Visit) error) error {
	t, err := v.tail(pid, tid)
	if err != nil {
		return err
	}
	if t.stuck {
		return fmt.Errorf("pid %d: an earlier visit has failed", pid)
	}
	s := &Visit{v: v, t: t, tid: tid, filled: arch.VisitEntries + maxVisits*arch.VisitEntrySize}
	if err := s.prepare(); err != nil {
		return fmt.Errorf("visiting thread %d: %w", tid, err)
	}
	if err = s.enter(); err == nil {
		err = f(s)
	}
	if back := s.goBack(); back != nil {
		// It is still where it finds home by itself as soon as it is let go.
		t.stuck = true
		err = errors.Join(err, back)
	}
	for _, sig := range s.stops {
		_ = sys.Tgkill(pid, tid, sig) // it may have been killed
	}
	if err != nil {
		st, _ := procfs.ReadThreadStat(pid, tid) // it may be gone
		return fmt.Errorf("visiting pid %d (%s): %w", tid, st.Comm, err)
	}
	return nil
}

// prepare puts the code and the way home in place. Nothing leads there yet.
func (s *Visit) prepare() error {
	a := s.v.a
	var err error
	if s.regs, err = readRegs(a, s.tid); err != nil {
		return err
	}
	if s.mask, err = sys.PtraceGetSigmask(s.tid); err != nil {
		return fmt.Errorf("reading the signal mask: %w", err)
	}
	home, err := s.wayHome()
	if err != nil {
		return err
	}
	code, err := a.Visit.Home(home, s.mask)
	if err != nil {
		return err
	}
	if !s.t.used && s.v.Begin != nil {
		if err := s.v.Begin(s.t.Tail); err != nil {
			return err
		}
	}
	s.t.used = true
	if _, err := s.t.mem.WriteAt(code, int64(s.t.Addr)); err != nil {
		return fmt.Errorf("writing behind the vdso: %w", err)
	}
	return failpoint.Hit("visit.prepared")
}

// wayHome are the registers with which the task would go on by itself: those of the call to be issued again, or with the result
// that a signal gives it which is to be taken.
func (s *Visit) wayHome() ([]byte, error) {
	a := s.v.a
	regs := append([]byte(nil), s.regs...)
	class := a.Restart(regs)
	if class == arch.RestartNone {
		return regs, nil
	}
	st, err := procfs.ReadThreadStatus(s.t.PID, s.tid)
	if err != nil {
		return nil, err
	}
	if caught := (st.SigPnd | st.ShdPnd) &^ s.mask & st.SigCgt; caught != 0 {
		switch class {
		case arch.RestartEINTR:
			return regs, nil
		case arch.RestartNoHand, arch.RestartBlock:
			a.SetResult(regs, -int64(unix.EINTR))
			return regs, nil
		}
	}
	a.Rewind(regs)
	return regs, nil
}

// enter sends the task to the code and waits until it has room.
func (s *Visit) enter() error {
	a := s.v.a
	if err := sys.PtraceSetOptions(s.tid, sys.PtraceOTraceSysGood); err != nil {
		return fmt.Errorf("asking for stops at system calls: %w", err)
	}
	regs := append([]byte(nil), s.regs...)
	a.ClearSyscall(regs)
	a.SetPC(regs, s.t.Addr+arch.Addr(a.Visit.Entry))
	// First the registers, then the mask: from here on the way home sets both.
	if err := writeRegs(s.tid, regs); err != nil {
		return err
	}
	s.leave = true
	if err := failpoint.Hit("visit.sent"); err != nil {
		return err
	}
	if err := sys.PtraceSetSigmask(s.tid, ^uint64(0)); err != nil {
		return fmt.Errorf("blocking signals: %w", err)
	}
	if err := failpoint.Hit("visit.blocked"); err != nil {
		return err
	}
	for range 2 { // entry and exit of mmap
		if err := s.toSyscallStop(); err != nil {
			return err
		}
	}
	regs, err := readRegs(a, s.tid)
	if err != nil {
		return err
	}
	if r := a.Result(regs); r < 0 && r >= -4095 {
		return fmt.Errorf("mapping %d bytes in it: %w", a.Visit.Room, unix.Errno(-r))
	} else { //nolint:revive // r belongs to both
		s.base = arch.Addr(uint64(r))
	}
	return failpoint.Hit("visit.mapped")
}

// Base and Room tell where the mapping is that the task has made for the visit.
func (s *Visit) Base() arch.Addr { return s.base }

// Room returns n zero bytes of the mapping, aligned to 8, that calls may write to.
func (s *Visit) Room(n int) (arch.Addr, error) {
	at := (s.filled + 7) &^ 7
	if n < 0 || at+n > s.v.a.Visit.Room {
		return 0, fmt.Errorf("no room for %d bytes", n)
	}
	s.filled = at + n
	return s.base + arch.Addr(at), nil
}

// Read reads from the mapping.
func (s *Visit) Read(at arch.Addr, b []byte) error {
	if _, err := s.t.mem.ReadAt(b, int64(at)); err != nil {
		return fmt.Errorf("reading what calls have written: %w", err)
	}
	return nil
}

// Write writes to the mapping.
func (s *Visit) Write(at arch.Addr, b []byte) error {
	if _, err := s.t.mem.WriteAt(b, int64(at)); err != nil {
		return fmt.Errorf("writing what calls shall read: %w", err)
	}
	return nil
}

// Run has the task execute calls, all of them whatever their results. May be called again.
func (s *Visit) Run(calls []VisitCall) error {
	for len(calls) > 0 {
		n := min(len(calls), maxVisits)
		if err := s.run(calls[:n]); err != nil {
			return err
		}
		calls = calls[n:]
	}
	return nil
}

func (s *Visit) run(calls []VisitCall) error {
	a := s.v.a
	table := make([]byte, len(calls)*arch.VisitEntrySize)
	for i := range calls {
		e := table[i*arch.VisitEntrySize:]
		a.Order.PutUint64(e, uint64(calls[i].Nr))
		for k, arg := range calls[i].Args {
			a.Order.PutUint64(e[8+8*k:], arg)
		}
	}
	// The header with the count comes last: a task that is abandoned between the two finds none and goes home.
	if err := s.Write(s.base+arch.VisitEntries, table); err != nil {
		return err
	}
	if err := failpoint.After("visit.asked", s.Write(s.base, a.Visit.Header(a.Order, len(calls)))); err != nil {
		return err
	}
	if err := sys.PtraceCont(s.tid, 0); err != nil {
		return fmt.Errorf("letting it go on: %w", err)
	}
	if err := failpoint.After("visit.done", s.awaitDone()); err != nil {
		return err
	}
	if err := s.Read(s.base+arch.VisitEntries, table); err != nil {
		return err
	}
	for i := range calls {
		calls[i].Result = int64(a.Order.Uint64(table[i*arch.VisitEntrySize+56:]))
	}
	// Back to where it reads the table. Should the tracer die it finds it empty.
	if err := s.Write(s.base, a.Visit.Header(a.Order, 0)); err != nil {
		return err
	}
	return s.at(a.Visit.Next)
}

// at sets the program counter of the task, which has the room, to an offset in the code.
func (s *Visit) at(offset int) error {
	a := s.v.a
	regs, err := readRegs(a, s.tid)
	if err != nil {
		return err
	}
	if pc := a.PC(regs); !s.t.Holds(pc) || a.Visit.Base(regs) != s.base {
		return fmt.Errorf("it has gone home before it was asked to: %w", unix.ETIMEDOUT)
	}
	a.ClearSyscall(regs)
	a.SetPC(regs, s.t.Addr+arch.Addr(offset))
	return writeRegs(s.tid, regs)
}

// awaitDone waits until all calls have been executed, and stops the task in its sleep behind them.
func (s *Visit) awaitDone() error {
	const yields = 200
	word := make([]byte, 8)
	pause := 20 * time.Microsecond
	deadline := time.Now().Add(visitTimeout)
	for i := 0; ; i++ {
		if err := s.Read(s.base+arch.VisitDone, word); err != nil {
			return err
		}
		if s.v.a.Order.Uint64(word) != 0 {
			break
		}
		tid, status, err := sys.Wait(s.tid, unix.WNOHANG)
		if err != nil {
			return fmt.Errorf("waiting for it: %w", err)
		}
		switch {
		case tid == 0:
		case status.Dead():
			return fmt.Errorf("%s: %w", status, unix.ESRCH)
		default:
			s.note(status)
			if err := sys.PtraceCont(s.tid, 0); err != nil {
				return fmt.Errorf("letting it go on: %w", err)
			}
		}
		switch {
		case time.Now().After(deadline):
			_ = s.interrupt(false) // whatever it does, it is to be stopped
			return fmt.Errorf("it does not finish: %w", unix.ETIMEDOUT)
		case i < yields:
			runtime.Gosched()
		default:
			time.Sleep(pause)
			pause = min(2*pause, time.Millisecond)
		}
	}
	return s.interrupt(false)
}

// interrupt brings the task from wherever it is into the stop that a PTRACE_INTERRUPT makes; stopped says that it is in
// another one.
func (s *Visit) interrupt(stopped bool) error {
	for {
		if err := sys.PtraceInterrupt(s.tid); err != nil {
			return fmt.Errorf("stopping it: %w", err)
		}
		if stopped {
			if err := sys.PtraceCont(s.tid, 0); err != nil {
				return fmt.Errorf("letting it go on: %w", err)
			}
		}
		status, err := s.wait()
		if err != nil {
			return err
		}
		if status.EventStop() {
			return nil
		}
		s.note(status)
		stopped = true // and the request is forgotten
	}
}

// toSyscallStop lets the task go on to the next entry or exit of a system call.
func (s *Visit) toSyscallStop() error {
	for {
		if err := sys.PtraceSyscall(s.tid, 0); err != nil {
			return fmt.Errorf("letting it go on: %w", err)
		}
		status, err := s.wait()
		if err != nil {
			return err
		}
		if status.SyscallStop() {
			return nil
		}
		s.note(status)
	}
}

// note remembers a stop signal, which alone can come, to give it back in the end.
func (s *Visit) note(status sys.WaitStatus) {
	if status.SignalStop() {
		s.stops = append(s.stops, status.Signal())
	}
}

// wait waits for the next stop.
func (s *Visit) wait() (sys.WaitStatus, error) {
	const yields = 50
	pause := 20 * time.Microsecond
	deadline := time.Now().Add(visitTimeout)
	for i := 0; ; i++ {
		tid, status, err := sys.Wait(s.tid, unix.WNOHANG)
		switch {
		case err != nil:
			return 0, fmt.Errorf("waiting for it: %w", err)
		case tid != 0 && status.Dead():
			return 0, fmt.Errorf("%s: %w", status, unix.ESRCH)
		case tid != 0:
			return status, nil
		case time.Now().After(deadline):
			return 0, fmt.Errorf("it does not stop: %w", unix.ETIMEDOUT)
		case i < yields:
			runtime.Gosched()
		default:
			time.Sleep(pause)
			pause = min(2*pause, time.Millisecond)
		}
	}
}

// goBack brings the task back into the stop that it was in.
func (s *Visit) goBack() error {
	a := s.v.a
	if !s.leave {
		return sys.PtraceSetOptions(s.tid, 0)
	}
	if s.base != 0 {
		if err := s.at(a.Visit.Leave); err != nil {
			return err
		}
		for range 2 { // entry and exit of munmap
			if err := s.toSyscallStop(); err != nil {
				return err
			}
		}
		regs, err := readRegs(a, s.tid)
		if err != nil {
			return err
		}
		if r := a.Result(regs); r != 0 {
			return fmt.Errorf("unmapping what was mapped in it: result %d", r)
		}
	}
	if err := failpoint.Hit("visit.unmapped"); err != nil {
		return err
	}
	// The kernel issues an interrupted call again only behind a stop like the one that was.
	if err := s.interrupt(true); err != nil {
		return err
	}
	// In this order: between the two it would still go home by itself, which sets the mask as well.
	if err := sys.PtraceSetSigmask(s.tid, s.mask); err != nil {
		return fmt.Errorf("setting the signal mask: %w", err)
	}
	if err := failpoint.After("visit.back", writeRegs(s.tid, s.regs)); err != nil {
		return err
	}
	return sys.PtraceSetOptions(s.tid, 0)
}
