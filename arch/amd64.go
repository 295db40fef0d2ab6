package arch

import "encoding/binary"

// amd64 is x86-64. Its 32-bit tasks are described by Compat.
var amd64 = &Arch{
	Name:      "amd64",
	Machine:   "x86_64",
	Order:     binary.LittleEndian,
	WordSize:  8,
	PageSize:  4096,
	PageSizes: []int{4096},
	TaskSize:  0x7ffffffff000, // TASK_SIZE_MAX with 4-level paging; mmap goes above it only when an address there is asked for

	// The order matters at restore only in that both come after every system call. NT_PRFPREG is
	// part of the xsave area.
	Regsets:      amd64Regsets,
	PRStatusSize: amd64PRStatusSize,

	Sys:      amd64Syscalls,
	sysNames: amd64SyscallNames,

	PC:            amd64Words.addr(amd64RIP),
	SetPC:         amd64Words.setAddr(amd64RIP),
	SP:            amd64Words.addr(amd64RSP),
	SetSP:         amd64Words.setAddr(amd64RSP),
	Result:        amd64Words.result(amd64RAX),
	SetResult:     amd64Words.setResult(amd64RAX),
	SyscallNr:     amd64SyscallNr,
	SyscallArg:    amd64SyscallArg,
	ClearSyscall:  amd64ClearSyscall,
	RewindSyscall: amd64RewindSyscall,
	SetCall:       amd64SetCall,
	CallBefore:    amd64CallBefore,
	CallBeforeLen: 7,

	SyscallInsn: []byte{0x0f, 0x05},
	Routine:     amd64Routine,
	Visit:       amd64Visit,
	Stub:        amd64Stub,
	VDSO: VDSO{
		Parts:     []string{"[vvar]", "[vvar_vclock]", "[vdso]"},
		Code:      "[vdso]",
		MapOption: 0x2003, // ARCH_MAP_VDSO_64, asm/prctl.h
	},
	SigFrame:   amd64SigFrame,
	FitXState:  FitX86XState,
	UserDesc:   x86UserDesc,
	Compat:     amd64Compat,
	CompatMode: amd64CompatMode,
	AuditArch:  0xc000003e,
}

var amd64Regsets = []Regset{
	{Name: "prstatus", Note: NTPRStatus, Size: amd64PRStatusSize},
	{Name: "xstate", Note: NTX86XState},
}
