package arch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
)

// Addr is an address in another process, whatever the word size there.
type Addr uint64

// String prints an address as the kernel does in /proc/PID/maps, with 0x before it.
func (a Addr) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// ErrUnsupported is what Native's error and Arch.Run are: this build cannot checkpoint or restart
// on that architecture.
var ErrUnsupported = errors.New("not supported by this build")

// A Regset is one block of registers as PTRACE_GETREGSET and PTRACE_SETREGSET move it.
type Regset struct {
	Name     string // the stream's name of it, e.g. "prstatus"
	Note     uint32 // the NT_ number, see linux/elf.h
	Size     int    // in bytes; 0: depends on the machine
	Optional bool   // a kernel or processor may lack it (ENODEV or EINVAL)
}

// The NT_ numbers of linux/elf.h that the ports use.
const (
	NTPRStatus       = 1
	NTPRFPReg        = 2
	NTPPCVMX         = 0x100
	NTPPCVSX         = 0x102
	NTPPCTAR         = 0x103
	NTPPCPPR         = 0x104
	NTPPCDSCR        = 0x105
	NT386TLS         = 0x200
	NTX86XState      = 0x202
	NTX86SHSTK       = 0x204
	NTS390HighGPRs   = 0x300
	NTS390TODPreg    = 0x303
	NTS390SystemCall = 0x307
	NTS390TDB        = 0x308
	NTS390VXRSLow    = 0x309
	NTS390VXRSHigh   = 0x30a
	NTS390GSCB       = 0x30b
	NTARMTLS         = 0x401
	NTARMSystemCall  = 0x404
	NTARMSVE         = 0x405
	NTARMPACMask     = 0x406
)

// Arch describes one architecture. Functions take the raw bytes of NT_PRSTATUS (struct
// user_regs_struct or its like), which CheckPRStatus has accepted; those that an architecture
// cannot answer from these bytes alone are nil.
type Arch struct {
	Name      string // as in a stream's header: "amd64", "386", "arm64", "s390x", "ppc64le"
	Machine   string // uname -m
	Order     binary.ByteOrder
	WordSize  int   // bytes in a long
	PageSize  int   // the usual size; a machine's own is in the stream's header
	PageSizes []int // every base page size that kernels are built with
	TaskSize  Addr  // end of the address space that mmap uses unasked; the last page below it may be unusable

	// Regsets is in the order of saving; restoring uses the same order.
	Regsets []Regset
	// PRStatusSize is the length of NT_PRSTATUS.
	PRStatusSize int

	Sys      Syscalls
	sysNames []string

	PC        func(regs []byte) Addr
	SetPC     func(regs []byte, pc Addr)
	SP        func(regs []byte) Addr
	SetSP     func(regs []byte, sp Addr)
	Result    func(regs []byte) int64         // the register of a system call's result, sign-extended
	SetResult func(regs []byte, result int64) //
	// SyscallNr returns the number of the system call that the task is in: one that was
	// interrupted, or at a syscall stop. It is false for a task that was stopped in user mode or
	// whose call the kernel has done with.
	SyscallNr func(regs []byte) (nr int, ok bool)
	// SyscallArg returns argument i (0..5) of the call that the task is in.
	SyscallArg func(regs []byte, i int) uint64
	// ClearSyscall marks the task as in no system call, so that the kernel will not restart one:
	// needed before the program counter is redirected.
	ClearSyscall func(regs []byte)
	// RewindSyscall makes the registers those just before the system call instruction of call nr.
	RewindSyscall func(regs []byte, nr int)
	// SetCall makes the registers issue one system call from the instruction at pc, in no call before it.
	SetCall func(regs []byte, pc Addr, nr int, args [6]uint64)

	// CallBefore returns the number that the code right before a program counter has put into the register for it, for a task
	// that has just executed a system call there; code are the CallBeforeLen bytes before it. It is false when other code stands there. nil
	// where this is not known.
	CallBefore    func(code []byte) (nr int, ok bool)
	CallBeforeLen int

	// SyscallInsn is the system call instruction that the routine uses.
	SyscallInsn []byte
	// Routine is what executes batches in a task; nil where Run is not nil.
	Routine *Routine
	// Visit is the code by which a task that is not ours executes system calls; nil where there is none.
	Visit *VisitCode
	// Stub returns the tiny static executable that a restore starts; nil where Run is not nil.
	Stub func() Stub
	// VDSO tells how this architecture's vdso is laid out.
	VDSO VDSO
	// SigFrame builds what rt_sigreturn takes; nil where Run is not nil.
	SigFrame func(at Addr, c SigContext) (*SigFrame, error)
	// FitXState makes the register blob of a Regset whose size depends on the machine fit this one;
	// nil where there is none.
	FitXState func(blob, native []byte) ([]byte, error)

	// UserDesc turns a segment descriptor into the struct user_desc that modify_ldt(2) makes it from; nil
	// where there are none.
	UserDesc func(entry uint32, desc uint64) []byte

	// Compat describes the 32-bit tasks that this architecture's kernel runs too; nil for none. Its
	// registers are those of this architecture, which the kernel has of every task.
	Compat *Arch
	// CompatMode says whether registers are of a task that executes 32-bit code; nil where Compat is.
	CompatMode func(regs []byte) bool
	// AuditArch is AUDIT_ARCH_* of linux/audit.h, by which PTRACE_GET_SYSCALL_INFO says whose a call is.
	AuditArch uint32

	// Run is nil where this build can dump and restore tasks of this architecture on such a
	// machine, else it says why not.
	Run error
}

var all = []*Arch{amd64, i386, arm64, s390x, ppc64le}

// For returns the architecture with a stream header's name.
func For(name string) (*Arch, error) {
	for _, a := range all {
		if a.Name == name {
			return a, nil
		}
	}
	return nil, fmt.Errorf("architecture %q: %w", name, ErrUnsupported)
}

// Native returns the architecture that this program was built for, and an error that is
// ErrUnsupported when tasks cannot be dumped and restored there.
func Native() (*Arch, error) {
	a, err := For(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	if a.Run != nil {
		return nil, a.Run
	}
	return a, nil
}

func cannotRun(name string) error {
	return fmt.Errorf("%s: dumping and restoring on this architecture is %w", name, ErrUnsupported)
}

// CheckPRStatus says whether a blob has the length of this architecture's NT_PRSTATUS.
func (a *Arch) CheckPRStatus(regs []byte) error {
	if len(regs) != a.PRStatusSize {
		return fmt.Errorf("general registers of %d bytes, %s has %d", len(regs), a.Name, a.PRStatusSize)
	}
	return nil
}

// Mode returns the architecture, a itself or its 32-bit companion, of the code that a task with these
// registers executes. The calls of 32-bit code are those of the companion; 64-bit code can issue both.
func (a *Arch) Mode(regs []byte) *Arch {
	if a.Compat != nil && a.CompatMode(regs) {
		return a.Compat
	}
	return a
}

// PageDown and PageUp round an address to a multiple of the usual page size.
func (a *Arch) PageDown(p Addr) Addr { return p &^ Addr(a.PageSize-1) }

// PageUp rounds up. Precondition: p is not in the last page of 64 bits.
func (a *Arch) PageUp(p Addr) Addr { return a.PageDown(p + Addr(a.PageSize-1)) }
