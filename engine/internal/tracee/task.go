package tracee

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// A Task is a thread or process that Spawn or Clone made and that executes batches. It is stopped
// whenever no method of its Tracer runs.
type Task struct {
	Tid  int       // in the tracer's pid namespace
	Pid  int       // of its process, there
	Base arch.Addr // where it has the arena

	// Kept are the signals (raw siginfo) that arrived from outside and have not been delivered.
	// Stop signals are among them.
	Kept [][sys.SizeofSiginfo]byte

	arena  *Arena
	slot   slot
	state  taskState
	status sys.WaitStatus // once dead

	thread bool   // made by CLONE_THREAD
	init   bool   // of a pid namespace
	nested bool   // its pid namespace is not the tracer's
	odd    bool   // has changed the pid namespace of its children
	group  *group // its process
}

type group struct{ live int }

type taskState int

const (
	taskNew     taskState = iota // not made yet
	taskReady                    // stopped; continued, it reads its table
	taskAside                    // stopped elsewhere: registers must be set before it can read its table
	taskRunning                  // being waited for
	taskDead                     // waited for; a zombie for its parent perhaps
	taskGone                     // detached from
)

// Dead says whether the task has ended, and how.
func (k *Task) Dead() (sys.WaitStatus, bool) { return k.status, k.state == taskDead }

// SlotAddr is the address, in the task, of its slot.
func (k *Task) SlotAddr() arch.Addr { return k.arena.slotAddr(k.Base, k.slot) }

func (k *Task) slotMem() []byte { return k.arena.slot(k.slot) }

func (k *Task) entry() arch.Addr { return k.Base + arch.Addr(k.arena.arch.Routine.Entry) }

// syscallAddr is the address of a system call instruction.
func (k *Task) syscallAddr() arch.Addr { return k.Base + arch.Addr(k.arena.arch.Routine.Syscall) }

// delicate says that wait4 on this task alone might never return though it has been killed: the
// kernel reports a process only after all its threads, and the init of a pid namespace only after
// all tasks in it, have been waited for.
func (k *Task) delicate() bool { return k.init || !k.thread && k.group.live > 1 }

// regs reads the task's general registers.
func (k *Task) regs() ([]byte, error) { return readRegs(k.arena.arch, k.Tid) }

func readRegs(a *arch.Arch, tid int) ([]byte, error) {
	buf := make([]byte, a.PRStatusSize+8)
	n, err := sys.PtraceGetRegs(tid, buf)
	if err != nil {
		return nil, fmt.Errorf("pid %d: reading registers: %w", tid, err)
	}
	if err := a.CheckPRStatus(buf[:n]); err != nil {
		return nil, fmt.Errorf("pid %d: %w", tid, err)
	}
	return buf[:n], nil
}

func writeRegs(tid int, regs []byte) error {
	if err := sys.PtraceSetRegs(tid, regs); err != nil {
		return fmt.Errorf("pid %d: setting registers: %w", tid, err)
	}
	return nil
}

// prepare brings a stopped task to where it reads its table when it is continued.
func (k *Task) prepare() error {
	switch k.state {
	case taskReady:
		return nil
	case taskAside:
		regs, err := k.regs()
		if err != nil {
			return err
		}
		a := k.arena.arch
		a.ClearSyscall(regs)
		a.SetPC(regs, k.entry())
		a.SetSP(regs, k.SlotAddr())
		if err := writeRegs(k.Tid, regs); err != nil {
			return err
		}
		k.state = taskReady
		return nil
	case taskDead:
		return fmt.Errorf("pid %d: %s", k.Tid, k.status)
	case taskGone:
		return fmt.Errorf("pid %d: has been let go: %w", k.Tid, unix.ESRCH)
	}
	return fmt.Errorf("pid %d: the task is not stopped: %w", k.Tid, unix.EBUSY)
}
