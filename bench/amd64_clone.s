//go:build amd64

#include "textflag.h"

// func cloneParked(args *cloneArgs, size uintptr) (pid int64)
//
// The child waits for ever, without a stack: nothing of Go may run there.
TEXT ·cloneParked(SB),NOSPLIT,$0-24
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JEQ  child
	MOVQ AX, pid+16(FP)
	RET
child:
	MOVQ $34, AX // pause
	SYSCALL
	JMP  child
