package kernelview

import "crpipe/arch"

// Process is what belongs to a process, and to the address space that the
// thread asked for uses.
type Process struct {
	Tid int // the thread that was asked for

	Sighand Maybe[ID]
	Actions Maybe[[64]Action] // of signal n at n-1

	Signal        Maybe[ID]
	ItimerReal    Maybe[Itimer]
	ItimerVirtual Maybe[Itimer]
	ItimerProf    Maybe[Itimer]
	Timers        Maybe[[]PosixTimer] // oldest first
	NextTimerID   Maybe[int32]        // what timer_create(2) tries next
	RestoreIDs    Maybe[bool]         // PR_TIMER_CREATE_RESTORE_IDS is on

	Rlimits        Maybe[[16]Rlimit]
	Subreaper      Maybe[bool]  // PR_SET_CHILD_SUBREAPER
	HasSubreaper   Maybe[bool]  // an ancestor is one
	OOMScoreAdj    Maybe[int16] // /proc/PID/oom_score_adj
	OOMScoreAdjMin Maybe[int16] // how far a process without CAP_SYS_RESOURCE may lower it

	// Job control and end of the process.
	GroupExit     Maybe[bool]  // is ending as a whole
	GroupExitCode Maybe[int32] // then: as wait(2) gives it
	Stopped       Maybe[bool]  // in a job-control stop as a whole
	StopUnwaited  Maybe[int32] // the stop signal that the parent has not waited for yet, 0: none
	ContUnwaited  Maybe[bool]  // a SIGCONT that the parent has not waited for yet (WCONTINUED)
	AutogroupNice Maybe[int32] // /proc/PID/autogroup, 0 also where there is none
	NThreads      Maybe[int32] // threads not yet released, zombies among them

	MM Maybe[AddressSpace] // ID 0: none (zombie)
}

// Action is one signal action as rt_sigaction(2) of the kernel has it.
type Action struct {
	Handler  arch.Addr // 0 SIG_DFL, 1 SIG_IGN
	Flags    uint64    // with SA_RESTORER
	Restorer arch.Addr
	Mask     uint64
}

// Itimer is one timer of setitimer(2), in ns. Left may be 0 or negative when
// the timer is about to fire. A timer that is not armed but has an Interval has
// fired and goes on when its SIGALRM is taken: Left is then the time to the
// next of its multiples, which is when it fires next whenever that is.
type Itimer struct {
	Armed    bool
	Left     int64
	Interval int64
	// Expires is the absolute end on CLOCK_MONOTONIC in the initial time
	// namespace; of a fired one the moment it fired at. Unknown for CPU time.
	Expires Maybe[int64]
}

// PosixTimer is one timer of timer_create(2).
type PosixTimer struct {
	ID     int32
	Clock  int32 // as given to timer_create; CPU clocks as the kernel keeps them: -6 process, -2 thread, or a pid's clock
	Notify int32 // SIGEV_*
	Signo  int32
	Value  uint64 // sigev_value
	// Target is the tid of SIGEV_THREAD_ID in the caller's pid namespace; 0 for
	// every other Notify.
	Target int
	// ClockTID is the tid, in the caller's pid namespace, of the thread whose CPU time Clock counts, where it counts that of one; 0: it has
	// ended.
	ClockTID Maybe[int]

	Interval int64 // ns
	Armed    bool
	// Left is the time to the next expiry in ns as timer_gettime(2) counts it: of
	// a periodic timer whose signal is not taken yet, to the next expiry in the
	// future. 0 when the timer is not armed.
	Left Maybe[int64]
	// Expires is the absolute time of the expiry that the kernel has set, in the
	// past when its signal is not taken, on the clock ExpiresOn (which is
	// CLOCK_MONOTONIC for a relative timer on CLOCK_REALTIME), in the initial time
	// namespace.
	Expires   Maybe[int64]
	ExpiresOn Maybe[int32]

	// Overrun is what timer_getoverrun(2) returns; Missed is the count that goes
	// on with the next delivery, -1 when nothing was missed.
	Overrun, Missed int64
	// SignalPending says that its signal is queued and not taken: then it must not
	// be recorded as a pending signal too.
	SignalPending Maybe[bool]
}

// Rlimit is one pair of prlimit(2).
type Rlimit struct{ Cur, Max uint64 }

// AddressSpace is what belongs to an address space and no call of another task
// can ask for.
type AddressSpace struct {
	ID    ID
	Users Maybe[int32] // tasks that use it

	Dumpable      Maybe[uint8]  // PR_GET_DUMPABLE
	CoreFilter    Maybe[uint32] // /proc/PID/coredump_filter
	THPDisable    Maybe[bool]   // PR_GET_THP_DISABLE is 1
	THPAdvised    Maybe[bool]   // PR_GET_THP_DISABLE is 3: but for what madvise(2) names (Linux 6.18)
	FutexSlots    Maybe[int32]  // PR_FUTEX_HASH_GET_SLOTS where the program has set them (0: the hash of all processes); -1: it has not
	KSMMerge      Maybe[bool]   // PR_GET_MEMORY_MERGE
	MDWE          Maybe[bool]   // PR_MDWE_REFUSE_EXEC_GAIN
	MDWENoInherit Maybe[bool]   // PR_MDWE_NO_INHERIT
	LockFuture    Maybe[bool]   // mlockall(MCL_FUTURE)
	LockOnFault   Maybe[bool]   // mlockall(MCL_FUTURE|MCL_ONFAULT)
	Membarrier    Maybe[uint32] // MEMBARRIER_CMD_GET_REGISTRATIONS

	Auxv   Maybe[[]uint64] // words, up to and with the AT_NULL pair
	Layout Maybe[Layout]
	// TaskSize is where the address space ends, which execve(2) has fixed: of a 32-bit program below 4 GiB.
	TaskSize Maybe[arch.Addr]

	AIOContexts Maybe[int] // io_setup(2) contexts
	AIO         Maybe[[]AIOContext]
	LDT         Maybe[[]byte] // entries of modify_ldt(2), 8 bytes each
	ExeFile     Maybe[ID]     // the open file behind /proc/PID/exe; same IDs as File.ID
}

// AIOContext is a context of io_setup(2).
type AIOContext struct {
	Ring   arch.Addr // where its ring is mapped, which is its number too
	Size   uint64    // bytes of that
	Index  uint32    // its place among the contexts of the address space, which the ring names
	MaxReq uint32    // as asked for
	Slots  uint32    // events that the ring has room for
	Tail   uint32    // the kernel's own: where the next event goes
	// InFlight is the number of requests that have not completed, Polls that some
	// of them wait for a file to become ready.
	InFlight Maybe[int]
	Polls    bool
}

// Layout is the part of PR_SET_MM_MAP that marks areas.
type Layout struct {
	StartCode, EndCode, StartData, EndData arch.Addr
	StartBrk, Brk, StartStack              arch.Addr
	ArgStart, ArgEnd, EnvStart, EnvEnd     arch.Addr
}
