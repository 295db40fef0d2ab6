package memory

import (
	"runtime"
	"sync/atomic"

	"crpipe/engine/internal/failpoint"
	"crpipe/stream"
)

// Reading from the target and writing to the pipe cost about the same, so that two threads halve the time that a large process stands still. A small
// one is not worth a second thread, whose start and buffers cost more than they gain.

const (
	aheadFrom  = 4 << 20 // bytes that are written before the second thread starts
	aheadLoads = 4       // buffers then, which stay in the caches
)

// AheadChunks is how many chunks of memory the dump of a large process uses (sys.TakeChunk).
const AheadChunks = aheadLoads

// output is where the pages of one address space go.
type output struct {
	w      *stream.Writer
	ref    stream.Ref
	serial bool

	done int // bytes, until the second thread starts

	// The second thread takes full buffers and gives empty ones back.
	full, free chan *buffer
	ended      chan struct{}
	failed     atomic.Pointer[error]
}

// write writes all pages. The target must stand still.
func (c *contents) write(w *stream.Writer, ref stream.Ref) error {
	out := &output{w: w, ref: ref, serial: c.serial || runtime.GOMAXPROCS(0) < 2}
	r := reader{contents: c, b: getBuffer(), out: out}
	err := r.all()
	if late := out.end(r.b); late != nil {
		err = late // it is what stopped the reader, if anything has
	}
	return err
}

// write writes what a buffer holds, or has it written, and returns an empty one.
func (o *output) write(b *buffer) (*buffer, error) {
	if o.full != nil {
		o.full <- b
		b = <-o.free
		if err := o.failed.Load(); err != nil {
			return b, *err
		}
		return b, nil
	}
	o.done += b.used
	err := failpoint.After("dump.pages", b.write(o.w, o.ref))
	b.reset()
	if err == nil && o.done >= aheadFrom && !o.serial && !o.w.Holding() {
		o.start()
	}
	return b, err
}

// start starts the second thread.
func (o *output) start() {
	o.full, o.free, o.ended = make(chan *buffer, aheadLoads), make(chan *buffer, aheadLoads), make(chan struct{})
	for range aheadLoads - 1 { // and the reader's
		o.free <- getBuffer()
	}
	go func() {
		defer close(o.ended)
		for b := range o.full {
			if o.failed.Load() == nil {
				if err := failpoint.After("dump.ahead", b.write(o.w, o.ref)); err != nil {
					o.failed.Store(&err)
				}
			}
			b.reset()
			o.free <- b
		}
	}()
}

// end waits until everything has been written, and gives the buffers back.
func (o *output) end(b *buffer) error {
	b.put()
	if o.full == nil {
		return nil
	}
	close(o.full)
	<-o.ended
	for len(o.free) > 0 {
		(<-o.free).put()
	}
	if err := o.failed.Load(); err != nil {
		return *err
	}
	return nil
}
