package namespaces

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// The restore of what propagation.go tells.

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
