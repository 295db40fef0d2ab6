package engine

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// keepRights makes the capabilities of the calling thread ambient where an ordinary user has any (setcap(8), or as init of a user
// namespace): without that the tasks that it makes, which execute a program first, would lose them. They give up what they should
// not have with everything else that is inherited. A thread of root's loses nothing.
func keepRights() error {
	if os.Geteuid() == 0 {
		return nil
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("reading the own capabilities: %w", err)
	}
	if data[0].Permitted|data[1].Permitted == 0 {
		return nil
	}
	for i := range data {
		data[i].Inheritable |= data[i].Permitted
		data[i].Effective = data[i].Permitted
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("making the own capabilities inheritable: %w", err)
	}
	for c := range 64 {
		if data[c/32].Permitted&(1<<(c%32)) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("making the own capabilities ambient: %w", err)
		}
	}
	// A program with capabilities of its own is not dumpable, and files of /proc about it and its tasks are root's.
	return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
}
