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
	for _, f := range []field{fGrpMarks, fGrpQueue, fMarkList, fMarkConn, fMarkIn, fMarkWD, fConnObj, fIMarks, fIDentries, fDAlias, fDParent, fDName, fDNameLen} {
		if !l.has(f) {
			return Inotify{}, missingField(KindInotify)
		}
	}
	queued, _ := l.uint(b, fGrpQueue)
	in := Inotify{Queued: int(uint32(queued)), Next: num[int32](l, b, fGrpNext), Names: map[int][]string{}}
	head := group + l.off(fGrpMarks)
	list, _ := l.bytes(b, fGrpMarks)
	names := map[uint64]dirName{}
	next := binary.NativeEndian.Uint64(list)
	for n := 0; next != head; n++ {
		mark := next - l.off(fMarkList)
		b, err := v.mem.peek(mark-l.off(fMarkIn), max(l.span["inotify_inode_mark"], int(l.off(fMarkIn))+l.span["fsnotify_mark"]))
		if err == nil && n == maxWatches {
			err = errFault
		}
		if err != nil {
			return Inotify{}, fmt.Errorf("reading inotify content: %w", err)
		}
		wd, _ := l.uint(b, fMarkWD)
		inner := b[l.off(fMarkIn):]
		conn, _ := l.uint(inner, fMarkConn)
		if in.Names[int(int32(wd))], err = v.namesOfMarked(conn, names); err != nil {
			return Inotify{}, fmt.Errorf("reading what is watched: %w", err)
		}
		link, _ := l.bytes(inner, fMarkList)
		next = binary.NativeEndian.Uint64(link)
	}
	return in, nil
}

// namesOfMarked returns the paths of the inode that a connector is of. obj is
// the inode since Linux 6.10, before it a pointer to the inode's member that
// points back; either way that member says which.
func (v *bpfView) namesOfMarked(conn uint64, names map[uint64]dirName) ([]string, error) {
	l := v.l
	b, err := v.mem.peek(conn, l.span["fsnotify_mark_connector"])
	if err != nil {
		return nil, err
	}
	obj, _ := l.uint(b, fConnObj)
	for _, inode := range []uint64{obj, obj - l.off(fIMarks)} {
		b, err := v.mem.peek(inode, l.span["inode"])
		if err != nil {
			continue
		}
		if back, ok := l.uint(b, fIMarks); ok && back == conn {
			return v.namesOfInode(b, names)
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
	next, _ := l.uint(inode, fIDentries)
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
