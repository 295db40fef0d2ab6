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
	"crpipe/engine/internal/sys"
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

// checkGroups refuses numbers that name no group, and groups that receive from themselves.
func (s *Mounts) checkGroups() error {
	for i := range s.Mounts {
		m := &s.Mounts[i]
		switch {
		case m.Peers > uint32(len(s.Groups)), m.Master > uint32(len(s.Groups)):
			return object.BadImagef("the mount on %q is in a group that is not listed", m.Point)
		case m.Unbindable && (m.Peers|m.Master) != 0, m.Peers != 0 && m.Peers == m.Master:
			return object.BadImagef("the mount on %q propagates in a way that there is not", m.Point)
		case m.Peers != 0 && s.Groups[m.Peers-1].Receives:
			return object.BadImagef("the mount on %q is in a group that the outside receives from only", m.Point)
		}
	}
	for _, g := range s.Groups {
		if g.Outside != "" && !cleanPath(g.Outside) || g.Outside == "" && g.Receives {
			return object.BadImagef("a group of mounts outside at %q", g.Outside)
		}
	}
	return nil
}

func cleanPath(p string) bool { return strings.HasPrefix(p, "/") && !strings.ContainsRune(p, 0) }

// detach has nothing that happens to the mounts of the calling thread's new mount namespace reach those that they are copies of.
// Hidden ones keep what all of them are to have.
func (s *Mounts) detach() error {
	mode, err := s.hidden()
	if err != nil {
		return object.BadImagef("%w", err)
	}
	if mode != 0 {
		if err := unix.Mount("none", "/", "", unix.MS_REC|mode, ""); err != nil {
			return fmt.Errorf("making mounts private: %w", err)
		}
	}
	if mode == unix.MS_PRIVATE {
		return nil
	}
	have, err := ownMounts()
	if err != nil {
		return err
	}
	for i, see := range visible(have) {
		if see {
			if err := unix.Mount("none", have[i].Point, "", unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("making the mount on %s private: %w", have[i].Point, err)
			}
		}
	}
	return nil
}

// ownMounts are those of the calling thread.
func ownMounts() ([]procfs.Mount, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	return procfs.ParseMountinfo(data)
}

// Outer are the caller's mounts that tell which groups the tree's are to join, by the number of the group.
type Outer map[uint32]*sys.FD

// Close closes them.
func (o Outer) Close() {
	for _, fd := range o {
		_ = fd.Close()
	}
}

// findOuter opens them, in the caller's mount namespace.
func (s *Mounts) findOuter() (_ Outer, err error) {
	out := Outer{}
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	need := map[uint32]bool{}
	for i := range s.Mounts {
		if m := &s.Mounts[i]; !m.Hidden {
			need[m.Peers], need[m.Master] = true, true
		}
	}
	list, err := ownMounts()
	if err != nil {
		return nil, err
	}
	for k, g := range s.Groups {
		if g.Outside == "" || !need[uint32(k+1)] {
			continue
		}
		fd, m, err := openMount(g.Outside, list)
		if err != nil {
			return nil, err
		}
		out[uint32(k+1)] = fd
		if t, err := tagsOf(m); err != nil || !g.Receives && t.peers == 0 || g.Receives && (t.master == 0 || t.peers != 0) {
			how := "shared"
			if g.Receives {
				how = "a slave"
			}
			return nil, &object.Lacking{What: fmt.Sprintf("the mount on %s is not %s here, as it was at the dump", g.Outside, how),
				Do: "mount --make-" + strings.TrimPrefix(how, "a ") + " " + g.Outside}
		}
	}
	return out, nil
}

// openMount opens the root of the mount that a path leads to, and finds it in the list.
func openMount(path string, list []procfs.Mount) (*sys.FD, *procfs.Mount, error) {
	fd, err := sys.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the mount on %s: %w", path, err)
	}
	for i, see := range visible(list) {
		if see && list[i].Point == path {
			st, err := statMount(fd)
			if err == nil && st != list[i].ID {
				err = fmt.Errorf("the mount on %s has changed meanwhile", path)
			}
			if err != nil {
				_ = fd.Close()
				return nil, nil, err
			}
			return fd, &list[i], nil
		}
	}
	_ = fd.Close()
	return nil, nil, &object.Lacking{What: "nothing is mounted on " + path + " here, as it was at the dump"}
}

func statMount(fd *sys.FD) (int, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd.Int(), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, &object.Lacking{What: "this kernel does not tell on which mount a file is (5.8 and later do)"}
	}
	return int(st.Mnt_id), nil
}

// Propagates says whether there is something to do for Propagate.
func (s *Mounts) Propagates() bool {
	return slices.ContainsFunc(s.Mounts, func(m Mount) bool { return (m.Peers|m.Master) != 0 || m.Unbindable })
}

// Propagate sets the groups of all mounts. The calling thread is in the tree's mount namespace, in which all that is to be
// mounted is; list is what it holds.
func (s *Mounts) Propagate(list []procfs.Mount, outer Outer) error {
	p := &propagation{s: s, list: list, outer: outer, first: s.leaders(), making: make([]bool, len(s.Groups)+1), opened: Outer{}}
	defer p.opened.Close()
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if m.Hidden || (m.Peers|m.Master) == 0 && !m.Unbindable || m.Peers != 0 && s.Groups[m.Peers-1].Outside == "" && p.first[m.Peers] == i {
			continue
		}
		if err := p.set(m); err != nil {
			return fmt.Errorf("making the mount on %s propagate as it did: %w", m.Point, err)
		}
	}
	for k := range s.Groups { // those that have one member only
		if p.first[k+1] >= 0 && s.Groups[k].Outside == "" {
			if _, err := p.member(uint32(k + 1)); err != nil {
				return err
			}
		}
	}
	return nil
}

type propagation struct {
	s      *Mounts
	list   []procfs.Mount
	outer  Outer
	first  []int  // leaders of the groups
	making []bool // groups that have been begun
	opened Outer  // leaders that are in their groups
}

// member returns a mount that is in the group, or that receives from it if it can be no other.
func (p *propagation) member(g uint32) (*sys.FD, error) {
	if fd := p.outer[g]; fd != nil {
		return fd, nil
	}
	if fd := p.opened[g]; fd != nil {
		return fd, nil
	}
	k := p.first[g]
	if k < 0 || p.making[g] {
		return nil, object.BadImagef("a group of mounts without a member, or that receives from itself")
	}
	p.making[g] = true
	m := &p.s.Mounts[k]
	fd, _, err := openMount(m.Point, p.list)
	if err != nil {
		return nil, err
	}
	if m.Master != 0 {
		err = p.receive(fd, m.Master)
	}
	if err == nil {
		err = change(fd, unix.MS_SHARED)
	}
	if err != nil {
		_ = fd.Close()
		return nil, fmt.Errorf("making the mount on %s propagate as it did: %w", m.Point, err)
	}
	p.opened[g] = fd
	return fd, nil
}

func (p *propagation) set(m *Mount) error {
	fd, _, err := openMount(m.Point, p.list)
	if err != nil {
		return err
	}
	defer fd.Close()
	switch {
	case m.Unbindable:
		return change(fd, unix.MS_UNBINDABLE)
	case m.Peers != 0:
		from, err := p.member(m.Peers)
		if err != nil {
			return err
		}
		return join(from, fd)
	}
	return p.receive(fd, m.Master)
}

// receive makes a mount one that receives from the group.
func (p *propagation) receive(fd *sys.FD, g uint32) error {
	from, err := p.member(g)
	if err != nil {
		return err
	}
	if err := join(from, fd); err != nil || p.s.Groups[g-1].Receives {
		return err
	}
	return change(fd, unix.MS_SLAVE)
}

// join makes a private mount one of the group of another, and have it receive from where that does.
func join(from, to *sys.FD) error {
	err := unix.MoveMount(from.Int(), "", to.Int(), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|unix.MOVE_MOUNT_SET_GROUP)
	if err == unix.ENOSYS || err == unix.EINVAL {
		return &object.Lacking{What: "a mount cannot join the peer group of another here (kernels since 5.15 can, between mounts of one file system)"}
	}
	return err
}

func change(fd *sys.FD, to uint64) error {
	return unix.MountSetattr(fd.Int(), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: to})
}
