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
	gatherBelow = 64 << 10 // bytes of a piece that is worth a write of its own
	gatherMost  = sys.ChunkSize
)

// A gatherer gathers small pieces: one write of many records instead of many.
type gatherer struct {
	out io.Writer
	buf []byte // a chunk, from the first piece on

	// nearly, if not nil, is called when so many bytes have been written.
	nearly   func()
	nearlyAt uint64
	written  uint64
}

// Write implements io.Writer.
func (g *gatherer) Write(p []byte) (int, error) {
	if err := g.WriteVector(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteVector implements stream.VectorWriter.
func (g *gatherer) WriteVector(bufs ...[]byte) error {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if n < gatherBelow && len(g.buf)+n <= gatherMost {
		if g.buf == nil {
			g.buf = sys.TakeChunk()[:0]
		}
		for _, b := range bufs {
			g.buf = append(g.buf, b...)
		}
		return nil
	}
	g.written += uint64(len(g.buf) + n)
	if g.nearly != nil && g.written >= g.nearlyAt {
		g.nearly()
		g.nearly = nil
	}
	kept := g.buf
	g.buf = g.buf[:0]
	return writeVector(g.out, append([][]byte{kept}, bufs...)...)
}

// Flush writes what was gathered.
func (g *gatherer) Flush() error {
	kept := g.buf
	g.buf = g.buf[:0]
	if len(kept) == 0 {
		return nil
	}
	return writeVector(g.out, kept)
}

// Free gives the memory back. Nothing may be written afterwards.
func (g *gatherer) Free() {
	sys.GiveChunk(g.buf)
	g.buf = nil
}

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
