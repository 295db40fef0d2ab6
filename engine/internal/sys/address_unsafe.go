package sys

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bind is bind(2) with an address as the kernel has it, from the family on: of a unix socket, that may be a path that begins like the
// way in which package unix writes an abstract name.
func Bind(fd int, address []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(address))), uintptr(len(address)))
	runtime.KeepAlive(address)
	if errno != 0 {
		return os.NewSyscallError("bind", errno)
	}
	return nil
}

// Connect is connect(2) with such an address.
func Connect(fd int, address []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(address))), uintptr(len(address)))
	runtime.KeepAlive(address)
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}
