package sockets

import (
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// getFilter reads the n instructions of a filter. Where getsockopt(2) counts bytes in all other options it counts instructions here,
// so that the buffer is eight times as long as it is told.
func getFilter(fd, n int) ([]byte, error) {
	b := make([]byte, n*sizeofFilter)
	count := uint32(n)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&count)), 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return nil, os.NewSyscallError("getsockopt", errno)
	}
	return b[:min(int(count), n)*sizeofFilter], nil
}

// attachFilter is SO_ATTACH_FILTER with instructions as they are in memory.
func attachFilter(fd int, instructions []byte) error {
	list := make([]unix.SockFilter, len(instructions)/sizeofFilter)
	for i := range list {
		one := instructions[i*sizeofFilter:]
		list[i] = unix.SockFilter{Code: binary.NativeEndian.Uint16(one), Jt: one[2], Jf: one[3], K: binary.NativeEndian.Uint32(one[4:])}
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(list)), Filter: unsafe.SliceData(list)}))
}
