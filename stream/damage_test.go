package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"
)

// smallImage has each thing a framing can hold: references, a link, an optional
// record, a compressed payload, a raw one.
func smallImage(t testing.TB) []byte {
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{Content: ContentImage, Arch: "amd64", PageSize: 4096, Kernel: "6.18.0", Requires: []string{"b", "a"}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := w.NewRef(), w.NewRef()
	page := &Record{Type: "pages", Meta: []byte{codeFixMap}, Payload: bytes.Repeat([]byte{7}, 300)}
	if err := new(LZ4).Compress(page); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		w.Put("file.epoll", a, Map{{"watch", []any{}}}, nil),
		w.Put("file.regular", b, Map{{"path", "/etc/passwd"}, {"pos", uint64(1) << 40}}, nil),
		w.PutFlags("note", FlagOptional, 0, Map{{"of", Ref{b, "file"}}}, nil),
		w.Link(Map{{"epoll", Ref{a, "file"}}, {"watch", Ref{a, "file"}}}),
		w.Put("socket.queue", 0, nil, []byte("in flight")),
		w.Copy(page),
		w.End(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestEveryBitFlip(t *testing.T) {
	good := smallImage(t)
	bad := bytes.Clone(good)
	for bit := range len(good) * 8 {
		bad[bit/8] ^= 1 << (bit % 8)
		if err := drain(bad, ""); !BadStream(err) {
			t.Errorf("bit %d of byte %d: not detected (%v)", bit%8, bit/8, err)
		}
		var out bytes.Buffer
		if err := Filter(bytes.NewReader(bad), &out); !BadStream(err) || !BadStream(drain(out.Bytes(), "")) {
			t.Errorf("bit %d of byte %d: a filter lets it through (%v)", bit%8, bit/8, err)
		}
		bad[bit/8] ^= 1 << (bit % 8)
	}
	if !bytes.Equal(bad, good) || drain(bad, "") != nil {
		t.Fatal("the undamaged image is not right: the test proves nothing")
	}
}

func TestEveryTruncation(t *testing.T) {
	good := smallImage(t)
	for n := range good {
		err := drain(good[:n], "")
		if !errors.Is(err, ErrTruncated) || !BadStream(err) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestEveryByteLostOrDoubled(t *testing.T) {
	good := smallImage(t)
	for i := range good {
		lost := append(bytes.Clone(good[:i]), good[i+1:]...)
		if err := drain(lost, ""); !BadStream(err) {
			t.Errorf("byte %d lost: %v", i, err)
		}
		doubled := append(bytes.Clone(good[:i+1]), good[i:]...)
		if err := drain(doubled, ""); !BadStream(err) {
			t.Errorf("byte %d doubled: %v", i, err)
		}
	}
}

// records returns the bytes of each record of a stream.
func records(data []byte) [][]byte {
	var list [][]byte
	for pos := prologueSize; pos < len(data); {
		n := headSize + int(binary.LittleEndian.Uint32(data[pos+28:])) + int(binary.LittleEndian.Uint32(data[pos+32:]))
		list = append(list, data[pos:pos+n])
		pos += n
	}
	return list
}

// Whole records have right checksums: that one is lost, doubled, or changes
// places with another is seen by the end record or by the order of references.
func TestEveryRecordLostDoubledOrMoved(t *testing.T) {
	good := smallImage(t)
	list := records(good)
	join := func(order []int) []byte {
		b := bytes.Clone(good[:prologueSize])
		for _, i := range order {
			b = append(b, list[i]...)
		}
		return b
	}
	var all []int
	for i := range list {
		all = append(all, i)
	}
	if drain(join(all), "") != nil {
		t.Fatal("joining the records does not give the image")
	}
	for i := range list {
		lost := append(append([]int{}, all[:i]...), all[i+1:]...)
		doubled := append(append([]int{}, all[:i+1]...), all[i:]...)
		for _, order := range [][]int{lost, doubled} {
			if err := drain(join(order), ""); !BadStream(err) {
				t.Errorf("order %v: %v", order, err)
			}
		}
		for j := range i {
			swapped := append([]int{}, all...)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			if err := drain(join(swapped), ""); !BadStream(err) {
				t.Errorf("order %v: %v", swapped, err)
			}
		}
	}
}

// However the bytes arrive, the outcome is the same.
func TestChunkedInput(t *testing.T) {
	good := smallImage(t)
	for n := 1; n < 100; n++ {
		var out bytes.Buffer
		if err := Filter(&chunks{good, n}, &out); err != nil || !bytes.Equal(out.Bytes(), good) {
			t.Errorf("pieces of %d bytes: %v", n, err)
		}
	}
	for name, r := range map[string]io.Reader{
		"half": iotest.HalfReader(bytes.NewReader(good)), "one": iotest.OneByteReader(bytes.NewReader(good)),
		"eof with data": iotest.DataErrReader(bytes.NewReader(good)),
	} {
		var out bytes.Buffer
		if err := Filter(r, &out); err != nil || !bytes.Equal(out.Bytes(), good) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An error of the underlying reader is not the stream's fault.
func TestReadError(t *testing.T) {
	good := smallImage(t)
	broken := errors.New("broken cable")
	for n := range good {
		_, err := Check(io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || BadStream(err) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	_, err := Check(io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || BadStream(err) {
		t.Errorf("after the end: %v", err)
	}
	_, err = Check(stuck{})
	if !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that returns nothing: %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A claim of a mebibyte, of which little arrives, must not cost a mebibyte.
func TestClaimsDoNotAllocate(t *testing.T) {
	base := newBuild(t).open()
	empty := allocated(func() { _, _ = Check(bytes.NewReader(base)) })
	head := func(meta, payload uint32) []byte {
		h := make([]byte, headSize)
		copy(h, "thing")
		binary.LittleEndian.PutUint32(h[28:], meta)
		binary.LittleEndian.PutUint32(h[32:], payload)
		return append(bytes.Clone(base), h...)
	}
	for name, data := range map[string][]byte{
		"metadata":         head(MaxMeta, 0),
		"payload":          append(head(1, MaxPayload), codeFixMap),
		"too much":         head(1<<32-1, 1<<32-1),
		"some of metadata": append(head(MaxMeta, 0), make([]byte, 1000)...),
	} {
		got := allocated(func() {
			if _, err := Check(bytes.NewReader(data)); err == nil {
				t.Errorf("%s: no error", name)
			}
		})
		if limit := empty + 2*readStep; got > limit {
			t.Errorf("%s: %d bytes allocated, limit %d", name, got, limit)
		}
	}
	// What metadata claims costs nothing at all: it is checked in place.
	for _, s := range []string{"ddffffffff", "dfffffffff", "c6ffffffff", "dbffffffff", "dd00100000"} {
		meta := raw(t, s)
		got := allocated(func() {
			if _, err := DecodeValue(meta); !errors.Is(err, ErrMetadata) {
				t.Errorf("%s: %v", s, err)
			}
			var v []struct {
				A [1000]uint64 `msgpack:"a"`
			}
			if err := DecodeMeta(meta, &v); !errors.Is(err, ErrMetadata) {
				t.Errorf("%s: %v", s, err)
			}
		})
		if got > 64<<10 {
			t.Errorf("%s: %d bytes allocated", s, got)
		}
	}
}

// A block of many small elements must not become gigabytes of structs.
func TestDecodeBudget(t *testing.T) {
	meta := append([]byte{codeArray32, 0, 0x0f, 0xff, 0xfb}, bytes.Repeat([]byte{codeFixMap}, 0x0ffffb)...)
	type wide struct {
		A [256]uint64 `msgpack:"a,omitempty"`
	}
	var v []wide
	var p []*wide
	for _, target := range []any{&v, &p} {
		got := allocated(func() {
			if err := DecodeMeta(meta, target); !errors.Is(err, ErrMetadata) {
				t.Errorf("decoding a million structs of 2 KiB: %v", err)
			}
		})
		if got > 2*decodeBudget {
			t.Errorf("%d bytes allocated", got)
		}
	}
	got := allocated(func() {
		if _, err := DecodeValue(meta); err != nil {
			t.Error(err)
		}
	})
	if got > 48<<20 {
		t.Errorf("a value tree of %d bytes", got)
	}
}

// A stream that defines object after object must not fill memory.
func TestObjectLimit(t *testing.T) {
	o := objects{count: MaxObjects}
	if err := o.checkDefine(5, "file"); !errors.Is(err, ErrLength) {
		t.Errorf("one object too many: %v", err)
	}
	o = objects{}
	for i := range 1 << 12 {
		o.define(uint32(i+1), Type("c"+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676))))
	}
	if err := o.checkDefine(1<<20, "another"); !errors.Is(err, ErrLength) {
		t.Errorf("one class too many: %v", err)
	}
	if err := o.checkDefine(1<<20, "caaa"); err != nil {
		t.Errorf("a class that is known: %v", err)
	}
	// Numbers scattered on purpose cost tens of megabytes, not hundreds.
	o = objects{}
	got := allocated(func() {
		for i := range uint32(maxSparse) {
			o.define(MaxRef-i*2000, "file")
		}
	})
	if got > 128<<20 { // the sum of all the tables it grew through
		t.Errorf("%d scattered numbers: %d bytes allocated", maxSparse, got)
	}
	if err := o.checkDefine(1<<27+1, "file"); !errors.Is(err, ErrLength) {
		t.Errorf("one scattered number too many: %v", err)
	}
	if err := o.checkDefine(5, "file"); err != nil {
		t.Errorf("a small number then: %v", err)
	}
	// Numbers out of order end up in the map, and stay known when the slice
	// comes to cover them.
	o = objects{}
	o.define(3000, "file")
	for i := uint32(1); i < 3000; i++ {
		if err := o.checkDefine(i, "mm"); err != nil {
			t.Fatal(err)
		}
		o.define(i, "mm")
	}
	if len(o.dense) < 2999 || len(o.sparse) != 1 {
		t.Errorf("%d dense, %d sparse", len(o.dense), len(o.sparse))
	}
	o.define(3001, "mm")
	if err := o.checkDefine(3000, "mm"); !errors.Is(err, ErrDuplicateRef) {
		t.Errorf("object 3000: %v", err)
	}
	if class, ok := o.class(3000); class != "file" || !ok {
		t.Errorf("object 3000 is a %q", class)
	}
}
