package terminals

import (
	"os/signal"

	"golang.org/x/sys/unix"
)

// ignoreHangup has this process ignore the hang-up that it brings upon itself. A later one reaches who has the terminal then.
func ignoreHangup() { signal.Ignore(unix.SIGHUP) }
