//go:build amd64

package kernelview

import (
	"encoding/binary"
	"errors"

	"crpipe/arch"
	"crpipe/internal/cpuid"
)

// frameSize is sizeof(struct pt_regs): the first 21 words of struct
// user_regs_struct, in that order (arch/x86/include/asm/ptrace.h).
const frameSize = 21 * 8

// The words of struct user_regs_struct that are looked at here.
const (
	wordCS, wordSS     = 17, 20
	wordFSBase, wordDS = 21, 23
	userRegsWords      = 27
	userCode           = 0x33 // __USER_CS; another one runs in 32-bit mode, whose registers ptrace gives in another form
	compatCall         = 2    // TS_COMPAT (asm/thread_info.h): 64-bit code is in a call of 32-bit code, int 0x80
)

// prstatus makes NT_PRSTATUS the way getreg does (arch/x86/kernel/ptrace.c).
// The segment bases of a thread that has loaded a selector can be those of its
// descriptor: unknown.
func (v *bpfView) prstatus(r *rawTask) Maybe[[]byte] {
	le := binary.LittleEndian
	out := make([]byte, userRegsWords*8)
	copy(out, r.frame)
	le.PutUint64(out[wordCS*8:], le.Uint64(r.frame[wordCS*8:])&0xffff)
	le.PutUint64(out[wordSS*8:], le.Uint64(r.frame[wordSS*8:])&0xffff)
	status, ok := v.l.uint(r.task, fTIStatus)
	if le.Uint64(out[wordCS*8:]) != userCode || !ok || status&compatCall != 0 {
		return Maybe[[]byte]{}
	}
	for i, f := range []field{fTFSBase, fTGSBase, fTDS, fTES, fTFSIndex, fTGSIndex} {
		w, ok := v.l.uint(r.task, f)
		if !ok || w != 0 && (f == fTFSIndex || f == fTGSIndex) {
			return Maybe[[]byte]{}
		}
		le.PutUint64(out[(wordFSBase+i)*8:], w)
	}
	return Is(out)
}

// readFP reads the FPU's part of the tasks: struct fpstate up to as many bytes
// of registers as it says it has.
func (v *bpfView) readFP(raws []rawTask) error {
	l := v.l
	if !l.facts[factFPSize].known || !l.has(fFpSize) || !l.has(fFpRegs) || !l.has(fFpUser) {
		return nil
	}
	at := make([]uint64, len(raws))
	if l.has(fTFpstate) {
		for i := range raws {
			at[i], _ = l.uint(raws[i].task, fTFpstate)
		}
	} else if l.has(fFpuFpstate) && l.has(fTaskSize) {
		// x86_task_fpu in arch/x86/include/asm/processor.h (6.16).
		where := make([]uint64, len(raws))
		for i := range raws {
			where[i] = raws[i].addr + uint64(l.fields[fTaskSize].size) + l.off(fFpuFpstate)
		}
		if err := v.mem.gather(where, 8, func(i int, b []byte) {
			if b != nil {
				at[i] = binary.LittleEndian.Uint64(b)
			}
		}); err != nil {
			return err
		}
	} else {
		return nil
	}
	head := int(l.off(fFpRegs))
	usual := head + int(l.facts[factFPSize].value)
	if usual > maxRead {
		return nil
	}
	store := v.fpArena.take(len(raws) * usual)
	large := make(map[int]int) // by thread: size of a buffer that was enlarged, for AMX
	err := v.mem.gather(at, usual, func(i int, b []byte) {
		size, ok := l.uint(b, fFpSize)
		switch {
		case !ok || size > maxRead:
		case head+int(size) > usual:
			large[i] = head + int(size)
		default:
			raws[i].fp = store[i*usual : (i+1)*usual : (i+1)*usual]
			copy(raws[i].fp, b)
		}
	})
	for i, size := range large {
		if err != nil {
			break
		}
		if raws[i].fp, err = v.mem.peek(at[i], size); errors.Is(err, errFault) {
			raws[i].fp, err = nil, nil
		}
	}
	return err
}

// Places in an xsave area (Intel SDM volume 1, 13.4; struct xregs_state).
const (
	xMXCSR    = 24
	xST       = 32
	xXMM      = 160
	xPadding  = 416
	xReserved = 464
	xHeader   = 512
	xCompact  = 520
	xExtended = 576

	xFP, xSSE, xAVX, xPKRU = 0, 1, 2, 9
)

// regsets makes NT_X86_XSTATE the way __copy_xstate_to_uabi_buf does
// (arch/x86/kernel/fpu/xstate.c): the standard form, whatever form the kernel
// keeps; what is in its initial state is written as that.
func (v *bpfView) regsets(r *rawTask) Maybe[[]Regset] {
	none := Maybe[[]Regset]{}
	l, le := v.l, binary.LittleEndian
	size, enabled, mask := l.facts[factXState], l.facts[factXFeatures], l.facts[factMXCSRMask]
	user, ok := l.uint(r.fp, fFpUser)
	if !size.known || !enabled.known || !mask.known || !ok {
		return none
	}
	x := r.fp[l.off(fFpRegs):]
	if len(x) < xExtended {
		return none
	}
	all := le.Uint64(x[xHeader:])
	use := all & user
	if use&^l.facts[factXVerified].value != 0 {
		return none // registers that were never compared with ptrace's on this machine
	}
	out := make([]byte, size.value)
	has := func(bit int) bool { return use>>bit&1 != 0 }
	if has(xFP) {
		copy(out[:xMXCSR], x)
		copy(out[xST:xXMM], x[xST:])
	} else {
		le.PutUint16(out, 0x37f)
	}
	if has(xSSE) || has(xAVX) {
		copy(out[xMXCSR:xST], x[xMXCSR:])
	} else {
		le.PutUint32(out[xMXCSR:], 0x1f80)
		le.PutUint32(out[xMXCSR+4:], uint32(mask.value))
	}
	if has(xSSE) {
		copy(out[xXMM:xPadding], x[xXMM:])
	}
	le.PutUint64(out[xReserved:], enabled.value)
	le.PutUint64(out[xHeader:], use)
	compact := le.Uint64(x[xCompact:])
	at := uint32(xExtended)
	for bit := 2; bit < 63; bit++ {
		c := v.components[bit]
		from := c.offset
		if compact>>63 != 0 {
			if compact>>bit&1 == 0 {
				if has(bit) {
					return none
				}
				continue
			}
			if c.align {
				at = (at + 63) &^ 63
			}
			from = at
			at += c.size
		}
		if !has(bit) {
			continue
		}
		if c.size == 0 || uint64(from)+uint64(c.size) > uint64(len(x)) || uint64(c.offset)+uint64(c.size) > size.value {
			return none
		}
		copy(out[c.offset:c.offset+c.size], x[from:])
	}
	if user>>xPKRU&1 != 0 {
		// What is in force is in the thread, not in the area. A processor may count it as in use though it is 0 (an emulated
		// one does); the other way round it would be lost.
		pkru, ok := l.uint(r.task, fTPKRU)
		if !ok || pkru != 0 && !has(xPKRU) {
			return none
		}
		le.PutUint32(out[v.components[xPKRU].offset:], uint32(pkru))
	}
	return Is([]Regset{{arch.NTX86XState, out}})
}

// component is where the processor keeps the registers of one feature.
type component struct {
	offset, size uint32 // of the standard form
	align        bool   // in the compacted form it begins at a multiple of 64
}

// components asks the processor (CPUID leaf 0xd).
func components() (all [64]component) {
	if most, _, _, _ := cpuid.Ask(0, 0); most < 0xd {
		return all
	}
	// Only what there is: in a virtual machine each question is an exit.
	userLow, _, _, userHigh := cpuid.Ask(0xd, 0)
	_, _, ownLow, ownHigh := cpuid.Ask(0xd, 1)
	there := uint64(userLow|ownLow) | uint64(userHigh|ownHigh)<<32
	for bit := 2; bit < 63; bit++ {
		if there>>bit&1 == 0 {
			continue
		}
		size, offset, c, _ := cpuid.Ask(0xd, uint32(bit))
		all[bit] = component{offset: offset, size: size, align: c>>1&1 != 0}
		if c&1 != 0 { // one of the supervisor's: not in the standard form
			all[bit].offset = 0
		}
	}
	return all
}

// processor names the processor for the cache: model, features, and the form
// and size of its registers as this boot has them enabled.
func processor() []byte {
	var out []byte
	for _, leaf := range [][2]uint32{{0, 0}, {1, 0}, {7, 0}, {7, 1}, {0xd, 0}, {0xd, 1}} {
		a, b, c, d := cpuid.Ask(leaf[0], leaf[1])
		if leaf[0] == 1 {
			b = 0 // the number of the processor that we are on
		}
		for _, w := range []uint32{a, b, c, d} {
			out = binary.LittleEndian.AppendUint32(out, w)
		}
	}
	return out
}
