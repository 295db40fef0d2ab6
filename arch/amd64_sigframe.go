package arch

import (
	"encoding/binary"
	"fmt"
)

// The frame that the kernel builds before a handler runs and that rt_sigreturn(2) reads (struct
// rt_sigframe in arch/x86/include/asm/sigframe.h, struct ucontext, struct sigcontext_64).
const (
	amd64FrameUC      = 8 // after the handler's return address
	amd64UCFlags      = amd64FrameUC
	amd64UCStack      = amd64FrameUC + 16
	amd64UCContext    = amd64FrameUC + 40
	amd64UCMask       = amd64UCContext + 256
	amd64FrameInfo    = amd64UCMask + 8
	amd64FrameSize    = amd64FrameInfo + 128
	amd64ContextSegs  = amd64UCContext + 18*8 // cs, gs, fs, ss: 16 bits each
	amd64ContextFPPtr = amd64UCContext + 23*8

	ucFPXState        = 1 << 0 // UC_FP_XSTATE
	ucSigcontextSS    = 1 << 1 // UC_SIGCONTEXT_SS: ss is in the frame
	ucStrictRestoreSS = 1 << 2 // UC_STRICT_RESTORE_SS

	fpXStateMagic1 = 0x46505853 // asm/sigcontext.h
	fpXStateMagic2 = 0x46505845
)

// amd64ContextRegs are the words at the beginning of sigcontext_64.
var amd64ContextRegs = [18]int{
	amd64R8, amd64R9, amd64R10, amd64R11, amd64R12, amd64R13, amd64R14, amd64R15,
	amd64RDI, amd64RSI, amd64RBP, amd64RBX, amd64RDX, amd64RAX, amd64RCX, amd64RSP, amd64RIP, amd64EFlags,
}

// amd64SigFrame builds the frame for address at. The segment bases are not part of a frame: the
// code that runs in between must leave them alone. Callee of the result: rsp := SP, then
// rt_sigreturn.
func amd64SigFrame(at Addr, c SigContext) (*SigFrame, error) {
	if len(c.PRStatus) != amd64PRStatusSize {
		return nil, fmt.Errorf("general registers of %d bytes, amd64 has %d", len(c.PRStatus), amd64PRStatusSize)
	}
	le := binary.LittleEndian
	// The floating point area comes first and is aligned to 64 bytes, as xrstor wants it; the frame
	// proper follows.
	start := (at + 63) &^ 63
	pad := int(start - at)
	fpLen := 0
	if c.XState != nil {
		if _, err := ParseX86XState(c.XState); err != nil {
			return nil, err
		}
		fpLen = (len(c.XState) + 4 + 15) &^ 15
	}
	b := make([]byte, pad+fpLen+amd64FrameSize)
	frame := b[pad+fpLen:]
	flags := uint64(ucSigcontextSS | ucStrictRestoreSS)
	if c.XState != nil {
		fp := b[pad : pad+fpLen]
		copy(fp, c.XState)
		size := uint32(len(c.XState))
		enabled := le.Uint64(c.XState[xstateEnabled:])
		// struct _fpx_sw_bytes; magic2 follows the area.
		sw := fp[xstateEnabled : xstateEnabled+48]
		clear(sw)
		le.PutUint32(sw[0:], fpXStateMagic1)
		le.PutUint32(sw[4:], size+4)
		le.PutUint64(sw[8:], enabled)
		le.PutUint32(sw[16:], size)
		le.PutUint32(fp[size:], fpXStateMagic2)
		le.PutUint64(frame[amd64ContextFPPtr:], uint64(start))
		flags |= ucFPXState
	}
	le.PutUint64(frame[amd64UCFlags:], flags)
	le.PutUint64(frame[amd64UCStack:], uint64(c.StackSP))
	le.PutUint32(frame[amd64UCStack+8:], uint32(c.StackFlags))
	le.PutUint64(frame[amd64UCStack+16:], c.StackSize)
	for i, r := range amd64ContextRegs {
		le.PutUint64(frame[amd64UCContext+8*i:], amd64Words.get(c.PRStatus, r))
	}
	for i, r := range [4]int{amd64CS, amd64GS, amd64FS, amd64SS} {
		le.PutUint16(frame[amd64ContextSegs+2*i:], uint16(amd64Words.get(c.PRStatus, r)))
	}
	le.PutUint64(frame[amd64UCMask:], c.Mask)
	// rt_sigreturn takes the frame to begin one word below the stack pointer, where the handler's
	// return address was.
	return &SigFrame{Bytes: b, SP: start + Addr(fpLen) + 8}, nil
}
