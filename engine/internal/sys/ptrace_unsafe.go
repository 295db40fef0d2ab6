package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests that golang.org/x/sys/unix lacks, from linux/ptrace.h.
const (
	ptraceGetRseqConfiguration = 0x420f
	ptracePeekSharedSiginfo    = 1 // PTRACE_PEEKSIGINFO_SHARED
)

func ptrace(request, tid int, addr, data uintptr) error {
	if err := checkPID(tid); err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ptracePtr(request, tid int, addr uintptr, data unsafe.Pointer) (int, error) {
	if err := checkPID(tid); err != nil {
		return 0, err
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ptraceWord is a PEEK request: the system call, unlike its wrapper in libc, stores the word at data.
func ptraceWord(request, tid int, addr uintptr, v *uintptr) error {
	_, err := ptracePtr(request, tid, addr, unsafe.Pointer(v))
	return err
}

// PtraceGetRegset reads a register set (PTRACE_GETREGSET, NT_* of linux/elf.h) into buf and returns
// its length; a longer one is cut off silently, so that a full buf means that it was too short.
// ENODEV or EINVAL: the task or this machine does not have it.
func PtraceGetRegset(tid int, note uint32, buf []byte) (int, error) {
	iov := unix.Iovec{Base: unsafe.SliceData(buf)}
	iov.SetLen(len(buf))
	if _, err := ptracePtr(unix.PTRACE_GETREGSET, tid, uintptr(note), unsafe.Pointer(&iov)); err != nil {
		return 0, err
	}
	return int(iov.Len), nil
}

// PtraceSetRegset writes a register set (PTRACE_SETREGSET).
func PtraceSetRegset(tid int, note uint32, buf []byte) error {
	iov := unix.Iovec{Base: unsafe.SliceData(buf)}
	iov.SetLen(len(buf))
	_, err := ptracePtr(unix.PTRACE_SETREGSET, tid, uintptr(note), unsafe.Pointer(&iov))
	return err
}

// PtraceGetSigmask returns the mask of blocked signals, bit 0 = signal 1 (PTRACE_GETSIGMASK): where
// a system call has swapped the mask for its duration, the one that comes back after it.
func PtraceGetSigmask(tid int) (uint64, error) {
	var m uint64
	_, err := ptracePtr(unix.PTRACE_GETSIGMASK, tid, 8, unsafe.Pointer(&m))
	return m, err
}

// PtraceSetSigmask sets that mask (PTRACE_SETSIGMASK); a swapped mask is forgotten.
func PtraceSetSigmask(tid int, mask uint64) error {
	_, err := ptracePtr(unix.PTRACE_SETSIGMASK, tid, 8, unsafe.Pointer(&mask))
	return err
}

// PtraceGetSiginfo returns the siginfo of the current stop (PTRACE_GETSIGINFO). EINVAL: a group-stop.
func PtraceGetSiginfo(tid int) (info [SizeofSiginfo]byte, err error) {
	_, err = ptracePtr(unix.PTRACE_GETSIGINFO, tid, 0, unsafe.Pointer(&info))
	return info, err
}

// PtracePeekSiginfo returns all queued signals, in order, of a thread or (shared) of its process,
// without taking them (PTRACE_PEEKSIGINFO). A signal for which the kernel had no room to queue a
// siginfo is not among them; /proc/TID/status still shows its bit.
func PtracePeekSiginfo(tid int, shared bool) ([][SizeofSiginfo]byte, error) {
	const batch = 32
	var out [][SizeofSiginfo]byte
	for {
		var buf [batch][SizeofSiginfo]byte
		args := struct {
			off   uint64
			flags uint32
			nr    int32
		}{off: uint64(len(out)), nr: batch}
		if shared {
			args.flags = ptracePeekSharedSiginfo
		}
		if err := checkPID(tid); err != nil {
			return nil, err
		}
		n, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKSIGINFO, uintptr(tid), uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&buf)), 0, 0)
		if errno != 0 {
			return nil, errno
		}
		// Fewer than asked for need not be the end: the kernel also breaks off when a signal is
		// pending for the caller.
		if n == 0 {
			return out, nil
		}
		out = append(out, buf[:n]...)
	}
}

// RseqConfiguration is struct ptrace_rseq_configuration: what the thread registered with rseq(2).
// Pointer 0: nothing.
type RseqConfiguration struct {
	Pointer   uint64
	Size      uint32
	Signature uint32
	Flags     uint32
	_         uint32
}

// PtraceGetRseqConfiguration returns a thread's rseq registration (PTRACE_GET_RSEQ_CONFIGURATION, Linux 5.13).
func PtraceGetRseqConfiguration(tid int) (RseqConfiguration, error) {
	var c RseqConfiguration
	_, err := ptracePtr(ptraceGetRseqConfiguration, tid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, err
}

// DispatchConfig is struct ptrace_sud_config (linux/ptrace.h).
type DispatchConfig struct{ Mode, Selector, Offset, Length uint64 }

// Modes of DispatchConfig.
const (
	DispatchOn          = 1 // PR_SYS_DISPATCH_ON: all calls but those from the range
	DispatchInclusiveOn = 2 // PR_SYS_DISPATCH_INCLUSIVE_ON: those from the range
)

// PtraceSetDispatch sets a thread's syscall user dispatch (PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, Linux 6.4; EIO before).
func PtraceSetDispatch(tid int, c DispatchConfig) error {
	const setConfig = 0x4210
	_, err := ptracePtr(setConfig, tid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return err
}

// What a SyscallInfo describes.
const (
	SyscallInfoNone    = 0
	SyscallInfoEntry   = 1
	SyscallInfoExit    = 2
	SyscallInfoSeccomp = 3
)

// SyscallInfo is the beginning of struct ptrace_syscall_info (PTRACE_GET_SYSCALL_INFO, Linux 5.3).
// Arch is an AUDIT_ARCH_* value.
type SyscallInfo struct {
	Op                               uint8
	_                                [3]uint8
	Arch                             uint32
	InstructionPointer, StackPointer uint64
	Words                            [8]uint64 // at entry: number, six arguments; at exit: result, then a byte that says whether it is an error
}

// PtraceGetSyscallInfo returns what a task in a syscall stop is about to do or has done.
func PtraceGetSyscallInfo(tid int) (SyscallInfo, error) {
	var i SyscallInfo
	_, err := ptracePtr(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(i), unsafe.Pointer(&i))
	return i, err
}

// Getcpu returns the processor that the calling thread runs on at that moment (getcpu(2)).
func Getcpu() (int, error) {
	var cpu uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(cpu), nil
}

// SyscallDispatch is struct ptrace_sud_config: what PR_SET_SYSCALL_USER_DISPATCH has set. Mode 0: off.
type SyscallDispatch struct {
	Mode                  uint64
	Selector, Offset, Len uint64
}

// PtraceGetSyscallUserDispatch returns a thread's system call user dispatch (PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
// Linux 6.4; EIO or EINVAL before).
func PtraceGetSyscallUserDispatch(tid int) (SyscallDispatch, error) {
	const request = 0x4211
	var c SyscallDispatch
	_, err := ptracePtr(request, tid, unsafe.Sizeof(c), unsafe.Pointer(&c))
	return c, err
}

// UserDesc is struct user_desc of x86 (asm/ldt.h); Bits are its bit-fields in their order from bit 0.
type UserDesc struct {
	Entry, Base, Limit, Bits uint32
}

// PtraceGetThreadArea returns one of the segments of set_thread_area(2) (PTRACE_GET_THREAD_AREA, x86).
func PtraceGetThreadArea(tid, entry int) (UserDesc, error) {
	const request = 25
	var d UserDesc
	_, err := ptracePtr(request, tid, uintptr(entry), unsafe.Pointer(&d))
	return d, err
}
