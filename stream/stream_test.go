package stream

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

type sample struct {
	Count uint64   `msgpack:"count"`
	Name  string   `msgpack:"name,omitempty"`
	File  Ref      `msgpack:"file,omitempty"`
	List  []sample `msgpack:"list,omitempty"`
	Delta int32    `msgpack:"delta"`
}

func TestRoundTrip(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{Content: ContentImage, Arch: "amd64", PageSize: 4096, Kernel: "6.18"})
	if err != nil {
		t.Fatal(err)
	}
	a := w.NewRef()
	big := bytes.Repeat([]byte("page"), MaxPayload/4)
	in := []sample{
		{Count: 1, Name: "first", Delta: -5},
		{Count: 1<<64 - 1, File: Ref{a, "file"}, List: []sample{{Count: 2}, {Count: 3, Delta: -1 << 31}}},
	}
	for _, err := range []error{
		w.Put("file.regular", a, &in[0], nil),
		w.Put("pages", 0, in[1], big),
		w.PutFlags("note", FlagOptional, 0, nil, []byte("small")),
		w.End(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if w.Offset() != int64(out.Len()) {
		t.Errorf("Offset %d, written %d", w.Offset(), out.Len())
	}
	r, err := NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	if h := r.Header(); h.Content != ContentImage || h.PageSize != 4096 || h.Arch != "amd64" {
		t.Errorf("header %+v", h)
	}
	for i := range in {
		rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		var got sample
		if err := rec.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Count != in[i].Count || got.File != in[i].File || len(got.List) != len(in[i].List) {
			t.Errorf("got %+v want %+v", got, in[i])
		}
		if i == 1 && !bytes.Equal(rec.Payload, big) {
			t.Error("payload differs")
		}
	}
	if rec, err := r.Next(); err != nil || rec.Type != "note" || string(rec.Payload) != "small" {
		t.Errorf("%v %v", rec, err)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
}
