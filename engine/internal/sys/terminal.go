package sys

import "golang.org/x/sys/unix"

// OpenSlave opens the slave of the pseudo-terminal whose master is given, wherever devpts is mounted (TIOCGPTPEER, ioctl_tty(2)).
func OpenSlave(master int, flags int) (*FD, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), uintptr(unix.TIOCGPTPEER), uintptr(flags))
	if errno != 0 {
		return nil, errno
	}
	return NewFD(int(n)), nil
}
