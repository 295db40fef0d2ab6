package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// QuietStops keeps the kernel from sending this process a SIGCHLD each time that a tracee of it stops (SA_NOCLDSTOP of sigaction(2)):
// each would interrupt one of its threads, for nothing, since who waits for the stop is woken in any case. What the action is
// otherwise stays, as does the news of a child's end. It does nothing where SIGCHLD has no handler.
func QuietStops() error {
	// struct sigaction of the kernel begins with the handler and the flags, a word each, wherever Go runs on Linux but MIPS.
	const (
		flags      = 1
		noChldStop = 1 // SA_NOCLDSTOP
		setSize    = 8
	)
	var act [8]uintptr
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&act)), setSize, 0, 0); errno != 0 {
		return errno
	}
	if act[0] <= 1 || act[flags]&noChldStop != 0 { // SIG_DFL, SIG_IGN
		return nil
	}
	act[flags] |= noChldStop
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGCHLD), uintptr(unsafe.Pointer(&act)), 0, setSize, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
