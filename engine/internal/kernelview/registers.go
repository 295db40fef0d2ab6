package kernelview

import "crpipe/engine/internal/sys"

// A RegisterView is a View that also tells what ptrace would have to be asked
// for otherwise. What it tells was found equal to ptrace's answers, byte for
// byte, on this kernel and processor; all else is unknown. It is right of
// threads that stand still in a frozen cgroup v2 or in a stop.
type RegisterView interface {
	View

	// Registers tells the registers and the queues of signals of each given
	// thread, in the order asked for.
	Registers(tids []int) ([]Registers, error)

	// Calls tells, for less, the general registers and which signals are pending:
	// enough to know how an interrupted call goes on.
	Calls(tids []int) ([]Call, error)

	// Siblings tells of each thread what /proc/PID/task/TID/status shows and may
	// differ between threads of one process.
	Siblings(tids []int) ([]Sibling, error)

	// AreasAhead reads what the next call of Areas for each of the threads says, of
	// all at once: a tree stands still. SetNow forgets it.
	AreasAhead(tids []int)

	// Marks tells what changes whenever a thread runs, if only for a moment.
	Marks(tids []int) ([]Mark, error)
}

// Call is the general registers of a thread and its signals as sets, bit n-1
// for signal n.
type Call struct {
	Tid      int
	Frozen   Maybe[bool]   // it stands in a freezer of version 2, or in a stop
	PRStatus Maybe[[]byte] // NT_PRSTATUS as PTRACE_GETREGSET gives it

	// Mask is what PTRACE_GETSIGMASK says: where a call has swapped the mask, the
	// one that comes back after it. Blocked is in force now.
	Mask, Blocked          Maybe[uint64]
	Pending, SharedPending Maybe[uint64] // of the thread, of its process
	Ignored, Caught        Maybe[uint64]
}

// Registers is what PTRACE_GETREGSET and its like would say of a thread.
type Registers struct {
	Call

	// Sets are the architecture's register sets behind NT_PRSTATUS.
	Sets Maybe[[]Regset]

	// The signals that wait, oldest first, as PTRACE_PEEKSIGINFO gives them: the
	// thread's own, and (the same slice in all its threads) its process's.
	Queue, SharedQueue Maybe[[]Siginfo]

	// Rseq is as PTRACE_GET_RSEQ_CONFIGURATION says, its length known.
	Rseq Maybe[Rseq]
}

// Sibling is what may differ between the threads of a process, as status
// shows it.
type Sibling struct {
	Tid              int
	Comm             string
	Cred, FS         ID // what else of credentials and umask: equal where these are
	Pending, Blocked uint64
	Seccomp, Filters int32
	NoNewPrivs       bool
	Dead             bool
	Known            bool // all of these could be read
}

// Regset is one register set.
type Regset struct {
	Note uint32
	Data []byte
}

// Siginfo is a siginfo_t.
type Siginfo = [sys.SizeofSiginfo]byte

// Mark is what a thread's having run would change. Two that are equal are of a
// thread that has not run in between.
type Mark struct {
	Switches uint64 // how often it has left a processor
	Runtime  uint64 // ns that it was on one
	Regs     uint64 // a digest of its general registers
	Group    ID     // its cgroups
	Frozen   bool   // it stands in the freezer of cgroup version 2
	Traced   bool   // a tracer is attached
	Dead     bool
	Known    bool // all of these could be read

	// FrozenSince is when its cgroup was frozen, in ns of CLOCK_MONOTONIC: another
	// value is that of another freeze. Kernels before 6.18 do not keep it.
	FrozenSince Maybe[uint64]
}
