package kernelview

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

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
	type locks struct {
		any   Maybe[bool]
		flock uint8
	}
	known := map[uint64]locks{0: {any: Is(false)}}
	for i, file := range files {
		locked, seen := known[file]
		if !seen {
			inode, _ := l.uint(heads[file], fFInode)
			if context, ok := l.uint(inodes[inode], fIFlctx); ok {
				locked.any, locked.flock = v.ownsLock(context, file)
			}
			known[file] = locked
		}
		areas[i].Locked, areas[i].Flock = locked.any, locked.flock
	}
	return nil
}

// ownsLock tells whether some of the locks of an inode belong to a file, and how it was locked where that is one by flock(2).
func (v *bpfView) ownsLock(context, file uint64) (locked Maybe[bool], flock uint8) {
	if context == 0 {
		return Is(false), 0
	}
	l := v.l
	list, owner, kind, structure := fCoreList, fCoreOwner, fCoreType, "file_lock_core"
	if !l.has(list) {
		list, owner, kind, structure = fOldList, fOldOwner, fOldType, "file_lock"
	}
	locked = Is(false)
	if !l.has(list) || !l.has(owner) || !l.has(fLockF) || !l.has(fLockP) || !l.has(fLockL) {
		return Maybe[bool]{}, 0
	}
	block, err := v.mem.peek(context, l.span["file_lock_context"])
	if err != nil {
		return Maybe[bool]{}, 0
	}
	for _, f := range []field{fLockF, fLockP, fLockL} {
		head, ok := l.bytes(block, f)
		if !ok || len(head) < 8 {
			return Maybe[bool]{}, 0
		}
		next := binary.NativeEndian.Uint64(head)
		for n := 0; next != context+l.off(f); n++ {
			b, err := v.mem.peek(next-l.off(list), l.span[structure])
			if err != nil || n == maxLocks {
				return Maybe[bool]{}, 0
			}
			if who, _ := l.uint(b, owner); who == file {
				how, ok := l.uint(b, kind)
				switch {
				case f != fLockF || !ok || locked.V:
					return Is(true), 0
				case how == unix.F_RDLCK:
					flock = unix.LOCK_SH
				case how == unix.F_WRLCK:
					flock = unix.LOCK_EX
				}
				locked = Is(true)
			}
			link, ok := l.bytes(b, list)
			if !ok || len(link) < 8 {
				return Maybe[bool]{}, 0
			}
			next = binary.NativeEndian.Uint64(link)
		}
	}
	return locked, flock
}
