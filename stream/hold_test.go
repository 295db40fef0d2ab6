package stream_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"crpipe/stream"
)

// TestHold: contents that are given before their objects come behind them, in the same bytes as if they had been given in order, whether
// all of them were kept or only the first.
func TestHold(t *testing.T) {
	type state struct {
		N uint32 `msgpack:"n"`
	}
	type about struct {
		Of stream.Ref `msgpack:"of"`
		N  uint32     `msgpack:"n"`
	}
	payloads := [][]byte{nil, []byte("x"), bytes.Repeat([]byte("ab"), 5000), bytes.Repeat([]byte("c"), 30000), []byte("last")}
	errBroken := errors.New("broken")
	write := func(out *bytes.Buffer, limit int, broken bool) (holding bool, err error) {
		w, err := stream.NewWriter(out, stream.Header{Content: "image", Arch: "amd64", PageSize: 4096})
		if err != nil {
			t.Fatal(err)
		}
		ref := w.NewRef()
		first := func() error {
			if broken {
				return errBroken
			}
			return w.Put("thing", ref, &state{7}, nil)
		}
		if limit < 0 {
			err = first()
		} else {
			w.Hold(limit, func() []byte { return make([]byte, 16<<10) }, first)
		}
		buf := make([]byte, 64<<10) // used again and again
		for i, p := range payloads {
			if err == nil {
				err = w.Put("contents", 0, &about{stream.Ref{ID: ref, Class: "thing"}, uint32(i)}, buf[:copy(buf, p)])
			}
		}
		holding = w.Holding()
		if err == nil {
			err = w.End()
		}
		if err != nil {
			if fail := w.Fail(err.Error(), 0, ""); fail != nil {
				t.Error(fail)
			}
		}
		return holding, err
	}
	var want bytes.Buffer
	if _, err := write(&want, -1, false); err != nil {
		t.Fatal(err)
	}
	for limit, kept := range map[int]bool{0: false, 20: false, 12000: false, 1 << 20: true} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			var got bytes.Buffer
			holding, err := write(&got, limit, false)
			if err != nil || holding != kept || !bytes.Equal(got.Bytes(), want.Bytes()) {
				t.Errorf("kept to the end: %v, %d bytes, want %d: %v", holding, got.Len(), want.Len(), err)
			}
			got.Reset()
			if _, err := write(&got, limit, true); !errors.Is(err, errBroken) {
				t.Errorf("what had to come first is missing: %v", err)
			}
			r, err := stream.NewReader(&got)
			for err == nil {
				_, err = r.Next()
			}
			var failed *stream.RemoteError
			if !errors.As(err, &failed) {
				t.Errorf("the reader hears %v", err)
			}
		})
	}
}
