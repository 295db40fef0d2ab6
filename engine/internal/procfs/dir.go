package procfs

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// numbers lists the entries of a directory whose names are numbers, ascending.
func numbers(path string) ([]int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var out []int
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "readdir", Path: path, Err: err}
		}
		if n <= 0 {
			break
		}
		names = names[:0]
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
		for _, name := range names {
			if v, ok := parseIntFull([]byte(name)); ok && v >= 0 {
				out = append(out, v)
			}
		}
	}
	// /proc and /proc/PID/task list in ascending order today; nothing
	// promises it. A number listed twice (a pid reused between two getdents)
	// would be a second task to the caller.
	slices.Sort(out)
	return slices.Compact(out), nil
}
