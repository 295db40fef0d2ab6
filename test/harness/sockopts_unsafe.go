package harness

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockopt asks for an option by number; ok is false where there is none.
func sockopt(fd, level, n int) (value string, ok bool) {
	b := make([]byte, 1024)
	length := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(n), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&length)), 0)
	switch errno {
	case 0:
		return fmt.Sprintf("%x", b[:min(int(length), len(b))]), true
	case unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		return "", false
	}
	return errno.Error(), true
}
