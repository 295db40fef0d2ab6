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

// Lease implements View: nothing outside of the kernel's memory tells the number.
func (v *classicalView) Lease(ID) (Maybe[int32], error) { return Maybe[int32]{}, nil }
