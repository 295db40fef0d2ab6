package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kcmp is kcmp(2): whether tasks pid1 and pid2 (thread ids are fine) share
// the object that typ names; idx1 and idx2 are the two descriptor numbers for
// KcmpFile and ignored otherwise. The permission is
// PTRACE_MODE_READ_REALCREDS on both; ENOSYS: the kernel was built without it.
func Kcmp(pid1, pid2 int, typ KcmpType, idx1, idx2 int) (Order, error) {
	if err := checkPID(pid1); err != nil {
		return Unordered, err
	}
	if err := checkPID(pid2); err != nil {
		return Unordered, err
	}
	r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(typ), uintptr(idx1), uintptr(idx2), 0)
	if errno != 0 {
		return Unordered, errno
	}
	return Order(r), nil
}

// KcmpEpoll compares descriptor fd of pid1 with the file that the epoll
// instance epfd of pid2 watches under the number target; nth counts the items
// with that number from 0, since a closed and reused number may occur more
// than once (kcmp(2), KCMP_EPOLL_TFD; Linux 4.13).
func KcmpEpoll(pid1, fd, pid2, epfd, target, nth int) (Order, error) {
	if err := checkPID(pid1); err != nil {
		return Unordered, err
	}
	if err := checkPID(pid2); err != nil {
		return Unordered, err
	}
	slot := struct{ efd, tfd, toff uint32 }{uint32(epfd), uint32(target), uint32(nth)}
	r, _, errno := unix.RawSyscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), uintptr(KcmpEpollTFD), uintptr(fd), uintptr(unsafe.Pointer(&slot)), 0)
	runtime.KeepAlive(&slot)
	if errno != 0 {
		return Unordered, errno
	}
	return Order(r), nil
}
