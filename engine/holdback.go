package engine

import (
	"io"

	"crpipe/engine/internal/sys"
	"crpipe/stream"
)

// holdBackMost is how much of an image is kept in memory while a tree stands still. A small tree goes on before anything is written, and whoever
// reads the stream may take all the time in the world.
var holdBackMost = 4 << 20 // changed by tests

const (
	gatherBelow = 64 << 10  // bytes of a piece that is worth a write of its own
	gatherMost  = 256 << 10 // bytes that are gathered
)

// A holdBack keeps what is written to it until it is flushed, or becomes too much. Then it only gathers small pieces: one write of many records
// instead of many.
type holdBack struct {
	out     io.Writer
	kept    [][]byte // chunks: all but the last are full
	size    int      // bytes in them
	passing bool

	// long is called when it keeps nothing any more, nearly when then so many bytes have been written, if ever. Both may be nil.
	long, nearly func()
	nearlyAt     uint64
	written      uint64
}

func newHoldBack(out io.Writer) *holdBack { return &holdBack{out: out} }

// Pass has it keep nothing from here on: what comes is more than it could keep.
func (h *holdBack) Pass() {
	if !h.passing && h.long != nil {
		h.long()
	}
	h.passing = true
}

// Write implements io.Writer.
func (h *holdBack) Write(p []byte) (int, error) {
	if err := h.WriteVector(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteVector implements stream.VectorWriter.
func (h *holdBack) WriteVector(bufs ...[]byte) error {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if !h.passing && h.size+n <= holdBackMost || h.passing && n < gatherBelow && h.size+n <= gatherMost {
		for _, b := range bufs {
			h.keep(b)
		}
		return nil
	}
	h.Pass()
	h.written += uint64(h.size + n)
	if h.nearly != nil && h.written >= h.nearlyAt {
		h.nearly()
		h.nearly = nil
	}
	return h.hand(bufs...)
}

// keep copies b.
func (h *holdBack) keep(b []byte) {
	h.size += len(b)
	for len(b) > 0 {
		last := len(h.kept) - 1
		if last < 0 || len(h.kept[last]) == cap(h.kept[last]) {
			h.kept = append(h.kept, sys.TakeChunk()[:0])
			last++
		}
		c := h.kept[last]
		n := min(len(b), cap(c)-len(c))
		h.kept[last] = append(c, b[:n]...)
		b = b[n:]
	}
}

// hand writes what was kept, and bufs behind it.
func (h *holdBack) hand(bufs ...[]byte) error {
	err := writeVector(h.out, append(h.kept, bufs...)...)
	h.Free()
	return err
}

// Flush writes what was kept.
func (h *holdBack) Flush() error {
	h.passing = true
	if h.size == 0 {
		return nil
	}
	return h.hand()
}

// Free forgets what is kept, and gives its memory back.
func (h *holdBack) Free() {
	for _, c := range h.kept {
		sys.GiveChunk(c)
	}
	h.kept, h.size = h.kept[:0], 0
}

// Whole says that nothing has been written yet.
func (h *holdBack) Whole() bool { return !h.passing }

func writeVector(out io.Writer, bufs ...[]byte) error {
	if v, ok := out.(stream.VectorWriter); ok {
		return v.WriteVector(bufs...)
	}
	for _, b := range bufs {
		n, err := out.Write(b)
		if err == nil && n != len(b) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
	}
	return nil
}
