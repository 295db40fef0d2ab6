package kernelview

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// The structures of inotify and of the names of files (fs/notify/fsnotify.h,
// include/linux/dcache.h), the same from Linux 6.1 to 6.18 but for what obj of
// a connector points to.
var (
	fGrpMarks  = want("fsnotify_group.marks_list")
	fGrpQueue  = want("fsnotify_group.q_len")
	fGrpNext   = want("fsnotify_group.inotify_data.idr.idr_next")
	fMarkList  = want("fsnotify_mark.g_list")
	fMarkConn  = want("fsnotify_mark.connector")
	fMarkIn    = want("inotify_inode_mark.fsn_mark")
	fMarkWD    = want("inotify_inode_mark.wd")
	fConnObj   = want("fsnotify_mark_connector.obj")
	fConnType  = want("fsnotify_mark_connector.type")
	fMarkMask  = want("fsnotify_mark.mask")
	fMarkIgn   = want("fsnotify_mark.ignore_mask")
	fGrpFlags  = want("fsnotify_group.fanotify_data.flags")
	fGrpAccess = want("fsnotify_group.fanotify_data.access_list")
	fGrpUser   = want("fsnotify_group.user_ns")
	fGrpUcount = want("fsnotify_group.fanotify_data.ucounts")
	fUcountNS  = want("ucounts.ns")
	fUserLevel = want("user_namespace.level")
	fIWriters  = want("inode.i_writecount")
	fIMarks    = want("inode.i_fsnotify_marks")
	fIDentries = want("inode.i_dentry.first")
	fDAlias    = want("dentry.d_u.d_alias")
	fDParent   = want("dentry.d_parent")
	fDName     = want("dentry.d_name.name")
	fDNameLen  = want("dentry.d_name.len")
)

// Bounds of walks: what the kernel allows, or is far above what anybody has.
const (
	maxWatches = 1 << 24
	maxAliases = 64 // names of one file that are tried
	maxNesting = 2048
	nameMax    = 255 // NAME_MAX
)

// Inotify is documented with View.
func (v *bpfView) Inotify(file ID) (Inotify, error) {
	l := v.l
	b, group, err := v.content(file, KindInotify, "fsnotify_group")
	if err != nil {
		return Inotify{}, err
	}
	for _, f := range []field{fGrpMarks, fGrpQueue, fMarkList, fMarkConn, fMarkIn, fMarkWD, fConnObj, fConnType, fIMarks, fIDentries, fDAlias, fDParent, fDName, fDNameLen} {
		if !l.has(f) {
			return Inotify{}, missingField(KindInotify)
		}
	}
	queued, _ := l.uint(b, fGrpQueue)
	in := Inotify{Queued: int(uint32(queued)), Next: num[int32](l, b, fGrpNext), Names: map[int][]string{}}
	names := map[uint64]dirName{}
	err = v.eachMark(group, b, l.off(fMarkIn), l.span["inotify_inode_mark"], func(b, inner []byte) error {
		wd, _ := l.uint(b, fMarkWD)
		inode, err := v.marked(inner)
		if err == nil {
			in.Names[int(int32(wd))], err = v.namesOfInode(inode, names)
		}
		return err
	})
	if err != nil {
		return Inotify{}, fmt.Errorf("reading what is watched: %w", err)
	}
	return in, nil
}

// eachMark calls f for every mark of a group, the latest first. A mark lies within a structure of some size, in bytes, at a distance from
// its begin.
func (v *bpfView) eachMark(group uint64, b []byte, within uint64, size int, f func(b, mark []byte) error) error {
	l := v.l
	head := group + l.off(fGrpMarks)
	list, _ := l.bytes(b, fGrpMarks)
	next := binary.NativeEndian.Uint64(list)
	for n := 0; next != head; n++ {
		if n == maxWatches {
			return errFault
		}
		b, err := v.mem.peek(next-l.off(fMarkList)-within, max(size, int(within)+l.span["fsnotify_mark"]))
		if err != nil {
			return err
		}
		if err := f(b, b[within:]); err != nil {
			return err
		}
		link, _ := l.bytes(b[within:], fMarkList)
		next = binary.NativeEndian.Uint64(link)
	}
	return nil
}

// Fanotify is documented with View.
func (v *bpfView) Fanotify(file ID) (Fanotify, error) {
	l := v.l
	b, group, err := v.content(file, KindFanotify, "fsnotify_group")
	if err != nil {
		return Fanotify{}, err
	}
	for _, f := range []field{fGrpMarks, fGrpQueue, fGrpFlags, fGrpAccess, fMarkList, fMarkConn, fMarkMask, fMarkIgn, fConnObj, fConnType,
		fIMarks, fIWriters, fIDentries, fDAlias, fDParent, fDName, fDNameLen, fGrpUcount, fUcountNS, fUserLevel} {
		if !l.has(f) {
			return Fanotify{}, missingField(KindFanotify)
		}
	}
	const unprivileged = 0x80000000 // FANOTIFY_UNPRIV of include/linux/fanotify.h, since Linux 5.13
	queued, _ := l.uint(b, fGrpQueue)
	flags, _ := l.uint(b, fGrpFlags)
	out := Fanotify{Queued: int(uint32(queued)), Unprivileged: flags&unprivileged != 0}
	access, _ := l.bytes(b, fGrpAccess)
	out.Waiting = binary.NativeEndian.Uint64(access) != group+l.off(fGrpAccess)
	if out.Nested, err = v.nestedGroup(b); err != nil {
		return Fanotify{}, fmt.Errorf("reading who made a fanotify group: %w", err)
	}
	names := map[uint64]dirName{}
	err = v.eachMark(group, b, 0, 0, func(_, mark []byte) error {
		mask, _ := l.uint(mark, fMarkMask)
		ign, _ := l.uint(mark, fMarkIgn)
		m := FanotifyMark{Mask: uint32(mask), Ignored: uint32(ign)}
		inode, err := v.marked(mark)
		if err == nil && inode != nil {
			writers, _ := l.uint(inode, fIWriters)
			m.Written = int32(writers) > 0
			m.Names, err = v.namesOfInode(inode, names)
		}
		out.Marks = append(out.Marks, m)
		return err
	})
	if err != nil {
		return Fanotify{}, fmt.Errorf("reading what is watched: %w", err)
	}
	return out, nil
}

// nestedGroup says whether a fanotify group was made in a user namespace that is not the initial one. Where the group does not say it
// itself, its account does, which belongs to whoever made it (fanotify_init in fs/notify/fanotify/fanotify_user.c).
func (v *bpfView) nestedGroup(group []byte) (bool, error) {
	l := v.l
	ns, ok := l.uint(group, fGrpUser)
	if !ok {
		paid, _ := l.uint(group, fGrpUcount)
		b, err := v.mem.peek(paid, l.span["ucounts"])
		if err != nil {
			return false, err
		}
		ns, _ = l.uint(b, fUcountNS)
	}
	b, err := v.mem.peek(ns, l.span["user_namespace"])
	if err != nil {
		return false, err
	}
	level, _ := l.uint(b, fUserLevel)
	return level != 0, nil
}

// marked returns the inode that a mark is on, nil if that is something else. obj of a connector is
// the inode since Linux 6.10, before it a pointer to the inode's member that
// points back; either way that member says which.
func (v *bpfView) marked(mark []byte) ([]byte, error) {
	l := v.l
	conn, _ := l.uint(mark, fMarkConn)
	b, err := v.mem.peek(conn, l.span["fsnotify_mark_connector"])
	if err != nil {
		return nil, err
	}
	const onInode = 0 // FSNOTIFY_OBJ_TYPE_INODE
	if kind, ok := l.uint(b, fConnType); !ok || kind != onInode {
		return nil, nil
	}
	obj, _ := l.uint(b, fConnObj)
	for _, inode := range []uint64{obj, obj - l.off(fIMarks)} {
		b, err := v.mem.peek(inode, l.span["inode"])
		if err != nil {
			continue
		}
		if back, ok := l.uint(b, fIMarks); ok && back == conn {
			return b, nil
		}
	}
	return nil, nil
}

// dirName is one dentry: its name and the one that it is in; itself for the
// root of a file system.
type dirName struct {
	parent uint64
	name   string
}

func (v *bpfView) namesOfInode(inode []byte, names map[uint64]dirName) ([]string, error) {
	l := v.l
	var out []string
	next, _ := l.uint(inode, fIDentries) // 0 when there is no inode
	for range maxAliases {
		if next == 0 {
			break
		}
		dentry := next - l.off(fDAlias)
		b, err := v.mem.peek(dentry, l.span["dentry"])
		if err != nil {
			return nil, err
		}
		path, err := v.pathOf(dentry, names)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, path) {
			out = append(out, path)
		}
		alias, _ := l.bytes(b, fDAlias)
		next = binary.NativeEndian.Uint64(alias)
	}
	return out, nil
}

// pathOf returns the path of a dentry from the root of its file system.
func (v *bpfView) pathOf(dentry uint64, names map[uint64]dirName) (string, error) {
	path := ""
	for range maxNesting {
		d, ok := names[dentry]
		if !ok {
			var err error
			if d, err = v.dirName(dentry); err != nil {
				return "", err
			}
			names[dentry] = d
		}
		if d.parent == dentry {
			return path, nil
		}
		path = "/" + d.name + path
		dentry = d.parent
	}
	return "", errFault
}

func (v *bpfView) dirName(dentry uint64) (dirName, error) {
	l := v.l
	b, err := v.mem.peek(dentry, l.span["dentry"])
	if err != nil {
		return dirName{}, err
	}
	parent, _ := l.uint(b, fDParent)
	name, _ := l.uint(b, fDName)
	n, _ := l.uint(b, fDNameLen)
	if n > nameMax {
		return dirName{}, errFault
	}
	text, err := v.mem.peek(name, int(n))
	return dirName{parent, string(text)}, err
}
