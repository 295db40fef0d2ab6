package arch

import "encoding/binary"

// NT_PRSTATUS of s390x (s390_regs): the psw's mask and address, 16 general registers, 16 access
// registers of 4 bytes, orig_gpr2.
const (
	s390xPSWAddr      = 1
	s390xGPR0         = 2
	s390xPRStatusSize = 216
)

var s390xWords = words{binary.BigEndian, 8}

// s390x is IBM Z. Which call a task is in is in a register set of its own (NT_S390_SYSTEM_CALL),
// and its number may be part of the instruction, hence no accessors for calls.
var s390x = &Arch{
	Name:      "s390x",
	Machine:   "s390x",
	Order:     binary.BigEndian,
	WordSize:  8,
	PageSize:  4096,
	PageSizes: []int{4096},
	TaskSize:  1 << 53, // a process starts with 42 bits and grows
	Regsets: []Regset{
		{Name: "prstatus", Note: NTPRStatus, Size: s390xPRStatusSize},
		{Name: "fpregset", Note: NTPRFPReg, Size: 136},
		{Name: "s390-system-call", Note: NTS390SystemCall, Size: 4},
		{Name: "s390-tdb", Note: NTS390TDB, Size: 256, Optional: true},
		{Name: "s390-vxrs-low", Note: NTS390VXRSLow, Size: 128, Optional: true},
		{Name: "s390-vxrs-high", Note: NTS390VXRSHigh, Size: 256, Optional: true},
		{Name: "s390-gs-cb", Note: NTS390GSCB, Size: 32, Optional: true},
	},
	PRStatusSize: s390xPRStatusSize,
	Sys:          s390xSyscalls,
	sysNames:     s390xSyscallNames,
	PC:           s390xWords.addr(s390xPSWAddr),
	SetPC:        s390xWords.setAddr(s390xPSWAddr),
	SP:           s390xWords.addr(s390xGPR0 + 15),
	SetSP:        s390xWords.setAddr(s390xGPR0 + 15),
	Result:       s390xWords.result(s390xGPR0 + 2),
	SetResult:    s390xWords.setResult(s390xGPR0 + 2),
	SyscallInsn:  []byte{0x0a, 0x00}, // svc 0, number in r1
	VDSO:         VDSO{Parts: []string{"[vvar]", "[vdso]"}, Code: "[vdso]"},
	Run:          cannotRun("s390x"),
}
