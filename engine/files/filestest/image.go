package filestest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/object"
	"crpipe/engine/terminals"
	"crpipe/stream"
)

// FileKinds is the table of kinds of these families.
func FileKinds() []object.FileKind {
	return slices.Concat(events.Kinds(), files.Kinds(), terminals.Kinds())
}

// Kinds is every kind of record of these families.
func Kinds() []object.Kind {
	kinds := slices.Concat(files.PlainKinds(), events.PlainKinds(), terminals.PlainKinds())
	for _, k := range FileKinds() {
		kinds = append(kinds, k.AsKind())
	}
	return kinds
}

// Look dumps the descriptor tables and directories of all processes of d, and returns what was refused.
func Look(t testing.TB, d *object.Dumper) error {
	t.Helper()
	for _, p := range d.Processes {
		for _, dump := range []func(*object.Dumper, *object.Process) error{files.DumpTable, files.DumpFS} {
			if err := dump(d, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d.Refusals()
}

// Dump is Look, and the image of what nothing was refused of.
func Dump(t testing.TB, d *object.Dumper) []byte {
	t.Helper()
	if err := Look(t, d); err != nil {
		t.Fatal(err)
	}
	return Write(t, func(w *stream.Writer) error {
		if err := d.WriteRecords(w); err != nil {
			return err
		}
		return d.WriteBulk(w)
	})
}

// Write returns a stream with the records that f writes.
func Write(t testing.TB, f func(w *stream.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stream.NewWriter(&b, stream.Header{Content: "image", Arch: "amd64", PageSize: unix.Getpagesize()})
	if err != nil {
		t.Fatal(err)
	}
	if err := f(w); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Describe writes down what the descriptors of an image lead to, tables in their order, each object where it is first
// met. Numbers of objects are given anew, so that two images of the same thing are equal. Fields for which drop is
// true (type and name) are left out.
func Describe(t testing.TB, image []byte, drop func(typ stream.Type, field string) bool) string {
	t.Helper()
	d := &describer{drop: drop, records: map[uint32]*stream.Record{}, data: map[uint32][]string{}, numbers: map[uint32]int{}}
	r, err := stream.NewReader(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	var roots, links []*stream.Record
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		rec = rec.Clone()
		switch {
		case rec.Type == object.TypeData:
			var m object.Data
			if err := rec.Decode(&m); err != nil {
				t.Fatal(err)
			}
			payload, err := rec.Data()
			if err != nil {
				t.Fatal(err)
			}
			d.data[m.Of.ID] = append(d.data[m.Of.ID], fmt.Sprintf("at %d packets %v %.200q (%d bytes)", m.Offset, m.Packets, payload, len(payload)))
		case rec.Type.Class() == "link":
			links = append(links, rec)
		case rec.Ref != 0:
			d.records[rec.Ref] = rec
			if rec.Type == "fdtable" || rec.Type == "fs" {
				roots = append(roots, rec)
			}
		}
	}
	for _, rec := range append(roots, links...) {
		fmt.Fprintf(&d.out, "%s %s\n", rec.Type, d.record(t, rec))
	}
	return d.out.String()
}

type describer struct {
	out     strings.Builder
	drop    func(stream.Type, string) bool
	records map[uint32]*stream.Record
	data    map[uint32][]string
	numbers map[uint32]int
}

func (d *describer) record(t testing.TB, rec *stream.Record) string {
	v, err := rec.Value()
	if err != nil {
		t.Fatal(err)
	}
	return d.value(t, rec.Type, v)
}

func (d *describer) value(t testing.TB, typ stream.Type, v any) string {
	switch v := v.(type) {
	case stream.Map:
		var parts []string
		for _, f := range v {
			if d.drop == nil || !d.drop(typ, f.Name) {
				parts = append(parts, f.Name+"="+d.value(t, typ, f.Value))
			}
		}
		return "{" + strings.Join(parts, " ") + "}"
	case []any:
		var parts []string
		for _, e := range v {
			parts = append(parts, d.value(t, typ, e))
		}
		return "[\n  " + strings.Join(parts, "\n  ") + "]"
	case stream.Ref:
		if n, ok := d.numbers[v.ID]; ok {
			return fmt.Sprintf("#%d", n)
		}
		n := len(d.numbers) + 1
		d.numbers[v.ID] = n
		rec := d.records[v.ID]
		text := fmt.Sprintf("#%d %s %s", n, rec.Type, d.record(t, rec))
		for _, piece := range d.data[v.ID] {
			text += "\n    data " + piece
		}
		return text
	case string:
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprint(v)
}
