package object

import (
	"reflect"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/stream"
)

// Process is a thread group of the tree that is being dumped.
type Process struct {
	PID     int // in the caller's pid namespace
	ID      int // in the pid namespace of the tree's root: the number that goes into the image
	Zombie  bool
	Stat    procfs.Stat    // of the thread group
	Status  *procfs.Status // of the leader, dead or not
	Parent  *Process       // nil for the root of the tree
	Threads []*Thread      // live threads, the leader first unless it is dead
	// IOWorkers is how many more there are, which the kernel has made for io_uring and which are no part of the image.
	IOWorkers int
	View      *kernelview.Process
	Job       JobState

	// What the families found; zero until they ran.
	Memory                          any                  // what package memory keeps of the address space between its steps
	notes                           map[reflect.Type]any // of the root: see Note
	MM, Files, FS, Sighand, Session stream.Ref           // Session: a session keyring of its own
}

// JobState is what job control had done to a process before the freeze (signal numbers; zero: nothing).
type JobState struct {
	StopSignal int32 // the process is stopped by this signal
	Unwaited   bool  // and its parent has not been told by wait yet
	Continued  bool  // it runs again, of which its parent has not been told yet
}

// Thread is one task of a Process. It stands still, in ptrace-stop unless Kernel is there.
type Thread struct {
	Process *Process
	TID     int // in the caller's pid namespace
	ID      int // in the pid namespace of the tree's root
	Status  *procfs.Status
	Stat    procfs.Stat
	View    *kernelview.Thread
	Regs    []byte                // NT_PRSTATUS, as the thread will go on
	Kernel  *kernelview.Registers // what need not be asked by ptrace: all of it known; nil: ask
	// ABI is whose the system call is that Regs show: the machine's, or its 32-bit companion's. Set when Regs are.
	ABI *arch.Arch

	// InVfork says that it waits in vfork(2), which no stop interrupts, for the process Child.
	InVfork bool
	Child   *Process

	// What the families found that the thread has alone or with others than its leader; zero: what its process has.
	Files, FS stream.Ref
	seen      *Process
}

// AsProcess is the thread's process as that thread sees it: its Leader is the thread, so that paths in /proc lead to the
// descriptors and directories that the thread has.
func (t *Thread) AsProcess() *Process {
	if t == t.Process.Leader() {
		return t.Process
	}
	if t.seen == nil {
		p := *t.Process
		p.Threads = []*Thread{t}
		t.seen = &p
	}
	return t.seen
}

// Leader returns the thread through which the process is looked at: the group leader, or a live thread when the
// leader is dead.
func (p *Process) Leader() *Thread { return p.Threads[0] }

// Comm returns the process's name.
func (p *Process) Comm() string { return p.Stat.Comm }

// Errorf wraps err with the process that it is about.
func (p *Process) Error(what string, err error) error {
	return &Error{PID: p.PID, Comm: p.Comm(), FD: -1, What: what, Err: err}
}
