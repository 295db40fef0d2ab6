package harness

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fcntlOut is fcntl(2) of a command that fills in a structure.
func fcntlOut(fd, cmd int, out []byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(unsafe.SliceData(out)))); errno != 0 {
		return errno
	}
	return nil
}
