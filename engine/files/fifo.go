package files

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
	"crpipe/stream"
)

// A FIFO (fifo(7)): a pipe with a name. Its ends are those of a pipe (pipe.go); its contents go with the image, since
// they vanish with the last that has it open. At restore the FIFO must be there and empty. One that somebody outside
// of the tree has open too is treated as such a pipe; for one whose name is gone see fifo_removed.go.
type fifoState struct {
	Path string `msgpack:"path"`
	Size uint32 `msgpack:"size"` // capacity in bytes

	pinned unix.Stat_t `msgpack:"-"` // at restore: what Path led to
}

func fifoOf(f *object.OpenFile, size uint32) (*fifoState, error) {
	p, err := pathOf(f)
	if err != nil {
		return nil, err
	}
	return &fifoState{Path: p, Size: size}, nil
}

func restoreFIFO(r *object.Restorer, ref stream.Ref, s *fifoState) error {
	pinned, st, err := pin(s.Path, unix.S_IFIFO, false)
	if err != nil {
		return err
	}
	defer pinned.Close()
	s.pinned = *st
	// Opened for both, a FIFO does not wait for the other end.
	fd, err := reopen(pinned.Int(), unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("opening %s: %w", s.Path, err)
	}
	n, err := r.Pool(fd)
	if err != nil {
		return err
	}
	unread, err := unix.IoctlGetInt(n, unix.TIOCINQ)
	if err != nil {
		return fmt.Errorf("looking into %s: %w", s.Path, err)
	}
	if unread > 0 {
		return fmt.Errorf("%s is in use: it holds %d bytes", s.Path, unread)
	}
	m := &madePipe{fifo: s, ends: [2]int{n, n}, size: s.Size}
	if err := m.setSize(); err != nil {
		return fmt.Errorf("%s: %w", s.Path, err)
	}
	r.Remember(ref, m)
	r.OnContent(ref, m.content)
	return nil
}

// open opens the name once more, for a file that was opened with O_NOFOLLOW.
func (s *fifoState) open(flags uint32) (int, error) {
	pinned, st, err := pin(s.Path, unix.S_IFIFO, true)
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	if !same(st, &s.pinned) {
		return -1, fmt.Errorf("%s was replaced while it was being opened", s.Path)
	}
	return openPinned(s.Path, pinned, st, flags)
}

// FIFOObject is the record of a FIFO itself; its ends are of PipeKind.
var FIFOObject = object.NewKind(fifoType, restoreFIFO)
