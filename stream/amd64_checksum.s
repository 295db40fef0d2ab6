//go:build amd64

#include "textflag.h"

// func foldBlocks(acc *[256]byte, p []byte, by *[8]uint64)
//
// Each 16 bytes of acc are multiplied by x^2048 modulo the polynomial, their halves by a factor of their own, and added to the 16 bytes that lie 256
// bytes on. (Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009.)
TEXT ·foldBlocks(SB), NOSPLIT, $0-40
	MOVQ acc+0(FP), DI
	MOVQ p_base+8(FP), SI
	MOVQ p_len+16(FP), CX
	MOVQ by+32(FP), DX
	VMOVDQU64 (DX), Z16
	VMOVDQU64 (DI), Z17
	VMOVDQU64 64(DI), Z18
	VMOVDQU64 128(DI), Z19
	VMOVDQU64 192(DI), Z20
	SHRQ $8, CX
	JZ   done

loop:
	VPCLMULQDQ $0x00, Z16, Z17, Z21
	VPCLMULQDQ $0x11, Z16, Z17, Z17
	VPCLMULQDQ $0x00, Z16, Z18, Z22
	VPCLMULQDQ $0x11, Z16, Z18, Z18
	VPCLMULQDQ $0x00, Z16, Z19, Z23
	VPCLMULQDQ $0x11, Z16, Z19, Z19
	VPCLMULQDQ $0x00, Z16, Z20, Z24
	VPCLMULQDQ $0x11, Z16, Z20, Z20
	// a ^ b ^ c
	VPTERNLOGQ $0x96, (SI), Z21, Z17
	VPTERNLOGQ $0x96, 64(SI), Z22, Z18
	VPTERNLOGQ $0x96, 128(SI), Z23, Z19
	VPTERNLOGQ $0x96, 192(SI), Z24, Z20
	ADDQ $256, SI
	DECQ CX
	JNZ  loop

done:
	VMOVDQU64 Z17, (DI)
	VMOVDQU64 Z18, 64(DI)
	VMOVDQU64 Z19, 128(DI)
	VMOVDQU64 Z20, 192(DI)
	VZEROUPPER
	RET

// func xgetbv() (eax uint32)
TEXT ·xgetbv(SB), NOSPLIT, $0-4
	XORL CX, CX
	XGETBV
	MOVL AX, eax+0(FP)
	RET
