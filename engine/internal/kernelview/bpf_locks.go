package kernelview

import "encoding/binary"

// maxLocks bounds the walk of one list of locks.
const maxLocks = 1 << 16

// lockedAreas tells of every mapping whether a lock belongs to the open file
// that it holds. Locks by flock, open file description locks and leases have
// that file as their owner; that of a POSIX lock is a descriptor table
// (fs/locks.c).
func (v *bpfView) lockedAreas(areas []Area, files []uint64) error {
	l := v.l
	if !l.has(fFInode) || !l.has(fIFlctx) {
		return nil
	}
	heads, err := v.gatherMap(files, l.span["file"])
	if err != nil {
		return err
	}
	inodes, err := v.gatherMap(v.follow(heads, fFInode), l.span["inode"])
	if err != nil {
		return err
	}
	known := map[uint64]Maybe[bool]{0: Is(false)}
	for i, file := range files {
		locked, seen := known[file]
		if !seen {
			inode, _ := l.uint(heads[file], fFInode)
			if context, ok := l.uint(inodes[inode], fIFlctx); ok {
				locked = v.ownsLock(context, file)
			}
			known[file] = locked
		}
		areas[i].Locked = locked
	}
	return nil
}

// ownsLock tells whether one of the locks of an inode belongs to a file.
func (v *bpfView) ownsLock(context, file uint64) Maybe[bool] {
	if context == 0 {
		return Is(false)
	}
	l := v.l
	list, owner, structure := fCoreList, fCoreOwner, "file_lock_core"
	if !l.has(list) {
		list, owner, structure = fOldList, fOldOwner, "file_lock"
	}
	if !l.has(list) || !l.has(owner) || !l.has(fLockF) || !l.has(fLockP) || !l.has(fLockL) {
		return Maybe[bool]{}
	}
	block, err := v.mem.peek(context, l.span["file_lock_context"])
	if err != nil {
		return Maybe[bool]{}
	}
	for _, f := range []field{fLockF, fLockP, fLockL} {
		head, ok := l.bytes(block, f)
		if !ok || len(head) < 8 {
			return Maybe[bool]{}
		}
		next := binary.NativeEndian.Uint64(head)
		for n := 0; next != context+l.off(f); n++ {
			b, err := v.mem.peek(next-l.off(list), l.span[structure])
			if err != nil || n == maxLocks {
				return Maybe[bool]{}
			}
			if who, _ := l.uint(b, owner); who == file {
				return Is(true)
			}
			link, ok := l.bytes(b, list)
			if !ok || len(link) < 8 {
				return Maybe[bool]{}
			}
			next = binary.NativeEndian.Uint64(link)
		}
	}
	return Is(false)
}
