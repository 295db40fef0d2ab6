package stream

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
)

// seed adds the vectors to a fuzz target's corpus.
func seed(f *testing.F) {
	for _, v := range vectors(f) {
		if len(v.data) < 10000 {
			f.Add(v.data)
		}
	}
	f.Add(smallImage(f))
}

// FuzzReader: whatever bytes come, the reader does not panic, and what it
// accepts is within the limits. Each input is tried as it is and with its
// checksums set right, so that what lies beneath them is reached.
func FuzzReader(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, data := range [][]byte{data, fixSums(data)} {
			r, err := NewReader(bytes.NewReader(data))
			if err != nil {
				if !BadStream(err) {
					t.Fatalf("%v is not counted as a bad stream", err)
				}
				continue
			}
			for {
				rec, err := r.Next()
				if err != nil {
					if err != io.EOF && !BadStream(err) { //nolint:errorlint // exactly io.EOF
						t.Fatalf("%v is not counted as a bad stream", err)
					}
					break
				}
				if !rec.Type.Valid() || len(rec.Meta) > MaxMeta || len(rec.Payload) > MaxPayload || rec.Ref > MaxRef {
					t.Fatalf("%s is out of limits", rec)
				}
				if d, err := rec.Data(); err == nil && len(d) > MaxPayload {
					t.Fatalf("%s has %d bytes", rec, len(d))
				}
				if s := rec.Describe(80); len([]rune(s)) > 80 {
					t.Fatalf("%q is too long", s)
				}
			}
		}
	})
}

// FuzzFilterIdentity: a stream that is accepted passes through the identity
// filter and through the JSON form without a changed byte, and through
// compression and back with the same content.
func FuzzFilterIdentity(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		data = fixSums(data)
		var out, text, back bytes.Buffer
		err := Filter(bytes.NewReader(data), &out)
		if err != nil {
			if got := drain(out.Bytes(), ""); !BadStream(got) || errors.Is(got, ErrTruncated) {
				t.Fatalf("failed with %v, but the output ends with %v", err, got)
			}
			return
		}
		if !bytes.Equal(out.Bytes(), data) {
			t.Fatalf("the identity filter changed the stream\n%x\n%x", data, out.Bytes())
		}
		if err := ToJSON(bytes.NewReader(data), &text); err != nil {
			t.Fatalf("to JSON: %v", err)
		}
		if err := FromJSON(&text, &back); err != nil || !bytes.Equal(back.Bytes(), data) {
			t.Fatalf("from JSON: %v", err)
		}
		var packed, once, twice bytes.Buffer
		if err := Filter(bytes.NewReader(data), &once, DecompressStep(1)); err != nil {
			return // a payload is malformed inside, which an identity filter does not see
		}
		if err := Filter(bytes.NewReader(once.Bytes()), &packed, CompressStep(2)); err != nil {
			t.Fatal(err)
		}
		if err := Filter(&packed, &twice, DecompressStep(1)); err != nil || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Fatalf("compressed and decompressed: %v", err)
		}
	})
}

// witness is what msgpack/v5 makes of a Ref.
type witness Ref

func (w *witness) MarshalMsgpack() ([]byte, error) { return nil, errors.New("not used") }
func (w *witness) UnmarshalMsgpack(b []byte) error {
	if len(b) < 5 {
		return errors.New("short")
	}
	*w = witness{uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]), string(b[4:])}
	return nil
}

// FuzzCheckMeta: what the checker accepts, every decoder takes, an independent
// one included, and it survives encoding; what it refuses, no decoder touches.
func FuzzCheckMeta(f *testing.F) {
	msgpack.RegisterExt(extRef, (*witness)(nil))
	for _, v := range vectors(f) {
		if len(v.data) > 10000 {
			continue
		}
		if r, err := NewReader(bytes.NewReader(v.data)); err == nil {
			for rec, err := r.Next(); err == nil; rec, err = r.Next() {
				f.Add(rec.Meta)
			}
			f.Add(r.meta)
		}
	}
	in := sampleEverything()
	meta, err := EncodeMeta(&in)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(meta)
	f.Fuzz(func(t *testing.T, meta []byte) {
		var target everything
		if err := CheckMeta(meta); err != nil {
			if _, err := DecodeValue(meta); err == nil {
				t.Fatal("DecodeValue takes what CheckMeta refuses")
			}
			if DecodeMeta(meta, &target) == nil {
				t.Fatal("DecodeMeta takes what CheckMeta refuses")
			}
			return
		}
		tree, err := DecodeValue(meta)
		if err != nil {
			t.Fatalf("DecodeValue: %v", err)
		}
		short, err := EncodeMeta(tree)
		if tree == nil {
			short, err = []byte{codeNil}, nil // a bare nil means the empty map
		}
		if err != nil || len(short) > len(meta) {
			t.Fatalf("%d bytes became %d: %v", len(meta), len(short), err)
		}
		if other, err := shortest(meta); err != nil || !bytes.Equal(short, other) {
			t.Fatalf("two shortest forms: %x and %x (%v)", short, other, err)
		}
		said, rest := specDecode(meta)
		if want := specEncode(nil, said); len(rest) > 0 || !bytes.Equal(short, want) {
			t.Fatalf("%x became %x, the specification says %x", meta, short, want)
		}
		again, err := DecodeValue(short)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := appendJSONMeta(nil, short); err != nil || !reflect.DeepEqual(tree, again) && !bytes.Contains(text, []byte("nan:")) {
			t.Fatalf("%v became %v", tree, again)
		}
		n := 0
		same, err := RewriteRefs(meta, func(r Ref) (Ref, error) { n++; return r, r.check() })
		if err != nil || !bytes.Equal(same, meta) {
			t.Fatalf("RewriteRefs: %v", err)
		}
		gone, err := RewriteRefs(meta, func(Ref) (Ref, error) { return Ref{}, nil })
		if err != nil || WalkRefs(gone, func(Ref) error { return errors.New("a reference is left") }) != nil {
			t.Fatalf("removing %d references: %v", n, err)
		}
		if err := DecodeMeta(meta, &target); err == nil {
			if _, err := EncodeMeta(&target); err != nil {
				t.Fatalf("what was decoded cannot be encoded: %v", err)
			}
		}
		_ = (&Record{Type: "x", Meta: meta}).Describe(0)
		dec := msgpack.NewDecoder(bytes.NewReader(meta))
		if _, err := dec.DecodeInterface(); err != nil && !strings.Contains(err.Error(), "too large") {
			t.Fatalf("msgpack/v5 refuses it: %v", err)
		}
	})
}

// FuzzFromJSON: whatever text comes, the output is a whole stream, or one that
// says what was wrong.
func FuzzFromJSON(f *testing.F) {
	for _, v := range vectors(f) {
		var text bytes.Buffer
		if len(v.data) < 10000 {
			_ = ToJSON(bytes.NewReader(v.data), &text) // with an error line where it fails
			f.Add(text.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var out, again bytes.Buffer
		err := FromJSON(bytes.NewReader(text), &out)
		var remote *RemoteError
		switch got := drain(out.Bytes(), ""); {
		case errors.Is(got, ErrCompression): // a payload is malformed inside, which nobody looked at
			return
		case err == nil && got != nil:
			t.Fatalf("the output is bad: %v", got)
		case err != nil && !errors.As(got, &remote):
			t.Fatalf("failed with %v, but the output ends with %v", err, got)
		case err != nil && !BadStream(err):
			t.Fatalf("%v is not counted as a bad stream", err)
		case err != nil:
			return
		}
		text2 := new(bytes.Buffer)
		if err := ToJSON(bytes.NewReader(out.Bytes()), text2); err != nil {
			t.Fatal(err)
		}
		if err := FromJSON(text2, &again); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
			t.Fatalf("the stream changed on its way through JSON: %v", err)
		}
	})
}
