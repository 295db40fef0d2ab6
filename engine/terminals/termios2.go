//go:build !ppc64le

package terminals

import "golang.org/x/sys/unix"

// The calls that know c_ispeed and c_ospeed too (ioctl_tty(2)).
const (
	getTermios = unix.TCGETS2
	setTermios = unix.TCSETS2
)
