package sys

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// WriteHint returns how long what is written to the file is expected to live, an RWH_* value of fcntl(2) F_GET_RW_HINT.
func WriteHint(fd int) (uint64, error) {
	var hint uint64
	err := hintCall(fd, unix.F_GET_RW_HINT, &hint)
	return hint, err
}

// SetWriteHint sets what WriteHint returns; it belongs to the inode.
func SetWriteHint(fd int, hint uint64) error { return hintCall(fd, unix.F_SET_RW_HINT, &hint) }

func hintCall(fd, cmd int, hint *uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), uintptr(cmd), uintptr(unsafe.Pointer(hint)))
	runtime.KeepAlive(hint)
	if errno != 0 {
		return errno
	}
	return nil
}
