package kernelview

import (
	"encoding/binary"
	"fmt"
)

// A lease is a structure of its own since Linux 6.9, before it a kind of lock
// (include/linux/filelock.h).
var (
	fLeaseCore   = want("file_lease.c")
	fLeaseFasync = want("file_lease.fl_fasync")
	fCoreFile    = want("file_lock_core.flc_file")
	fOldFasync   = want("file_lock.fl_fasync")
	fOldFile     = want("file_lock.fl_file")
)

// Lease is documented with View.
func (v *bpfView) Lease(file ID) (Maybe[int32], error) {
	l := v.l
	unknown := Maybe[int32]{}
	if file >= ID(len(v.files)) || v.files[file].addr == 0 {
		return unknown, fmt.Errorf("reading a lease: %w", ErrKind)
	}
	addr := v.files[file].addr
	// Where the link of the list lies in a lease, whose it is, and who is told.
	link, owner, told, size := l.off(fOldList), l.off(fOldFile), l.off(fOldFasync), l.span["file_lock"]
	have := l.has(fOldList) && l.has(fOldFile) && l.has(fOldFasync)
	if l.has(fLeaseCore) {
		core := l.off(fLeaseCore)
		link, owner, told, size = core+l.off(fCoreList), core+l.off(fCoreFile), l.off(fLeaseFasync), l.span["file_lease"]
		have = l.has(fCoreList) && l.has(fCoreFile) && l.has(fLeaseFasync)
	}
	if !have || !l.has(fFInode) || !l.has(fIFlctx) || !l.has(fLockL) || !l.has(fAsyncFile) || !l.has(fAsyncFD) {
		return unknown, nil
	}
	word := func(at uint64) (uint64, error) {
		b, err := v.mem.peek(at, 8)
		if err != nil {
			return 0, fmt.Errorf("reading a lease: %w", err)
		}
		return binary.NativeEndian.Uint64(b), nil
	}
	inode, err := word(addr + l.off(fFInode))
	if err != nil {
		return unknown, err
	}
	context, err := word(inode + l.off(fIFlctx))
	if err != nil || context == 0 {
		return unknown, err
	}
	head := context + l.off(fLockL)
	next, err := word(head)
	for n := 0; err == nil && next != head && n < maxLocks; n++ {
		b, err := v.mem.peek(next-link, size)
		if err != nil {
			return unknown, fmt.Errorf("reading a lease: %w", err)
		}
		if binary.NativeEndian.Uint64(b[owner:]) == addr {
			return v.fasyncFD(binary.NativeEndian.Uint64(b[told:]), addr)
		}
		next = binary.NativeEndian.Uint64(b[link:])
	}
	return unknown, err
}

// fasyncFD returns the number by which a file is in a list of receivers of
// signals.
func (v *bpfView) fasyncFD(list, file uint64) (Maybe[int32], error) {
	for n := 0; list != 0 && n < maxAsync; n++ {
		b, err := v.mem.peek(list, v.l.span["fasync_struct"])
		if err != nil {
			return Maybe[int32]{}, fmt.Errorf("reading who is told of a lease: %w", err)
		}
		if who, _ := v.l.uint(b, fAsyncFile); who == file {
			return num[int32](v.l, b, fAsyncFD), nil
		}
		list, _ = v.l.uint(b, fAsyncNext)
	}
	return Maybe[int32]{}, nil
}
