package memory

import (
	"runtime"
	"sync/atomic"

	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/sys"
	"crpipe/stream"
)

// Reading from the target and writing to the pipe cost about the same, so that two threads halve the time that a large process stands still. A small
// one is not worth a second thread, whose start and buffers cost more than they gain.

const (
	aheadFrom  = 4 << 20 // bytes that are written before the second thread starts
	aheadLoads = 8       // buffers then: together they fill the memory that aheadBuffers gets
)

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
	if err == nil && o.done >= aheadFrom && !o.serial {
		b.put()
		b = o.start()
	}
	return b, err
}

// start starts the second thread, and returns a buffer for it.
func (o *output) start() *buffer {
	o.full, o.free, o.ended = make(chan *buffer, aheadLoads), make(chan *buffer, aheadLoads), make(chan struct{})
	for _, b := range takeLoads() {
		o.free <- b
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
	return <-o.free
}

// end waits until everything has been written, and takes the last buffer back.
func (o *output) end(b *buffer) error {
	if o.full == nil {
		b.put()
		return nil
	}
	close(o.full)
	<-o.ended
	b.reset()
	all := loads{b}
	for len(o.free) > 0 {
		all = append(all, <-o.free)
	}
	idleLoads.Store(&all)
	if err := o.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// loads are the buffers of an output with two threads.
type loads []*buffer

// idleLoads are what the last output has left for the next.
var idleLoads atomic.Pointer[loads]

// takeLoads makes them of one huge page: the first touch of 512 small ones takes longer than reading some of them from the target.
func takeLoads() loads {
	if all := idleLoads.Swap(nil); all != nil {
		return *all
	}
	var all loads
	mem := sys.NewHuge(aheadLoads * maxPages).Bytes
	for len(mem) > 0 {
		all = append(all, &buffer{data: mem[:maxPages:maxPages]})
		mem = mem[maxPages:]
	}
	return all
}
