package engine

import (
	"bytes"
	"errors"
	"testing"
)

// writeAtOnce has dumps write while the tree stands still, however small it is.
func writeAtOnce(t *testing.T) {
	before := holdBackMost
	holdBackMost = 0
	t.Cleanup(func() { holdBackMost = before })
}

// vectors takes what a holdBack hands on, and counts the calls.
type vectors struct {
	bytes.Buffer
	calls int
	fail  error
}

func (v *vectors) WriteVector(bufs ...[]byte) error {
	v.calls++
	for _, b := range bufs {
		v.Write(b)
	}
	return v.fail
}

// TestHoldBack: what fits is kept until it is flushed; what does not goes through, all of it in order.
func TestHoldBack(t *testing.T) {
	piece := func(n int, c byte) []byte { return bytes.Repeat([]byte{c}, n) }
	for _, sizes := range [][]int{{}, {1}, {10, holdBackMost - 10}, {10, holdBackMost - 9, 5}, {holdBackMost + 1, 3}, {5, holdBackMost, 7, 9}} {
		var out vectors
		h := newHoldBack(&out)
		long, nearly := 0, 0
		h.long, h.nearly, h.nearlyAt = func() { long++ }, func() { nearly++ }, 10
		defer h.Free()
		var want []byte
		for i, n := range sizes {
			if err := h.WriteVector(piece(n/2, 'a'+byte(i)), piece(n-n/2, 'A'+byte(i))); err != nil {
				t.Fatal(err)
			}
			want = append(append(want, piece(n/2, 'a'+byte(i))...), piece(n-n/2, 'A'+byte(i))...)
		}
		if fits := len(want) <= holdBackMost; h.Whole() != fits || fits && out.Len() > 0 {
			t.Errorf("%v: whole %v, %d bytes written", sizes, h.Whole(), out.Len())
		}
		if h.Whole() != (long == 0) || long > 1 || nearly > long {
			t.Errorf("%v: said %d times that it is long, %d times that it is nearly over", sizes, long, nearly)
		}
		if err := h.Flush(); err != nil || h.Whole() {
			t.Errorf("%v: flush: %v, whole %v", sizes, err, h.Whole())
		}
		if _, err := h.Write([]byte("end")); err != nil {
			t.Error(err)
		}
		if err := h.Flush(); err != nil {
			t.Error(err)
		}
		if want = append(want, "end"...); !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%v: %d bytes arrived, want %d", sizes, out.Len(), len(want))
		}
	}
	out := vectors{fail: errors.New("full")}
	h := newHoldBack(&out)
	if _, err := h.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := h.Flush(); !errors.Is(err, out.fail) {
		t.Errorf("a full disk: %v", err)
	}
	if err := h.Flush(); err != nil || out.calls != 1 {
		t.Errorf("what was lost is written again: %v, %d calls", err, out.calls)
	}
}
