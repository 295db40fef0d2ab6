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
	memory  sys.Huge
	buf     []byte // in it
	passing bool

	// long is called when it keeps nothing any more, nearly when then so many bytes have been written, if ever. Both may be nil.
	long, nearly func()
	nearlyAt     uint64
	written      uint64
}

// newHoldBack takes memory of which at least half is there when the tree stands still.
func newHoldBack(out io.Writer) *holdBack {
	h := &holdBack{out: out, memory: sys.NewHuge(holdBackMost)}
	h.buf = h.memory.Bytes[:0:holdBackMost]
	if holdBackMost > 0 {
		h.buf[:1][0] = 0
	}
	return h
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
	if !h.passing && len(h.buf)+n <= cap(h.buf) || h.passing && n < gatherBelow && len(h.buf)+n <= gatherMost {
		for _, b := range bufs {
			h.buf = append(h.buf, b...)
		}
		return nil
	}
	if !h.passing && h.long != nil {
		h.long()
	}
	h.passing = true
	h.written += uint64(len(h.buf) + n)
	if h.nearly != nil && h.written >= h.nearlyAt {
		h.nearly()
		h.nearly = nil
	}
	kept := h.buf
	h.buf = h.buf[:0]
	return writeVector(h.out, append([][]byte{kept}, bufs...)...)
}

// Flush writes what was kept.
func (h *holdBack) Flush() error {
	h.passing = true
	kept := h.buf
	h.buf = h.buf[:0]
	if len(kept) == 0 {
		return nil
	}
	return writeVector(h.out, kept)
}

// Free gives the memory back. Nothing may be written afterwards.
func (h *holdBack) Free() { h.memory.Free() }

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
