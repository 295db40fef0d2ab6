package engine

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// leastFiles is how many files a command must be able to open. It needs about half of them for itself; where none is left even the
// runtime of Go ends the process, in the middle of whatever it does.
const leastFiles = 64

// CheckLimits refuses limits with which a command would come to grief in the middle of its work.
func CheckLimits() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("reading RLIMIT_NOFILE: %w", err)
	}
	if files.Cur < leastFiles { // the runtime has raised it to the hard limit already
		return &object.Lacking{What: fmt.Sprintf("this command may open only %d files (RLIMIT_NOFILE) and needs %d", files.Cur, leastFiles),
			Do: "ulimit -n 1024"}
	}
	return nil
}
