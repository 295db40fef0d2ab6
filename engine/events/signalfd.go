package events

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A signalfd (signalfd(2)): the set of signals that it accepts, nothing more. What it would read are the pending
// signals of whoever reads it. The kernel shows the set in fdinfo and, inverted, in struct signalfd_ctx.
type signalfdState struct {
	Mask  uint64 `msgpack:"mask"`  // bit n-1 is signal n
	Flags uint32 `msgpack:"flags"` // as F_GETFL
}

func dumpSignalfd(d *object.Dumper, f *object.OpenFile) (*signalfdState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Signalfd(f.View.ID)
	if err != nil {
		return nil, fmt.Errorf("looking at the signalfd: %w", err)
	}
	return &signalfdState{Mask: v.Mask, Flags: flags}, nil
}

func restoreSignalfd(_ *object.Restorer, _ stream.Ref, s *signalfdState) (int, error) {
	var set unix.Sigset_t
	word := 1024 / len(set.Val) // bits in each
	for i := range 64 {
		if s.Mask>>i&1 != 0 {
			set.Val[i/word] |= 1 << (i % word)
		}
	}
	fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making a signalfd: %w", err)
	}
	return finish(fd, s.Flags)
}

// SignalfdKind is the kind of signalfds.
var SignalfdKind = object.NewFileKind("file.signalfd", claims(kernelview.KindSignalfd, "anon_inode:[signalfd]"), dumpSignalfd, restoreSignalfd)
