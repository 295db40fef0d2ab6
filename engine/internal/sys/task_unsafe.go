package sys

import (
	"unsafe"

	"crpipe/arch"

	"golang.org/x/sys/unix"
)

// GetRobustList is get_robust_list(2): the head of thread tid's list of
// robust futexes in the thread's own memory, and the length it registered
// (bytes). A head of 0 means none. A compat (32-bit) thread's list is not
// shown to a 64-bit caller.
func GetRobustList(tid int) (head arch.Addr, length uint64, err error) {
	if err := checkPID(tid); err != nil {
		return 0, 0, err
	}
	var h, l uintptr
	_, _, errno := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, uintptr(tid), uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&l)))
	if errno != 0 {
		return 0, 0, errno
	}
	return arch.Addr(h), uint64(l), nil
}

// Scopes of IoprioGet, ioprio_get(2).
const (
	IoprioWhoProcess = 1
	IoprioWhoPgrp    = 2
	IoprioWhoUser    = 3
)

// IoprioGet is ioprio_get(2) of one thread: class in the bits from 13, data
// below. 0 (class none) means that nothing was set and the nice value rules;
// since Linux 5.18 the kernel answers with that effective value instead for
// other tasks than the caller.
func IoprioGet(tid int) (int, error) {
	if err := checkPID(tid); err != nil {
		return 0, err
	}
	r, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_GET, IoprioWhoProcess, uintptr(tid), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// SchedAttr is struct sched_attr of sched_setattr(2). Runtime, Deadline and
// Period are nanoseconds.
type SchedAttr = unix.SchedAttr

// SchedGetattr is sched_getattr(2) of thread tid.
func SchedGetattr(tid int) (SchedAttr, error) {
	if err := checkPID(tid); err != nil {
		return SchedAttr{}, err
	}
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return SchedAttr{}, err
	}
	return *a, nil
}

// SchedSetattr is sched_setattr(2) of thread tid.
func SchedSetattr(tid int, a SchedAttr) error {
	if err := checkPID(tid); err != nil {
		return err
	}
	return unix.SchedSetAttr(tid, &a, 0)
}

// SchedGetaffinity is the raw sched_getaffinity(2): the mask of CPUs of
// thread tid as the kernel's bytes (an array of unsigned long in the machine's
// order), exactly as long as the kernel's own mask, which unix.CPUSet may be
// too short for.
func SchedGetaffinity(tid int) ([]byte, error) {
	if err := checkPID(tid); err != nil {
		return nil, err
	}
	for size := 128; ; size *= 2 {
		buf := make([]byte, size)
		r, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, uintptr(tid), uintptr(size), uintptr(unsafe.Pointer(&buf[0])))
		if errno == unix.EINVAL && size < 1<<16 {
			continue // shorter than the kernel's mask
		}
		if errno != 0 {
			return nil, errno
		}
		return buf[:r], nil
	}
}

// SchedSetaffinity is the raw sched_setaffinity(2) with a mask as
// SchedGetaffinity returns it.
func SchedSetaffinity(tid int, mask []byte) error {
	if err := checkPID(tid); err != nil {
		return err
	}
	if len(mask) == 0 {
		return unix.EINVAL
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, uintptr(tid), uintptr(len(mask)), uintptr(unsafe.Pointer(&mask[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

// SizeofSiginfo is the size in bytes of the kernel's siginfo_t on every
// architecture (include/uapi/asm-generic/siginfo.h, SI_MAX_SIZE).
const SizeofSiginfo = 128

// RtTgsigqueueinfo is rt_tgsigqueueinfo(2): queues sig with the raw siginfo to
// one thread. The kernel refuses (EPERM) an si_code that only it may use
// unless the target is the caller itself.
func RtTgsigqueueinfo(pid, tid int, sig unix.Signal, info *[SizeofSiginfo]byte) error {
	if err := checkPID(pid); err != nil {
		return err
	}
	if err := checkPID(tid); err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_TGSIGQUEUEINFO, uintptr(pid), uintptr(tid), uintptr(sig), uintptr(unsafe.Pointer(info)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// CoreCookie returns the core scheduling cookie of a thread, 0 for the caller (PR_SCHED_CORE_GET of prctl(2), Linux 5.14). EINVAL:
// the kernel knows none; ENODEV: it does not use them.
func CoreCookie(tid int) (uint64, error) {
	var cookie uint64
	const schedCore, get, thread = 62, 0, 0
	_, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, schedCore, get, uintptr(tid), thread, uintptr(unsafe.Pointer(&cookie)), 0)
	if errno != 0 {
		return 0, errno
	}
	return cookie, nil
}
