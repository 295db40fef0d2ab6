//go:build amd64

package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sizeofUserRegs is struct user_regs_struct of 64-bit tasks.
const sizeofUserRegs = 27 * 8

// PtraceGetRegs reads the general registers of a task of any mode in the form of a 64-bit task's
// NT_PRSTATUS: PTRACE_GETREGS goes by the tracer's mode (arch_ptrace in arch/x86/kernel/ptrace.c),
// PTRACE_GETREGSET by the task's.
func PtraceGetRegs(tid int, buf []byte) (int, error) {
	var regs [sizeofUserRegs]byte
	if _, err := ptracePtr(unix.PTRACE_GETREGS, tid, 0, unsafe.Pointer(&regs)); err != nil {
		return 0, err
	}
	return copy(buf, regs[:]), nil
}

// PtraceSetRegs writes what PtraceGetRegs reads; the code segment among it sets the task's mode.
func PtraceSetRegs(tid int, buf []byte) error {
	var regs [sizeofUserRegs]byte
	if copy(regs[:], buf) != len(regs) || len(buf) != len(regs) {
		return unix.EINVAL
	}
	_, err := ptracePtr(unix.PTRACE_SETREGS, tid, 0, unsafe.Pointer(&regs))
	return err
}

// PtraceSetThreadArea sets one of a thread's entries in the global descriptor table
// (PTRACE_SET_THREAD_AREA, struct user_desc of set_thread_area(2)). EIO: this kernel runs no 32-bit tasks.
func PtraceSetThreadArea(tid int, d UserDesc) error {
	const request = 26
	_, err := ptracePtr(request, tid, uintptr(d.Entry), unsafe.Pointer(&d))
	return err
}
