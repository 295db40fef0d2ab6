package engine

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"crpipe/engine/memory"
	"crpipe/engine/object"
	"crpipe/stream"
	"crpipe/stream/streamtest"
)

var update = flag.Bool("update", false, "write the golden stream of all kinds anew")

// schemas returns a zero state of every type of record that an image or a ticket holds.
func schemas() map[stream.Type]any {
	out := map[stream.Type]any{
		object.TypePages: new(memory.Pages), object.TypeData: new(object.Data),
		typeTicket: new(ticketState), typeTicketTask: new(ticketTask),
	}
	for _, k := range allKinds() {
		out[k.Type] = k.Schema()
	}
	return out
}

// inOrder lists the types so that what a record of one refers to comes before it.
func inOrder() []stream.Type {
	first := []stream.Type{"ns.pid", "ns.mount", "ns.uts", "ns.net", "ns.time", "ns.cgroup", "mqueue", "pipe", "pipe.fifo", "pipe.removed", "directory.removed", "inode", "inode.memfd", "inotify", "fanotify", "pty", "socket.unix"}
	last := []stream.Type{"sighand", "fdtable", "fs", "mapfile", "shm", "vdso", "mm", "mm.areas", "cow", "cow.ranges", "process", "thread",
		typeTicket, typeTicketTask, object.TypePages, object.TypeData}
	var middle, links []stream.Type
	for t := range schemas() {
		switch {
		case t.Class() == "link" && t != stream.TypeLink:
			links = append(links, t)
		case !slices.Contains(first, t) && !slices.Contains(last, t):
			middle = append(middle, t)
		}
	}
	slices.Sort(middle)
	slices.Sort(links)
	return slices.Concat(first, middle, links, last)
}

func TestKindNames(t *testing.T) {
	seen := map[stream.Type]bool{}
	for _, k := range allKinds() {
		if seen[k.Type] {
			t.Errorf("two kinds are called %q", k.Type)
		}
		seen[k.Type] = true
		if !k.Type.Valid() || object.IsBulk(k.Type) {
			t.Errorf("%q is no name for a kind", k.Type)
		}
		if err := stream.CheckSchema(k.Schema()); err != nil {
			t.Errorf("%s: %v", k.Type, err)
		}
	}
	for _, k := range fileKinds() {
		if k.Type.Class() != "file" {
			t.Errorf("kind %s of open files is not of class file", k.Type)
		}
	}
}

// Every record and every one of its fields is described in cr-stream(5).
func TestManual(t *testing.T) {
	page, err := os.ReadFile(streamtest.ManualPath(t))
	if err != nil {
		t.Fatal(err)
	}
	_, records, _ := strings.Cut(string(page), "\n.Sh RECORDS\n")
	records, _, _ = strings.Cut(records, "\n.Sh ")
	words := map[string]map[string]bool{}
	for _, section := range strings.Split(records, "\n.Ss ")[1:] {
		name, text, _ := strings.Cut(section, "\n")
		words[name] = map[string]bool{}
		for _, w := range regexp.MustCompile(`[a-z][a-z0-9_]*`).FindAllString(text, -1) {
			words[name][w] = true
		}
	}
	for typ, schema := range schemas() {
		section, ok := words[string(typ)]
		if !ok {
			t.Errorf("cr-stream(5) has no section .Ss %s", typ)
			continue
		}
		for _, name := range fieldNames(reflect.TypeOf(schema)) {
			if !section[name] {
				t.Errorf("cr-stream(5), .Ss %s, does not mention the field %s", typ, name)
			}
		}
	}
}

func fieldNames(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[stream.Ref]() {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			continue
		}
		if t.Field(i).Anonymous {
			names = append(names, fieldNames(t.Field(i).Type)...)
			continue
		}
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("msgpack"), ",")
		names = append(append(names, name), fieldNames(t.Field(i).Type)...)
	}
	return names
}

// example fills a state: every field has a value that is not zero and no other has.
type example struct {
	n    int64
	refs map[string]stream.Ref // class -> an object that has been written
}

// classOf says what the fields that refer to objects refer to; field names are the same in all kinds where they mean the
// same. A type of its own comes before its name.
var classOf = map[string]string{
	"eventfd": "file",
	"files":   "fdtable", "fs": "fs", "sighand": "sighand", "mm": "mm", "process": "process", "exe": "mapfile", "vdso": "vdso",
	"file": "file", "pipe": "pipe", "pty": "pty", "inode": "inode", "cwd": "file", "root": "file",
	"removed": "directory", "removed_root": "directory", "removed_cwd": "directory",
	"link.unix.queue.files": "file", "sender": "socket", "peer": "socket", "listener": "socket",
	"pages.of": "mm", "data.of": "pipe", "mm.areas.of": "shm", "cow.ranges.of": "cow", "ipc.undo.of": "ipc", "queue": "mqueue",
}

func (x *example) fill(t *testing.T, typ stream.Type, name string, v reflect.Value) {
	t.Helper()
	if v.Type() == reflect.TypeFor[stream.Ref]() {
		class, ok := classOf[string(typ)+"."+name]
		if !ok {
			class, ok = classOf[name]
		}
		ref, have := x.refs[class]
		if !ok || !have {
			// Any earlier object of a class that carries the field's name.
			ref, have = x.refs[name]
		}
		if !have {
			t.Fatalf("%s: no object for the reference %q: add it to classOf", typ, name)
		}
		v.Set(reflect.ValueOf(ref))
		return
	}
	x.n++
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprintf("%s-%d", name, x.n))
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		n := x.n
		if v.OverflowInt(n) {
			n %= 100
		}
		v.SetInt(max(n, 1))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		n := uint64(x.n)
		if v.OverflowUint(n) {
			n %= 100
		}
		v.SetUint(max(n, 1))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte{0, byte(x.n), 0xff}[:3:3])
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			x.fill(t, typ, name, v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			x.fill(t, typ, name, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("msgpack"), ",")
			x.fill(t, typ, tag, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		x.fill(t, typ, name, v.Elem())
	default:
		t.Fatalf("%s: field %s of kind %s", typ, name, v.Kind())
	}
}

// definesNothing are the records that no other refers to.
var definesNothing = []stream.Type{"terminal", "ns.pid", "ns.mount", "ns.uts", "ns.net", "ns.time", "ns.cgroup", "ns.ipc", "ipc.undo", "mm.areas", "cow.ranges", "thread", "link.epoll", "link.inotify", "link.fanotify", "hold.tcp", typeTicket, typeTicketTask, object.TypePages, object.TypeData}

// makeAllKinds writes one record of every type.
func makeAllKinds(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096, Kernel: "6.18.0", Producer: "cr-dump 1", Requires: []string{"example"}})
	if err != nil {
		t.Fatal(err)
	}
	all := schemas()
	x := &example{refs: map[string]stream.Ref{}}
	for _, typ := range inOrder() {
		state := all[typ]
		if state == nil {
			t.Fatalf("there is no kind %s", typ)
		}
		x.fill(t, typ, "", reflect.ValueOf(state).Elem())
		ref := uint32(0)
		if typ.Class() != "link" && !slices.Contains(definesNothing, typ) {
			ref = w.NewRef()
			x.refs[typ.Class()] = stream.Ref{ID: ref, Class: typ.Class()}
		}
		var payload []byte
		if object.IsBulk(typ) {
			payload = bytes.Repeat([]byte(typ), 4096/len(typ)+1)[:4096]
		}
		if err := w.Put(typ, ref, state, payload); err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
	}
	if err := w.Put(stream.TypeLink, 0, struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The golden stream has a record of every type, with every field set. That of a format version is kept for ever: what it
// says must be read by every later version, strictly, and encode to the same bytes again.
func TestAllKinds(t *testing.T) {
	if *update {
		made := makeAllKinds(t)
		var text bytes.Buffer
		if err := stream.ToJSON(bytes.NewReader(made), &text); err != nil {
			t.Fatal(err)
		}
		path := streamtest.AllKindsPath(t)
		for name, data := range map[string][]byte{path: made, filepath.Join(filepath.Dir(path), "all-kinds.json"): text.Bytes()} {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := schemas()
	var types []stream.Type
	for typ := range all {
		types = append(types, typ)
	}
	streamtest.Complete(t, types...)
	for _, rec := range streamtest.AllKinds(t) {
		schema := all[rec.Type]
		if schema == nil {
			continue // of the framing
		}
		if err := rec.Decode(schema); err != nil {
			t.Errorf("%s: %v", rec.Type, err)
			continue
		}
		meta, err := stream.EncodeMeta(schema)
		if err != nil || !bytes.Equal(meta, rec.Meta) {
			t.Errorf("%s: it encodes anew to other bytes (%v)", rec.Type, err)
		}
		if name := zeroField(reflect.ValueOf(schema).Elem()); name != "" {
			t.Errorf("%s: the golden stream does not set the field %s: run go test ./engine -run TestAllKinds -update", rec.Type, name)
		}
	}
}

// zeroField names a field without a value.
func zeroField(v reflect.Value) string {
	for i := range v.NumField() {
		f, tag := v.Field(i), v.Type().Field(i).Tag.Get("msgpack")
		switch {
		case !v.Type().Field(i).IsExported():
		case f.IsZero():
			return tag
		case f.Kind() == reflect.Struct && f.Type() != reflect.TypeFor[stream.Ref]():
			if name := zeroField(f); name != "" {
				return tag + ": " + name
			}
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct && f.Type().Elem() != reflect.TypeFor[stream.Ref]():
			if name := zeroField(f.Index(0)); name != "" {
				return tag + ": " + name
			}
		}
	}
	return ""
}

// witness names, for every kind, where real objects of it go through a dump and a restore: a fixture program, or a test
// function of the kind's own package.
var witness = map[stream.Type]string{
	"file.external": "stdfds.c", "file.eventfd": "events.c", "file.timerfd": "events.c", "file.signalfd": "events.c", "file.pidfd": "pidfds.c", "file.epoll": "events.c", "file.uring": "uring.c",
	"epoll": "events.c", "link.epoll": "events.c", "inotify": "inotify.c", "file.inotify": "inotify.c", "link.inotify": "inotify.c", "fanotify": "fanotify.c", "file.fanotify": "fanotify.c", "link.fanotify": "fanotify.c", "file.proc": "files.c", "file.path": "files.c", "file.device": "devices.c", "file.pipe": "pipes.c",
	"pipe": "pipes.c", "pipe.fifo": "fifos.c", "pipe.removed": "fifogone.c", "directory.removed": "removed.c", "file.directory": "files.c", "file.deleted": "deleted.c", "inode": "deleted.c", "file.regular": "files.c",
	"pty": "ptys.c", "file.pty": "ptys.c", "file.tty": "ptys.c", "terminal": "func TestJobOfAShell",
	"seccomp": "seccomp.c", "keyring": "taskstate.c", "fdtable": "fdtable.c", "fs": "files.c", "sighand": "sigactions.c", "process": "tree.c", "thread": "threads.c", "mm": "memory.c", "mm.areas": "memory.c",
	"mapfile": "deletedmap.c", "shm": "shared.c", "vdso": "vdso.c", "pages": "memory.c", "data": "pipes.c",
	"file.socket.udp": "udp.c", "datagrams": "udp.c", "file.socket.raw": "rawsock.c", "file.socket.packet": "rawsock.c", "file.socket.netlink": "netlinks.c",
	"cow": "cow.c", "cow.ranges": "cow.c",
	"socket.unix": "unixsocks.c", "file.unix": "unixsocks.c", "link.unix": "unixsocks.c", "link.unix.queue": "unixsocks.c",
	"inode.memfd": "shared.c", "file.memfd": "shared.c",
	"ns.pid": "orphans.c", "ns.mount": "orphans.c", // whose flavours run in a pid namespace with a /proc of its own
	"ns.uts": "func TestNamespacesKept", "ns.net": "func TestNamespacesKept", "ns.time": "func TestTimeNamespace", "ns.cgroup": "func TestCgroupNamespace",
	"ns.ipc": "sysvshm.c", "ipc.shm": "sysvshm.c", "ipc.sem": "sysvsem.c", "ipc.undo": "sysvsem.c", "ipc.msg": "sysvmsg.c", "mqueue": "mqueues.c", "file.mqueue": "mqueues.c",
	"file.socket.tcp": "tcp.c", "hold.tcp": "func TestTCPMigration",
	"ticket": "func TestTicketRoundTrip", "ticket.task": "func TestTicketRoundTrip",
}

func TestEveryKindHasATest(t *testing.T) {
	functions := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil // being written this moment; its own package says so
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				functions[fn.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for typ := range schemas() {
		where, ok := witness[typ]
		if name, isFunc := strings.CutPrefix(where, "func "); isFunc {
			ok = functions[name]
		} else if ok {
			_, err := os.Stat(filepath.Join("..", "test", "testdata", "prog", where))
			ok = err == nil
		}
		if !ok {
			t.Errorf("kind %s has no test: %q", typ, where)
		}
	}
}
