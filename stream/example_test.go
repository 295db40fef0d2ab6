package stream_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"crpipe/stream"
)

type eventfdState struct {
	Count uint64 `msgpack:"count"`
	Flags uint32 `msgpack:"flags,omitempty"`
}

func write(out io.Writer) error {
	w, err := stream.NewWriter(out, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096})
	if err != nil {
		return err
	}
	event := w.NewRef()
	return errors.Join(
		w.Put("file.eventfd", event, &eventfdState{Count: 3}, nil),
		w.Link(stream.Map{{Name: "epoll", Value: stream.Ref{ID: event, Class: "file"}}}),
		w.End(),
	)
}

func Example() {
	var pipe bytes.Buffer
	if err := write(&pipe); err != nil {
		fmt.Println(err)
	}
	r, err := stream.NewReader(&pipe)
	if err != nil {
		fmt.Println(err)
		return
	}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			fmt.Println("whole and sound")
			return
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(rec.Describe(0))
		if rec.Type == "file.eventfd" {
			var state eventfdState
			if err := rec.Decode(&state); err != nil {
				fmt.Println(err)
			}
			fmt.Println("count", state.Count)
		}
	}
	// Output:
	// file.eventfd #1 count=3
	// count 3
	// link epoll=file#1
	// whole and sound
}

func ExampleFilter() {
	var pipe, out bytes.Buffer
	if err := write(&pipe); err != nil {
		fmt.Println(err)
	}
	// A step that sets the counter of each eventfd to 0.
	reset := stream.StepFunc(func(r *stream.Record, emit stream.Emit) error {
		if r.Type == "file.eventfd" {
			v, err := r.Value()
			if err != nil {
				return err
			}
			if m, ok := v.(stream.Map); ok {
				m.Set("count", 0)
				if err := r.SetMeta(m); err != nil {
					return err
				}
			}
		}
		return emit(r)
	})
	if err := stream.Filter(&pipe, &out, reset); err != nil {
		fmt.Println(err)
	}
	if err := stream.ToJSON(&out, os.Stdout); err != nil {
		fmt.Println(err)
	}
	// Output:
	// {"version":1,"type":"header","meta":{"content":"image","arch":"amd64","pagesize":4096}}
	// {"type":"file.eventfd","ref":1,"meta":{"count":0}}
	// {"type":"link","meta":{"epoll":{"$ref":[1,"file"]}}}
	// {"type":"end","meta":{"count":3,"sum":2573518480}}
}
