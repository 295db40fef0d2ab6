package namespaces

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// Which mounts get what is mounted on which others (mount_namespaces(7), SHARED SUBTREES): mountinfo tells of each the
// peer group that it is in and the one that it receives from, by numbers that are the same in every namespace. So a
// group that a mount of the caller of cr-dump is in as well is known, and joined again at the restore. A group with
// members in a third namespace is refused, and so is one that cannot be made by joining: that goes from a mount to one
// of the same file system whose root is the same or below (do_set_group in fs/namespace.c), and reaches only mounts that
// no other one hides.

// Group is a peer group.
type Group struct {
	// Outside is where the caller has a mount that tells which group it is; empty for one that is the tree's alone.
	Outside string `msgpack:"outside,omitempty"`
	// Receives says that the caller's mount is no member, but receives from the group as the tree's mounts do.
	Receives bool `msgpack:"receives,omitempty"`
}

// tags are what mountinfo says of a mount's propagation.
type tags struct {
	peers, master int // numbers of groups, 0 for none
	unbindable    bool
}

func tagsOf(m *procfs.Mount) (t tags, err error) {
	for _, o := range m.Optional {
		name, value, _ := strings.Cut(o, ":")
		n, e := strconv.Atoi(value)
		switch {
		case name == "unbindable" && value == "":
			t.unbindable = true
		case name == "shared" && e == nil:
			t.peers = n
		case name == "master" && e == nil:
			t.master = n
		case name == "propagate_from" && e == nil: // follows from where the master's own comes from
		default:
			return t, object.Unsupportedf("the mount on %s is tagged %q, which this version does not know", m.Point, o)
		}
	}
	return t, nil
}

// visible returns for every mount whether a path leads to it, and not to one that lies on it or on a directory above.
func visible(list []procfs.Mount) []bool {
	type place struct {
		parent int
		point  string
	}
	byID, on := map[int]bool{}, map[place]int{}
	for i := range list {
		byID[list[i].ID] = true
	}
	root := -1
	for i := range list {
		if m := &list[i]; byID[m.Parent] && m.Parent != m.ID {
			on[place{m.Parent, m.Point}] = i
		} else if root < 0 {
			root = i
		}
	}
	out := make([]bool, len(list))
	if root < 0 {
		return out
	}
	for i := range list {
		at := root
		climb := func(point string) {
			for n := 0; n < len(list); n++ { // no more steps than mounts: what claims to lie on itself ends too
				next, ok := on[place{list[at].ID, point}]
				if !ok {
					return
				}
				at = next
			}
		}
		climb("/")
		for j := 1; j <= len(list[i].Point); j++ {
			if j == len(list[i].Point) || list[i].Point[j] == '/' {
				climb(list[i].Point[:j])
			}
		}
		out[i] = at == i
	}
	return out
}

// dumpPropagation fills in what s says of it. there are the tree's mounts, as in s, and here the caller's.
func dumpPropagation(d *object.Dumper, s *Mounts, there, here []procfs.Mount) error {
	const private = "make it private inside before the dump (mount --make-private %s)"
	seen := visible(there)
	numbers := map[int]uint32{} // of groups: mountinfo's to those in the record
	var groups []int            // and back
	number := func(group int) uint32 {
		if group != 0 && numbers[group] == 0 {
			s.Groups, groups = append(s.Groups, Group{}), append(groups, group)
			numbers[group] = uint32(len(groups))
		}
		return numbers[group]
	}
	for i := range there {
		t, err := tagsOf(&there[i])
		if err != nil {
			return d.Root.Error("", err)
		}
		m := &s.Mounts[i]
		m.Peers, m.Master, m.Unbindable, m.Hidden = number(t.peers), number(t.master), t.unbindable, !seen[i]
	}
	if len(groups) == 0 {
		return nil
	}
	outer := make([]*procfs.Mount, len(groups))
	for k, g := range groups {
		if outer[k], s.Groups[k].Receives = findOutside(g, here); outer[k] != nil {
			s.Groups[k].Outside = outer[k].Point
		}
	}
	foreign := make([]int, len(groups))
	if slices.Contains(outer, nil) {
		var err error
		if foreign, err = elsewhere(d, groups); err != nil {
			return err
		}
	}
	leaders := s.leaders()
	told := map[uint32]bool{0: true} // one of a group is enough
	for i := range there {
		m := &s.Mounts[i]
		why := s.cannotJoin(m, func(g uint32) (string, string) { // file system and root of the mount that it would be joined to
			if o := outer[g-1]; o != nil {
				return device(o), o.Root
			}
			if k := leaders[g]; k >= 0 {
				return device(&there[k]), there[k].Root
			}
			return "", ""
		}, device(&there[i]))
		for _, g := range []uint32{m.Peers, m.Master} {
			// What the outside has goes on and is joined again, whoever else is in it.
			if g != 0 && foreign[g-1] != 0 && outer[g-1] == nil && why == "" {
				why = fmt.Sprintf("in a group with one in the mount namespace of pid %d", foreign[g-1])
			}
		}
		if why != "" && !(told[m.Peers] && told[m.Master]) {
			told[m.Peers], told[m.Master] = true, true
			d.Refuse(d.Root.Error("", &object.Unsupported{
				What: fmt.Sprintf("the mount on %s in its mount namespace propagates (%s), %s", m.Point, strings.Join(there[i].Optional, " "), why),
				Do:   fmt.Sprintf(private, m.Point),
			}))
		}
	}
	if _, err := s.hidden(); err != nil {
		d.Refuse(d.Root.Error("", &object.Unsupported{What: err.Error(), Do: fmt.Sprintf(private, "of those")}))
	}
	return nil
}

func device(m *procfs.Mount) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// findOutside looks for a mount of the caller that tells a group: best one that is in it, that a path leads to, and whose
// root is wide. receives says that it is not in it but receives from it.
func findOutside(group int, here []procfs.Mount) (found *procfs.Mount, receives bool) {
	seen, best := visible(here), 0
	for i := range here {
		t, err := tagsOf(&here[i])
		if err != nil {
			continue // of no concern to the tree
		}
		rank := 0
		switch {
		case t.peers == group:
			rank = 3
		case t.master == group && t.peers == 0: // else only both could be joined
			rank = 1
		}
		if rank > 0 && seen[i] {
			rank++
		}
		if rank > best || rank > 0 && rank == best && len(here[i].Root) < len(found.Root) {
			best, found = rank, &here[i]
		}
	}
	return found, best == 1 || best == 2
}

// elsewhere returns for each group a process in a third mount namespace that has a mount in it or receiving from it, 0 for none.
func elsewhere(d *object.Dumper, groups []int) ([]int, error) {
	out := make([]int, len(groups))
	done := map[string]bool{}
	for _, pid := range []string{"self", strconv.Itoa(d.Root.Leader().TID)} {
		ns, err := os.Readlink("/proc/" + pid + "/ns/mnt")
		if err != nil {
			return nil, err
		}
		done[ns] = true
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		ns, err := os.Readlink(link)
		if err != nil || done[ns] { // it has ended, or is none of ours to look at
			continue
		}
		done[ns] = true
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			continue
		}
		list, err := procfs.ReadMountinfo(pid)
		if err != nil {
			done[ns] = false
			continue
		}
		for i := range list {
			t, err := tagsOf(&list[i])
			if err != nil {
				continue
			}
			for k, g := range groups {
				if out[k] == 0 && (t.peers == g || t.master == g) {
					out[k] = pid
				}
			}
		}
	}
	return out, nil
}

// leaders returns for each group the mount to which the others are joined, -1 for none: of those that paths lead to the one with the
// widest root.
func (s *Mounts) leaders() []int {
	out := slices.Repeat([]int{-1}, len(s.Groups)+1) // [0] is of those in none
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if best := out[m.Peers]; !m.Hidden && (best < 0 || len(m.Root) < len(s.Mounts[best].Root)) {
			out[m.Peers] = i
		}
	}
	return out
}

// cannotJoin says why the groups of a mount cannot be made; empty if they can. of tells the device and the root of what stands for
// a group.
func (s *Mounts) cannotJoin(m *Mount, of func(group uint32) (dev, root string), dev string) string {
	for _, g := range []uint32{m.Peers, m.Master} {
		if g == 0 {
			continue
		}
		d, root := of(g)
		switch {
		case root == "":
			return "from a group of which no mount is to be seen here"
		case d != dev || !below(m.Root, root):
			return "in a group of which no mount here covers all of it"
		}
	}
	if m.Peers == 0 {
		return ""
	}
	if s.Groups[m.Peers-1].Receives {
		return "in a group from which cr-dump's own namespace receives"
	}
	return ""
}

// below says whether path is dir or in it.
func below(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// hidden returns the propagation, as mount(2)'s flag, that all mounts get to which no path leads, 0 for that of their originals: it
// can only be set for all of them together. Those that are private must have private originals unless all are.
func (s *Mounts) hidden() (uintptr, error) {
	want, point := uintptr(unix.MS_PRIVATE), ""
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if !m.Hidden || (m.Peers|m.Master) == 0 && !m.Unbindable {
			continue
		}
		w := uintptr(0)
		switch {
		case m.Unbindable, m.Peers != 0 && s.Groups[m.Peers-1].Outside == "":
			return 0, fmt.Errorf("the mount on %s, which another one hides, propagates or is unbindable of its own", m.Point)
		case m.Peers == 0 && !s.Groups[m.Master-1].Receives:
			w = unix.MS_SLAVE
		}
		if point != "" && w != want {
			return 0, fmt.Errorf("the mounts on %s and on %s, which others hide, propagate differently", point, m.Point)
		}
		want, point = w, m.Point
	}
	return want, nil
}
