package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/ipc"
	"crpipe/engine/memory"
	"crpipe/engine/object"
	"crpipe/stream"
)

// synthIPC is synth with one System V object of each type in an IPC namespace, or without one in that of the test.
func synthIPC(t testing.TB, pid int32, own bool) image {
	t.Helper()
	perm := func(id, key int32) ipc.Perm { return ipc.Perm{ID: id, Key: key, Mode: 0o600} }
	im := synth(t, pid)
	at := slices.IndexFunc(im, func(r rec) bool { return r.typ == "mm" })
	put := func(typ stream.Type, ref uint32, state any) stream.Ref {
		im = slices.Insert(im, at, rec{typ: typ, ref: ref, meta: tree(t, state)})
		at++
		return stream.Ref{ID: ref, Class: typ.Class()}
	}
	if own {
		put("ns.ipc", 0, &ipc.NamespaceState{Settings: []ipc.Setting{{Name: "kernel/msgmnb", Values: []uint64{1 << 16}}, {Name: "kernel/sem", Values: []uint64{10, 20, 30, 40}}}})
	}
	shm := put("ipc.shm", 2001, &memory.Segment{Perm: perm(30000*32768+20001, 0x70000001), Size: 8192, Attached: true})
	sem := put("ipc.sem", 2002, &ipc.SemSet{Perm: perm(30000*32768+20002, 0x70000002), Operated: true, Values: []uint32{1, 2}})
	put("ipc.undo", 0, &ipc.SemUndo{Thread: pid, Of: sem, Adjust: []int32{-32768, 32767}})
	msg := put("ipc.msg", 2003, &ipc.MsgQueue{Perm: perm(30000*32768+20003, 0x70000003), MaxBytes: 16384, Types: []int64{1, 5}, Sizes: []uint32{3, 4}, Sent: true, Received: true})
	areas := &im.find(t, "mm.areas", 0).meta
	list, _ := areas.Get("areas")
	areas.Set("areas", append(list.([]any), stream.Map{{Name: "start", Value: 0x700000}, {Name: "end", Value: 0x702000}, {Name: "perms", Value: "rw-s"}, {Name: "flags", Value: "mw"}, {Name: "of", Value: shm}}))
	im = append(im, rec{typ: "pages", meta: tree(t, &memory.Pages{Of: shm}), payload: bytes.Repeat([]byte{7}, 4096)},
		rec{typ: "data", meta: tree(t, &object.Data{Of: msg}), payload: []byte("abcdefg")})
	return im
}

func TestPlanSysVHostile(t *testing.T) {
	change := func(typ stream.Type, path string, v any) func(image) image {
		return func(im image) image { set(&im.find(t, typ, 0).meta, path, v); return im }
	}
	area := func(path string, v any) func(image) image {
		return func(im image) image {
			list, _ := im.find(t, "mm.areas", 0).meta.Get("areas")
			a := list.([]any)[2].(stream.Map)
			set(&a, path, v)
			list.([]any)[2] = a
			return im
		}
	}
	twice := func(typ stream.Type) func(image) image {
		return func(im image) image {
			r := *im.find(t, typ, 0)
			if r.ref != 0 {
				r.ref += 1000
			}
			return slices.Insert(im, slices.IndexFunc(im, func(r rec) bool { return r.typ == "process" }), r)
		}
	}
	setting := func(name string, values ...any) func(image) image {
		return change("ns.ipc", "settings", []any{stream.Map{{Name: "name", Value: name}, {Name: "values", Value: values}}})
	}
	valid := synthIPC(t, somePID, true)
	for _, c := range []struct {
		name   string
		change func(image) image
		want   string
	}{
		{"valid", func(im image) image { return im }, ""},
		{"two namespaces", twice("ns.ipc"), "two IPC namespaces"},
		{"two segments of one id", twice("ipc.shm"), "two objects"},
		{"two sets of one id", twice("ipc.sem"), "two objects"},
		{"two queues of one key", func(im image) image { return change("ipc.msg", "perm.id", 77)(twice("ipc.msg")(im)) }, "two objects"},
		{"a setting of everybody", setting("kernel/core_pattern", 1), "the setting"},
		{"a setting that leads away", setting("kernel/../../../etc/passwd", 1), "the setting"},
		{"a setting with too many values", setting("kernel/shmmni", 1, 2), "2 values"},
		{"a setting without", setting("kernel/shmmni"), "0 values"},
		{"a negative id", change("ipc.sem", "perm.id", -1), "id -1"},
		{"a mode with more bits", change("ipc.msg", "perm.mode", 0o1777), "mode"},
		{"a user that there cannot be", change("ipc.shm", "perm.uid", uint32(math.MaxUint32)), "owner"},
		{"a segment of nothing", change("ipc.shm", "size", 0), "0 bytes"},
		{"a segment of everything", change("ipc.shm", "size", uint64(math.MaxUint64)), "bytes"},
		{"a destroyed segment with a key", change("ipc.shm", "dest", true), "key"},
		{"a mapped segment that nobody attached", change("ipc.shm", "attached", false), "nobody ever attached"},
		{"a private mapping", area("perms", "rw-p"), "private"},
		{"behind the end", area("offset", 4096), "more of System V"},
		{"far behind the end", area("offset", uint64(1<<61)), "more of System V"},
		{"writable and read-only", area("flags", ""), "not"},
		{"a mapping of semaphores", area("of", stream.Ref{ID: 2002, Class: "ipc"}), "does not belong"},
		{"pages of semaphores", func(im image) image {
			set(&im.find(t, "pages", 2).meta, "of", stream.Ref{ID: 2002, Class: "ipc"})
			return im
		}, "does not belong"},
		{"no semaphores", change("ipc.sem", "values", []any{}), "0 System V semaphores"},
		{"a value too high", change("ipc.sem", "values", []any{1, 32768}), "32768"},
		{"a negative process", change("ipc.sem", "pids", []any{1, -1}), "value"},
		{"processes of some", change("ipc.sem", "pids", []any{1}), "1 processes"},
		{"adjustments of memory", change("ipc.undo", "of", stream.Ref{ID: 2001, Class: "ipc"}), "does not belong"},
		{"adjustments of some", change("ipc.undo", "adjust", []any{1}), "1 adjustments"},
		{"an adjustment too large", change("ipc.undo", "adjust", []any{1, 32768}), "32768"},
		{"adjustments of nobody", change("ipc.undo", "thread", 77), "thread 77"},
		{"adjustments of what nobody operated on", change("ipc.sem", "operated", false), "nobody operated"},
		{"a type of message that there is not", change("ipc.msg", "types", []any{1, 0}), "type 0"},
		{"more sizes than types", change("ipc.msg", "types", []any{1}), "2 sizes"},
		{"messages that nobody sent", change("ipc.msg", "sent", false), "message queue"},
		{"large messages", change("ipc.msg", "sizes", []any{uint32(math.MaxUint32), uint32(math.MaxUint32)}), "message queue"},
		{"a limit without limits", change("ipc.msg", "qbytes", uint64(math.MaxUint64)), "message queue"},
	} {
		data, err := c.change(valid.clone(t)).encode(header())
		if err != nil {
			t.Errorf("%s: the writer refuses it, so that nothing is tested: %v", c.name, err)
			continue
		}
		if err = plan(t, c.name, data); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
}

// Message queues that cannot be are refused, and nothing of them stays.
func TestRestoreMqueueHostile(t *testing.T) {
	needRoot(t)
	name := fmt.Sprintf("crpipe-hostile-%d", os.Getpid())
	make := func(pid int32, own bool) image {
		im := synth(t, pid)
		q := stream.Map{{Name: "name", Value: name}, {Name: "mode", Value: 0o600}, {Name: "uid", Value: 0}, {Name: "gid", Value: 0}, {Name: "atime", Value: 0}, {Name: "mtime", Value: 0},
			{Name: "maxmsg", Value: 3}, {Name: "msgsize", Value: 10}, {Name: "priorities", Value: []any{7, 7, 1}}, {Name: "sizes", Value: []any{0, 4, 0}}}
		queue := stream.Ref{ID: 2001, Class: "mqueue"}
		objects := []rec{{typ: "mqueue", ref: 2001, meta: q},
			{typ: "file.mqueue", ref: 2002, meta: stream.Map{{Name: "queue", Value: queue}, {Name: "flags", Value: 2}}}}
		if own {
			objects = append([]rec{{typ: "ns.ipc", meta: stream.Map{{Name: "settings", Value: []any{}}}}}, objects...)
		}
		table := im.find(t, "fdtable", 0)
		table.meta.Set("entries", []any{stream.Map{{Name: "fd", Value: 5}, {Name: "file", Value: stream.Ref{ID: 2002, Class: "file"}}}})
		im = append(slices.Clone(objects), im...)
		return append(im, rec{typ: "data", meta: tree(t, &object.Data{Of: queue}), payload: []byte("four")})
	}
	queue := func(path string, v any) func(image) image {
		return func(im image) image { set(&im.find(t, "mqueue", 0).meta, path, v); return im }
	}
	for _, c := range []struct {
		name   string
		change func(image) image
		want   string
	}{
		{"valid", func(im image) image { return im }, ""},
		{"a process that is told", func(im image) image {
			pid, _ := im.find(t, "process", 0).meta.Get("pid")
			return queue("notify", pid)(queue("signal", 10)(im))
		}, ""},
		{"a name that leads away", queue("name", "../x"), "name"},
		{"no name", queue("name", ""), "name"},
		{"a name with a zero", queue("name", "a\x00b"), "name"},
		{"no room", queue("maxmsg", 2), "at most 2"},
		{"no messages", queue("maxmsg", 0), "at most 0"},
		{"too many messages", queue("maxmsg", 1<<20), "at most"},
		{"a message too large", queue("sizes", []any{0, 11, 0}), "11 bytes"},
		{"out of order", queue("priorities", []any{1, 7, 1}), "priority"},
		{"a priority that there is not", queue("priorities", []any{32768, 1, 1}), "priority"},
		{"more bytes than come", queue("sizes", []any{0, 5, 0}), "of its 3"},
		{"fewer bytes than come", queue("sizes", []any{0, 3, 0}), "contents at 0"},
		{"told by a thread", queue("how", 2), "is told"},
		{"told by signal 65", func(im image) image { return queue("signal", 65)(queue("notify", 1)(im)) }, "signal 65"},
		{"told who is not there", queue("notify", 77), "process 77"},
		{"told who has not opened it", func(im image) image {
			im.find(t, "fdtable", 0).meta.Set("entries", []any{})
			pid, _ := im.find(t, "process", 0).meta.Get("pid")
			return queue("notify", pid)(im)
		}, "has not open"},
		{"flags of another file", func(im image) image { set(&im.find(t, "file.mqueue", 0).meta, "flags", 0o100); return im }, "flags"},
		{"no access", func(im image) image { set(&im.find(t, "file.mqueue", 0).meta, "flags", 3); return im }, "flags"},
	} {
		for _, own := range []bool{true, false} {
			pid := freePIDs(t)
			data, err := c.change(make(pid, own)).encode(header())
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			fds := openFiles(t)
			restored, err := Restore(context.Background(), bytes.NewReader(data), RestoreOptions{})
			if err == nil {
				_ = unix.Kill(int(pid+2), unix.SIGKILL)
				_ = unix.Kill(restored.Root, unix.SIGKILL)
			}
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || statusOf(err) != object.ExitBadStream) {
				t.Errorf("%s, own namespace %v: %v, want an error with %q", c.name, own, err, c.want)
			}
			if gone := errors.Is(sys.MqUnlink(name), unix.ENOENT); gone != (own || c.want != "") {
				t.Errorf("%s, own namespace %v: the queue is gone: %v", c.name, own, gone)
			}
			if n := openFiles(t); n != fds {
				t.Errorf("%s: %d descriptors are open, before %d", c.name, n, fds)
			}
		}
	}
}

// Nothing of an image that turns out to be wrong stays, in a namespace of its own or in that of the caller.
func TestRestoreSysVHostile(t *testing.T) {
	needRoot(t)
	objects := func() (all string) {
		for _, name := range []string{"shm", "sem", "msg"} {
			b, err := os.ReadFile("/proc/sysvipc/" + name)
			if err != nil {
				t.Skip(err)
			}
			for _, line := range strings.Split(string(b), "\n") {
				if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "187904819") { // 0x7000000?
					all += name + " " + f[1] + "\n"
				}
			}
		}
		return all
	}
	for _, c := range []struct {
		name   string
		change func(image) image
		works  bool
	}{
		{"valid", func(im image) image { return im }, true},
		{"pages behind the end", func(im image) image { set(&im.find(t, "pages", 2).meta, "addr", 8192); return im }, false},
		{"pages of no contents", func(im image) image {
			im = append(im, rec{typ: "data", meta: tree(t, &object.Data{Of: stream.Ref{ID: 2002, Class: "ipc"}}), payload: []byte("x")})
			return im
		}, false},
		{"messages cut short", func(im image) image { im[len(im)-1].payload = []byte("abcd"); return im }, false},
		{"messages too long", func(im image) image { im[len(im)-1].payload = []byte("abcdefgh"); return im }, false},
		{"messages out of order", func(im image) image { set(&im[len(im)-1].meta, "offset", 3); return im }, false},
		{"an id of another index", func(im image) image { set(&im.find(t, "ipc.msg", 0).meta, "perm.id", math.MaxInt32); return im }, true},
	} {
		for _, own := range []bool{true, false} {
			pid := freePIDs(t)
			data, err := c.change(synthIPC(t, pid, own)).encode(header())
			if err != nil {
				t.Fatal(err)
			}
			fds := openFiles(t)
			restored, err := Restore(context.Background(), bytes.NewReader(data), RestoreOptions{})
			if err == nil {
				_ = unix.Kill(int(pid+2), unix.SIGKILL)
				_ = unix.Kill(restored.Root, unix.SIGKILL)
				if !own {
					for _, typ := range []stream.Type{"ipc.shm", "ipc.sem", "ipc.msg"} {
						m := c.change(synthIPC(t, pid, own)).find(t, typ, 0).meta
						p, _ := m.Get("perm")
						id, _ := p.(stream.Map).Get("id")
						n, err := strconv.ParseInt(fmt.Sprint(id), 10, 32)
						if err == nil {
							err = ipc.Type(typ[4:]).RemoveNow(int32(n))
						}
						if err != nil {
							t.Errorf("%s: %s %v: %v", c.name, typ, id, err)
						}
					}
				}
			}
			if (err == nil) != c.works {
				t.Errorf("%s, own namespace %v: %v", c.name, own, err)
			}
			if left := objects(); left != "" {
				t.Errorf("%s, own namespace %v: left behind: %s", c.name, own, left)
			}
			if n := openFiles(t); n != fds {
				t.Errorf("%s: %d descriptors are open, before %d", c.name, n, fds)
			}
		}
	}
}
