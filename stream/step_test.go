package stream

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
)

// bigImage has payloads of many sizes, some of which compress.
func bigImage(t testing.TB) []byte {
	var out bytes.Buffer
	w := newTestWriter(t, &out)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		p := make([]byte, rng.IntN(40000))
		for j := range p {
			p[j] = byte(rng.IntN(1 + i*4))
		}
		if err := w.Put("pages", 0, Map{{"n", i}}, p); err != nil {
			t.Fatal(err)
		}
		if err := w.Put("task", w.NewRef(), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestLZ4Steps(t *testing.T) {
	in := bigImage(t)
	var packed []byte
	for _, n := range []int{1, 2, 3, 8} {
		var out, back bytes.Buffer
		if err := Filter(bytes.NewReader(in), &out, CompressStep(n)); err != nil {
			t.Fatal(err)
		}
		if packed == nil {
			packed = out.Bytes()
		} else if !bytes.Equal(packed, out.Bytes()) {
			t.Errorf("%d processors give another stream than one", n)
		}
		if err := Filter(bytes.NewReader(packed), &back, DecompressStep(n)); err != nil || !bytes.Equal(in, back.Bytes()) {
			t.Errorf("compressed and decompressed with %d: %v", n, err)
		}
		back.Reset()
		if err := Filter(bytes.NewReader(packed), &back, CompressStep(n)); err != nil || !bytes.Equal(packed, back.Bytes()) {
			t.Errorf("compressed twice: %v", err)
		}
	}
	s, err := Check(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	if s.Raw != int64(len(in)) || s.Size != int64(len(packed)) || s.Size >= s.Raw {
		t.Errorf("raw %d of %d, size %d of %d", s.Raw, len(in), s.Size, len(packed))
	}
	pages := s.Types[0]
	if pages.Type != "pages" || pages.Compressed == 0 || pages.Compressed == pages.Records || s.Objects != 60 || s.Records != 122 {
		t.Errorf("the sample needs payloads that shrink and some that do not: %+v", s)
	}
}

// A record that would not shrink stays as it is.
func TestLZ4Incompressible(t *testing.T) {
	var z LZ4
	for _, p := range [][]byte{nil, {1}, {1, 1, 1, 1, 1}, randomBytes(100), randomBytes(MaxPayload)} {
		r := Record{Type: "pages", Payload: p}
		if err := z.Compress(&r); err != nil || r.Flags != 0 || !bytes.Equal(r.Payload, p) {
			t.Errorf("%d random bytes: flags %v, %v", len(p), r.Flags, err)
		}
	}
	for _, n := range []int{100, 4096, MaxPayload} {
		p := make([]byte, n)
		r := Record{Type: "pages", Payload: p}
		if err := z.Compress(&r); err != nil || r.Flags != FlagLZ4 || len(r.Payload) >= n {
			t.Errorf("%d zeros: %d bytes, %v", n, len(r.Payload), err)
		}
		if size, err := r.DataSize(); err != nil || size != n {
			t.Errorf("size %d, %v", size, err)
		}
		if data, err := r.Data(); err != nil || !bytes.Equal(data, p) {
			t.Errorf("%d zeros come back as %d bytes (%v)", n, len(data), err)
		}
	}
}

func randomBytes(n int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestFilterEdits(t *testing.T) {
	in := smallImage(t)
	drop := StepFunc(func(r *Record, emit Emit) error {
		if r.Type == "note" {
			return nil
		}
		return emit(r)
	})
	edit := StepFunc(func(r *Record, emit Emit) error {
		if r.Type == "file.regular" {
			v, err := r.Value()
			if err != nil {
				return err
			}
			m := v.(Map)
			m.Set("path", "/etc/group")
			if err := r.SetMeta(m); err != nil {
				return err
			}
		}
		return emit(r)
	})
	var out bytes.Buffer
	if err := Filter(bytes.NewReader(in), &out, drop, edit, new(adder)); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for rec, err := r.Next(); err == nil; rec, err = r.Next() {
		lines = append(lines, rec.Describe(0))
	}
	if _, err := r.Next(); err == nil || err.Error() != "EOF" {
		t.Error(err)
	}
	want := []string{
		"file.epoll #1 watch=[]", "file.regular #2 path=/etc/group pos=0x10000000000", "link epoll=file#1 watch=file#1",
		"socket.queue (9 bytes)", "pages (300 bytes, lz4 " + fmt.Sprint(len(records(in)[6])-headSize-1) + ")", "count n=6",
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// adder counts the records and says so at the end.
type adder struct{ n uint64 }

func (a *adder) Record(r *Record, emit Emit) error { a.n++; return emit(r) }
func (a *adder) End(emit Emit) error {
	meta, err := EncodeMeta(Map{{"n", a.n}})
	if err != nil {
		return err
	}
	return emit(&Record{Type: "count", Meta: meta})
}

func TestFilterFails(t *testing.T) {
	in := smallImage(t)
	broken := errors.New("step broke")
	for name, c := range map[string]struct {
		step Step
		want error
	}{
		"step":         {StepFunc(func(r *Record, emit Emit) error { return errors.Join(broken, emit(r)) }), broken},
		"header":       {StepFunc(func(r *Record, emit Emit) error { return nil }), ErrOrder},
		"no header":    {StepFunc(func(r *Record, emit Emit) error { return onlyIf(r.Type != TypeHeader, r, emit) }), ErrOrder},
		"dangling":     {StepFunc(func(r *Record, emit Emit) error { return onlyIf(r.Ref != 2, r, emit) }), ErrForwardRef},
		"header twice": {StepFunc(func(r *Record, emit Emit) error { return errors.Join(emit(r), emit(r)) }), ErrOrder},
		"at the end":   {failAtEnd{broken}, broken},
		"concurrent": {Concurrent(4, func() func(*Record) error {
			return func(r *Record) error { return errIf(r.Type == "pages", broken) }
		}), broken},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := Filter(bytes.NewReader(in), &out, c.step)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			var remote *RemoteError
			if got := drain(out.Bytes(), ""); !errors.As(got, &remote) || remote.Text != strings.ToValidUTF8(err.Error(), "") {
				t.Errorf("the output says %v", got)
			}
		})
	}
	if err := Filter(bytes.NewReader(in), &limitWriter{new(bytes.Buffer), 300, syscall.EPIPE}); !errors.Is(err, syscall.EPIPE) || BadStream(err) {
		t.Errorf("a broken pipe: %v", err)
	}
}

func onlyIf(cond bool, r *Record, emit Emit) error {
	if cond {
		return emit(r)
	}
	return nil
}

func errIf(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}

type failAtEnd struct{ err error }

func (failAtEnd) Record(r *Record, emit Emit) error { return emit(r) }
func (f failAtEnd) End(Emit) error                  { return f.err }

// An error record passes through any number of filters unchanged.
func TestErrorRecordTravels(t *testing.T) {
	var first bytes.Buffer
	w := newTestWriter(t, &first)
	if err := w.Put("task", w.NewRef(), nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Fail("fd 7 -> /dev/nvidia0: cannot be checkpointed", 95, "pid 4711 (x)"); err != nil {
		t.Fatal(err)
	}
	data := first.Bytes()
	for range 3 {
		var out bytes.Buffer
		err := Filter(bytes.NewReader(data), &out, CompressStep(2))
		var remote *RemoteError
		if !errors.As(err, &remote) || remote.Errno != 95 {
			t.Fatal(err)
		}
		data = out.Bytes()
	}
	list := records(data)
	if original := records(first.Bytes()); !bytes.Equal(list[len(list)-1], original[len(original)-1]) {
		t.Error("the error record has changed")
	}
}

func TestRenumber(t *testing.T) {
	in := newBuild(t).rec("file", 0, 500, nil, nil).rec("mm", 0, 7, Map{{"exe", Ref{500, "file"}}}, nil).
		rec("link", 0, 0, Map{{"a", Ref{7, "mm"}}, {"b", Ref{500, "file"}}}, nil).end()
	want := newBuild(t).rec("file", 0, 1, nil, nil).rec("mm", 0, 2, Map{{"exe", Ref{1, "file"}}}, nil).
		rec("link", 0, 0, Map{{"a", Ref{2, "mm"}}, {"b", Ref{1, "file"}}}, nil).end()
	var out, again bytes.Buffer
	if err := Filter(bytes.NewReader(in), &out, RenumberStep()); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%v", err)
	}
	if err := Filter(&out, &again, RenumberStep()); err != nil || !bytes.Equal(again.Bytes(), want) {
		t.Errorf("twice: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	r := Record{Type: "file.regular", Ref: 7, Flags: FlagOptional, Payload: make([]byte, 9)}
	if err := r.SetMeta(Map{
		{"path", "/a b\x1b[2J\xff"}, {"n", -5}, {"big", uint64(1) << 40}, {"f", 1.5}, {"ok", true}, {"z", nil},
		{"short", []byte{1, 2}}, {"long", make([]byte, 9)}, {"mm", Ref{3, "mm"}}, {"l", []any{1, Map{{"tid", 2}, {"c", ""}}}}, {"k y\n", 1},
	}); err != nil {
		t.Fatal(err)
	}
	want := `file.regular #7 (optional) path="/a b\x1b[2J\xff" n=-5 big=0x10000000000 f=1.5 ok=true z=null short=0x0102 long=<9 bytes> mm=mm#3 l=[1 {tid=2 c=""}] "k y\n"=1 (9 bytes)`
	if got := r.Describe(0); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for width := 1; width < len(want)+3; width++ {
		got := r.Describe(width)
		if n := len([]rune(got)); n > width {
			t.Errorf("width %d: %d runes", width, n)
		}
		if (width >= len(want)) != (got == want) {
			t.Errorf("width %d: %s", width, got)
		}
	}
	r.Meta = []byte{0xc1}
	if got := r.Describe(0); got != "file.regular #7 (optional) (malformed metadata) (9 bytes)" {
		t.Error(got)
	}
	r.Meta = []byte{codeArray16, 0xff, 0xff}
	r.Meta = append(r.Meta, bytes.Repeat([]byte{codeFixArray}, 65535)...)
	if got := r.Describe(100); len([]rune(got)) != 100 {
		t.Errorf("%d runes", len([]rune(got)))
	}
}
