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

// TestGather: small pieces are written together, large ones with what came before them, all in order.
func TestGather(t *testing.T) {
	piece := func(n int, c byte) []byte { return bytes.Repeat([]byte{c}, n) }
	for _, c := range []struct {
		sizes []int
		calls int // before the flush
	}{{nil, 0}, {[]int{1, 2, 3}, 0}, {[]int{10, gatherBelow}, 1}, {[]int{gatherBelow, 7, gatherBelow + 5, 9}, 2}, {pieces(gatherMost/1000+1, 1000), 1}} {
		var out vectors
		g := &gatherer{out: &out}
		nearly := 0
		g.nearly, g.nearlyAt = func() { nearly++ }, 10
		var want []byte
		for i, n := range c.sizes {
			if err := g.WriteVector(piece(n/2, 'a'+byte(i%26)), piece(n-n/2, 'A'+byte(i%26))); err != nil {
				t.Fatal(err)
			}
			want = append(append(want, piece(n/2, 'a'+byte(i%26))...), piece(n-n/2, 'A'+byte(i%26))...)
		}
		if out.calls != c.calls || nearly != min(c.calls, 1) {
			t.Errorf("%d pieces: %d writes, want %d; said %d times that it is nearly over", len(c.sizes), out.calls, c.calls, nearly)
		}
		if _, err := g.Write([]byte("end")); err != nil {
			t.Error(err)
		}
		if err := g.Flush(); err != nil {
			t.Error(err)
		}
		if want = append(want, "end"...); !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%d pieces: %d bytes arrived, want %d", len(c.sizes), out.Len(), len(want))
		}
		g.Free()
	}
	out := vectors{fail: errors.New("full")}
	g := &gatherer{out: &out}
	if _, err := g.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := g.Flush(); !errors.Is(err, out.fail) {
		t.Errorf("a full disk: %v", err)
	}
	if err := g.Flush(); err != nil || out.calls != 1 {
		t.Errorf("what was lost is written again: %v, %d calls", err, out.calls)
	}
}

func pieces(n, size int) (out []int) {
	for range n {
		out = append(out, size)
	}
	return out
}
