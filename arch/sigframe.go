package arch

// SigContext is what a return from a signal handler restores.
type SigContext struct {
	PRStatus []byte // general registers; a call that the task was in is not restarted, so it must have been rewound
	XState   []byte // floating point and vector registers as NT_X86_XSTATE or its like has them; nil: unchanged
	Mask     uint64 // signal mask, bit 0 = signal 1
	// The alternate signal stack, which the return sets too.
	StackSP    Addr
	StackFlags int32
	StackSize  uint64
}

// SigFrame is a signal frame for one place in memory.
type SigFrame struct {
	Bytes []byte
	// SP is the stack pointer with which rt_sigreturn must be called for it.
	SP Addr
}
