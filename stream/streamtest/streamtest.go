// Package streamtest keeps the schemas of records, the manual page cr-stream(5)
// and the golden stream in step. Packages that define record types call it from
// their tests:
//
//	func TestSchemas(t *testing.T) {
//		streamtest.Schemas(t, map[stream.Type]any{"file.eventfd": eventfdState{}})
//	}
package streamtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"crpipe/stream"
)

// root returns the directory of the module.
func root(t testing.TB) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the place of this source file is unknown")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// ManualPath returns the path of cr-stream(5).
func ManualPath(t testing.TB) string { return filepath.Join(root(t), "man", "cr-stream.5") }

// AllKindsPath returns the path of the golden stream of the current format
// version.
func AllKindsPath(t testing.TB) string {
	return filepath.Join(root(t), "stream", "testdata", fmt.Sprintf("all-kinds-%d.cr", stream.Version))
}

// Schemas checks that each type, whose metadata the given struct is,
//   - can be metadata (stream.CheckSchema),
//   - has a .Ss of its name within .Sh RECORDS of cr-stream(5) that describes
//     every field, nested ones included, in an ".It Va NAME" line,
//   - occurs in the golden stream, whose records of it decode into the struct
//     without a field left over or missing, and encode to the same bytes.
//
// To add a record to the golden stream, add its line to
// stream/testdata/all-kinds.json and run go test ./stream -update.
func Schemas(t testing.TB, schemas map[stream.Type]any) {
	t.Helper()
	types := make([]stream.Type, 0, len(schemas))
	for typ, v := range schemas {
		types = append(types, typ)
		if err := stream.CheckSchema(v); err != nil {
			t.Errorf("%s: %v", typ, err)
		}
	}
	slices.Sort(types)
	Documented(t, types...)
	page := sections(t)
	golden := AllKinds(t)
	for _, typ := range types {
		for _, name := range fields(reflect.TypeOf(schemas[typ]), nil) {
			if section, ok := page[string(typ)]; ok && !documents(section, name) {
				t.Errorf("cr-stream(5), .Ss %s, lacks the line \".It Va %s\"", typ, name)
			}
		}
		found := false
		for _, r := range golden {
			if r.Type == typ {
				found = true
				decodes(t, r, schemas[typ])
			}
		}
		if !found {
			t.Errorf("no record of type %s in %s: add one to all-kinds.json", typ, AllKindsPath(t))
		}
	}
}

// Documented checks that each type has a section of its name within .Sh RECORDS
// of cr-stream(5).
func Documented(t testing.TB, types ...stream.Type) {
	t.Helper()
	page := sections(t)
	for _, typ := range types {
		if _, ok := page[string(typ)]; !ok {
			t.Errorf("cr-stream(5) lacks the section \".Ss %s\" in .Sh RECORDS", typ)
		}
	}
}

// Complete checks that the given types and those of the framing are exactly those
// that cr-stream(5) describes and that the golden stream has records of. It is
// for the test of the table of all kinds.
func Complete(t testing.TB, types ...stream.Type) {
	t.Helper()
	Documented(t, types...)
	types = append([]stream.Type{stream.TypeHeader, stream.TypeLink, stream.TypeError, stream.TypeEnd}, types...)
	golden := map[stream.Type]bool{stream.TypeError: true, stream.TypeEnd: true} // Next does not return those
	for _, r := range AllKinds(t) {
		golden[r.Type] = true
		if !slices.Contains(types, r.Type) {
			t.Errorf("the golden stream has a record of type %s, which is no kind", r.Type)
		}
	}
	for _, typ := range types {
		if !golden[typ] {
			t.Errorf("no record of type %s in %s: add one to all-kinds.json", typ, AllKindsPath(t))
		}
	}
	for name := range sections(t) {
		if stream.Type(name).Valid() && !slices.Contains(types, stream.Type(name)) {
			t.Errorf("cr-stream(5) has a section %q, which is no kind", name)
		}
	}
}

// AllKinds returns the records of the golden stream, the header first.
func AllKinds(t testing.TB) []*stream.Record {
	t.Helper()
	data, err := os.ReadFile(AllKindsPath(t))
	if err != nil {
		t.Fatal(err)
	}
	r, err := stream.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	list := []*stream.Record{r.HeaderRecord()}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rec.Clone())
	}
}

func decodes(t testing.TB, r *stream.Record, schema any) {
	t.Helper()
	typ := reflect.TypeOf(schema)
	if typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	v := reflect.New(typ).Interface()
	if err := r.Decode(v); err != nil {
		t.Errorf("golden stream: %v", err)
		return
	}
	meta, err := stream.EncodeMeta(v)
	if err != nil {
		t.Errorf("golden stream: %s: %v", r, err)
		return
	}
	if !bytes.Equal(meta, r.Meta) {
		t.Errorf("golden stream: %s: %s encodes it anew to other bytes:\n%x\n%x", r, typ, r.Meta, meta)
	}
}

// sections returns the lines of each .Ss within .Sh RECORDS, by name.
func sections(t testing.TB) map[string][]string {
	t.Helper()
	data, err := os.ReadFile(ManualPath(t))
	if err != nil {
		t.Fatal(err)
	}
	page := make(map[string][]string)
	records, name := false, ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		if title, ok := strings.CutPrefix(line, ".Sh "); ok {
			records, name = title == "RECORDS", ""
		}
		if title, ok := strings.CutPrefix(line, ".Ss "); ok && records {
			name = strings.Trim(title, `"`)
			if _, ok := page[name]; ok {
				t.Errorf("cr-stream(5) has two sections %q", name)
			}
			page[name] = []string{}
			continue
		}
		if records && name != "" {
			page[name] = append(page[name], line)
		}
	}
	return page
}

// documents reports whether a section has an .It line for a field; several
// fields may share a line: ".It Va uid , gid Pq integers".
func documents(section []string, name string) bool {
	for _, line := range section {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != ".It" {
			continue
		}
		va := false
		for _, word := range words[1:] {
			if va && word == name {
				return true
			}
			va = word == "Va" || va && word != "Pq"
		}
	}
	return false
}

// fields returns the wire names of a type's fields and of the fields of structs
// in it, each once.
func fields(t reflect.Type, seen []reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[stream.Ref]() || slices.Contains(seen, t) {
		return nil
	}
	seen = append(seen, t)
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("msgpack")
		name, _, _ := strings.Cut(tag, ",")
		if name == "-" {
			continue
		}
		if tagged && name != "" {
			names = append(names, name)
		}
		names = append(names, fields(f.Type, seen)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
