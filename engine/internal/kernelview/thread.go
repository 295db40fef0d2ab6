package kernelview

import "crpipe/arch"

// Place is a directory as it is reached: a mount, and the name in it.
type Place struct{ Mount, Name ID }

// Thread is what the kernel knows of one thread.
type Thread struct {
	Tid, Tgid int // in the caller's pid namespace; Tgid 0: the leader is outside of it

	// Parent is the thread whose child the process is, in the caller's pid namespace (0: outside of it). All threads of a
	// process have the same.
	Parent Maybe[int]

	// The objects the thread uses. Equal IDs of two threads mean that they share
	// the object, as kcmp(2) says.
	MM        Maybe[ID]   // address space
	Files     Maybe[ID]   // descriptor table
	FS        Maybe[ID]   // root, cwd and umask
	Sighand   Maybe[ID]   // signal actions
	Signal    Maybe[ID]   // the process
	IOContext Maybe[ID]   // I/O priority (CLONE_IO)
	SysVSem   Maybe[ID]   // semaphore undo list (CLONE_SYSVSEM)
	SemUndo   Maybe[bool] // that list has adjustments (SEM_UNDO of semop(2))
	Cred      Maybe[ID]   // credentials: equal means the same object, different may still be equal in content

	Namespaces Maybe[ID] // all but that of users and its own of pids
	UserNS     Maybe[ID]

	// The root and the working directory. Equal places are the same directory of the same mount.
	Root, Cwd Maybe[Place]

	State ThreadState

	ExitSignal   Maybe[int32] // sent to the parent at the end; -1 in a thread that is not its process's leader
	PdeathSignal Maybe[int32] // PR_GET_PDEATHSIG

	Altstack Maybe[Altstack]

	// Signal masks. Bit n-1 is signal n. Blocked is the mask in force. While
	// SavedMask is known, the thread is inside a call such as sigsuspend or ppoll
	// that has put a temporary mask in force: SavedMask is what the program set and
	// what will be in force again after the call. While RealBlocked is not zero
	// the thread is inside sigtimedwait, and RealBlocked is what the program set.
	Blocked     Maybe[uint64]
	SavedMask   Maybe[uint64] // unknown also when none is saved: HasSavedMask tells
	RealBlocked Maybe[uint64]
	// HasSavedMask says whether SavedMask is in use.
	HasSavedMask Maybe[bool]

	Restart Restart

	ClearChildTid Maybe[arch.Addr] // set_tid_address(2)
	SetChildTid   Maybe[arch.Addr]
	RobustList    Maybe[arch.Addr] // the head; get_robust_list(2)
	CompatRobust  Maybe[arch.Addr] // the same of a 32-bit task
	Rseq          Maybe[Rseq]

	TimerSlack        Maybe[uint64] // ns; PR_GET_TIMERSLACK
	DefaultTimerSlack Maybe[uint64] // ns; what PR_SET_TIMERSLACK 0 goes back to
	LoginUID          Maybe[uint32] // /proc/PID/loginuid; all ones: none
	SessionID         Maybe[uint32] // /proc/PID/sessionid
	Keyrings          Maybe[Keyrings]
	Landlock          Maybe[bool]   // is in a domain of landlock(7)
	Securebits        Maybe[uint32] // PR_GET_SECUREBITS, bit 4 is PR_GET_KEEPCAPS
	NoNewPrivs        Maybe[bool]
	Personality       Maybe[uint32]
	Ioprio            Maybe[uint16] // ioprio_get(2); 0 is none set
	MCEKill           Maybe[MCEKill]
	IOFlusher         Maybe[bool] // PR_GET_IO_FLUSHER
	SeccompMode       Maybe[int32]
	SeccompFilters    Maybe[int32]
	Seccomp           Maybe[[]SeccompFilter] // oldest first
	TSCFaults         Maybe[bool]            // PR_TSC_SIGSEGV is in force
	CPUIDFaults       Maybe[bool]            // ARCH_SET_CPUID of arch_prctl(2) has forbidden the CPUID instruction
	Speculation       Maybe[Speculation]
	SyscallDispatch   Maybe[SyscallDispatch]
	Mempolicy         Maybe[Mempolicy]

	ResetOnFork  Maybe[bool]     // SCHED_FLAG_RESET_ON_FORK
	SchedSlice   Maybe[uint64]   // ns; the slice that is in force
	CustomSlice  Maybe[bool]     // the slice was asked for with sched_setattr(2)
	UserAffinity Maybe[[]uint64] // the mask of sched_setaffinity(2) that outlives cpuset changes; nil: none is kept (never called; always before 6.2)

	// Hardware and x86 leftovers. Known(false) and Known(0) are the ordinary case.
	Breakpoints Maybe[bool]      // debug registers set through ptrace
	IOPermitted Maybe[bool]      // iopl(2) or ioperm(2) is in force
	TLS         Maybe[[3]uint64] // GDT entries of set_thread_area(2)
}

// ThreadState says whether and how the thread is stopped or ended.
type ThreadState struct {
	Zombie     Maybe[bool]  // ended and not yet waited for
	ExitCode   Maybe[int32] // of a zombie: as wait(2) gives it
	JobStopped Maybe[bool]  // takes part in a job-control stop
	StopSignal Maybe[int32] // the signal of that stop, 0 when it is not stopped
	Frozen     Maybe[bool]  // in a frozen cgroup v2
	OnCPU      Maybe[bool]  // is running this moment: then nothing here can be trusted
	VforkChild Maybe[bool]  // was made by vfork(2) and its parent still waits for it
}

// Altstack is what sigaltstack(2) has set. Size 0 is SS_DISABLE whatever Flags
// say.
type Altstack struct {
	SP    arch.Addr
	Size  uint64
	Flags uint32 // SS_DISABLE, SS_AUTODISARM
}

// Rseq is the registration of rseq(2). Addr 0: none.
type Rseq struct {
	Addr arch.Addr
	Len  Maybe[uint32] // 6.1 does not keep it (it is 32 there)
	Sig  uint32
}

// MCEKill is PR_MCE_KILL_GET.
type MCEKill struct {
	Set   bool // by PR_MCE_KILL_SET, else the system's default holds
	Early bool
}

// Speculation holds the bits of PR_SET_SPECULATION_CTRL.
type Speculation struct {
	SSBDisable, SSBForceDisable, SSBNoexec bool
	IBDisable, IBForceDisable              bool
}

// SyscallDispatch is PR_SET_SYSCALL_USER_DISPATCH.
type SyscallDispatch struct {
	On       bool
	Selector arch.Addr
	Offset   arch.Addr // start of the range that is always allowed
	Len      uint64
}

// Mempolicy is set_mempolicy(2).
type Mempolicy struct {
	Set   bool // false: the default policy
	Mode  uint16
	Flags uint16
	Nodes []uint64 // the mask as the program gave it, trailing zero words dropped
	Home  int32    // home node, -1: none
}

// RestartKind is the way an interrupted system call goes on.
type RestartKind uint8

const (
	// RestartUnknown: the call cannot be described: do not guess.
	RestartUnknown RestartKind = iota
	// RestartNone: the calls that the thread can be in carry no state of their own.
	RestartNone
	// RestartNanosleep: nanosleep, clock_nanosleep with a relative time.
	RestartNanosleep
	// RestartPoll: poll.
	RestartPoll
	// RestartFutex: FUTEX_WAIT or FUTEX_WAIT_BITSET with a time.
	RestartFutex
)

// String names the kind.
func (k RestartKind) String() string {
	switch k {
	case RestartUnknown:
		return "unknown"
	case RestartNone:
		return "none"
	case RestartNanosleep:
		return "nanosleep"
	case RestartPoll:
		return "poll"
	case RestartFutex:
		return "futex"
	}
	return "invalid"
}

// Restart is the thread's restart block. It is filled when a wait is
// interrupted, so it means something only in a stopped thread, and it is live
// only when the thread's result register holds -516 (ERESTART_RESTARTBLOCK);
// whoever uses it must check that first: the block of an earlier call is kept.
type Restart struct {
	Kind RestartKind

	// Infinite: a poll without a timeout. Then Clock, Expires and Left say nothing.
	Infinite bool
	// Clock is what Expires is measured by: a clockid of clock_gettime(2), or -6
	// and -2 for the CPU time of the process and of the thread.
	Clock int32
	// Expires is the absolute end in ns of Clock, in the initial time namespace.
	Expires int64
	// Left is the time left in ns at the moment of reading; negative when it is
	// over. Unknown for CPU clocks that are not running.
	Left Maybe[int64]

	// Nanosleep.
	Remain arch.Addr // where the time left is to be written; 0: nowhere
	Compat bool      // Remain is an old 32-bit timespec
	Alarm  bool      // the sleep is on CLOCK_REALTIME_ALARM or CLOCK_BOOTTIME_ALARM (Clock)

	// Poll.
	Pollfds  arch.Addr
	NPollfds uint32

	// Futex.
	Uaddr       arch.Addr
	Val, Bitset uint32
	Shared      Maybe[bool] // not FUTEX_PRIVATE_FLAG
}
