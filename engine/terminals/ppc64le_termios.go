//go:build ppc64le

package terminals

import "golang.org/x/sys/unix"

// struct termios has the speeds on this architecture, and there is no termios2.
const (
	getTermios = unix.TCGETS
	setTermios = unix.TCSETS
)
