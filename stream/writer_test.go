package stream

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
)

// limitWriter fails after some bytes.
type limitWriter struct {
	w    io.Writer
	left int
	err  error
}

func (l *limitWriter) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	if n, err := l.w.Write(b[:n]); err != nil {
		return n, err
	}
	if n < len(b) {
		return n, l.err
	}
	return n, nil
}

func newTestWriter(t testing.TB, out io.Writer) *Writer {
	t.Helper()
	w, err := NewWriter(out, Header{Content: ContentImage})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// Every rule that the Reader checks, the Writer keeps; and after a broken one,
// what was written ends in an error record.
func TestWriterRules(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(w *Writer) error
		want error
	}{
		"forward":       {func(w *Writer) error { return w.Put("task", 0, Map{{"mm", Ref{9, "mm"}}}, nil) }, ErrForwardRef},
		"self":          {func(w *Writer) error { id := w.NewRef(); return w.Put("task", id, Map{{"me", Ref{id, "task"}}}, nil) }, ErrForwardRef},
		"class":         {func(w *Writer) error { return w.Put("task", 0, Map{{"mm", Ref{1, "mm"}}}, nil) }, ErrWrongClass},
		"duplicate":     {func(w *Writer) error { return w.Put("task", 1, nil, nil) }, ErrDuplicateRef},
		"negative":      {func(w *Writer) error { return w.Put("task", 1<<31, nil, nil) }, ErrZeroRef},
		"type":          {func(w *Writer) error { return w.Put("Task", 0, nil, nil) }, ErrMalformed},
		"long type":     {func(w *Writer) error { return w.Put("a23456789.123456789.1", 0, nil, nil) }, ErrMalformed},
		"no type":       {func(w *Writer) error { return w.Put("", 0, nil, nil) }, ErrMalformed},
		"header":        {func(w *Writer) error { return w.Put(TypeHeader, 0, Map{{"content", "image"}}, nil) }, ErrOrder},
		"end":           {func(w *Writer) error { return w.Put(TypeEnd, 0, nil, nil) }, ErrOrder},
		"error":         {func(w *Writer) error { return w.Copy(&Record{Type: TypeError, Meta: []byte{codeFixMap}}) }, ErrOrder},
		"link with ref": {func(w *Writer) error { return w.Put(TypeLink, 7, nil, nil) }, ErrMalformed},
		"optional link": {func(w *Writer) error { return w.PutFlags(TypeLink, FlagOptional, 0, nil, nil) }, ErrMalformed},
		"flags":         {func(w *Writer) error { return w.PutFlags("task", 1<<15, 0, nil, nil) }, ErrReserved},
		"payload":       {func(w *Writer) error { return w.Put("task", 0, nil, make([]byte, MaxPayload+1)) }, ErrLength},
		"metadata":      {func(w *Writer) error { return w.Put("task", 0, Map{{"b", make([]byte, MaxMeta)}}, nil) }, ErrLength},
		"raw":           {func(w *Writer) error { return w.Put("task", 0, Raw{0xc1}, nil) }, ErrMetadata},
		"raw nothing":   {func(w *Writer) error { return w.Put("task", 0, Raw{}, nil) }, ErrMetadata},
		"dollar":        {func(w *Writer) error { return w.Put("task", 0, Map{{"$a", nil}}, nil) }, ErrMetadata},
		"twice":         {func(w *Writer) error { return w.Put("task", 0, Map{{"a", nil}, {"a", nil}}, nil) }, ErrMetadata},
		"lz4":           {func(w *Writer) error { return w.PutFlags("pages", FlagLZ4, 0, nil, []byte{1, 2}) }, ErrCompression},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			w := newTestWriter(t, &out)
			if err := w.Put("file.regular", w.NewRef(), nil, nil); err != nil {
				t.Fatal(err)
			}
			err := c.put(w)
			var write *WriteError
			if !errors.Is(err, c.want) || !errors.As(err, &write) || write.Index != 2 || BadStream(err) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if again := w.Put("task", 0, nil, nil); !errors.Is(again, c.want) {
				t.Errorf("the next Put: %v", again)
			}
			if again := w.End(); !errors.Is(again, c.want) {
				t.Errorf("End: %v", again)
			}
			if err := w.Fail("pid 7: "+err.Error(), 22, "pid 7"); err != nil {
				t.Fatalf("Fail: %v", err)
			}
			if err := w.End(); err == nil {
				t.Error("a failed stream can be ended")
			}
			var remote *RemoteError
			if err := drain(out.Bytes(), ""); !errors.As(err, &remote) || remote.Errno != 22 || remote.Object != "pid 7" || !strings.HasPrefix(remote.Text, "pid 7: ") {
				t.Errorf("the reader sees %v", err)
			}
		})
	}
}

func TestWriterHeader(t *testing.T) {
	for _, h := range []Header{
		{}, {Content: "image", PageSize: 4097}, {Content: "image", PageSize: -4096}, {Content: "image", Requires: []string{"Big"}},
		{Content: "image", Requires: []string{"stream.unknown"}}, {Content: "image", Requires: []string{""}},
	} {
		if _, err := NewWriter(io.Discard, h); err == nil {
			t.Errorf("%+v is accepted", h)
		}
	}
	h := Header{Content: "image", Requires: []string{"b", "a", "b"}}
	var out bytes.Buffer
	w, err := NewWriter(&out, h)
	if err != nil || w.End() != nil {
		t.Fatal(err)
	}
	if h.Requires[0] != "b" {
		t.Error("the caller's header was changed")
	}
	r, err := NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	got := r.Header()
	if len(got.Requires) != 2 || got.Requires[0] != "a" {
		t.Errorf("%v", got.Requires)
	}
	err = got.CheckFeatures(func(s string) bool { return s == "a" })
	if !errors.Is(err, ErrUnknownFeature) || !strings.HasSuffix(err.Error(), ": b") {
		t.Errorf("%v", err)
	}
}

// A stream has one sequence of numbers, whoever gives them out.
func TestNewRefAfterCopy(t *testing.T) {
	w := newTestWriter(t, io.Discard)
	if id := w.NewRef(); id != 1 {
		t.Errorf("first number %d", id)
	}
	if err := w.Copy(&Record{Type: "file", Ref: 41, Meta: []byte{codeFixMap}}); err != nil {
		t.Fatal(err)
	}
	if id := w.NewRef(); id != 42 {
		t.Errorf("after object 41 was copied: %d", id)
	}
	if err := w.Put("file", MaxRef, nil, nil); err != nil {
		t.Fatal(err)
	}
	if id := w.NewRef(); id != 0 {
		t.Errorf("after the last number: %d", id)
	}
	if err := w.Put("file", 0, nil, nil); !errors.Is(err, ErrLength) {
		t.Errorf("the numbers have run out: %v", err)
	}
}

// A destination that fails at any byte is reported, whatever is called, and
// never taken for success.
func TestWriterDestinationFails(t *testing.T) {
	write := func(out io.Writer) error {
		w, err := NewWriter(out, Header{Content: ContentImage})
		if err != nil {
			return err
		}
		if err := w.Put("pages", 0, nil, make([]byte, bigPayload)); err != nil {
			if again := w.Fail("text", 0, ""); !errors.Is(err, again) {
				t.Errorf("Fail after %v: %v", err, again)
			}
			return err
		}
		if err := w.Put("thing", 0, nil, []byte("small")); err != nil {
			return err
		}
		return w.End()
	}
	var whole bytes.Buffer
	if err := write(&whole); err != nil {
		t.Fatal(err)
	}
	for n := range whole.Len() {
		err := write(&limitWriter{io.Discard, n, syscall.EPIPE})
		if !errors.Is(err, syscall.EPIPE) || BadStream(err) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if err := write(&limitWriter{io.Discard, 100, nil}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a short write without error: %v", err)
	}
}

// countWriter counts calls and remembers where large buffers came from.
type countWriter struct {
	calls int
	big   []*byte
}

func (c *countWriter) Write(b []byte) (int, error) {
	c.calls++
	if len(b) >= bigPayload {
		c.big = append(c.big, &b[0])
	}
	return len(b), nil
}

type vectorWriter struct {
	countWriter
	vectors int
	out     bytes.Buffer
}

func (v *vectorWriter) WriteVector(bufs ...[]byte) error {
	v.vectors++
	for _, b := range bufs {
		v.out.Write(b)
	}
	return nil
}

func (v *vectorWriter) Write(b []byte) (int, error) { v.calls++; return v.out.Write(b) }

func TestWriterBuffers(t *testing.T) {
	out := new(countWriter)
	w := newTestWriter(t, out)
	payload := make([]byte, 256<<10)
	if err := w.Put("pages", 0, nil, payload); err != nil {
		t.Fatal(err)
	}
	if out.calls != 2 || len(out.big) != 1 || out.big[0] != &payload[0] {
		t.Errorf("a large payload: %d calls, copied: %v", out.calls, len(out.big) != 1 || out.big[0] != &payload[0])
	}
	out.calls = 0
	const n = 10000
	for range n {
		if err := w.Put("file.regular", w.NewRef(), Map{{"path", "/tmp/x"}}, []byte("abc")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	if limit := n*80/writeBuffer + 2; out.calls > limit {
		t.Errorf("%d small records took %d writes", n, out.calls)
	}

	vec := new(vectorWriter)
	w = newTestWriter(t, vec)
	for range 3 {
		if err := w.Put("pages", 0, nil, payload); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	if vec.vectors != 3 || vec.calls != 1 {
		t.Errorf("with a VectorWriter: %d vectors, %d writes", vec.vectors, vec.calls)
	}
	if err := drain(vec.out.Bytes(), ""); err != nil {
		t.Error(err)
	}
}

func TestAllocations(t *testing.T) {
	payload := make([]byte, 256<<10)
	w := newTestWriter(t, io.Discard)
	state := &sample{Count: 7, Name: "x", List: []sample{{}, {}}}
	if n := testing.AllocsPerRun(100, func() { _ = w.Put("pages", 0, state, payload) }); n > 0 {
		t.Errorf("Put allocates %v times", n)
	}
	var out bytes.Buffer
	w = newTestWriter(t, &out)
	for range 300 {
		if err := w.Put("pages", 0, state, payload[:10000]); err != nil {
			t.Fatal(err)
		}
	}
	r, err := NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(200, func() { _, err = r.Next() }); n > 0 || err != nil {
		t.Errorf("Next allocates %v times (%v)", n, err)
	}
	c := new(checker) // CheckMeta takes one from a pool, which loses some under the race detector
	if n := testing.AllocsPerRun(100, func() { _ = c.check(r.rec.Meta, nil) }); n > 0 {
		t.Errorf("checking metadata allocates %v times", n)
	}
}

// A restore has several payloads in use at once.
func TestSetBuffers(t *testing.T) {
	var out bytes.Buffer
	w := newTestWriter(t, &out)
	for i := range 20 {
		if err := w.Put("pages", 0, nil, bytes.Repeat([]byte{byte(i)}, 1+i*5000)); err != nil {
			t.Fatal(err)
		}
		if err := w.Put("task", 0, nil, []byte("own")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	var given [][]byte
	r.SetBuffers(func(typ Type, n int) []byte {
		if typ != "pages" {
			return nil
		}
		given = append(given, make([]byte, n+10))
		return given[len(given)-1]
	})
	var kept []*Record
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Type == "pages" {
			c := *rec
			kept = append(kept, &c)
		}
	}
	for i, rec := range kept {
		if &rec.Payload[0] != &given[i][0] || !bytes.Equal(rec.Payload, bytes.Repeat([]byte{byte(i)}, 1+i*5000)) {
			t.Errorf("payload %d is not where it was asked to be, or has changed", i)
		}
	}
	if len(kept) != 20 {
		t.Errorf("%d payloads", len(kept))
	}
}

// Words from a stream must not drive a terminal.
func TestErrorsArePrintable(t *testing.T) {
	var out bytes.Buffer
	w := newTestWriter(t, &out)
	if err := w.Fail("first line\n\x1b]0;title\x07\x9b31m\xff\u202e", 0, "\x1b[2J"); err != nil {
		t.Fatal(err)
	}
	err := drain(out.Bytes(), "")
	if s := err.Error(); strings.ContainsAny(s, "\x1b\x07\u202e\u009b") || !strings.Contains(s, "first line\n\\x1b]0;title") {
		t.Errorf("%q", s)
	}
}
