package engine

import (
	"context"
	"io"

	"crpipe/stream"
)

// Progress says how far a dump or a restore has come.
type Progress struct {
	Phase string // "freezing", "looking", "writing", ...
	Bytes uint64 // of the stream so far
	Pages uint64
}

// progressWriter counts what is written and stops when ctx is done.
type progressWriter struct {
	ctx    context.Context
	w      io.Writer
	report func(Progress)
	bytes  uint64
}

func (p *progressWriter) Write(b []byte) (int, error) {
	if p.ctx.Err() != nil {
		return 0, context.Cause(p.ctx)
	}
	n, err := p.w.Write(b)
	p.bytes += uint64(n)
	report(p.report, "writing", p.bytes)
	return n, err
}

// vectorProgressWriter is a progressWriter to a destination that takes a record's head and payload in one call.
type vectorProgressWriter struct {
	progressWriter
	v stream.VectorWriter
}

// WriteVector implements stream.VectorWriter.
func (p *vectorProgressWriter) WriteVector(bufs ...[]byte) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	if err := p.v.WriteVector(bufs...); err != nil {
		return err
	}
	for _, b := range bufs {
		p.bytes += uint64(len(b))
	}
	report(p.report, "writing", p.bytes)
	return nil
}

// countProgress wraps w so that what is written is reported.
func countProgress(ctx context.Context, w io.Writer, report func(Progress)) io.Writer {
	p := progressWriter{ctx: ctx, w: w, report: report}
	if v, ok := w.(stream.VectorWriter); ok {
		return &vectorProgressWriter{p, v}
	}
	return &p
}

func report(f func(Progress), phase string, bytes uint64) {
	if f != nil {
		f(Progress{Phase: phase, Bytes: bytes})
	}
}
