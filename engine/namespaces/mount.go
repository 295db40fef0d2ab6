package namespaces

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Mounts is the record of a mount namespace of the tree's own (mount_namespaces(7)). The image holds no file systems:
// a restore copies the mount namespace of its caller and makes it alike by unmounting what was not there and mounting
// a fresh /proc of the tree's own pid namespace. Whatever else differs is refused by name.
type Mounts struct {
	Mounts []Mount `msgpack:"mounts"`
}

// Mount is one line of mountinfo.
type Mount struct {
	Point  string `msgpack:"point"`
	Root   string `msgpack:"root"`
	Type   string `msgpack:"type"`
	Source string `msgpack:"source"`
	Flags  string `msgpack:"flags,omitempty"` // per mount, e.g. "rw,nosuid"
}

// MountsKind is the kind of record "ns.mount".
var MountsKind = object.NewKind[Mounts]("ns.mount", nil)

// DumpMounts adds the record where the root is in another mount namespace than the caller.
func DumpMounts(d *object.Dumper) error {
	mine, theirs, err := compare(d.Root.Leader().TID, "mnt")
	if err != nil || mine == theirs {
		return err
	}
	here, err := procfs.ReadSelfMountinfo()
	if err != nil {
		return err
	}
	there, err := procfs.ReadMountinfo(d.Root.Leader().TID)
	if err != nil {
		return err
	}
	known := map[Mount]int{}
	for i := range here {
		known[describe(&here[i])]++
	}
	s := &Mounts{}
	for i := range there {
		m := describe(&there[i])
		if m.Type != "proc" && known[m] == 0 {
			d.Refuse(d.Root.Error("", &object.Unsupported{
				What: fmt.Sprintf("its mount namespace has %s (%s) mounted on %s, which cr-dump's own has not", m.Source, m.Type, m.Point),
				Do:   "run cr-dump inside that mount namespace (nsenter -m)",
			}))
		}
		known[m]--
		s.Mounts = append(s.Mounts, m)
	}
	d.AddPlain(MountsKind.Type, s)
	return nil
}

func describe(m *procfs.Mount) Mount {
	return Mount{Point: m.Point, Root: m.Root, Type: m.FSType, Source: m.Source, Flags: m.Options}
}

// MakeMounts gives the calling thread, which must be locked to its goroutine and end with it, a mount namespace that
// holds nothing that the record does not. What must be mounted inside the tree's pid namespace is added by ProcCalls.
func MakeMounts(s *Mounts) (missing []Mount, err error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	want := map[Mount]int{}
	for _, m := range s.Mounts {
		if !strings.HasPrefix(m.Point, "/") || strings.ContainsRune(m.Point, 0) {
			return nil, object.BadImagef("mount point %q", m.Point)
		}
		want[m.key()]++
	}
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	have, err := procfs.ParseMountinfo(data)
	if err != nil {
		return nil, err
	}
	for i := len(have) - 1; i >= 0; i-- { // the last mounted first
		m := describe(&have[i]).key()
		if want[m] > 0 {
			want[m]--
			continue
		}
		if err := unix.Unmount(have[i].Point, unix.MNT_DETACH); err != nil {
			return nil, fmt.Errorf("unmounting %s: %w", have[i].Point, err)
		}
	}
	for _, m := range s.Mounts {
		if want[m.key()] == 0 {
			continue
		}
		want[m.key()]--
		if m.Type != "proc" || m.Root != "/" {
			return nil, &object.Lacking{What: fmt.Sprintf("%s (%s), which the tree has mounted on %s, is not mounted here", m.Source, m.Type, m.Point),
				Do: "mount it before the restore"}
		}
		missing = append(missing, m)
	}
	return missing, nil
}

// key leaves out what does not say which file system it is: mount flags are compared by nobody.
func (m Mount) key() Mount { m.Flags = ""; return m }

// ProcCalls adds the calls by which the root of the tree, inside its pid namespace, mounts /proc afresh.
func ProcCalls(b *tracee.Batch, nr int, missing []Mount) {
	for _, m := range missing {
		flags := uint64(0)
		for _, f := range strings.Split(m.Flags, ",") {
			switch f {
			case "ro":
				flags |= unix.MS_RDONLY
			case "nosuid":
				flags |= unix.MS_NOSUID
			case "nodev":
				flags |= unix.MS_NODEV
			case "noexec":
				flags |= unix.MS_NOEXEC
			case "relatime":
				flags |= unix.MS_RELATIME
			}
		}
		b.Call(nr, b.Data(cString(m.Source)), b.Data(cString(m.Point)), b.Data(cString("proc")), flags, 0).Note("proc on %s", m.Point)
	}
}

func cString(s string) []byte { return append([]byte(s), 0) }
