package stream

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

const benchPayload = 256 << 10

type pagesState struct {
	MM    Ref    `msgpack:"mm"`
	Start uint64 `msgpack:"start"`
	Round uint32 `msgpack:"round,omitempty"`
}

func BenchmarkWriter(b *testing.B) {
	for _, size := range []int{0, benchPayload} {
		b.Run(map[int]string{0: "small", benchPayload: "pages"}[size], func(b *testing.B) {
			payload := make([]byte, size)
			w := newTestWriter(b, io.Discard)
			if err := w.Put("mm", 1, nil, nil); err != nil {
				b.Fatal(err)
			}
			state := &pagesState{MM: Ref{1, "mm"}}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for i := range b.N {
				state.Start = uint64(i) << 18
				if err := w.Put("pages", 0, state, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// repeat returns the same record over and over.
type repeat struct {
	head, rec []byte
	at        int
}

func (r *repeat) Read(b []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(b, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	n := copy(b, r.rec[r.at:])
	r.at = (r.at + n) % len(r.rec)
	return n, nil
}

func benchStream(b *testing.B, payload int) *repeat {
	var out bytes.Buffer
	w := newTestWriter(b, &out)
	if err := w.Put("mm", 1, nil, nil); err != nil {
		b.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	at := out.Len()
	if err := w.Put("pages", 0, &pagesState{MM: Ref{1, "mm"}, Start: 0x7f00_0000_0000}, make([]byte, payload)); err != nil {
		b.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	return &repeat{head: out.Bytes()[:at], rec: out.Bytes()[at:]}
}

func BenchmarkReader(b *testing.B) {
	for _, size := range []int{0, benchPayload} {
		b.Run(map[int]string{0: "small", benchPayload: "pages"}[size], func(b *testing.B) {
			r, err := NewReader(benchStream(b, size))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for range b.N {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPipe is a writer and a reader on the two ends of a pipe.
func BenchmarkPipe(b *testing.B) {
	pr, pw, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		r, err := NewReader(pr)
		for err == nil {
			_, err = r.Next()
		}
		done <- err
	}()
	payload := make([]byte, benchPayload)
	w := newTestWriter(b, pw)
	b.SetBytes(benchPayload)
	for range b.N {
		if err := w.Put("pages", 0, nil, payload); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(w.End(), pw.Close()); err != nil {
		b.Fatal(err)
	}
	if err := <-done; !errors.Is(err, io.EOF) {
		b.Fatal(err)
	}
}

func BenchmarkEncode(b *testing.B) {
	in := sampleEverything()
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		e := newEncoder()
		for range b.N {
			var err error
			if buf, err = e.appendMeta(buf[:0], &in); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("msgpack", func(b *testing.B) { // without tree, whose types it does not know
		in := in
		in.Tree = nil
		b.ReportAllocs()
		var buf bytes.Buffer
		enc := msgpack.NewEncoder(&buf)
		enc.UseCompactInts(true)
		for range b.N {
			buf.Reset()
			if err := enc.Encode(&in); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	in := sampleEverything()
	in.Tree = nil
	meta, err := EncodeMeta(&in)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("check", func(b *testing.B) {
		b.SetBytes(int64(len(meta)))
		for range b.N {
			if err := CheckMeta(meta); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			var out everything
			if err := DecodeMeta(meta, &out); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("msgpack", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			var out everything
			dec := msgpack.NewDecoder(bytes.NewReader(meta))
			dec.DisallowUnknownFields(true)
			if err := dec.Decode(&out); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkLZ4(b *testing.B) {
	p := bytes.Repeat([]byte("some text that is like a heap, 0123456789 and so on"), benchPayload/50)[:benchPayload]
	var z LZ4
	r := Record{Type: "pages", Payload: p}
	b.Run("compress", func(b *testing.B) {
		b.SetBytes(benchPayload)
		b.ReportAllocs()
		for range b.N {
			c := r
			if err := z.Compress(&c); err != nil {
				b.Fatal(err)
			}
		}
	})
	if err := z.Compress(&r); err != nil {
		b.Fatal(err)
	}
	b.Run("decompress", func(b *testing.B) {
		b.SetBytes(benchPayload)
		b.ReportAllocs()
		var u LZ4
		for range b.N {
			c := r
			if err := u.Decompress(&c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkJSON(b *testing.B) {
	in := bigImage(b)
	var text bytes.Buffer
	if err := ToJSON(bytes.NewReader(in), &text); err != nil {
		b.Fatal(err)
	}
	b.Run("to", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		for range b.N {
			if err := ToJSON(bytes.NewReader(in), io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("from", func(b *testing.B) {
		b.SetBytes(int64(len(in)))
		for range b.N {
			if err := FromJSON(bytes.NewReader(text.Bytes()), io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}
