package arch

import "encoding/binary"

// Words of NT_PRSTATUS of ppc64le (struct pt_regs padded to ELF_NGREG, asm/ptrace.h).
const (
	ppc64R0      = 0
	ppc64R1      = 1
	ppc64R3      = 3
	ppc64NIP     = 32
	ppc64OrigR3  = 34
	ppc64CCR     = 38
	ppc64Trap    = 40
	ppc64NumRegs = 48

	ppc64CCRSO      = 0x10000000 // set where a call by sc failed; r3 is then the positive errno
	ppc64TrapSC     = 0xc00
	ppc64TrapSCV    = 0x3000
	ppc64TrapTypeBs = 0xf // the low bits of trap are flags
)

var ppc64Words = words{binary.LittleEndian, 8}

func ppc64Result(b []byte) int64 {
	r := ppc64Words.signed(b, ppc64R3)
	if ppc64Words.get(b, ppc64Trap)&^ppc64TrapTypeBs == ppc64TrapSC && ppc64Words.get(b, ppc64CCR)&ppc64CCRSO != 0 {
		return -r
	}
	return r
}

func ppc64SyscallNr(b []byte) (int, bool) {
	switch ppc64Words.get(b, ppc64Trap) &^ ppc64TrapTypeBs {
	case ppc64TrapSC, ppc64TrapSCV:
		return int(ppc64Words.signed(b, ppc64R0)), true
	}
	return 0, false
}

func ppc64SyscallArg(b []byte, i int) uint64 {
	if i == 0 {
		return ppc64Words.get(b, ppc64OrigR3)
	}
	return ppc64Words.get(b, ppc64R3+i)
}

// ppc64le is POWER, little-endian.
var ppc64le = &Arch{
	Name:      "ppc64le",
	Machine:   "ppc64le",
	Order:     binary.LittleEndian,
	WordSize:  8,
	PageSize:  65536,
	PageSizes: []int{4096, 65536},
	TaskSize:  1 << 47, // mmap goes above it (to 1<<52) only when an address there is asked for
	Regsets: []Regset{
		{Name: "prstatus", Note: NTPRStatus, Size: ppc64NumRegs * 8},
		{Name: "fpregset", Note: NTPRFPReg, Size: 264},
		{Name: "ppc-vmx", Note: NTPPCVMX, Optional: true},
		{Name: "ppc-vsx", Note: NTPPCVSX, Optional: true},
		{Name: "ppc-tar", Note: NTPPCTAR, Size: 8, Optional: true},
		{Name: "ppc-ppr", Note: NTPPCPPR, Size: 8, Optional: true},
		{Name: "ppc-dscr", Note: NTPPCDSCR, Size: 8, Optional: true},
	},
	PRStatusSize: ppc64NumRegs * 8,
	Sys:          ppc64leSyscalls,
	sysNames:     ppc64leSyscallNames,
	PC:           ppc64Words.addr(ppc64NIP),
	SetPC:        ppc64Words.setAddr(ppc64NIP),
	SP:           ppc64Words.addr(ppc64R1),
	SetSP:        ppc64Words.setAddr(ppc64R1),
	Result:       ppc64Result,
	SyscallNr:    ppc64SyscallNr,
	SyscallArg:   ppc64SyscallArg,
	SyscallInsn:  []byte{0x02, 0x00, 0x00, 0x44}, // sc
	VDSO:         VDSO{Parts: []string{"[vvar]", "[vdso]"}, Code: "[vdso]"},
	Run:          cannotRun("ppc64le"),
}
