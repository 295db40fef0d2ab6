package arch

import "encoding/binary"

// amd64Routine is the routine that routine.go specifies. rbx: count, rbp: index, r12: entry, r13:
// its flags; a system call changes only rax, rcx and r11, and int 0x80 rax and, before Linux 4.17, r8
// to r11. After each instruction: its offset, and the assembly in the syntax of as(1). The test
// assembles and compares it.
var amd64Routine = &Routine{
	Code:    amd64RoutineCode,
	Entry:   0x00,
	Syscall: 0x89,
	Compat:  0xed,
	Stop:    0xd5,
}

var amd64RoutineCode = []byte{
	// entry:
	0x48, 0x8b, 0x1c, 0x24, // 00  mov (%rsp),%rbx
	0x31, 0xed, // 04  xor %ebp,%ebp
	0x4c, 0x8d, 0x64, 0x24, 0x40, // 06  lea 64(%rsp),%r12
	// next:
	0x48, 0x89, 0x6c, 0x24, 0x08, // 0b  mov %rbp,8(%rsp)
	0x48, 0x39, 0xdd, // 10  cmp %rbx,%rbp
	0x0f, 0x83, 0xb2, 0x00, 0x00, 0x00, // 13  jae stop
	0x4d, 0x8b, 0x6c, 0x24, 0x38, // 19  mov 56(%r12),%r13
	0x49, 0x8b, 0x04, 0x24, // 1e  mov (%r12),%rax
	0x49, 0x8b, 0x7c, 0x24, 0x08, // 22  mov 8(%r12),%rdi
	0x49, 0x8b, 0x74, 0x24, 0x10, // 27  mov 16(%r12),%rsi
	0x49, 0x8b, 0x54, 0x24, 0x18, // 2c  mov 24(%r12),%rdx
	0x4d, 0x8b, 0x54, 0x24, 0x20, // 31  mov 32(%r12),%r10
	0x4d, 0x8b, 0x44, 0x24, 0x28, // 36  mov 40(%r12),%r8
	0x4d, 0x8b, 0x4c, 0x24, 0x30, // 3b  mov 48(%r12),%r9
	0x41, 0xf6, 0xc5, 0x3f, // 40  test $0x3f,%r13b
	0x74, 0x3c, // 44  jz call
	0x41, 0xf6, 0xc5, 0x01, // 46  test $1,%r13b
	0x74, 0x04, // 4a  jz 1f
	0x48, 0x8b, 0x3c, 0x3c, // 4c  mov (%rsp,%rdi),%rdi
	0x41, 0xf6, 0xc5, 0x02, // 50  1: test $2,%r13b
	0x74, 0x04, // 54  jz 1f
	0x48, 0x8b, 0x34, 0x34, // 56  mov (%rsp,%rsi),%rsi
	0x41, 0xf6, 0xc5, 0x04, // 5a  1: test $4,%r13b
	0x74, 0x04, // 5e  jz 1f
	0x48, 0x8b, 0x14, 0x14, // 60  mov (%rsp,%rdx),%rdx
	0x41, 0xf6, 0xc5, 0x08, // 64  1: test $8,%r13b
	0x74, 0x04, // 68  jz 1f
	0x4e, 0x8b, 0x14, 0x14, // 6a  mov (%rsp,%r10),%r10
	0x41, 0xf6, 0xc5, 0x10, // 6e  1: test $16,%r13b
	0x74, 0x04, // 72  jz 1f
	0x4e, 0x8b, 0x04, 0x04, // 74  mov (%rsp,%r8),%r8
	0x41, 0xf6, 0xc5, 0x20, // 78  1: test $32,%r13b
	0x74, 0x04, // 7c  jz call
	0x4e, 0x8b, 0x0c, 0x0c, // 7e  mov (%rsp,%r9),%r9
	// call:
	0x41, 0x0f, 0xba, 0xe5, 0x0b, // 82  bt $11,%r13d
	0x72, 0x51, // 87  jc compat
	0x0f, 0x05, // 89  syscall
	// called:
	0x41, 0x0f, 0xba, 0xe5, 0x0a, // 8b  bt $10,%r13d
	0x73, 0x09, // 90  jnc 1f
	0x48, 0x85, 0xc0, // 92  test %rax,%rax
	0x0f, 0x84, 0x65, 0xff, 0xff, 0xff, // 95  jz entry
	0x49, 0x89, 0x44, 0x24, 0x48, // 9b  1: mov %rax,72(%r12)
	0x41, 0x0f, 0xba, 0xe5, 0x08, // a0  bt $8,%r13d
	0x72, 0x18, // a5  jc good
	0x41, 0x0f, 0xba, 0xe5, 0x09, // a7  bt $9,%r13d
	0x73, 0x09, // ac  jnc 1f
	0x49, 0x3b, 0x44, 0x24, 0x40, // ae  cmp 64(%r12),%rax
	0x75, 0x16, // b3  jne stop
	0xeb, 0x08, // b5  jmp good
	0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, // b7  1: cmp $-4095,%rax
	0x73, 0x0c, // bd  jae stop
	// good:
	0x49, 0x83, 0xc4, 0x50, // bf  add $80,%r12
	0x48, 0xff, 0xc5, // c3  inc %rbp
	0xe9, 0x40, 0xff, 0xff, 0xff, // c6  jmp next
	// stop:
	0x48, 0xc7, 0x44, 0x24, 0x10, 0x01, 0x00, 0x00, 0x00, // cb  movq $1,16(%rsp)
	0xcc,                         // d4  int3
	0xe9, 0x26, 0xff, 0xff, 0xff, // d5  jmp entry
	// compat:
	0x49, 0x89, 0xde, // da  mov %rbx,%r14
	0x49, 0x89, 0xef, // dd  mov %rbp,%r15
	0x89, 0xfb, // e0  mov %edi,%ebx
	0x89, 0xf1, // e2  mov %esi,%ecx
	0x44, 0x89, 0xd6, // e4  mov %r10d,%esi
	0x44, 0x89, 0xc7, // e7  mov %r8d,%edi
	0x44, 0x89, 0xcd, // ea  mov %r9d,%ebp
	0xcd, 0x80, // ed  int $0x80
	0x4c, 0x89, 0xf3, // ef  mov %r14,%rbx
	0x4c, 0x89, 0xfd, // f2  mov %r15,%rbp
	0xeb, 0x94, // f5  jmp called
}

// amd64StubCode waits for ever; a signal that would end its pause(2) finds the loop.
var amd64StubCode = []byte{
	// stub:
	0xb8, 0x22, 0x00, 0x00, 0x00, // 00  mov $34,%eax
	0x0f, 0x05, // 05  syscall
	0xeb, 0xf7, // 07  jmp stub
}

// amd64StubBase is where the stub's only page is: low, where neither programs nor mmap put anything
// by themselves, and above vm.mmap_min_addr's usual 65536.
const amd64StubBase = 0x20000

// amd64CompatStubCode does the same in 32-bit mode. The tracer that takes it to 64-bit mode finds a
// system call instruction of that mode at its end.
var amd64CompatStubCode = []byte{
	// stub:
	0xb8, 0x1d, 0x00, 0x00, 0x00, // 00  mov $29,%eax
	0xcd, 0x80, // 05  int $0x80
	0xeb, 0xf7, // 07  jmp stub
	0x0f, 0x05, // 09  syscall
}

// amd64CompatStub builds a 32-bit static executable of one loadable segment.
func amd64CompatStub() Stub {
	const (
		ehdr, phdr = 52, 32
		code       = ehdr + 2*phdr
		ptLoad     = 1
		ptGNUStack = 0x6474e551
	)
	size := code + len(amd64CompatStubCode)
	b := make([]byte, size)
	le := binary.LittleEndian
	copy(b, "\x7fELF\x01\x01\x01")           // 32 bits, little-endian, version 1
	le.PutUint16(b[16:], 2)                  // ET_EXEC
	le.PutUint16(b[18:], 3)                  // EM_386
	le.PutUint32(b[20:], 1)                  // version
	le.PutUint32(b[24:], amd64StubBase+code) // entry
	le.PutUint32(b[28:], ehdr)               // program headers
	le.PutUint16(b[40:], ehdr)               // size of this header
	le.PutUint16(b[42:], phdr)               // size of a program header
	le.PutUint16(b[44:], 2)                  // their number
	p := b[ehdr:]
	le.PutUint32(p[0:], ptLoad)
	le.PutUint32(p[8:], amd64StubBase)
	le.PutUint32(p[12:], amd64StubBase)
	le.PutUint32(p[16:], uint32(size))
	le.PutUint32(p[20:], uint32(size))
	le.PutUint32(p[24:], 5) // r-x
	le.PutUint32(p[28:], 4096)
	p = b[ehdr+phdr:]
	le.PutUint32(p[0:], ptGNUStack)
	le.PutUint32(p[24:], 6) // rw-
	copy(b[code:], amd64CompatStubCode)
	return Stub{Image: b, Base: amd64StubBase, Syscall: amd64StubBase + code + 9}
}

// amd64Stub builds a static executable of one loadable segment that holds its own headers and the
// code. The PT_GNU_STACK header keeps the stack from being executable.
func amd64Stub() Stub {
	const (
		ehdr, phdr = 64, 56
		code       = ehdr + 2*phdr
		ptLoad     = 1
		ptGNUStack = 0x6474e551
	)
	size := code + len(amd64StubCode)
	b := make([]byte, size)
	le := binary.LittleEndian
	copy(b, "\x7fELF\x02\x01\x01")           // 64 bits, little-endian, version 1
	le.PutUint16(b[16:], 2)                  // ET_EXEC
	le.PutUint16(b[18:], 62)                 // EM_X86_64
	le.PutUint32(b[20:], 1)                  // version
	le.PutUint64(b[24:], amd64StubBase+code) // entry
	le.PutUint64(b[32:], ehdr)               // program headers
	le.PutUint16(b[52:], ehdr)               // size of this header
	le.PutUint16(b[54:], phdr)               // size of a program header
	le.PutUint16(b[56:], 2)                  // their number
	p := b[ehdr:]
	le.PutUint32(p[0:], ptLoad)
	le.PutUint32(p[4:], 5) // r-x
	le.PutUint64(p[16:], amd64StubBase)
	le.PutUint64(p[24:], amd64StubBase)
	le.PutUint64(p[32:], uint64(size))
	le.PutUint64(p[40:], uint64(size))
	le.PutUint64(p[48:], 4096)
	p = b[ehdr+phdr:]
	le.PutUint32(p[0:], ptGNUStack)
	le.PutUint32(p[4:], 6) // rw-
	copy(b[code:], amd64StubCode)
	return Stub{Image: b, Base: amd64StubBase, Syscall: amd64StubBase + code + 5}
}
