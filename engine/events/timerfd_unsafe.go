package events

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// setTicksRequest is TFD_IOC_SET_TICKS, _IOW('T', 0, __u64). The bits that say _IOW are not the same on all
// architectures; those of another such request are.
const setTicksRequest = unix.BLKBSZSET&0xe0000000 | 8<<16 | 'T'<<8

// setTicks sets the number of unread expiries of a timerfd, not 0 (ioctl_tfd, include/uapi/linux/timerfd.h).
func setTicks(fd int, ticks uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(setTicksRequest), uintptr(unsafe.Pointer(&ticks)))
	if errno != 0 {
		return errno
	}
	return nil
}
