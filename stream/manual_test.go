package stream_test

import (
	"bytes"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crpipe/stream"
	"crpipe/stream/streamtest"
)

// The golden stream is made of testdata/all-kinds.json, which has a line for
// each type of record there is. That of an old format version is never written
// again: every later version of the program must read it.
func TestAllKinds(t *testing.T) {
	source := filepath.Join("testdata", "all-kinds.json")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	golden := streamtest.AllKindsPath(t)
	var made bytes.Buffer
	if err := stream.FromJSON(bytes.NewReader(text), &made); err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	var form bytes.Buffer
	if err := stream.ToJSON(bytes.NewReader(made.Bytes()), &form); err != nil {
		t.Fatal(err)
	}
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(golden, made.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(source, form.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		text = form.Bytes()
	}
	if !bytes.Equal(text, form.Bytes()) {
		t.Errorf("%s is not in its exact form: run go test ./stream -update", source)
	}
	data, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, made.Bytes()) {
		t.Errorf("%s is not what %s says: run go test ./stream -update", golden, source)
	}
	old, err := filepath.Glob("testdata/all-kinds-*.cr")
	if err != nil || len(old) != stream.Version {
		t.Errorf("a golden stream for each of %d versions: %v %v", stream.Version, old, err)
	}
	for _, path := range old {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := stream.Check(bytes.NewReader(data)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := stream.Filter(bytes.NewReader(data), &out); err != nil || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("%s: the identity filter changed it (%v)", path, err)
		}
	}
	for _, r := range streamtest.AllKinds(t) {
		streamtest.Documented(t, r.Type)
	}
}

func recordsSection(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(streamtest.ManualPath(t))
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(page), "\n.Sh RECORDS\n")
	if !ok {
		t.Fatal("no .Sh RECORDS")
	}
	section, _, _ := strings.Cut(after, "\n.Sh ")
	return section
}

// The schemas of the framing's own records are those of the page.
func TestFramingSchemas(t *testing.T) {
	streamtest.Schemas(t, map[stream.Type]any{stream.TypeHeader: stream.Header{}})
	streamtest.Documented(t, stream.TypeLink, stream.TypeError, stream.TypeEnd)
	section := recordsSection(t)
	for _, name := range []string{"text", "errno", "object", "count", "sum"} {
		if !strings.Contains(section, "\n.It Va "+name+" ") {
			t.Errorf("cr-stream(5) lacks the field %s", name)
		}
	}
	for _, v := range []any{stream.ErrorState{}, stream.EndState{}} {
		if err := stream.CheckSchema(v); err != nil {
			t.Error(err)
		}
	}
}

// The numbers on the page are those of the program.
func TestManualNumbers(t *testing.T) {
	page, err := os.ReadFile(streamtest.ManualPath(t))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(page)), " ")
	for _, want := range []string{
		fmt.Sprintf("Metadata and payload have at most %d bytes each", stream.MaxMeta),
		fmt.Sprintf("raw length of 1 to %d", stream.MaxPayload),
		fmt.Sprintf("a fixed header of %d bytes", stream.HeadSize),
		fmt.Sprintf("nested more than %d deep", stream.MaxDepth),
		fmt.Sprintf("a string of 1 to %d bytes", stream.MaxKey),
		fmt.Sprintf("A type is 1 to %d bytes", stream.MaxType),
		fmt.Sprintf("1 to %d. A number defined twice", stream.MaxRef),
		fmt.Sprintf("at most %d objects", stream.MaxObjects),
		fmt.Sprintf("plus 1024 there are at most %d.", stream.MaxSparse),
		fmt.Sprintf("at most %d bytes, not empty", stream.MaxErrorText),
		fmt.Sprintf("format version: %d", stream.Version),
		fmt.Sprintf("%#04x Pq optional", uint16(stream.FlagOptional))[2:],
		fmt.Sprintf("%#04x Pq lz4", uint16(stream.FlagLZ4))[2:],
		fmt.Sprintf("0x%08x", crc32.Checksum([]byte("123456789"), crc32.MakeTable(crc32.Castagnoli))),
		fmt.Sprintf(".It Version %d ", stream.Version),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if stream.MaxMeta != stream.MaxPayload || stream.PrologueSize != 12 {
		t.Error("the page says that both limits are the same, and a prologue of twelve bytes")
	}
}
