package sys

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Flags of Tee, Splice and Vmsplice, splice(2).
const (
	SpliceMove     = unix.SPLICE_F_MOVE
	SpliceNonblock = unix.SPLICE_F_NONBLOCK
	SpliceMore     = unix.SPLICE_F_MORE
	SpliceGift     = unix.SPLICE_F_GIFT
)

// Tee is tee(2): it duplicates up to n bytes of pipe in into pipe out without
// taking them from in. 0 without an error: in is empty and has no writer.
func Tee(in, out *FD, n, flags int) (int, error) {
	var done int64
	err := retry(func() (err error) {
		done, err = unix.Tee(in.Int(), out.Int(), n, flags)
		return err
	})
	return int(done), err
}

// Splice is splice(2) from in to out, one of which is a pipe, at both files'
// own positions.
func Splice(in, out *FD, n, flags int) (int, error) {
	var done int
	err := retry(func() error {
		got, err := unix.Splice(in.Int(), nil, out.Int(), nil, n, flags)
		done = int(got)
		return err
	})
	return done, err
}

// Vmsplice is vmsplice(2): it puts the memory of bufs into the pipe without
// copying. The memory must not change until the pipe's readers have it. It
// may take less than all; the count says how much.
func Vmsplice(pipe *FD, bufs [][]byte, flags int) (int, error) {
	iovs := make([]unix.Iovec, 0, len(bufs))
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		iovs = append(iovs, v)
	}
	if len(iovs) == 0 {
		return 0, nil
	}
	var done int
	err := retry(func() (err error) {
		done, err = unix.Vmsplice(pipe.Int(), iovs, flags)
		return err
	})
	return done, err
}

// PipeSize is fcntl(2) F_GETPIPE_SZ: the capacity in bytes.
func PipeSize(pipe *FD) (int, error) {
	return unix.FcntlInt(uintptr(pipe.Int()), unix.F_GETPIPE_SZ, 0)
}

// SetPipeSize is fcntl(2) F_SETPIPE_SZ; it returns the capacity that the
// kernel chose, at least what was asked.
func SetPipeSize(pipe *FD, size int) (int, error) {
	return unix.FcntlInt(uintptr(pipe.Int()), unix.F_SETPIPE_SZ, size)
}

// PipeUnread is ioctl FIONREAD (the same number as TIOCINQ): the bytes in the pipe (pipe(7)).
func PipeUnread(pipe *FD) (int, error) {
	return unix.IoctlGetInt(pipe.Int(), unix.TIOCINQ)
}

// Statx is statx(2) of an open descriptor (AT_EMPTY_PATH) with the basic
// fields, the birth time and the id of the mount as /proc/PID/mountinfo
// prints it (STATX_MNT_ID, Linux 5.8). Whether the mount id was filled in is
// told by the STATX_MNT_ID bit of Mask.
func Statx(fd *FD) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(fd.Int(), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &st)
	if err != nil {
		return st, fmt.Errorf("reading status of descriptor %d: %w", fd.Int(), err)
	}
	return st, nil
}

// StatxPath is Statx of a path relative to dir (a number or unix.AT_FDCWD);
// the last component is not followed when it is a symbolic link.
func StatxPath(dir int, path string) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(dir, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &st)
	if err != nil {
		return st, fmt.Errorf("reading status of %s: %w", path, err)
	}
	return st, nil
}

// FIOASYNC is the ioctl(2) that sets or clears O_ASYNC and nothing else (asm/ioctls.h).
var FIOASYNC = func() uint32 {
	if runtime.GOARCH == "ppc64le" {
		return 0x8004667d // _IOW('f', 125, int)
	}
	return 0x5452
}()
