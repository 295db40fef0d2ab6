package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/stream"
)

// statusOf is the exit status that an error of a restore stands for (cmd/internal/cli has the whole of that).
func statusOf(err error) int {
	var c interface{ ExitCode() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &c):
		return c.ExitCode()
	case stream.BadStream(err):
		return object.ExitBadStream
	}
	return object.ExitFailed
}

// plan reads an image as cr-restore -n does. Whatever it says, it must end with success, or with status 4 or 5.
func plan(t testing.TB, what string, data []byte) error {
	t.Helper()
	defer func() {
		if p := recover(); p != nil {
			t.Fatalf("%s: panic: %v", what, p)
		}
	}()
	_, err := Restore(context.Background(), bytes.NewReader(data), RestoreOptions{DryRun: true, Plan: io.Discard})
	if s := statusOf(err); s != 0 && s != object.ExitBadStream && s != object.ExitSystem {
		t.Errorf("%s: status %d: %v", what, s, err)
	}
	return err
}

const somePID = 25000

func TestPlanHostile(t *testing.T) {
	if _, err := arch.Native(); err != nil {
		t.Skip(err)
	}
	valid := synth(t, somePID)
	data, err := valid.encode(header())
	if err != nil {
		t.Fatal(err)
	}
	if err := plan(t, "the valid image", data); err != nil {
		t.Fatalf("the valid image: %v", err)
	}
	process := func(n int, path string, v any) func(image) image {
		return func(im image) image { set(&im.find(t, "process", n).meta, path, v); return im }
	}
	thread := func(n int, path string, v any) func(image) image {
		return func(im image) image { set(&im.find(t, "thread", n).meta, path, v); return im }
	}
	drop := func(typ stream.Type, n int) func(image) image {
		return func(im image) image {
			gone := im.find(t, typ, n)
			return slices.DeleteFunc(im, func(r rec) bool { return r.typ == typ && fmt.Sprint(r.meta) == fmt.Sprint(gone.meta) })
		}
	}
	ref := func(id int, class string) stream.Ref { return stream.Ref{ID: uint32(id), Class: class} }
	regs := func(change func(r []any) []any) func(image) image {
		return func(im image) image {
			m := &im.find(t, "thread", 1).meta
			v, _ := m.Get("regs")
			m.Set("regs", change(v.([]any)))
			return im
		}
	}
	refOf := func(typ stream.Type, n int) stream.Ref { return ref(int(valid.find(t, typ, n).ref), typ.Class()) }
	for _, c := range []struct {
		name   string
		change func(image) image
		want   string // part of the error
	}{
		{"no process", func(image) image { return nil }, "no process"},
		{"no leader", drop("thread", 0), "leader"},
		{"no thread", drop("thread", 2), "no thread"},
		{"no pages of an object", func(im image) image { set(&im.find(t, "pages", 0).meta, "of", refOf("fdtable", 0)); return im }, "no memory"},
		{"pid 0", process(1, "pid", 0), ""},
		{"negative pid", process(1, "pid", -5), ""},
		{"pid above all limits", process(1, "pid", 4<<20+1), ""},
		{"two processes of one pid", process(2, "pid", somePID), ""},
		{"a zombie with the pid of a thread", process(2, "pid", somePID+1), "number of another process"},
		{"tid above all limits", thread(1, "tid", math.MaxInt32), "none that a task can have"},
		{"one tid twice", thread(1, "tid", somePID+2), "number of another process"},
		{"a thread of a zombie", func(im image) image {
			th := *im.find(t, "thread", 1)
			th.meta = copyTree(th.meta).(stream.Map)
			th.meta.Set("process", refOf("process", 2))
			th.meta.Set("tid", somePID+3)
			return slices.Insert(im, len(im)-2, th)
		}, "no live process"},
		{"a thread of no process", thread(1, "process", refOf("mm", 0)), "no live process"},
		{"a parent that is not there", process(1, "parent", 77), "parent"},
		{"its own parent", process(1, "parent", somePID+2), "parent"},
		{"a cycle", func(im image) image { return process(0, "parent", somePID+2)(im) }, "parent"},
		{"a child of a zombie", func(im image) image {
			z := im.find(t, "process", 2)
			set(&z.meta, "parent", somePID+2)
			set(&im.find(t, "process", 1).meta, "parent", somePID+3)
			return im
		}, "parent"},
		{"a zombie first", process(0, "zombie", true), ""},
		{"a group that is a thread", process(1, "group", somePID+1), "number of a thread"},
		{"a session that is a thread", process(1, "session", somePID+1), "number of a thread"},
		{"a session leader in another group", process(0, "group", somePID+2), "group"},
		{"an outside group in an inside session", process(1, "outside_group", true), "group"},
		{"no session", process(1, "session", 0), "session"},
		{"exit signal", process(1, "exit_signal", 65), "exit signal"},
		{"stop signal", process(1, "stop_signal", 9), "stopped by signal"},
		{"oom_score_adj", process(1, "oom_score_adj", 1001), "oom_score_adj"},
		{"too few limits", process(1, "limits", []any{1, 2}), "limits"},
		{"a soft limit above the hard one", process(1, "limits", slices.Repeat([]any{5, 4}, 16)), "above hard"},
		{"a zombie killed by SIGCHLD", process(2, "wait_status", 17), "kills nobody"},
		{"a zombie with core", process(2, "wait_status", 0x80|11), "wait status"},
		{"a zombie that is stopped", process(2, "wait_status", 0x137f), "wait status"},
		{"a zombie of a large status", process(2, "wait_status", 0x10000), "wait status"},
		{"no descriptor table", process(1, "files", ref(0, "")), ""},
		{"directories as descriptor table", process(1, "files", refOf("fs", 0)), "does not belong"},
		{"actions as directories", process(1, "fs", refOf("sighand", 0)), "does not belong"},
		{"one table of actions twice", process(1, "sighand", refOf("sighand", 0)), "shares a table of signal actions, but not an address space"},
		{"SIGKILL handled", func(im image) image {
			set(&im.find(t, "sighand", 0).meta, "actions", []any{stream.Map{{Name: "signal", Value: 9}, {Name: "handler", Value: 1}}})
			return im
		}, "action for signal 9"},
		{"no registers", regs(func([]any) []any { return nil }), "no register set"},
		{"one register set", regs(func(r []any) []any { return r[:1] }), "no register set"},
		{"registers twice", regs(func(r []any) []any { return append(r, r[0]) }), "twice"},
		{"registers of another machine", regs(func(r []any) []any {
			return append(r, stream.Map{{Name: "note", Value: 0x400}, {Name: "data", Value: []byte{1}}})
		}), "does not have"},
		{"short registers", regs(func(r []any) []any {
			return []any{stream.Map{{Name: "note", Value: 1}, {Name: "data", Value: make([]byte, 208)}}, r[1]}
		}), "208 bytes"},
		{"short floating point registers", regs(func(r []any) []any {
			return []any{r[0], stream.Map{{Name: "note", Value: arch.NTX86XState}, {Name: "data", Value: make([]byte, 100)}}}
		}), ""},
		{"a long name", thread(1, "comm", "sixteen-bytes-is"), "name"},
		{"three user ids", thread(1, "creds.uid", []any{0, 0, 0}), "ids"},
		{"effective above permitted", thread(1, "creds.effective", uint64(1)<<63), "permitted"},
		{"nice", thread(1, "sched.nice", 20), "nice"},
		{"parent-death signal", thread(1, "prctl.pdeath_signal", -1), "parent-death"},
		{"a restart without a call", thread(1, "signals.restart", stream.Map{{Name: "kind", Value: 1}}), "no register shows"},
		{"a restart of no kind", thread(1, "signals.restart", stream.Map{{Name: "kind", Value: 4}}), "kind 4"},
		{"a short siginfo", thread(1, "signals.pending", []any{make([]byte, 127)}), "pending"},
		{"SIGSTOP pending", thread(1, "signals.pending", []any{append([]byte{19}, make([]byte, 127)...)}), "pending"},
		{"two interval timers", process(1, "signals.itimers", []any{stream.Map{}, stream.Map{}}), "interval timers"},
		{"negative interval timer", process(1, "signals.itimers", []any{stream.Map{{Name: "left", Value: -1}}, stream.Map{}, stream.Map{}}), "negative"},
		{"one timer twice", process(1, "signals.timers", []any{stream.Map{{Name: "id", Value: 1}}, stream.Map{{Name: "id", Value: 1}}}), "twice"},
		{"a field that nobody knows", thread(1, "creds.wings", 2), "wings"},
		{"a pid namespace without init", func(im image) image { return append(image{{typ: "ns.pid", meta: stream.Map{}}}, im...) }, "without its init"},
		{"a parent thread that is not there", process(1, "parent_thread", 77), "has no thread 77"},
		{"a parent thread without a parent", process(0, "parent_thread", somePID+1), "as its parent"},
		{"a parent thread of a zombie", process(2, "parent_thread", somePID+1), "zombie with threads"},
		{"a dead leader that lives", process(0, "leader_dead", true), "its leader is not its first thread"},
		{"a dead leader killed by a signal", func(im image) image {
			set(&im.find(t, "process", 1).meta, "leader_dead", true)
			return process(1, "wait_status", 9)(im)
		}, ""},
		{"a process of a dead leader alone", func(im image) image {
			set(&im.find(t, "process", 1).meta, "leader_dead", true)
			last := im.find(t, "thread", 2)
			return slices.DeleteFunc(im, func(r rec) bool { return r.typ == "thread" && fmt.Sprint(r.meta) == fmt.Sprint(last.meta) })
		}, "no thread"},
		{"a thread with memory for a descriptor table", thread(1, "files", refOf("mm", 0)), "does not belong"},
		{"a thread with descriptors for directories", thread(1, "fs", refOf("fdtable", 0)), "does not belong"},
		{"an address space between those that share it", func(im image) image {
			// The child of the child has the first one's memory, and only the child could make it.
			p, th := *im.find(t, "process", 1), *im.find(t, "thread", 2)
			p.ref, p.meta, th.meta = 1003, copyTree(p.meta).(stream.Map), copyTree(th.meta).(stream.Map)
			mm, _ := im.find(t, "process", 0).meta.Get("mm")
			act := rec{typ: "sighand", ref: 1002, meta: im.find(t, "sighand", 0).meta}
			for name, v := range map[string]any{"pid": somePID + 4, "parent": somePID + 2, "mm": mm, "sighand": ref(1002, "sighand")} {
				set(&p.meta, name, v)
			}
			set(&th.meta, "process", ref(1003, "process"))
			set(&th.meta, "tid", somePID+4)
			return slices.Insert(im, len(im)-2, act, p, th)
		}, "share an address space"},
	} {
		data, err := c.change(valid.clone(t)).encode(header())
		if err != nil {
			t.Errorf("%s: the writer refuses it, so that nothing is tested: %v", c.name, err)
			continue
		}
		err = plan(t, c.name, data)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
	for name, h := range map[string]stream.Header{
		"an unknown feature":        {Content: stream.ContentImage, Arch: "amd64", PageSize: 4096, Requires: []string{"wings"}},
		"a ticket":                  {Content: stream.ContentTicket, Arch: "amd64", PageSize: 4096},
		"another architecture":      {Content: stream.ContentImage, Arch: "s390x", PageSize: 4096},
		"pages of another size":     {Content: stream.ContentImage, Arch: "amd64", PageSize: 65536},
		"an architecture of nobody": {Content: stream.ContentImage, Arch: "pdp11", PageSize: 4096},
	} {
		data, err := valid.encode(h)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := plan(t, name, data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// mutate changes the n-th place of a value tree; it returns how many places there are.
func mutate(v any, n int, change func(any) any) (out any, places int) {
	if n == 0 {
		return change(v), 1
	}
	places = 1
	visit := func(e any) any {
		var k int
		e, k = mutate(e, n-places, change)
		places += k
		return e
	}
	switch v := v.(type) {
	case stream.Map:
		for i := range v {
			v[i].Value = visit(v[i].Value)
		}
	case []any:
		for i := range v {
			v[i] = visit(v[i])
		}
	}
	return v, places
}

var hostileNumbers = []any{0, 1, -1, math.MaxInt32, int64(math.MinInt32), uint32(math.MaxUint32), int64(math.MaxInt64), int64(math.MinInt64), uint64(math.MaxUint64), 4095, somePID, somePID + 1}

// hostileValues are what a value is replaced by.
func hostileValues(v any) []any {
	switch v := v.(type) {
	case uint64, int64:
		return hostileNumbers
	case string:
		return []any{"", "x\x00y", strings.Repeat("/x", 5000), "\xff\xfe", v + "\n"}
	case []byte:
		return []any{[]byte{}, v[:len(v)/2], append(slices.Clone(v), v...), bytes.Repeat([]byte{0xff}, len(v))}
	case []any:
		if len(v) == 0 {
			return []any{[]any{1}}
		}
		return []any{[]any{}, v[1:], append(slices.Clone(v), v[0]), slices.Repeat(v, 200)}
	case bool:
		return []any{!v}
	case stream.Map:
		return []any{stream.Map{}, nil}
	case stream.Ref:
		return []any{stream.Ref{}, nil, stream.Ref{ID: 1, Class: "fdtable"}, stream.Ref{ID: 3, Class: "mm"}}
	}
	return []any{nil, 1, "x"}
}

// Every place of a valid image is replaced by everything that it must not be.
func TestPlanMutations(t *testing.T) {
	if _, err := arch.Native(); err != nil {
		t.Skip(err)
	}
	valid := synth(t, somePID)
	planned, refused := 0, 0
	for i := range valid {
		for n := 0; ; n++ {
			var values []any
			_, places := mutate(copyTree(valid[i].meta), n, func(v any) any { values = hostileValues(v); return v })
			if n >= places {
				break
			}
			for _, value := range values {
				im := valid.clone(t)
				changed, _ := mutate(im[i].meta, n, func(any) any { return value })
				im[i].meta, _ = changed.(stream.Map)
				data, err := im.encode(header())
				if err != nil {
					continue // the writer's own checks
				}
				planned++
				if err := plan(t, fmt.Sprintf("record %d (%s), place %d = %.40q", i+1, valid[i].typ, n, fmt.Sprint(value)), data); err != nil {
					refused++
				}
			}
		}
		for name, im := range map[string]image{
			"dropped": slices.Delete(valid.clone(t), i, i+1),
			"doubled": slices.Insert(valid.clone(t), i, rec{typ: valid[i].typ, meta: valid[i].meta, payload: valid[i].payload}),
			"last":    append(slices.Delete(valid.clone(t), i, i+1), valid[i]),
			"empty":   slices.Replace(valid.clone(t), i, i+1, rec{typ: valid[i].typ, ref: valid[i].ref, meta: stream.Map{}}),
		} {
			if data, err := im.encode(header()); err == nil {
				planned++
				if plan(t, fmt.Sprintf("record %d (%s) %s", i+1, valid[i].typ, name), data) != nil {
					refused++
				}
			}
		}
	}
	t.Logf("%d images planned, %d refused", planned, refused)
	if planned < 1000 || refused < planned/3 {
		t.Errorf("%d images planned, %d refused: the mutations miss their aim", planned, refused)
	}
}

// FuzzPlan changes one place of a valid image to whatever the fuzzer thinks of.
func FuzzPlan(f *testing.F) {
	if _, err := arch.Native(); err != nil {
		f.Skip(err)
	}
	valid := synth(f, somePID)
	f.Add(uint8(0), uint16(0), uint8(0), int64(0), []byte(nil))
	f.Add(uint8(9), uint16(3), uint8(1), int64(-1), []byte("x"))
	f.Fuzz(func(t *testing.T, record uint8, place uint16, kind uint8, number int64, text []byte) {
		im := valid.clone(t)
		r := &im[int(record)%len(im)]
		changed, _ := mutate(r.meta, int(place), func(old any) any {
			switch kind % 6 {
			case 0:
				return number
			case 1:
				return uint64(number)
			case 2:
				return string(text)
			case 3:
				return text
			case 4:
				return slices.Repeat([]any{old}, int(uint8(number)))
			}
			return stream.Ref{ID: uint32(number), Class: "mm"}
		})
		r.meta, _ = changed.(stream.Map)
		if data, err := im.encode(header()); err == nil {
			_ = plan(t, "fuzz", data) // that it fails no otherwise than it may is checked there
		}
	})
}

// An image that is wrong where only acting on it shows that is undone: no task, no descriptor, nothing stays.
func TestRestoreHostile(t *testing.T) {
	needRoot(t)
	late := func(typ stream.Type, n int, path string, v any) func(image) image {
		return func(im image) image { set(&im.find(t, typ, n).meta, path, v); return im }
	}
	gp := func(word int, v uint64) func(image) image {
		return func(im image) image {
			m := &im.find(t, "thread", 2).meta
			regs, _ := m.Get("regs")
			one := regs.([]any)[0].(stream.Map)
			data, _ := one.Get("data")
			b := slices.Clone(data.([]byte))
			binary.LittleEndian.PutUint64(b[8*word:], v)
			one.Set("data", b)
			return im
		}
	}
	for _, c := range []struct {
		name   string
		change func(image) image
		cut    int // bytes off the end of the stream
	}{
		{"a code segment of the kernel's", gp(17, 0x10), 0},
		{"an fs base of the kernel's", gp(21, 0xffff888000000000), 0},
		{"pages outside of every mapping", late("pages", 1, "addr", uint64(dataAt+0x100000)), 0},
		{"pages at the end of the address space", late("pages", 1, "addr", uint64(0xfffffffffffff000)), 0},
		{"contents of what has none", func(im image) image {
			return append(im, rec{typ: "data", meta: tree(t, &object.Data{Of: stream.Ref{ID: 1, Class: "fdtable"}}), payload: []byte("x")})
		}, 0},
		{"a kind of record after the contents", func(im image) image { return append(im, rec{typ: "fdtable", ref: 999, meta: stream.Map{}}) }, 0},
		{"a timer of no clock", late("process", 1, "signals.timers", []any{stream.Map{{Name: "id", Value: 3}, {Name: "clock", Value: 99}}}), 0},
		{"a stand-in for a group leader in a stream without its end", func(im image) image {
			pid, _ := im.find(t, "process", 1).meta.Get("pid")
			return late("process", 1, "group", pid.(uint64)+2)(im)
		}, 60},
		{"rseq in the air", late("thread", 2, "rseq", uint64(dataAt+0x100000)), 0},
		{"an alternate stack of one byte", func(im image) image {
			return late("thread", 2, "signals.altstack_size", 1)(late("thread", 2, "signals.altstack_sp", dataAt)(im))
		}, 0},
		{"a stream without its end", func(im image) image { return im }, 40},
		{"a stream without its last byte", func(im image) image { return im }, 1},
		{"a working directory that is not there", late("fs", 0, "cwd", "/nowhere/at/all"), 0},
		{"a policy of nobody", late("thread", 2, "sched.policy", 77), 0},
		{"a limit above everything", late("process", 1, "limits", slices.Repeat([]any{uint64(math.MaxUint64)}, 32)), 0},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			pid := freePIDs(t)
			data, err := c.change(synth(t, pid)).encode(header())
			if err != nil {
				t.Fatal(err)
			}
			before, fds := children(t), openFiles(t)
			restored, err := Restore(context.Background(), bytes.NewReader(data[:len(data)-c.cut]), RestoreOptions{})
			if err == nil {
				_ = unix.Kill(restored.Root, unix.SIGKILL)
				t.Fatal("it was restored")
			}
			t.Log(err)
			for _, child := range children(t) { // those of earlier tests may be gone by now
				if !slices.Contains(before, child) {
					t.Errorf("child %d is left; before there were %v", child, before)
				}
			}
			for i := range int32(5) {
				// A zombie whose parent was killed with it is init's to bury.
				if st, err := procfs.ReadStat(int(pid + i)); err == nil && st.Comm == "synth" && (st.State != 'Z' || st.PPID == os.Getpid()) {
					t.Errorf("process %d is left, state %c, parent %d", pid+i, st.State, st.PPID)
				}
			}
			if n := openFiles(t); n != fds {
				t.Errorf("%d descriptors are open, before %d", n, fds)
			}
		})
	}
}
