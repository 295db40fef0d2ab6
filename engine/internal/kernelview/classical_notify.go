package kernelview

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Inotify implements View. The kernel says how many bytes a read would give (FIONREAD, which is TIOCINQ), and nothing of names.
func (v *classicalView) Inotify(id ID) (Inotify, error) {
	f, err := v.held(id, KindInotify)
	if err != nil {
		return Inotify{}, err
	}
	fd, err := f.duplicate()
	if err != nil {
		return Inotify{}, err
	}
	defer fd.Close()
	n, err := unix.IoctlGetInt(fd.Int(), unix.TIOCINQ)
	if err != nil {
		return Inotify{}, fmt.Errorf("asking for unread events: %w", err)
	}
	return Inotify{Queued: (n + unix.SizeofInotifyEvent - 1) / unix.SizeofInotifyEvent}, nil
}

// Fanotify implements View. Nothing outside of the kernel's memory tells who waits for an answer, or with which rights a group was made.
func (v *classicalView) Fanotify(id ID) (Fanotify, error) {
	if _, err := v.held(id, KindFanotify); err != nil {
		return Fanotify{}, err
	}
	return Fanotify{}, &MissingError{What: "the state of fanotify groups, which only the kernel's memory tells",
		Fix: "run as root on a kernel with BTF"}
}

// Lease implements View: nothing outside of the kernel's memory tells the number.
func (v *classicalView) Lease(ID) (Maybe[int32], error) { return Maybe[int32]{}, nil }
