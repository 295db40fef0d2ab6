package stream

import (
	"errors"
	"fmt"
	"io"
)

// Emit passes a record to the next step, and behind the last one to the output.
// It is done with the record when it returns.
type Emit func(*Record) error

// Step is one stage of a filter. It sees every record, the header included (it
// comes first and must be emitted first; error and end records are not seen),
// and emits what shall take its place: the record itself, untouched or edited,
// another, several, or none. A record that is emitted as it came is copied byte
// for byte. The record's buffers are valid during the call; Clone what must
// stay. An error ends the filter.
type Step interface {
	Record(r *Record, emit Emit) error
}

// EndStep is a Step that has something to emit after the last record.
type EndStep interface {
	Step
	End(emit Emit) error
}

// StepFunc is a function as a Step.
type StepFunc func(r *Record, emit Emit) error

// Record calls f.
func (f StepFunc) Record(r *Record, emit Emit) error { return f(r, emit) }

// Filter reads a stream from r, passes its records through the steps and writes
// the outcome to w as a stream. Without a step, or with steps that change
// nothing, the output is the input, byte for byte. Both sides enforce all rules.
// When anything fails, a step included, the output ends with an error record
// that says so, and the error is returned; an error record of the input is
// passed on and returned as *RemoteError. The end record is written only when
// the input's has been verified and nothing followed it.
func Filter(r io.Reader, w io.Writer, steps ...Step) error {
	f := filter{w: w}
	err := f.run(r, steps)
	if err == nil {
		return nil
	}
	f.fail(err)
	return err
}

type filter struct {
	w   io.Writer
	out *Writer
}

func (f *filter) run(r io.Reader, steps []Step) error {
	in, err := NewReader(r)
	if err != nil {
		return err
	}
	// emits[i] feeds step i; the last one is the output.
	emits := make([]Emit, len(steps)+1)
	emits[len(steps)] = f.emit
	for i := len(steps) - 1; i >= 0; i-- {
		step, next := steps[i], emits[i+1]
		emits[i] = func(rec *Record) error { return step.Record(rec, next) }
	}
	rec := in.HeaderRecord()
	for {
		if err := emits[0](rec); err != nil {
			return err
		}
		if rec, err = in.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	for i, step := range steps {
		if end, ok := step.(EndStep); ok {
			if err := end.End(emits[i+1]); err != nil {
				return err
			}
		}
	}
	if f.out == nil {
		return fmt.Errorf("%w: no step let the header through", ErrOrder)
	}
	return f.out.End()
}

// emit writes a record to the output.
func (f *filter) emit(rec *Record) error {
	if f.out != nil {
		return f.out.Copy(rec)
	}
	var err error
	f.out, err = NewWriterFrom(f.w, rec)
	return err
}

// fail ends the output with an error record. Where that is impossible too, the
// reader finds the stream truncated; the first error is what counts.
func (f *filter) fail(cause error) {
	if f.out == nil {
		var err error
		if f.out, err = NewWriter(f.w, Header{Content: ContentNone}); err != nil {
			return
		}
	}
	var remote *RemoteError
	if errors.As(cause, &remote) {
		_ = f.out.Fail(remote.Text, remote.Errno, remote.Object) // see above
		return
	}
	_ = f.out.Fail(cause.Error(), 0, "") // see above
}

// CompressStep returns a step that compresses payloads with lz4, on n
// processors. Records that would not shrink stay as they are.
func CompressStep(n int) Step {
	return Concurrent(n, func() func(*Record) error { return new(LZ4).Compress })
}

// DecompressStep returns a step that undoes CompressStep, on n processors.
func DecompressStep(n int) Step {
	return Concurrent(n, func() func(*Record) error { return new(LZ4).Decompress })
}

// RenumberStep returns a step that numbers the objects from 1 in the order of
// their definition.
func RenumberStep() Step {
	number := make(map[uint32]uint32)
	next := uint32(0)
	return StepFunc(func(r *Record, emit Emit) error {
		err := r.Renumber(func(id uint32) uint32 { return number[id] })
		if err != nil {
			return err
		}
		if r.Ref != 0 {
			next++
			number[r.Ref] = next
			r.Ref = next
		}
		return emit(r)
	})
}

// Renumber replaces the number of every reference in the metadata by what fn
// makes of it; 0 leaves nothing in its place. The object that the record itself
// defines is not touched: set Ref.
func (r *Record) Renumber(fn func(id uint32) uint32) error {
	meta, err := RewriteRefs(r.Meta, func(ref Ref) (Ref, error) {
		if ref.ID = fn(ref.ID); ref.ID == 0 {
			return Ref{}, nil
		}
		return ref, nil
	})
	if err != nil {
		return r.fail(err)
	}
	r.Meta = meta
	return nil
}
