package sys

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Getsockopt is getsockopt(2) as the kernel has it: it fills b and returns what the kernel says the length is, which is mostly that
// of b or shorter.
func Getsockopt(fd, level, opt int, b []byte) (int, error) {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&n)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return 0, os.NewSyscallError("getsockopt", errno)
	}
	return int(n), nil
}

// Setsockopt is setsockopt(2).
func Setsockopt(fd, level, opt int, b []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return os.NewSyscallError("setsockopt", errno)
	}
	return nil
}

// Disconnect is connect(2) to AF_UNSPEC: what a datagram socket is connected to is forgotten.
func Disconnect(fd int) error {
	addr := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&addr)), unsafe.Sizeof(addr))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}
