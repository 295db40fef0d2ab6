package files

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// Programs keep files of their control group open to read limits from (the Go runtime since 1.25: cpu.max). The group
// is often gone at restore: it was the scope of a session, or the restore is on another machine. The same file of
// another group then stands in: of the nearest one above that has it, whose limits held for the old group too, else of
// the caller's own.

func onCgroup(magic int64) bool {
	return magic == unix.CGROUP2_SUPER_MAGIC || magic == unix.CGROUP_SUPER_MAGIC
}

// cgroupStandIn returns the path of the file that stands in for p, "" when there is none.
func cgroupStandIn(p string) string {
	name := path.Base(p)
	dir := path.Dir(p)
	for ; dir != "/"; dir = path.Dir(dir) {
		if at := path.Join(dir, name); cgroupFile(at) {
			return at
		}
	}
	own, err := procfs.ReadCgroups(os.Getpid())
	if err != nil {
		return ""
	}
	// The hierarchy's mount point is the highest directory of the old path that is on such a file system.
	root := ""
	for dir = path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err == nil && onCgroup(int64(fs.Type)) {
			root = dir
		}
	}
	if root == "" {
		return ""
	}
	for _, c := range own {
		if at := path.Join(root, strings.TrimPrefix(c.Path, "/"), name); cgroupFile(at) {
			return at
		}
	}
	return ""
}

func cgroupFile(p string) bool {
	var st unix.Stat_t
	var fs unix.Statfs_t
	return unix.Lstat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG &&
		unix.Statfs(p, &fs) == nil && onCgroup(int64(fs.Type))
}
