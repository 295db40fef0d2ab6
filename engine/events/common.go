package events

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// Kinds returns the kinds of open files of this family in the order of their claims, which exclude each other.
func Kinds() []object.FileKind {
	return []object.FileKind{EventfdKind, TimerfdKind, SignalfdKind, PidfdKind, InotifyKind, FanotifyKind, EpollKind, URingKind}
}

// PlainKinds returns the other records of this family.
func PlainKinds() []object.Kind {
	return []object.Kind{EpollObject, EpollLink, InotifyObject, InotifyLink, FanotifyObject, FanotifyLink}
}

// claims returns a function that claims files of one kind: by what the kernel view says of them or, where it cannot
// tell, by their link (anon_inode_getfile in fs/anon_inodes.c).
func claims(kind kernelview.Kind, link string) func(*object.Dumper, *object.OpenFile) bool {
	return func(_ *object.Dumper, f *object.OpenFile) bool {
		switch f.View.Kind {
		case kind:
			return f.FD >= 0
		case kernelview.KindUnknown, kernelview.KindAnon:
			return f.FD >= 0 && f.Link == link
		}
		return false
	}
}

// keptFlags are what F_GETFL can show of an anonymous inode that nothing but F_SETFL has set (fcntl(2)).
const keptFlags = unix.O_ACCMODE | unix.O_NONBLOCK | unix.O_APPEND | unix.O_NOATIME

func dumpFlags(f *object.OpenFile) (uint32, error) {
	flags, err := files.Flags(f)
	if err != nil {
		return 0, err
	}
	if odd := flags &^ keptFlags; odd != 0 {
		return 0, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	return flags, nil
}

// finish gives a new descriptor the status flags of the image, and closes it when that fails.
func finish(fd int, flags uint32) (int, error) { return finishMode(fd, flags, unix.O_RDWR) }

// finishMode is finish for a descriptor of another access mode.
func finishMode(fd int, flags, mode uint32) (int, error) {
	if odd := flags &^ keptFlags; odd != 0 || flags&unix.O_ACCMODE != mode {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, object.BadImagef("open flags %#o do not belong here", flags)
	}
	if flags &^= unix.O_ACCMODE; flags != 0 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(flags)); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("setting status flags %#o: %w", flags, err)
		}
	}
	return fd, nil
}
