package arch

// The table of calls that a routine executes, one a task, in a slot of the arena. All words have 64
// bits and the task's own byte order. The routine begins with its stack pointer (on amd64 rsp) at
// the slot's first byte:
//
//	slot + 0   count   how many entries to execute
//	     + 8   done    entries finished; the index of the entry that is being executed or that stopped the batch
//	     + 16  status  SlotRunning until the routine is about to stop, then SlotStopped
//	     + 64  entries, EntrySize bytes each
//
//	entry + 0  nr      number of the call
//	      + 8  args    six words
//	      + 56 flags   see below
//	      + 64 expect  with FlagExpect: the only result that counts as success
//	      + 72 result
//
// An argument whose flag bit (1 << i) is set is not the value itself but the offset, within the
// slot, of the word that holds it: the result of an earlier entry, or anything that an earlier call
// wrote into the slot.
//
// The batch stops before its end at an entry whose result is an error (-4095..-1) or differs from
// expect, unless it has FlagIgnore. Then the routine sets status and stops by a breakpoint, which
// the tracer sees as a SIGTRAP. Continued, it starts over with the same slot. After an entry with
// FlagClone a task that sees result 0 is the child: its stack pointer is its own slot already
// (clone_args.stack), and it starts over too. An entry with FlagCompat is a call of the architecture's
// Compat: its number, and its arguments of 32 bits, are those of that.
const (
	SlotCount   = 0
	SlotDone    = 8
	SlotStatus  = 16
	SlotEntries = 64

	EntryNr     = 0
	EntryArgs   = 8
	EntryFlags  = 56
	EntryExpect = 64
	EntryResult = 72
	EntrySize   = 80

	SlotRunning = 0
	SlotStopped = 1

	FlagIgnore = 1 << 8
	FlagExpect = 1 << 9
	FlagClone  = 1 << 10
	FlagCompat = 1 << 11
)

// A Routine is position-independent code that executes a table of calls. It fits in one page.
type Routine struct {
	Code    []byte
	Entry   int // offset at which a task starts
	Syscall int // offset of a system call instruction, for calls that are issued by setting registers
	Compat  int // the same for calls of Compat; 0: there is none
	Stop    int // offset of the program counter that a task shows when it has stopped at the end of a batch
}

// A Stub is a tiny static executable that waits for ever.
type Stub struct {
	Image   []byte // the ELF file
	Base    Addr   // its only segment is at Base and shorter than a page
	Syscall Addr   // address of a system call instruction in it
}
