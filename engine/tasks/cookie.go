package tasks

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// CheckCookies refuses threads with a core scheduling cookie (PR_SCHED_CORE of prctl(2)): it stands for who may share a
// processor core, with tasks outside of the tree perhaps. A kernel without core scheduling says so for the caller itself.
func CheckCookies(d *object.Dumper) error {
	_, err := sys.CoreCookie(0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			cookie, err := sys.CoreCookie(t.TID)
			if err != nil {
				return p.Error("", fmt.Errorf("reading core scheduling cookie of thread %d: %w", t.TID, err))
			}
			looker{d, t}.refuse(cookie != 0, "has a core scheduling cookie (PR_SCHED_CORE)")
		}
	}
	return nil
}
