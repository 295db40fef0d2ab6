// Package sys holds the system calls and kernel structures that crpipe needs
// and that golang.org/x/sys/unix lacks or offers in a shape that invites
// mistakes. Nothing here decides anything: each function is one call, its
// error is the kernel's errno (errors.Is with unix.ESRCH and the like works),
// and each cites the page that specifies it.
//
// A system call that a signal may interrupt is retried on EINTR where the
// retry cannot do anything twice.
package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrBadPID is returned before the kernel is asked when a pid or tid is not a
// positive number: kill(2) gives 0 and the negative ones a meaning that
// nobody here ever wants.
var ErrBadPID = errors.New("pid is not positive")

func checkPID(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("%w: %d", ErrBadPID, pid)
	}
	return nil
}

// retry calls f until it returns something else than EINTR.
func retry(f func() error) error {
	for {
		err := f()
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
