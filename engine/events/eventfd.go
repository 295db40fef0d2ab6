package events

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An eventfd (eventfd(2)): its counter, and whether a read takes one of it (EFD_SEMAPHORE) or all. The kernel shows
// both in fdinfo, the latter since Linux 6.5, and in struct eventfd_ctx. Lost: the eventfd-id of fdinfo, a number that
// the kernel gives out.
type eventfdState struct {
	Count     uint64 `msgpack:"count"`
	Semaphore bool   `msgpack:"semaphore,omitempty"`
	Flags     uint32 `msgpack:"flags"` // as F_GETFL
}

func dumpEventfd(d *object.Dumper, f *object.OpenFile) (*eventfdState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Eventfd(f.View.ID)
	if err != nil {
		return nil, fmt.Errorf("looking at the eventfd: %w", err)
	}
	return &eventfdState{Count: v.Count, Semaphore: v.Semaphore, Flags: flags}, nil
}

func restoreEventfd(_ *object.Restorer, _ stream.Ref, s *eventfdState) (int, error) {
	if s.Count == math.MaxUint64 {
		return -1, object.BadImagef("count %#x of an eventfd is impossible", s.Count)
	}
	flags := unix.EFD_CLOEXEC
	if s.Semaphore {
		flags |= unix.EFD_SEMAPHORE
	}
	fd, err := unix.Eventfd(0, flags)
	if err != nil {
		return -1, fmt.Errorf("making an eventfd: %w", err)
	}
	if s.Count > 0 { // the call takes only 32 bits of it
		if _, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, s.Count)); err != nil {
			_ = unix.Close(fd) // new, nothing is lost
			return -1, fmt.Errorf("setting the count of an eventfd: %w", err)
		}
	}
	return finish(fd, s.Flags)
}

// EventfdKind is the kind of eventfds.
var EventfdKind = object.NewFileKind("file.eventfd", claims(kernelview.KindEventfd, "anon_inode:[eventfd]"), dumpEventfd, restoreEventfd)
