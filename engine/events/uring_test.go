package events_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"crpipe/engine/events"
	"crpipe/engine/files/filestest"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Instances in every state go through a dump and a restore in the fixture uring.c. Here: images of impossible ones.

// ring is the record of an instance of 4 and 8 entries, as x86-64 lays them out; more replaces fields.
func ring(more ...stream.Field) stream.Map {
	offsets := []any{0, 4, 16, 24, 36, 32, 8, 12, 20, 28, 44, 40, 64, 192}
	m := stream.Map{{Name: "flags", Value: 2}, {Name: "sq_entries", Value: 4}, {Name: "cq_entries", Value: 8}, {Name: "sq_head", Value: 9},
		{Name: "cq_tail", Value: 9}, {Name: "offsets", Value: offsets}, {Name: "ring_size", Value: 4096}, {Name: "sqe_size", Value: 4096}}
	for _, f := range more {
		i := slices.IndexFunc(m, func(g stream.Field) bool { return g.Name == f.Name })
		if i < 0 {
			m = append(m, f)
		} else {
			m[i] = f
		}
	}
	return m
}

func TestHostileURings(t *testing.T) {
	field := func(name string, v any) stream.Field { return stream.Field{Name: name, Value: v} }
	for _, c := range []struct {
		name string
		meta stream.Map
		want string
	}{
		{"flags", ring(field("flags", 0o101)), "open flags"},
		{"polling thread", ring(field("setup", 2)), "the flags 0x2"},
		{"unknown setup", ring(field("setup", 1<<30)), "the flags"},
		{"deferred and not bound", ring(field("setup", 1<<13)), "the flags"},
		{"bound to nobody", ring(field("setup", 1<<12)), "submitter"},
		{"bound without the flag", ring(field("submitter", 7)), "submitter"},
		{"negative submitter", ring(field("setup", 1<<12), field("submitter", -7)), "submitter"},
		{"no entries", ring(field("sq_entries", 0)), "rings of 0"},
		{"odd entries", ring(field("sq_entries", 3)), "rings of 3"},
		{"many entries", ring(field("sq_entries", 1<<20), field("cq_entries", 1<<21)), "rings of"},
		{"small completion queue", ring(field("cq_entries", 2)), "rings of"},
		{"resized", ring(field("cq_entries", 64)), "resized"},
		{"few offsets", ring(field("offsets", []any{1, 2})), "2 offsets"},
		{"offset outside", ring(field("offsets", []any{0, 4, 16, 24, 36, 32, 8, 4096, 20, 28, 44, 40, 64, 192})), "a counter at 4096"},
		{"offset unaligned", ring(field("offsets", []any{0, 4, 16, 24, 36, 32, 8, 13, 20, 28, 44, 40, 64, 192})), "a counter at 13"},
		{"completions outside", ring(field("offsets", []any{0, 4, 16, 24, 36, 32, 8, 12, 20, 28, 44, 40, 4090, 192})), "a ring of 4096"},
		{"array outside", ring(field("offsets", []any{0, 4, 16, 24, 36, 32, 8, 12, 20, 28, 44, 40, 64, 4090})), "a ring of 4096"},
		{"large ring", ring(field("ring_size", uint32(1<<31))), "a ring of"},
		{"few bytes of entries", ring(field("sqe_size", 100)), "100 bytes of entries"},
		{"many bytes of entries", ring(field("sqe_size", uint32(1<<31))), "bytes of entries"},
		{"used before it was enabled", ring(field("setup", 1<<6)), "before it was enabled"},
		{"fewer completions", ring(field("cq_tail", 5)), "9 requests and 5 completions"},
		{"very many requests", ring(field("sq_head", uint32(1<<31)), field("cq_tail", uint32(1<<31))), "requests through a ring of 4"},
		{"file outside", ring(field("file_slots", 1), field("files", []any{stream.Map{field("index", 1), field("file", stream.Ref{ID: 1, Class: "file"})}})), "registered file 1 of 1"},
		{"many files", ring(field("file_slots", 1<<30)), "registered files"},
		{"asynchronous and nothing", ring(field("eventfd_async", true)), "eventfd"},
		{"place outside", ring(field("registered", []any{stream.Map{field("tid", 5), field("index", 16)}})), "registered ring 16"},
		{"place of nobody", ring(field("registered", []any{stream.Map{field("tid", 0), field("index", 1)}})), "registered ring 1"},
		{"unknown request", waits(field("op", 5)), "operation 5 in flight"},
		{"request of nobody", waits(field("tid", 0)), "of thread 0"},
		{"request of no file", waits(field("file", stream.Ref{})), "of no file"},
		{"request of two files", waits(field("fixed", true)), "of no file, or of two"},
		{"request of an empty place", waits(field("file", stream.Ref{}), field("fixed", true), field("slot", 3)), "registered file 3"},
		{"poll with a time", waits(field("left", 5)), "a timeout in 5 ns"},
		{"timeout of a file", waits(field("op", 11)), "a timeout of a file"},
		{"negative timeout", waits(field("op", 11), field("file", stream.Ref{}), field("left", -5)), "a timeout in -5 ns"},
		{"timeout with an address", waits(field("op", 11), field("file", stream.Ref{}), field("addr", 4096)), "a timeout of a file"},
		{"request before the ring is enabled", append(waits(), field("setup", 1<<6)), "before it was enabled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := filestest.Restore(t, uringImage(t, c.meta), nil)
			badImage(t, err, c.want)
		})
	}
}

// waits is ring with a poll in flight; more replaces fields of that.
func waits(more ...stream.Field) stream.Map {
	q := stream.Map{{Name: "op", Value: 6}, {Name: "tid", Value: 4711}, {Name: "file", Value: stream.Ref{ID: 1, Class: "file"}}}
	for _, f := range more {
		i := slices.IndexFunc(q, func(g stream.Field) bool { return g.Name == f.Name })
		if i < 0 {
			q = append(q, f)
		} else {
			q[i] = f
		}
	}
	q = slices.DeleteFunc(q, func(f stream.Field) bool { return f.Value == stream.Ref{} })
	return ring(stream.Field{Name: "requests", Value: []any{q}})
}

func uringImage(t *testing.T, meta stream.Map) []byte {
	return filestest.Write(t, func(w *stream.Writer) error {
		return errors.Join(w.Put("file.eventfd", 1, stream.Map{{Name: "count", Value: 0}, {Name: "flags", Value: 2}}, nil), w.Put("file.uring", 2, meta, nil))
	})
}

func badImage(t *testing.T, err error, want string) {
	t.Helper()
	var bad *object.BadImage
	if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

func TestHostileURingContents(t *testing.T) {
	_, err0 := filestest.Restore(t, uringImage(t, waits()), nil)
	if err0 != nil {
		t.Fatal(err0) // what the hostile ones are made of
	}
	restored := func(t *testing.T, meta stream.Map) *filestest.Restored {
		t.Helper()
		r, err := filestest.Restore(t, uringImage(t, meta), nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rings := func(r *filestest.Restored) (*events.URing, error) {
		all, err := events.URings(r.Restorer, func(tid int32) bool { return tid == 4711 })
		if err != nil {
			return nil, err
		}
		return all[0], nil
	}
	run := func(func(*tracee.Batch)) error { t.Error("a batch is run"); return nil }
	of := stream.Ref{ID: 2, Class: "file"}

	_, err := rings(restored(t, ring(stream.Field{Name: "setup", Value: 1 << 12}, stream.Field{Name: "submitter", Value: 4712})))
	badImage(t, err, "thread 4712, which the image does not have")

	r := restored(t, ring())
	u, err := rings(r)
	if err != nil {
		t.Fatal(err)
	}
	badImage(t, u.Settle(run), "without contents")
	badImage(t, r.Restorer.Content(&object.Data{Of: of, Offset: 8}, []byte{1}), "contents of an io_uring instance at 8")
	badImage(t, r.Restorer.Content(&object.Data{Of: of}, make([]byte, 8193)), "contents of an io_uring instance at 0")
	if err := r.Restorer.Content(&object.Data{Of: of}, make([]byte, 8192)); err != nil {
		t.Fatal(err)
	}
	badImage(t, u.Settle(run), "submissions up to 0") // not those of the record
	badImage(t, r.Restorer.Content(&object.Data{Of: of, Offset: 8192}, []byte{1}), "contents of an io_uring instance at 8192")
}
