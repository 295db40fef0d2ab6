package stream

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"
)

// msgpack/v5 writes and reads the values, the walkers over types and trees are
// our own. Witnesses are v5's own walker, here, and the specification itself, in
// spec_test.go.

type address uint64

type inner struct {
	Tid  int32  `msgpack:"tid"`
	Comm string `msgpack:"comm,omitempty"`
}

type common struct {
	UID uint32 `msgpack:"uid"`
}

type everything struct {
	common0
	B     bool           `msgpack:"b"`
	I8    int8           `msgpack:"i8"`
	I64   int64          `msgpack:"i64"`
	Int   int            `msgpack:"int"`
	U16   uint16         `msgpack:"u16"`
	U64   uint64         `msgpack:"u64"`
	Addr  address        `msgpack:"addr"`
	F32   float32        `msgpack:"f32"`
	F64   float64        `msgpack:"f64"`
	S     string         `msgpack:"s"`
	Raw   []byte         `msgpack:"raw"`
	Sig   [8]byte        `msgpack:"sig"`
	Pair  [2]uint64      `msgpack:"pair"`
	List  []uint32       `msgpack:"list"`
	Tasks []inner        `msgpack:"tasks"`
	One   inner          `msgpack:"one"`
	Maybe *inner         `msgpack:"maybe"`
	None  *uint64        `msgpack:"none"`
	Tree  any            `msgpack:"tree"`
	Skip  map[string]int `msgpack:"-"`
	Empty struct {
		List []uint32 `msgpack:"list,omitempty"`
	} `msgpack:"empty,omitempty"`
}

type common0 = common

func sampleEverything() everything {
	return everything{
		common0: common{1000}, B: true, I8: -128, I64: math.MinInt64, Int: -33, U16: 65535, U64: math.MaxUint64, Addr: 0x7fff_ffff_f000,
		F32: 1.5, F64: -math.Pi, S: strings.Repeat("long ", 60), Raw: []byte{0, 255}, Sig: [8]byte{1, 2, 3}, Pair: [2]uint64{1 << 40, 2},
		List: []uint32{1, 1 << 31}, Tasks: []inner{{1, "init"}, {Tid: 2}}, One: inner{Tid: -5}, Maybe: &inner{Tid: 9}, Tree: Map{{"k", []any{uint64(1), int64(-1), nil}}},
	}
}

func TestEncodeIsMsgpack(t *testing.T) {
	in := sampleEverything()
	meta, err := EncodeMeta(&in)
	if err != nil {
		t.Fatal(err)
	}
	if byValue, err := EncodeMeta(in); err != nil || !bytes.Equal(byValue, meta) {
		t.Errorf("a struct and a pointer to it encode differently: %v", err)
	}
	var got map[string]any
	if err := msgpack.Unmarshal(meta, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"uid": uint16(1000), "b": true, "i8": int8(-128), "i64": int64(math.MinInt64), "int": int8(-33), "u16": uint16(65535), "u64": uint64(math.MaxUint64),
		"addr": uint64(0x7fff_ffff_f000), "f32": float32(1.5), "f64": -math.Pi, "s": in.S, "raw": in.Raw, "sig": in.Sig[:],
		"pair": []any{uint64(1 << 40), int8(2)}, "list": []any{int8(1), uint32(1 << 31)},
		"tasks": []any{map[string]any{"tid": int8(1), "comm": "init"}, map[string]any{"tid": int8(2)}},
		"one":   map[string]any{"tid": int8(-5)}, "maybe": map[string]any{"tid": int8(9)}, "none": nil,
		"tree": map[string]any{"k": []any{int8(1), int8(-1), nil}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	var out everything
	if err := DecodeMeta(meta, &out); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("got %+v\nwant %+v", out, in)
	}
}

// What others write, wide integers and all, we read.
func TestDecodeMsgpack(t *testing.T) {
	type plain struct {
		U uint64   `msgpack:"u"`
		I int32    `msgpack:"i"`
		S string   `msgpack:"s"`
		B []byte   `msgpack:"b"`
		L []uint16 `msgpack:"l"`
	}
	in := plain{1, -2, "three", []byte{4}, []uint16{5, 600}}
	meta, err := msgpack.Marshal(&in)
	if err != nil {
		t.Fatal(err)
	}
	var out plain
	if err := DecodeMeta(meta, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%+v %v", out, err)
	}
	if short, err := EncodeMeta(&in); err != nil || len(short) >= len(meta) {
		t.Errorf("ours has %d bytes, theirs %d (%v)", len(short), len(meta), err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	type target struct {
		N uint8   `msgpack:"n"`
		I int8    `msgpack:"i,omitempty"`
		S string  `msgpack:"s,omitempty"`
		B []byte  `msgpack:"b,omitempty"`
		L []inner `msgpack:"l,omitempty"`
		R Ref     `msgpack:"r,omitempty"`
		F float64 `msgpack:"f,omitempty"`
		A [2]byte `msgpack:"a,omitempty"`
		P [2]int8 `msgpack:"p,omitempty"`
		M Map     `msgpack:"m,omitempty"`
		X *uint8  `msgpack:"x,omitempty"`
		T bool    `msgpack:"t,omitempty"`
		W int64   `msgpack:"w,omitempty"`
		U uint64  `msgpack:"u,omitempty"`
	}
	one := uint8(1)
	for _, c := range []struct {
		meta any
		want string // part of the error, "" for none
	}{
		{Map{{"n", 255}}, ""},
		{Map{{"i", -128}, {"n", 0}}, ""}, // any order
		{Map{{"n", 1}, {"r", nil}}, ""},
		{Map{{"n", 1}, {"r", Ref{3, "mm"}}, {"x", nil}, {"m", Map{}}}, ""},
		{Map{{"n", 256}}, "field n: 256 does not fit uint8"},
		{Map{{"n", -1}}, "field n: -1 does not fit uint8"},
		{Map{{"n", nil}}, "field n: null cannot be uint8"},
		{Map{{"n", true}}, "field n: a boolean cannot be uint8"},
		{Map{{"n", 1.0}}, "field n: a float cannot be uint8"},
		{Map{{"n", 1}, {"i", 128}}, "field i: 128 does not fit int8"},
		{Map{{"n", 1}, {"i", uint64(1 << 63)}}, "field i: 9223372036854775808 does not fit int8"},
		{Map{{"n", 1}, {"w", uint64(1 << 63)}}, "field w: 9223372036854775808 does not fit int64"},
		{Map{{"n", 1}, {"u", -1}}, "field u: -1 does not fit uint64"},
		{Map{{"n", 1}, {"s", []byte("x")}}, "field s: bytes cannot be string"},
		{Map{{"n", 1}, {"b", "x"}}, "field b: a string cannot be []uint8"},
		{Map{{"n", 1}, {"b", nil}}, "field b: null cannot be []uint8"},
		{Map{{"n", 1}, {"l", []any{Map{{"tid", uint64(1 << 31)}}}}}, "field l: element 0: field tid: 2147483648 does not fit int32"},
		{Map{{"n", 1}, {"l", []any{Map{}}}}, "field l: element 0: field tid is missing"},
		{Map{{"n", 1}, {"l", Map{}}}, "field l: a map cannot be []stream.inner"},
		{Map{{"n", 1}, {"r", 3}}, "field r: a number cannot be stream.Ref"},
		{Map{{"n", 1}, {"f", 3}}, "field f: a number cannot be float64"},
		{Map{{"n", 1}, {"a", []byte{1, 2, 3}}}, "field a: 3 bytes do not fit [2]uint8"},
		{Map{{"n", 1}, {"p", []any{1}}}, "field p: 1 elements do not fit [2]int8"},
		{Map{{"n", 1}, {"m", []any{}}}, "field m: it is not a map"},
		{Map{{"n", 1}, {"x", 300}}, "field x: 300 does not fit uint8"},
		{Map{{"n", 1}, {"zz", 1}}, "field zz is unknown"},
		{Map{{"i", 1}}, "field n is missing"},
		{[]any{}, "an array cannot be stream.target"},
		{Raw{0xa1, 'x'}, "a string cannot be stream.target"},
	} {
		meta, err := EncodeMeta(c.meta)
		if err != nil {
			t.Fatal(err)
		}
		got := target{S: "left over", X: &one}
		err = DecodeMeta(meta, &got)
		switch {
		case c.want == "":
			if err != nil {
				t.Errorf("%v: %v", c.meta, err)
			}
			if got.S != "" || got.X != nil {
				t.Errorf("%v: what the target held before is still there", c.meta)
			}
		case !errors.Is(err, ErrMetadata) || !strings.Contains(err.Error(), c.want):
			t.Errorf("%v: got %v, want %q", c.meta, err, c.want)
		}
		r := Record{Type: "thing", Index: 3, Meta: meta}
		if err := r.Decode(&got); err != nil && (!BadStream(err) || !strings.Contains(err.Error(), "record 3 (thing)")) {
			t.Errorf("%v: %v does not say where", c.meta, err)
		}
	}
}

// A schema that would lose state is refused before anything is written.
func TestSchemas(t *testing.T) {
	type recursive struct {
		Children []recursive `msgpack:"children"`
	}
	for _, c := range []struct {
		v    any
		want string
	}{
		{everything{}, ""},
		{recursive{}, ""},
		{&Header{}, ""},
		{struct{ X int }{}, "field X has no msgpack name"},
		{struct {
			x int //nolint:unused // the point of the case
		}{}, "field x is not exported and would be lost"},
		{struct {
			x int `msgpack:"-"` //nolint:unused // the point of the case
		}{}, ""},
		{struct {
			X int `msgpack:"x,inline"`
		}{}, `unknown option "inline"`},
		{struct {
			X int `msgpack:"$x"`
		}{}, "no msgpack name"},
		{struct {
			X int `msgpack:"x"`
			Y int `msgpack:"x"`
		}{}, `two fields named "x"`},
		{struct {
			M map[string]int `msgpack:"m"`
		}{}, "map[string]int has no form on the wire"},
		{struct {
			C chan int `msgpack:"c"`
		}{}, "no form on the wire"},
		{struct {
			E error `msgpack:"e"`
		}{}, "an interface must be any"},
		{struct {
			P *Ref `msgpack:"p"`
		}{}, "two forms of nothing"},
		{struct {
			U uintptr `msgpack:"u"`
		}{}, "no form on the wire"},
		{nil, "nil has no type"},
	} {
		err := CheckSchema(c.v)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%T: got %v, want %q", c.v, err, c.want)
		}
	}
}

func TestEncodeLimits(t *testing.T) {
	type loop struct {
		Next *loop `msgpack:"next"`
	}
	l := new(loop)
	l.Next = l
	if _, err := EncodeMeta(l); !errors.Is(err, ErrMetadata) {
		t.Errorf("a value that holds itself: %v", err)
	}
	deep := any(uint64(1))
	for range MaxDepth {
		deep = []any{deep}
	}
	meta, err := EncodeMeta(deep)
	if err != nil || CheckMeta(meta) != nil {
		t.Errorf("depth %d: %v", MaxDepth, err)
	}
	if _, err := EncodeMeta([]any{deep}); !errors.Is(err, ErrMetadata) {
		t.Errorf("depth %d: %v", MaxDepth+1, err)
	}
	if _, err := EncodeMeta(make([]byte, MaxMeta)); !errors.Is(err, ErrLength) {
		t.Errorf("too long: %v", err)
	}
	if _, err := EncodeMeta(Map{{"r", Ref{ID: 1 << 31, Class: "mm"}}}); !errors.Is(err, ErrZeroRef) {
		t.Errorf("a negative reference: %v", err)
	}
	if _, err := EncodeMeta(Map{{"r", Ref{ID: 1}}}); !errors.Is(err, ErrMetadata) {
		t.Errorf("a reference without class: %v", err)
	}
	if _, err := EncodeMeta(Map{{"r", Ref{Class: "mm"}}}); !errors.Is(err, ErrZeroRef) {
		t.Errorf("a class without number: %v", err)
	}
	if meta, err := EncodeMeta(nil); err != nil || !bytes.Equal(meta, []byte{codeFixMap}) {
		t.Errorf("nil: %x %v", meta, err)
	}
}

// Equal states encode equally: nil and empty slices, in any depth.
func TestEncodeIsDeterministic(t *testing.T) {
	type state struct {
		L []inner `msgpack:"l"`
		B []byte  `msgpack:"b"`
		O struct {
			L []byte `msgpack:"l"`
		} `msgpack:"o,omitempty"`
	}
	a, b := state{}, state{L: []inner{}, B: []byte{}}
	b.O.L = []byte{}
	x, err1 := EncodeMeta(a)
	y, err2 := EncodeMeta(b)
	if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
		t.Errorf("%x and %x (%v, %v)", x, y, err1, err2)
	}
}

func TestEveryIntegerWidth(t *testing.T) {
	for shift := range 64 {
		for _, delta := range []uint64{0, 1, math.MaxUint64} {
			n := uint64(1)<<shift + delta
			for _, v := range []any{n, int64(n), -int64(n)} {
				meta, err := EncodeMeta(v)
				if err != nil {
					t.Fatal(err)
				}
				got, err := DecodeValue(meta)
				if err != nil {
					t.Fatal(err)
				}
				if s, ok := v.(int64); ok && s >= 0 {
					v = uint64(s)
				}
				if got != v {
					t.Errorf("%v came back as %v", v, got)
				}
				if want := specEncode(nil, v); !bytes.Equal(want, meta) {
					t.Errorf("%v: ours %x, the specification's %x", v, meta, want)
				}
			}
		}
	}
}

// Claims are checked whatever the length form.
func TestLengthForms(t *testing.T) {
	for _, n := range []int{0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536} {
		list := make([]any, n)
		for i := range list {
			list[i] = uint64(7)
		}
		for _, v := range []any{strings.Repeat("s", n), make([]byte, n), list} {
			meta, err := EncodeMeta(v)
			if err != nil {
				t.Fatal(err)
			}
			got, err := DecodeValue(meta)
			if err != nil || !reflect.DeepEqual(got, v) {
				t.Errorf("%T of %d: %v", v, n, err)
			}
			if n > 0 {
				if err := CheckMeta(meta[:len(meta)-1]); !errors.Is(err, ErrMetadata) {
					t.Errorf("%T of %d, cut: %v", v, n, err)
				}
			}
			if err := CheckMeta(append(meta, 0)); !errors.Is(err, ErrMetadata) {
				t.Errorf("%T of %d, and more: %v", v, n, err)
			}
		}
	}
}

func TestDuplicateKeysOfAnySize(t *testing.T) {
	for _, n := range []int{2, 40, 41, 100, 5000} {
		m := make(Map, n)
		for i := range m {
			m[i] = Field{"k" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + strings.Repeat("y", i/26), Map{{"k", nil}}}
		}
		names := make(map[string]bool)
		for i := range m {
			for names[m[i].Name] {
				m[i].Name += "z"
			}
			m[i].Name = m[i].Name[max(0, len(m[i].Name)-maxKey):]
			names[m[i].Name] = true
		}
		meta, err := EncodeMeta(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckMeta(meta); err != nil {
			t.Errorf("%d distinct keys: %v", n, err)
		}
		m[n-1].Name = m[0].Name
		if meta, err = EncodeMeta(m); err != nil {
			t.Fatal(err)
		}
		if err := CheckMeta(meta); !errors.Is(err, ErrMetadata) || !strings.Contains(err.Error(), "twice") {
			t.Errorf("a duplicate among %d keys: %v", n, err)
		}
	}
}

func TestRewriteRefs(t *testing.T) {
	meta, err := EncodeMeta(Map{{"a", Ref{1, "file"}}, {"l", []any{Ref{2, "mm"}, "x", Ref{1, "file"}}}, {"m", Map{{"z", Ref{300, "network-namespace"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	if err := WalkRefs(meta, func(r Ref) error { seen = append(seen, r.String()); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "file#1 mm#2 file#1 network-namespace#300" {
		t.Error(got)
	}
	stop := errors.New("stop")
	if err := WalkRefs(meta, func(Ref) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the callback's error: %v", err)
	}
	same, err := RewriteRefs(meta, func(r Ref) (Ref, error) { return r, nil })
	if err != nil || &same[0] != &meta[0] {
		t.Error("unchanged metadata was copied", err)
	}
	got, err := RewriteRefs(meta, func(r Ref) (Ref, error) {
		switch r.ID {
		case 2:
			return Ref{}, nil
		case 1:
			return Ref{1 << 20, "ns"}, nil
		}
		return r, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want, _ := EncodeMeta(Map{{"a", Ref{1 << 20, "ns"}}, {"l", []any{nil, "x", Ref{1 << 20, "ns"}}}, {"m", Map{{"z", Ref{300, "network-namespace"}}}}})
	if !bytes.Equal(got, want) {
		t.Errorf("got %x\nwant %x", got, want)
	}
}

func TestMapMethods(t *testing.T) {
	var m Map
	m.Set("a", uint64(1))
	m.Set("b", uint64(2))
	m.Set("a", uint64(3))
	if v, ok := m.Get("a"); !ok || v != uint64(3) || len(m) != 2 {
		t.Errorf("%v", m)
	}
	if !m.Delete("a") || m.Delete("a") || len(m) != 1 || m[0].Name != "b" {
		t.Errorf("%v", m)
	}
	if _, ok := m.Get("a"); ok {
		t.Error("a is still there")
	}
}
