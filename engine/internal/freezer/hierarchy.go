package freezer

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// hierarchy is one mounted tree of cgroups: version 2, or the freezer of
// version 1.
type hierarchy struct {
	way   Way
	mount procfs.Mount
	root  *sys.FD // its mounted root directory
}

// transientPrefix begins the names of the cgroups that a freeze makes.
const transientPrefix = "crpipe-"

// TransientName is how the path of a transient cgroup of the freeze ID ends.
func TransientName(id string) string { return "/" + transientPrefix + id }

// openHierarchy finds where the hierarchy of a way is mounted. It may be
// mounted more than once, with a part of it as root, or hidden under another
// mount: the first that answers as the right file system is taken, one that
// shows the whole hierarchy before others.
func openHierarchy(way Way) (*hierarchy, error) {
	mounts, err := procfs.ReadSelfMountinfo()
	if err != nil {
		return nil, fmt.Errorf("looking for the cgroup mounts: %w", err)
	}
	var found *hierarchy
	for _, m := range mounts {
		magic := int64(unix.CGROUP2_SUPER_MAGIC)
		if way == WayV1 {
			magic = unix.CGROUP_SUPER_MAGIC
			if m.FSType != "cgroup" || !m.HasSuper("freezer") {
				continue
			}
		} else if m.FSType != "cgroup2" {
			continue
		}
		if found != nil && found.mount.Root == "/" {
			break
		}
		fd, err := sys.Open(m.Point, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd.Int(), &st); err != nil || int64(st.Type) != magic {
			_ = fd.Close() // something else is mounted on top
			continue
		}
		if found != nil {
			if m.Root != "/" {
				_ = fd.Close()
				continue
			}
			_ = found.root.Close()
		}
		found = &hierarchy{way: way, mount: m, root: fd}
	}
	if found == nil {
		return nil, fmt.Errorf("%w: no cgroup %s is mounted", ErrUnusable, way)
	}
	return found, nil
}

func (h *hierarchy) Close() { _ = h.root.Close() }

// relative turns a cgroup's path into one below the mounted root.
func (h *hierarchy) relative(cgroup string) (string, error) {
	rest := cgroup
	if h.mount.Root != "/" {
		var ok bool
		if rest, ok = strings.CutPrefix(cgroup, h.mount.Root); !ok || (rest != "" && rest[0] != '/') {
			return "", fmt.Errorf("%w: cgroup %s lies outside of what is mounted at %s", ErrUnusable, cgroup, h.mount.Point)
		}
	}
	rest = strings.Trim(path.Clean("/"+rest), "/")
	if cgroup == "" || cgroup[0] != '/' || strings.HasPrefix(rest, "..") {
		return "", fmt.Errorf("%w: cgroup %q cannot be reached", ErrUnusable, cgroup)
	}
	if rest == "" {
		rest = "."
	}
	return rest, nil
}

// dir opens a cgroup. The path comes from a ticket or from the kernel and
// never leads out of the hierarchy.
func (h *hierarchy) dir(cgroup string) (*sys.FD, error) {
	rel, err := h.relative(cgroup)
	if err != nil {
		return nil, err
	}
	raw, err := unix.Openat2(h.root.Int(), rel, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("opening cgroup %s: %w", cgroup, err)
	}
	return sys.NewFD(raw), nil
}

// of returns the cgroup of one thread in this hierarchy.
func (h *hierarchy) of(pid, tid int) (string, error) {
	list, err := procfs.ReadThreadCgroups(pid, tid)
	if err != nil {
		return "", err
	}
	for i := range list {
		if (h.way == WayV2 && list[i].Hierarchy == 0) || (h.way == WayV1 && list[i].Has("freezer")) {
			return list[i].Path, nil
		}
	}
	return "", fmt.Errorf("%w: pid %d is in no cgroup %s", ErrUnusable, tid, h.way)
}

func readAt(dir *sys.FD, name string) ([]byte, error) {
	fd, err := sys.OpenAt(dir.Int(), name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	var r procfs.Reader
	return r.Fd(fd.Int(), name)
}

func writeAt(dir *sys.FD, name, value string) error {
	fd, err := sys.OpenAt(dir.Int(), name, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	for {
		_, err = unix.Write(fd.Int(), []byte(value))
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("writing %s to %s: %w", value, name, err)
	}
	return nil
}

// setFrozen asks the kernel to freeze or thaw a cgroup; it does not wait.
func (h *hierarchy) setFrozen(dir *sys.FD, on bool) error {
	if h.way == WayV2 {
		return writeAt(dir, "cgroup.freeze", map[bool]string{true: "1", false: "0"}[on])
	}
	return writeAt(dir, "freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}[on])
}

// isFrozen reports whether every task of the cgroup stands still, by whoever's
// wish. The root of a hierarchy never does.
func (h *hierarchy) isFrozen(dir *sys.FD) (bool, error) {
	if h.way == WayV2 {
		frozen, _, err := v2Events(dir)
		return frozen, err
	}
	b, err := readAt(dir, "freezer.state")
	if errors.Is(err, unix.ENOENT) {
		return false, nil // the root has no such file
	}
	return string(bytes.TrimSpace(b)) == "FROZEN", err
}

// v2Events reads cgroup.events: whether every task of the cgroup stands still, and whether there is none.
func v2Events(dir *sys.FD) (frozen, empty bool, err error) {
	b, err := readAt(dir, "cgroup.events")
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil // the root has no such file
	}
	for line := range bytes.SplitSeq(b, []byte{'\n'}) {
		frozen = frozen || string(line) == "frozen 1"
		empty = empty || string(line) == "populated 0"
	}
	return frozen, empty, err
}

// frozenOrEmpty reports whether nothing in the cgroup runs: all of it stands still, or has died.
func (h *hierarchy) frozenOrEmpty(dir *sys.FD) (bool, error) {
	if h.way == WayV2 { // a list of its threads would hold up those that are on their way into the freezer
		frozen, empty, err := v2Events(dir)
		return frozen || empty, err
	}
	frozen, err := h.isFrozen(dir)
	if err != nil || frozen {
		return frozen, err
	}
	tasks, err := h.members(dir, true)
	return err == nil && len(tasks) == 0, nil
}

// wanted reports whether somebody asked for this cgroup, not only for one
// above it, to be frozen.
func (h *hierarchy) wanted(dir *sys.FD) (bool, error) {
	name := "freezer.self_freezing"
	if h.way == WayV2 {
		name = "cgroup.freeze"
	}
	b, err := readAt(dir, name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return string(bytes.TrimSpace(b)) == "1", err
}

// members lists what is in the cgroup and all below it: process ids, or with
// threads the ids of all threads. A process whose leader is dead is missing
// among the first where its threads have been moved: the leader stays behind.
func (h *hierarchy) members(dir *sys.FD, threads bool) ([]int, error) {
	name := "cgroup.procs"
	switch {
	case threads && h.way == WayV2:
		name = "cgroup.threads"
	case threads:
		name = "tasks"
	}
	b, err := readAt(dir, name)
	if err != nil {
		// EOPNOTSUPP: a threaded cgroup lists its processes at its domain.
		return nil, err
	}
	var out []int
	for line := range bytes.SplitSeq(b, []byte{'\n'}) {
		if len(line) == 0 {
			continue
		}
		pid, err := strconv.Atoi(string(line))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if pid > 0 { // 0: in a pid namespace that we cannot see into
			out = append(out, pid)
		} else {
			return nil, fmt.Errorf("%w: the cgroup holds a task of another pid namespace", ErrUnusable)
		}
	}
	children, err := subdirs(dir)
	if err != nil {
		return nil, err
	}
	for _, child := range children {
		fd, err := sys.OpenAt(dir.Int(), child, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, err := h.members(fd, threads)
		_ = fd.Close()
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

func subdirs(dir *sys.FD) ([]string, error) {
	// A descriptor of its own, so that two walks do not share a position.
	fd, err := sys.OpenAt(dir.Int(), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	var out []string
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd.Int(), buf)
		if err != nil {
			return nil, fmt.Errorf("listing a cgroup: %w", err)
		}
		if n == 0 {
			return out, nil
		}
		var names []string
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd.Int(), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				out = append(out, name)
			}
		}
	}
}
