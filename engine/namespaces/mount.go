package namespaces

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Mounts is the record of a mount namespace of the tree's own (mount_namespaces(7)). The image holds no file systems:
// a restore copies the mount namespace of its caller and makes it alike by unmounting what was not there and mounting
// a fresh /proc of the tree's own pid namespace, and what can be mounted again without contents (own.go). Whatever else differs is
// refused by name.
type Mounts struct {
	Mounts []Mount `msgpack:"mounts"`

	// Groups are the peer groups that the mounts are in or receive from; see propagation.go.
	Groups []Group `msgpack:"groups,omitempty"`
}

// Mount is one line of mountinfo.
type Mount struct {
	Point  string `msgpack:"point"`
	Root   string `msgpack:"root"`
	Type   string `msgpack:"type"`
	Source string `msgpack:"source"`
	Flags  string `msgpack:"flags,omitempty"` // per mount, e.g. "rw,nosuid"

	// Options are what a proc of the tree's own is mounted with, e.g. "hidepid=invisible" (proc(5)), or another file system that is new.
	Options string `msgpack:"options,omitempty"`

	Make string `msgpack:"make,omitempty"` // how it is made: "bind", "new"; empty: it is the caller's, or a proc
	From string `msgpack:"from,omitempty"` // the path of the caller that is bound
	Dirs []Dir  `msgpack:"dirs,omitempty"` // of a new tmpfs, parents first

	Peers      uint32 `msgpack:"peers,omitempty"`      // the group that it is in, counted from 1 in Mounts.Groups; 0: none
	Master     uint32 `msgpack:"master,omitempty"`     // the group that it receives from
	Unbindable bool   `msgpack:"unbindable,omitempty"` // it is private and cannot be bound
	Hidden     bool   `msgpack:"hidden,omitempty"`     // another one lies on it
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
	type original struct{ point, root, kind, source, device, flags string } // two file systems of one type may be called the same
	of := func(m *procfs.Mount, flags string) original {
		return original{m.Point, m.Root, m.FSType, m.Source, device(m), flags}
	}
	known := map[original]int{}
	for i := range here {
		known[of(&here[i], "")]++
		known[of(&here[i], here[i].Options)]++
	}
	there = byDepth(there)
	s, made := &Mounts{}, map[int]string{} // how parents are made
	seen, hereSeen := visible(there), visible(here)
	for i := range there {
		m := describe(&there[i])
		k := of(&there[i], "")
		how := made[there[i].Parent]
		switch {
		case known[k] > 0 && how == "" && (seen[i] || known[of(&there[i], m.Flags)] > 0): // the mounts that were there before come first
		case m.Type == "proc" && m.Root == "/" && how != "own":
			_, m.Options, _ = strings.Cut(there[i].Super, ",") // behind "rw" or "ro"
			if _, err := m.flags(); err != nil {
				d.Refuse(d.Root.Error("", err))
			}
			made[there[i].ID] = "proc"
		default:
			err := object.Unsupportedf("on a proc of the tree's own")
			if how != "proc" {
				err = m.own(d.Root.Leader().TID, &there[i], seen[i], here, hereSeen)
			}
			if err != nil {
				d.Refuse(d.Root.Error("", &object.Unsupported{
					What: fmt.Sprintf("its mount namespace has %s (%s) mounted on %s, which cr-dump's own has not, %v", m.Source, m.Type, m.Point, err),
					Do:   "run cr-dump inside that mount namespace (nsenter -m)",
				}))
			}
			made[there[i].ID] = "own"
		}
		known[k]--
		s.Mounts = append(s.Mounts, m)
	}
	if err := dumpPropagation(d, s, there, here); err != nil {
		return err
	}
	d.AddPlain(MountsKind.Type, s)
	return nil
}

func describe(m *procfs.Mount) Mount {
	return Mount{Point: m.Point, Root: m.Root, Type: m.FSType, Source: m.Source, Flags: m.Options}
}

// MakeMounts gives the calling thread, which must be locked to its goroutine and end with it, a mount namespace that
// holds nothing that the record does not. What must be mounted inside the tree's pid namespace is added by ProcCalls;
// until Propagate no mount that a path leads to propagates.
func MakeMounts(s *Mounts) (missing []Mount, outer Outer, err error) {
	for _, m := range s.Mounts {
		if !cleanPath(m.Point) {
			return nil, nil, object.BadImagef("mount point %q", m.Point)
		}
	}
	if err := errors.Join(s.checkGroups(), s.checkOwn()); err != nil {
		return nil, nil, err
	}
	if outer, err = s.findOuter(); err != nil {
		return nil, nil, err
	}
	if err = unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		err = fmt.Errorf("making a mount namespace: %w", err)
	} else if err = s.detach(); err == nil {
		missing, err = s.arrange()
	}
	if err != nil {
		outer.Close()
		return nil, nil, err
	}
	return missing, outer, nil
}

// arrange unmounts what the record has not, and returns what is to be mounted later.
func (s *Mounts) arrange() (missing []Mount, err error) {
	have, err := ownMounts()
	if err != nil {
		return nil, err
	}
	sources, err := s.sources()
	if err != nil {
		return nil, err
	}
	defer closeAll(sources)
	// Of several that are alike, as a /proc that lies on another, the first are those that were there before.
	there, surplus := make([]bool, len(s.Mounts)), make([]bool, len(have))
	seen, shared := visible(have), map[int]bool{}
	var changed []int // those with other flags
	for i := range have {
		t, err := tagsOf(&have[i])
		if err != nil {
			return nil, err
		}
		shared[have[i].ID] = t.peers != 0
		m := describe(&have[i])
		k := 0
		for k < len(s.Mounts) && (there[k] || s.Mounts[k].Make != "" || !s.Mounts[k].alike(m)) {
			k++
		}
		if surplus[i] = k == len(s.Mounts); !surplus[i] {
			there[k] = true
			if seen[i] && !s.Mounts[k].Hidden && s.Mounts[k].Flags != m.Flags {
				changed = append(changed, k)
			}
			if w := &s.Mounts[k]; !seen[i] && ((w.Peers != 0) != (t.peers != 0) || (w.Master != 0) != (t.master != 0)) {
				return nil, &object.Lacking{What: fmt.Sprintf("the mount on %s, which another one hides, does not propagate here as it did at the dump", m.Point)}
			}
		}
	}
	for i := len(have) - 1; i >= 0; i-- { // the last mounted first
		if !surplus[i] {
			continue
		}
		if shared[have[i].Parent] { // it would be unmounted outside as well
			return nil, &object.Lacking{What: fmt.Sprintf("the mount on %s, which the tree has not, lies on one that propagates and is hidden by it", have[i].Point),
				Do: "unmount it before the restore"}
		}
		if err := unix.Unmount(have[i].Point, unix.MNT_DETACH); err != nil {
			return nil, fmt.Errorf("unmounting %s: %w", have[i].Point, err)
		}
	}
	for _, k := range changed {
		if err := s.Mounts[k].setFlags(); err != nil {
			return nil, err
		}
	}
	for i, m := range s.Mounts {
		if there[i] {
			continue
		}
		if m.Make != "" {
			if err := m.mountOwn(sources[i]); err != nil {
				return nil, fmt.Errorf("mounting %s (%s) on %s: %w", m.Source, m.Type, m.Point, err)
			}
			if err := m.setFlags(); err != nil {
				return nil, err
			}
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
func (m Mount) alike(o Mount) bool {
	return m.Point == o.Point && m.Root == o.Root && m.Type == o.Type && m.Source == o.Source && m.Options == o.Options
}

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
