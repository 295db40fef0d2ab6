package arch

import "encoding/binary"

// The selectors of arch/x86/include/asm/segment.h. Of code segments only two are of 64 bits: the
// kernel's and Xen's. An entry of a local descriptor table cannot be (fill_ldt in asm/desc.h).
const (
	amd64UserCS    = 0x33
	amd64XenUserCS = 0xe033
	amd64UserDS    = 0x2b
)

// amd64CompatMode is user_64bit_mode of asm/ptrace.h, negated.
func amd64CompatMode(b []byte) bool {
	cs := amd64Words.get(b, amd64CS) & 0xffff
	return cs != amd64UserCS && cs != amd64XenUserCS
}

// amd64CompatArgRegs are the registers of the arguments of int 0x80; of sysenter the kernel makes
// them the same (do_fast_syscall_32 in arch/x86/entry).
var amd64CompatArgRegs = [6]int{amd64RBX, amd64RCX, amd64RDX, amd64RSI, amd64RDI, amd64RBP}

// amd64Compat is a 32-bit task of an x86-64 kernel. Its registers are in the frame that the kernel
// has of every task (PTRACE_GETREGS of a 64-bit tracer), not in the narrower one of NT_PRSTATUS of
// such a task: what 32-bit code cannot see it may have left there for 64-bit code of its own.
var amd64Compat = &Arch{
	Name:      "386",
	Machine:   "i686",
	Order:     binary.LittleEndian,
	WordSize:  4,
	PageSize:  4096,
	PageSizes: []int{4096},
	TaskSize:  0xffffe000, // IA32_PAGE_OFFSET

	Regsets:      amd64Regsets,
	PRStatusSize: amd64PRStatusSize,

	Sys:      x86Syscalls,
	sysNames: x86SyscallNames,

	PC:        amd64Words.addr(amd64RIP),
	SetPC:     amd64Words.setAddr(amd64RIP),
	SP:        amd64Words.addr(amd64RSP),
	SetSP:     amd64Words.setAddr(amd64RSP),
	Result:    func(b []byte) int64 { return int64(int32(amd64Words.get(b, amd64RAX))) },
	SetResult: amd64Words.setResult(amd64RAX),
	SyscallNr: func(b []byte) (int, bool) {
		nr := int32(amd64Words.get(b, amd64OrigRAX)) // -1 may have been set as a word of 32 bits
		return int(nr), nr >= 0
	},
	SyscallArg:    func(b []byte, i int) uint64 { return uint64(uint32(amd64Words.get(b, amd64CompatArgRegs[i]))) },
	ClearSyscall:  amd64ClearSyscall,
	RewindSyscall: amd64RewindSyscall,
	SetCall: func(b []byte, pc Addr, nr int, args [6]uint64) {
		amd64SetCall(b, pc, nr, [6]uint64{})
		for i, a := range args {
			amd64Words.set(b, amd64CompatArgRegs[i], uint64(uint32(a)))
		}
	},
	SyscallInsn: []byte{0xcd, 0x80}, // also what comes before sysenter's landing pad
	Stub:        amd64CompatStub,
	VDSO:        i386.VDSO,
	FitXState:   FitX86XState,
	AuditArch:   0x40000003,
}

// A UserDesc is struct user_desc of set_thread_area(2) and modify_ldt(2).
type UserDesc struct {
	Entry, Base, Limit, Flags uint32
}

// X86TLSMin is the first of the three entries of set_thread_area(2) in the descriptor table of an
// x86-64 kernel (GDT_ENTRY_TLS_MIN of asm/segment.h).
const X86TLSMin = 12

// X86UserDesc reads a segment descriptor (Intel SDM volume 3, 3.4.5) as fill_user_desc in
// arch/x86/kernel/tls.c does.
func X86UserDesc(entry uint32, desc uint64) UserDesc {
	bit := func(n uint) uint32 { return uint32(desc>>n) & 1 }
	d := UserDesc{
		Entry: entry,
		Base:  uint32(desc>>16)&0xffffff | uint32(desc>>56)<<24,
		Limit: uint32(desc)&0xffff | uint32(desc>>48)&0xf<<16,
	}
	// seg_32bit, contents (two bits), read_exec_only, limit_in_pages, seg_not_present, useable, lm.
	d.Flags = bit(54) | uint32(desc>>42)&3<<1 | (1-bit(41))<<3 | bit(55)<<4 | (1-bit(47))<<5 | bit(52)<<6 | bit(53)<<7
	return d
}
