package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Each file of testdata/vectors is a text header ("expect: ok", further
// "key: value" lines), a blank line and the bytes of a stream. Other
// implementations can use them. `go test ./stream -update` writes them anew from
// the list in vectors_gen_test.go; a test fails when list and files differ.

var update = flag.Bool("update", false, "write testdata anew")

// expectations says which error each word stands for.
var expectations = map[string]error{
	"ok": nil, "not-stream": ErrNotStream, "version": ErrVersion, "truncated": ErrTruncated, "trailing": ErrTrailing,
	"corrupt": ErrCorrupt, "hostile-length": ErrLength, "malformed": ErrMalformed, "metadata": ErrMetadata,
	"reserved": ErrReserved, "order": ErrOrder, "unknown-feature": ErrUnknownFeature, "unknown-type": ErrUnknownType,
	"zero-ref": ErrZeroRef, "duplicate-ref": ErrDuplicateRef, "forward-ref": ErrForwardRef, "dangling": ErrForwardRef,
	"wrong-class": ErrWrongClass, "compression": ErrCompression, "error": errRemote,
}

var errRemote = errors.New("any *RemoteError")

type vector struct {
	name   string
	expect string
	why    string
	known  string // where set: the types and features that a restoring reader knows
	data   []byte
}

func (v *vector) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "expect: %s\nwhy: %s\n", v.expect, v.why)
	if v.known != "" {
		fmt.Fprintf(&b, "known: %s\n", v.known)
	}
	b.WriteByte('\n')
	b.Write(v.data)
	return b.Bytes()
}

func parseVector(t testing.TB, path string) vector {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, data, ok := bytes.Cut(raw, []byte("\n\n"))
	if !ok {
		t.Fatalf("%s: no blank line", path)
	}
	v := vector{name: filepath.Base(path), data: data}
	for _, line := range strings.Split(string(text), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "expect":
			v.expect = value
		case "why":
			v.why = value
		case "known":
			v.known = value
		default:
			t.Fatalf("%s: unknown key %q", path, key)
		}
	}
	if _, ok := expectations[v.expect]; !ok {
		t.Fatalf("%s: unknown expectation %q", path, v.expect)
	}
	return v
}

func vectors(t testing.TB) []vector {
	t.Helper()
	paths, err := filepath.Glob("testdata/vectors/*")
	if err != nil || len(paths) == 0 {
		t.Fatal("no vectors", err)
	}
	var list []vector
	for _, path := range paths {
		list = append(list, parseVector(t, path))
	}
	return list
}

func TestVectorFiles(t *testing.T) {
	const dir = "testdata/vectors"
	want := make(map[string][]byte)
	for _, v := range generateVectors(t) {
		if _, ok := want[v.name]; ok {
			t.Fatalf("two vectors named %s", v.name)
		}
		want[v.name] = v.encode()
	}
	if *update {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, data := range want {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if w, ok := want[e.Name()]; ok && !bytes.Equal(w, data) {
			t.Errorf("%s differs from what is generated: the format has changed", e.Name())
		}
		delete(want, e.Name()) // files without a generator are welcome
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		t.Errorf("%s is missing: run go test ./stream -update", name)
	}
}

// drain reads a whole stream as a filter does or, with known, as a restore does.
func drain(data []byte, known string) error {
	r, err := NewReader(&chunks{data: data, n: 7})
	if err != nil {
		return err
	}
	if known != "" {
		list := strings.Split(known, " ")
		if err := r.Header().CheckFeatures(func(s string) bool { return slices.Contains(list, s) }); err != nil {
			return err
		}
		r.RequireKnown(func(t Type) bool { return slices.Contains(list, string(t)) })
	}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if _, again := r.Next(); again != err { //nolint:errorlint // the very same
				return fmt.Errorf("the error %w is not sticky: %w", err, again)
			}
			return err
		}
		if _, err := rec.Data(); err != nil {
			return err
		}
		if _, err := rec.Value(); err != nil {
			return err
		}
	}
}

// chunks returns its data in pieces of n bytes, and its last with io.EOF.
type chunks struct {
	data []byte
	n    int
}

func (c *chunks) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), c.n)], c.data)
	c.data = c.data[n:]
	if len(c.data) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func expected(err, want error) bool {
	if want == errRemote { //nolint:errorlint // a marker
		var remote *RemoteError
		return errors.As(err, &remote)
	}
	return errors.Is(err, want)
}

func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.name, func(t *testing.T) {
			want := expectations[v.expect]
			if err := drain(v.data, v.known); !expected(err, want) {
				t.Errorf("Reader: got %v, want %v", err, want)
			}
			if v.known != "" {
				want = nil // a filter passes on what it does not know
			}
			s, err := Check(bytes.NewReader(v.data))
			if !expected(err, want) {
				t.Errorf("Check: got %v, want %v", err, want)
			}
			if err == nil && s.Size != int64(len(v.data)) {
				t.Errorf("Check: size %d of %d", s.Size, len(v.data))
			}
			if err != nil && !BadStream(err) {
				t.Errorf("Check: %v is not counted as a bad stream", err)
			}
			var out bytes.Buffer
			if v.expect != "compression" { // an identity filter does not look into payloads
				err = Filter(bytes.NewReader(v.data), &out)
				sameOrError(t, "identity filter", v.data, out.Bytes(), err, want)
			}
			var text bytes.Buffer
			out.Reset()
			toErr := ToJSON(bytes.NewReader(v.data), &text)
			fromErr := FromJSON(bytes.NewReader(text.Bytes()), &out)
			if v.expect == "compression" {
				return
			}
			if (toErr == nil) != (fromErr == nil) || !expected(toErr, want) {
				t.Errorf("JSON: to %v, from %v", toErr, fromErr)
			}
			sameOrError(t, "JSON", v.data, out.Bytes(), toErr, want)
		})
	}
}

// sameOrError checks that a filter that succeeded has copied its input, and that
// the output of one that failed says so.
func sameOrError(t *testing.T, what string, in, out []byte, err, want error) {
	t.Helper()
	if !expected(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
		return
	}
	if want == nil {
		if !bytes.Equal(in, out) {
			t.Errorf("%s: the output differs from the input", what)
		}
		return
	}
	var remote *RemoteError
	if got := drain(out, ""); !errors.As(got, &remote) || remote.Text == "" {
		t.Errorf("%s: the output does not end with an error record but with %v", what, got)
	}
}

// fixSums sets all checksums of what looks like records right, so that damage
// below them is reached.
func fixSums(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) < prologueSize {
		return data
	}
	sum := crc32.Update(0, castagnoli, data[:prologueSize])
	count := uint64(0)
	for pos := prologueSize; pos+headSize <= len(data); {
		h := data[pos : pos+headSize]
		metaLen, dataLen := binary.LittleEndian.Uint32(h[28:]), binary.LittleEndian.Uint32(h[32:])
		if uint64(pos+headSize)+uint64(metaLen)+uint64(dataLen) > uint64(len(data)) {
			break
		}
		meta, payload := int(metaLen), int(dataLen)
		body := data[pos+headSize : pos+headSize+meta+payload]
		if bytes.HasPrefix(h, []byte("end\x00")) {
			m, _ := EncodeMeta(&endState{Count: count, Sum: sum})
			if len(m) == meta {
				copy(body, m)
			}
		}
		crc := crc32.Update(crc32.Update(0, castagnoli, h[:crcOffset]), castagnoli, body)
		binary.LittleEndian.PutUint32(h[crcOffset:], crc)
		sum = crc32.Update(sum, castagnoli, h)
		count++
		pos += headSize + meta + payload
	}
	return data
}
