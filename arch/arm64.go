package arch

import "encoding/binary"

// NT_PRSTATUS of arm64 (struct user_pt_regs): x0 to x30, sp, pc, pstate.
const (
	arm64X0      = 0
	arm64SP      = 31
	arm64PC      = 32
	arm64NumRegs = 34
)

var arm64Words = words{binary.LittleEndian, 8}

// arm64 is 64-bit ARM, little-endian. Which call a task is in is in a register set of its own
// (NT_ARM_SYSTEM_CALL), and the first argument of an interrupted call in none, hence no accessors
// for calls.
var arm64 = &Arch{
	Name:      "arm64",
	Machine:   "aarch64",
	Order:     binary.LittleEndian,
	WordSize:  8,
	PageSize:  4096,
	PageSizes: []int{4096, 16384, 65536},
	TaskSize:  1 << 48,
	Regsets: []Regset{
		{Name: "prstatus", Note: NTPRStatus, Size: arm64NumRegs * 8},
		{Name: "fpregset", Note: NTPRFPReg, Size: 528},
		{Name: "arm-tls", Note: NTARMTLS},
		{Name: "arm-system-call", Note: NTARMSystemCall, Size: 4},
		{Name: "arm-sve", Note: NTARMSVE, Optional: true},
		{Name: "arm-pac-mask", Note: NTARMPACMask, Size: 16, Optional: true},
	},
	PRStatusSize: arm64NumRegs * 8,
	Sys:          arm64Syscalls,
	sysNames:     arm64SyscallNames,
	PC:           arm64Words.addr(arm64PC),
	SetPC:        arm64Words.setAddr(arm64PC),
	SP:           arm64Words.addr(arm64SP),
	SetSP:        arm64Words.setAddr(arm64SP),
	Result:       arm64Words.result(arm64X0),
	SetResult:    arm64Words.setResult(arm64X0),
	SyscallInsn:  []byte{0x01, 0x00, 0x00, 0xd4}, // svc #0
	VDSO:         VDSO{Parts: []string{"[vvar]", "[vdso]"}, Code: "[vdso]"},
	Run:          cannotRun("arm64"),
}
