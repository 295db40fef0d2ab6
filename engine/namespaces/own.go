package namespaces

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Mounts of the tree's own, which the caller has not at that place: what the caller can see elsewhere is bound from there, file
// systems that the kernel has one of (for a namespace), and empty ones, are mounted again. Contents are not in the image.

// How a mount of the tree's own is made.
const (
	makeBind = "bind" // from the path From of the caller
	makeNew  = "new"  // a file system of its own
)

// Dir is a directory of a tmpfs.
type Dir struct {
	Path string `msgpack:"path"` // without the mount point
	Mode uint32 `msgpack:"mode"` // permissions
	UID  uint32 `msgpack:"uid,omitempty"`
	GID  uint32 `msgpack:"gid,omitempty"`
}

// single are the types of file systems that show the kernel, or a namespace of it, wherever they are mounted.
var single = []string{"sysfs", "cgroup2", "mqueue", "debugfs", "tracefs", "securityfs", "configfs", "fusectl", "pstore", "efivarfs", "selinuxfs"}

// byDepth sorts parents before what is mounted on them.
func byDepth(list []procfs.Mount) []procfs.Mount {
	parent, depth := map[int]int{}, map[int]int{}
	for i := range list {
		parent[list[i].ID] = list[i].Parent
	}
	for i := range list {
		n := 0
		for id := list[i].ID; n < len(list); n++ {
			p, ok := parent[id]
			if !ok || p == id {
				break
			}
			id = p
		}
		depth[list[i].ID] = n
	}
	out := slices.Clone(list)
	sort.SliceStable(out, func(i, j int) bool { return depth[out[i].ID] < depth[out[j].ID] })
	return out
}

// own fills in how to make a mount that the caller has not; an error says why that cannot be. here are the caller's mounts.
func (m *Mount) own(pid int, t *procfs.Mount, see bool, here []procfs.Mount, hereSeen []bool) error {
	if _, err := m.flags(); err != nil {
		return err
	}
	if !see {
		return object.Unsupportedf("and hidden by another one")
	}
	if m.Root == "/" && slices.Contains(single, m.Type) {
		m.Make = makeNew
		return nil
	}
	at := filepath.Join("/proc", strconv.Itoa(pid), "root", m.Point)
	for i := range here {
		c := &here[i]
		if !hereSeen[i] || device(c) != device(t) || c.Source != t.Source || !below(t.Root, c.Root) {
			continue
		}
		from := filepath.Join(c.Point, strings.TrimPrefix(t.Root, c.Root))
		if sameFile(from, c.ID, at) {
			m.Make, m.From = makeBind, from
			return nil
		}
	}
	rw, options, _ := strings.Cut(t.Super, ",")
	if m.Root != "/" || rw != "rw" {
		return object.Unsupportedf("from where cr-dump's own namespace sees nothing")
	}
	switch {
	case m.Type == "devpts":
		entries, err := os.ReadDir(at)
		if err != nil || len(entries) != 1 || entries[0].Name() != "ptmx" {
			return object.Unsupportedf("with terminals in it")
		}
	case m.Type == "tmpfs":
		dirs, err := onlyDirs(at)
		if err != nil {
			return err
		}
		m.Dirs = dirs
	default:
		return object.Unsupportedf("from where cr-dump's own namespace sees nothing")
	}
	m.Make, m.Options = makeNew, options
	return nil
}

// sameFile says whether a path of the caller leads over the mount to the file that the other path, through /proc, leads to.
func sameFile(path string, mount int, other string) bool {
	fd, err := sys.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer fd.Close() //nolint:errcheck // only looked at
	id, err := statMount(fd)
	if err != nil || id != mount {
		return false
	}
	var a, b unix.Stat_t
	return unix.Fstat(fd.Int(), &a) == nil && unix.Lstat(other, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// onlyDirs lists the directories of a tmpfs, for others to be mounted on; an error if there is anything else in it.
func onlyDirs(root string) ([]Dir, error) {
	const most = 1000
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return nil, err
	}
	dev := st.Dev
	out := []Dir{{Path: ".", Mode: st.Mode &^ unix.S_IFMT, UID: st.Uid, GID: st.Gid}}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if !e.IsDir() || len(out) > most {
			return object.Unsupportedf("whose contents are not kept (there is %s in it)", name)
		}
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Dev != dev { // what lies below is not to be seen
			out = append(out, Dir{Path: name, Mode: 0o755})
			return filepath.SkipDir
		}
		out = append(out, Dir{Path: name, Mode: st.Mode &^ unix.S_IFMT, UID: st.Uid, GID: st.Gid})
		return nil
	})
	return out, err
}

// checkOwn refuses what no dump writes.
func (s *Mounts) checkOwn() error {
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if m.Make == "" {
			if m.From != "" || len(m.Dirs) > 0 {
				return object.BadImagef("the mount on %q is the caller's, and made", m.Point)
			}
			continue
		}
		if _, err := m.flags(); err != nil {
			return object.BadImagef("%w", err)
		}
		if strings.ContainsRune(m.Options+m.Source+m.Type, 0) || m.Hidden {
			return object.BadImagef("the mount on %q cannot be made", m.Point)
		}
		switch m.Make {
		case makeBind:
			if !cleanPath(m.From) {
				return object.BadImagef("the mount on %q is bound from %q", m.Point, m.From)
			}
		case makeNew:
			if m.Root != "/" || m.Type != "tmpfs" && m.Type != "devpts" && !slices.Contains(single, m.Type) {
				return object.BadImagef("a new file system of type %q on %q", m.Type, m.Point)
			}
		default:
			return object.BadImagef("the mount on %q is made by %q", m.Point, m.Make)
		}
		for _, d := range m.Dirs {
			if !filepath.IsLocal(d.Path) || filepath.Clean(d.Path) != d.Path || strings.ContainsRune(d.Path, 0) || d.Mode&^0o7777 != 0 || m.Type != "tmpfs" || m.Make != makeNew {
				return object.BadImagef("a directory %q of the mount on %q", d.Path, m.Point)
			}
		}
	}
	return nil
}

// sources opens what is bound, before anything is unmounted, by the index of the mount.
func (s *Mounts) sources() (_ map[int]*sys.FD, err error) {
	out := map[int]*sys.FD{}
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if m.Make != makeBind {
			continue
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, m.From, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			err = &object.Lacking{What: fmt.Sprintf("%s, which the tree has mounted on %s, is not here", m.From, m.Point)}
		}
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("binding %s on %s: %w", m.From, m.Point, err)
		}
		out[i] = sys.NewFD(fd)
	}
	return out, nil
}

func closeAll(list map[int]*sys.FD) {
	for _, fd := range list {
		_ = fd.Close()
	}
}

// mountOwn makes one mount of the tree's own.
func (m *Mount) mountOwn(source *sys.FD) error {
	if m.Make == makeBind {
		return unix.MoveMount(source.Int(), "", unix.AT_FDCWD, m.Point, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	flags, err := m.flags()
	if err != nil {
		return err
	}
	if err := unix.Mount(m.Source, m.Point, m.Type, uintptr(flags&^unix.MS_RDONLY), m.Options); err != nil {
		return err
	}
	if len(m.Dirs) == 0 {
		return nil
	}
	root, err := sys.Open(m.Point, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // O_PATH
	for _, d := range m.Dirs {
		if d.Path != "." {
			if err := unix.Mkdirat(root.Int(), d.Path, 0o700); err != nil {
				return fmt.Errorf("making %s: %w", d.Path, err)
			}
		}
		if err := unix.Fchownat(root.Int(), d.Path, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("changing the owner of %s: %w", d.Path, err)
		}
		if err := unix.Fchmodat(root.Int(), d.Path, d.Mode, 0); err != nil {
			return fmt.Errorf("changing the mode of %s: %w", d.Path, err)
		}
	}
	return nil
}

// setFlags gives a mount that a path leads to the flags of the record.
func (m *Mount) setFlags() error {
	flags, err := m.flags()
	if err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
		unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW}
	for flag, set := range map[uint64]uint64{unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV: unix.MOUNT_ATTR_NODEV, unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC, unix.MS_NODIRATIME: unix.MOUNT_ATTR_NODIRATIME,
		unix.MS_NOSYMFOLLOW: unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOATIME: unix.MOUNT_ATTR_NOATIME, unix.MS_STRICTATIME: unix.MOUNT_ATTR_STRICTATIME} {
		if flags&flag != 0 {
			attr.Attr_set |= set
		}
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, m.Point, unix.AT_SYMLINK_NOFOLLOW, &attr); err != nil {
		return fmt.Errorf("setting the flags %s of the mount on %s: %w", m.Flags, m.Point, err)
	}
	return nil
}
