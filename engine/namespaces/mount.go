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

	// Options are what a proc of the tree's own is mounted with, e.g. "hidepid=invisible" (proc(5)).
	Options string `msgpack:"options,omitempty"`
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
	s, propagates := &Mounts{}, false
	for i := range there {
		m := describe(&there[i])
		if known[m] == 0 && m.Type == "proc" { // of its own: the mounts that were there before come first
			_, m.Options, _ = strings.Cut(there[i].Super, ",") // behind "rw" or "ro"
			if _, err := m.flags(); err != nil {
				d.Refuse(d.Root.Error("", err))
			}
		}
		if len(there[i].Optional) > 0 && !propagates {
			propagates = true // one is enough to be told of: it is rarely one only
			d.Refuse(d.Root.Error("", &object.Unsupported{
				What: fmt.Sprintf("the mount on %s in its mount namespace propagates (%s), which is not kept", m.Point, strings.Join(there[i].Optional, " ")),
				Do:   "make the mounts private (mount --make-rprivate /) inside before the dump",
			}))
		}
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
	for _, m := range s.Mounts {
		if !strings.HasPrefix(m.Point, "/") || strings.ContainsRune(m.Point, 0) {
			return nil, object.BadImagef("mount point %q", m.Point)
		}
	}
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	have, err := procfs.ParseMountinfo(data)
	if err != nil {
		return nil, err
	}
	// Of several that are alike, as a /proc that lies on another, the first are those that were there before.
	there, surplus := make([]bool, len(s.Mounts)), make([]bool, len(have))
	for i := range have {
		m := describe(&have[i])
		k := 0
		for k < len(s.Mounts) && (there[k] || !s.Mounts[k].alike(m)) {
			k++
		}
		if surplus[i] = k == len(s.Mounts); !surplus[i] {
			there[k] = true
		}
	}
	for i := len(have) - 1; i >= 0; i-- { // the last mounted first
		if !surplus[i] {
			continue
		}
		if err := unix.Unmount(have[i].Point, unix.MNT_DETACH); err != nil {
			return nil, fmt.Errorf("unmounting %s: %w", have[i].Point, err)
		}
	}
	for i, m := range s.Mounts {
		if there[i] {
			continue
		}
		if m.Type != "proc" || m.Root != "/" {
			return nil, &object.Lacking{What: fmt.Sprintf("%s (%s), which the tree has mounted on %s, is not mounted here", m.Source, m.Type, m.Point),
				Do: "mount it before the restore"}
		}
		if strings.ContainsRune(m.Options+m.Source, 0) {
			return nil, object.BadImagef("proc on %s with a NUL byte in what it is mounted with", m.Point)
		}
		if _, err := m.flags(); err != nil {
			return nil, object.BadImagef("%v", err)
		}
		missing = append(missing, m)
	}
	return missing, nil
}

// alike compares what says which file system it is: mount flags are compared by nobody.
func (m Mount) alike(o Mount) bool { m.Flags, o.Flags = "", ""; return m == o }

// mountFlags are the words of mountinfo and the flags of mount(2).
var mountFlags = map[string]uint64{
	"rw": 0, "ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "nosymfollow": unix.MS_NOSYMFOLLOW,
}

// flags are those of mount(2). Without a word about access times they are strict.
func (m Mount) flags() (uint64, error) {
	var all uint64
	for _, f := range strings.Split(m.Flags, ",") {
		flag, ok := mountFlags[f]
		if !ok {
			return 0, object.Unsupportedf("%s on %s is mounted with %q, which this version does not know", m.Type, m.Point, f)
		}
		all |= flag
	}
	if all&(unix.MS_NOATIME|unix.MS_RELATIME) == 0 {
		all |= unix.MS_STRICTATIME
	}
	return all, nil
}

// ProcCalls adds the calls by which the root of the tree, inside its pid namespace, mounts /proc afresh.
func ProcCalls(b *tracee.Batch, nr int, missing []Mount) {
	for _, m := range missing {
		flags, _ := m.flags() // checked by MakeMounts
		data := any(0)
		if m.Options != "" {
			data = b.Data(cString(m.Options))
		}
		b.Call(nr, b.Data(cString(m.Source)), b.Data(cString(m.Point)), b.Data(cString("proc")), flags, data).Note("proc on %s", m.Point)
	}
}

func cString(s string) []byte { return append([]byte(s), 0) }
