package files

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

const (
	// tmpfileFlag is the bit of O_TMPFILE alone; F_GETFL shows it with O_DIRECTORY.
	tmpfileFlag = unix.O_TMPFILE &^ unix.O_DIRECTORY

	// kernelFlags are bits of f_flags that no program set: __FMODE_EXEC and __FMODE_NONOTIFY of
	// include/linux/fs.h, and close-on-exec, which belongs to the descriptor.
	kernelFlags = 0x20 | 0x4000000 | unix.O_CLOEXEC

	// statusFlags are what F_SETFL can change (fcntl(2)).
	statusFlags = unix.O_APPEND | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME

	// openFlags are the bits that open(2) keeps in f_flags and that make nothing: no O_CREAT, O_EXCL, O_TRUNC.
	openFlags = unix.O_ACCMODE | statusFlags | unix.O_SYNC | unix.O_DSYNC |
		unix.O_PATH | unix.O_NOFOLLOW | unix.O_DIRECTORY
)

// largefile is O_LARGEFILE, which a 64-bit kernel sets on every file that is opened, on top of what the program
// asked for (force_o_largefile in fs/open.c). Its value differs between architectures and x/sys gives 0 where it need
// not be asked for, so an open file is asked. Files that are not opened (pipes, eventfds) do not have it.
var largefile = sync.OnceValue(func() uint32 {
	fd, err := sys.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0
	}
	defer fd.Close()
	flags, err := unix.FcntlInt(uintptr(fd.Int()), unix.F_GETFL, 0)
	if err != nil {
		return 0
	}
	return uint32(flags) &^ uint32(unix.O_ACCMODE|unix.O_DIRECTORY|unix.O_CLOEXEC)
})

// Flags returns the flags of an open file as F_GETFL shows them, without those that the kernel sets for itself.
// A file that only a mapping holds and whose flags are not known has the access mode that its link shows.
func Flags(f *object.OpenFile) (uint32, error) {
	flags, err := setFlags(f)
	if err == nil && flags&unix.O_ASYNC != 0 && leased(f) {
		flags &^= unix.O_ASYNC // which a lease sets, as long as it is there (fasync_insert_entry in fs/fcntl.c)
	}
	return flags, err
}

func setFlags(f *object.OpenFile) (uint32, error) {
	if v, ok := f.View.Flags.Get(); ok {
		return v &^ kernelFlags, nil
	}
	if f.FD >= 0 {
		info, err := f.Fdinfo()
		if err != nil {
			return 0, err
		}
		return info.Flags &^ kernelFlags, nil
	}
	// The links of map_files have the mode of the mapping: lr--------, lrw-------.
	var st unix.Stat_t
	if err := unix.Lstat(f.Path, &st); err != nil {
		return 0, f.Error(fmt.Errorf("looking at %s: %w", f.Path, err))
	}
	if st.Mode&0o200 != 0 {
		return unix.O_RDWR | largefile(), nil
	}
	return unix.O_RDONLY | largefile(), nil
}

// position returns the position of an open file, 0 for one that no descriptor holds: nothing reads through it.
func position(f *object.OpenFile) (int64, error) {
	if v, ok := f.View.Pos.Get(); ok {
		return v, nil
	}
	if f.FD < 0 {
		return 0, nil
	}
	info, err := f.Fdinfo()
	if err != nil {
		return 0, err
	}
	return info.Pos, nil
}

// dumpFlags returns the flags of a file that is restored by opening it.
func dumpFlags(f *object.OpenFile) (uint32, error) {
	flags, err := Flags(f)
	if err != nil {
		return 0, err
	}
	if odd := flags &^ (openFlags | largefile()); odd != 0 {
		return 0, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	return flags, nil
}

// refuseUnseen refuses a file through which fanotify(7) has told of an event: what happens through it is no event. Opened anew, it
// would be.
func refuseUnseen(f *object.OpenFile) error {
	if unseen, ok := f.View.Unseen.Get(); !ok || !unseen || f.FD < 0 || isOPath(f) {
		return nil // through a mapping alone nothing happens; and it is of the file below on overlayfs
	}
	return &object.Unsupported{
		What: "it is the file of an event of fanotify(7), whose use no watcher is told of",
		Do:   "dump again in a moment, when the program has closed it",

		Passes: true,
	}
}

// checkFlags refuses flags in an image that would make, empty or signal anything.
func checkFlags(flags uint32, allowed uint32) error {
	if odd := flags &^ (allowed | largefile()); odd != 0 {
		return object.BadImagef("open flags %#o do not belong here", odd)
	}
	return nil
}

// reopen opens what fd (O_PATH will do) leads to once more: a new open file description. The caller has looked at
// fd and knows that opening it cannot block or act. O_NOFOLLOW has done its work in the opening of fd, and would
// refuse the link through which this open goes.
func reopen(fd int, flags uint32) (int, error) {
	dir, err := ownDescriptors()
	if err != nil {
		return -1, err
	}
	for {
		n, err := unix.Openat(dir.Int(), strconv.Itoa(fd), int(flags&^unix.O_NOFOLLOW)|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// ownDescriptors is /proc/self/fd, held open: the thread that restores may be in the mount namespace of the tree,
// whose /proc does not know it. Another goroutine is never on that thread, which is locked.
var ownDescriptors = sync.OnceValues(func() (dir *sys.FD, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		dir, err = sys.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY, 0)
	}()
	<-done
	return dir, err
})

// setStatus makes the status flags of fd those of flags.
func setStatus(fd int, flags uint32) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(flags&statusFlags)); err != nil {
		return fmt.Errorf("setting status flags %#o: %w", flags&statusFlags, err)
	}
	return nil
}

func seek(fd int, pos int64) error {
	if pos == 0 {
		return nil
	}
	if _, err := unix.Seek(fd, pos, unix.SEEK_SET); err != nil {
		return fmt.Errorf("setting position %d: %w", pos, err)
	}
	return nil
}

// dup returns another descriptor of the same open file description.
func dup(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicating descriptor: %w", err)
	}
	return n, nil
}
