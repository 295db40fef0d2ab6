package arch

import "encoding/binary"

// The words of a 32-bit task's NT_PRSTATUS (struct user_regs_struct32).
const (
	i386EBX = iota
	i386ECX
	i386EDX
	i386ESI
	i386EDI
	i386EBP
	i386EAX
	i386DS
	i386ES
	i386FS
	i386GS
	i386OrigEAX
	i386EIP
	i386CS
	i386EFlags
	i386ESP
	i386SS
	i386NumRegs
)

var i386Words = words{binary.LittleEndian, 4}

var i386ArgRegs = [6]int{i386EBX, i386ECX, i386EDX, i386ESI, i386EDI, i386EBP}

// i386 is 32-bit x86, both a kernel of its own and the 32-bit tasks of amd64.
var i386 = &Arch{
	Name:      "386",
	Machine:   "i686",
	Order:     binary.LittleEndian,
	WordSize:  4,
	PageSize:  4096,
	PageSizes: []int{4096},
	TaskSize:  0xc0000000, // a 32-bit kernel's; a 32-bit task of a 64-bit kernel has 0xffffe000
	Regsets: []Regset{
		{Name: "prstatus", Note: NTPRStatus, Size: i386NumRegs * 4},
		{Name: "xstate", Note: NTX86XState},
		{Name: "tls", Note: NT386TLS},
	},
	PRStatusSize: i386NumRegs * 4,

	Sys:      x86Syscalls,
	sysNames: x86SyscallNames,

	PC:        i386Words.addr(i386EIP),
	SetPC:     i386Words.setAddr(i386EIP),
	SP:        i386Words.addr(i386ESP),
	SetSP:     i386Words.setAddr(i386ESP),
	Result:    i386Words.result(i386EAX),
	SetResult: i386Words.setResult(i386EAX),
	SyscallNr: func(b []byte) (int, bool) {
		nr := i386Words.signed(b, i386OrigEAX)
		if nr < 0 {
			return 0, false
		}
		return int(nr), true
	},
	SyscallArg:   func(b []byte, i int) uint64 { return i386Words.get(b, i386ArgRegs[i]) },
	ClearSyscall: func(b []byte) { i386Words.set(b, i386OrigEAX, ^uint64(0)) },
	RewindSyscall: func(b []byte, nr int) {
		i386Words.set(b, i386EAX, uint64(nr))
		i386Words.set(b, i386EIP, i386Words.get(b, i386EIP)-2) // int 0x80, which is also what precedes sysenter's landing pad
		i386Words.set(b, i386OrigEAX, ^uint64(0))
	},
	SetCall: func(b []byte, pc Addr, nr int, args [6]uint64) {
		for i, a := range args {
			i386Words.set(b, i386ArgRegs[i], a)
		}
		i386Words.set(b, i386EAX, uint64(nr))
		i386Words.set(b, i386EIP, uint64(pc))
		i386Words.set(b, i386OrigEAX, ^uint64(0))
	},
	SyscallInsn: []byte{0xcd, 0x80},
	VDSO: VDSO{
		Parts:     []string{"[vvar]", "[vvar_vclock]", "[vdso]"},
		Code:      "[vdso]",
		MapOption: 0x2002, // ARCH_MAP_VDSO_32
	},
	FitXState: FitX86XState,
	Run:       cannotRun("386"),
}
