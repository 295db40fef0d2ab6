package memory

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

func native(t testing.TB) *arch.Arch {
	t.Helper()
	a, err := arch.Native()
	if err != nil {
		t.Skip(err)
	}
	return a
}

// needRoot skips a test that looks through /proc/PID/map_files.
func needRoot(t testing.TB) {
	t.Helper()
	maps, err := procfs.ReadMaps(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range maps {
		if v.Inode != 0 {
			if _, _, err := look(fmt.Sprintf("/proc/self/map_files/%x-%x", uint64(v.Start), uint64(v.End))); err != nil {
				t.Skip(err)
			}
			return
		}
	}
}

func newDumper(t testing.TB) *object.Dumper {
	return &object.Dumper{View: view(t), Arch: native(t), Warn: t.Logf}
}

// image dumps a process into an image.
func image(t testing.TB, pid int) []byte { return imageBy(t, newDumper(t), pid) }

func imageBy(t testing.TB, d *object.Dumper, pid int) []byte {
	t.Helper()
	p := process(t, pid)
	if err := Dump(d, p); err != nil {
		t.Fatal(err)
	}
	if err := d.Refusals(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: d.Arch.Name, PageSize: os.Getpagesize()})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteRecords(w), d.WriteBulk(w), w.End()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// rebuilt is a process that a test has restored the memory of.
type rebuilt struct {
	tracer *tracee.Tracer
	task   *tracee.Task
	tid    int
	arena  *tracee.Arena
	r      *object.Restorer
	ref    stream.Ref
	space  *Space
	end    func()
}

func (b *rebuilt) run(t testing.TB, add func(*tracee.Batch) error) {
	t.Helper()
	batch := b.arena.NewBatch()
	if err := add(batch); err != nil {
		t.Fatal(err)
	}
	if err := b.tracer.RunOne(b.task, batch); err != nil {
		t.Fatal(err)
	}
}

// layOut makes a process with the mappings of the only address space of an image.
func layOut(t testing.TB, plan *object.Plan, spaces map[stream.Ref]*Space) *rebuilt {
	t.Helper()
	a := native(t)
	if err := CheckHost(spaces, a); err != nil {
		t.Fatal(err)
	}
	b := &rebuilt{r: &object.Restorer{Plan: plan, Arch: a, Warn: t.Logf, PoolBase: 100}}
	var err error
	if b.arena, err = tracee.NewArena(a, 4, 1<<20); err != nil {
		t.Fatal(err)
	}
	b.tracer = tracee.NewTracer()
	b.end = sync.OnceFunc(func() {
		if err := b.tracer.KillAll(); err != nil {
			t.Error(err)
		}
		b.tracer.Close()
		_ = b.arena.Close()
		b.r.Close()
	})
	t.Cleanup(b.end)
	if err := b.r.MakeObjects(); err != nil {
		t.Fatal(err)
	}
	base, err := Hole(spaces, a, uint64(b.arena.Size()), false)
	if err != nil {
		t.Fatal(err)
	}
	if b.task, err = b.tracer.Spawn(b.arena, base); err != nil {
		t.Fatal(err)
	}
	b.tid = b.task.Tid
	for b.ref, b.space = range spaces {
	}
	b.run(t, func(batch *tracee.Batch) error {
		return b.space.Layout(b.r, batch, [2]arch.Addr{base, base + arch.Addr(b.arena.Size())})
	})
	return b
}

// rebuild restores the only address space of an image in a new process.
func rebuild(t testing.TB, img []byte) *rebuilt {
	t.Helper()
	reader, err := stream.NewReader(bytes.NewReader(img))
	if err != nil {
		t.Fatal(err)
	}
	plan, rec, err := object.ReadPlan(reader, Kinds())
	if err != nil {
		t.Fatal(err)
	}
	spaces, err := Spaces(plan, native(t))
	if err != nil {
		t.Fatal(err)
	}
	b := layOut(t, plan, spaces)
	f := NewFiller(b.r, spaces)
	if err := f.Map(b.ref, b.tid); err != nil {
		t.Fatal(err)
	}
	reader.SetBuffers(f.Buffer)
	for err = nil; rec != nil && err == nil; rec, err = reader.Next() {
		switch rec.Type {
		case object.TypePages:
			err = f.Put(rec)
		case object.TypeData:
			var meta object.Data
			if err = rec.Decode(&meta); err == nil {
				err = b.r.Content(&meta, rec.Payload)
			}
		}
		if err != nil {
			break
		}
	}
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if err := f.Wait(); err != nil {
		t.Fatal(err)
	}
	b.run(t, func(batch *tracee.Batch) error { return b.space.Finish(b.r, batch) })
	b.run(t, func(batch *tracee.Batch) error { b.space.Settle(b.r, batch); return nil })
	if err := b.space.WriteFilter(b.tid); err != nil {
		t.Fatal(err)
	}
	return b
}

// picture is smaps as lines that must be equal, without the arena and with neighbours that look alike merged.
func picture(t testing.TB, pid int, base, end arch.Addr) []string {
	t.Helper()
	list, err := procfs.ReadSmaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		start, end arch.Addr
		rest       string
		offset     uint64
		file       bool
	}
	var lines []line
	for _, v := range list {
		if v.Start >= base && v.End <= end {
			continue
		}
		codes := slices.DeleteFunc(v.Flags.Codes(), func(c string) bool { return c == "sd" })
		inode, path := v.Inode, v.Path
		if strings.HasSuffix(path, deletedSuffix) {
			inode = 0 // a new one
		}
		// Huge pages of nothing but zeros are not kept. Some kernels have their own page of zeros behind what was only read, others do not.
		huge := v.AnonHuge != 0 && !onlyZeros(t, pid, v.Start, v.Size())
		l := line{v.Start, v.End, fmt.Sprintf("%v %d:%d %d %s %v huge=%v", v.Prot, v.Major, v.Minor, inode, path, codes, huge), v.Offset, hasObject(&v.VMA)}
		if k := len(lines) - 1; k >= 0 && lines[k].end == l.start && lines[k].rest == l.rest &&
			(!l.file || lines[k].offset+uint64(lines[k].end-lines[k].start) == l.offset) {
			lines[k].end = l.end
			continue
		}
		lines = append(lines, l)
	}
	var out []string
	for _, l := range lines {
		offset := l.offset
		out = append(out, fmt.Sprintf("%x-%x %x %s", uint64(l.start), uint64(l.end), offset, l.rest))
	}
	return out
}

func onlyZeros(t testing.TB, pid int, at arch.Addr, size uint64) bool {
	t.Helper()
	f, err := os.Open(procfs.Path(pid, "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte{0}) == len(b)
}

// sameContents compares all memory of two processes in which either has pages.
func sameContents(t testing.TB, was, is int) {
	t.Helper()
	a, err := os.Open(procfs.Path(was, "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.Open(procfs.Path(is, "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	list, err := procfs.ReadMaps(was)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	x, y := make([]byte, 64*page), make([]byte, 64*page)
	for _, v := range list {
		if strings.HasPrefix(v.Path, "[v") || v.Size() > 1<<27 {
			continue
		}
		for at := v.Start; at < v.End; at += arch.Addr(len(x)) {
			n := min(int(v.End-at), len(x))
			nx, errX := a.ReadAt(x[:n], int64(at))
			ny, errY := b.ReadAt(y[:n], int64(at))
			if nx != ny || (errX == nil) != (errY == nil) {
				t.Fatalf("at %v of %s: read %d (%v) there and %d (%v) here", at, nameOf(&v), nx, errX, ny, errY)
			}
			if !bytes.Equal(x[:nx], y[:ny]) {
				for i := range x[:nx] {
					if x[i] != y[i] {
						t.Fatalf("byte at %v of %s %v: %#x there, %#x here", at+arch.Addr(i), nameOf(&v), v.Prot, x[i], y[i])
					}
				}
			}
			compared += nx
		}
	}
	if compared < 1<<20 {
		t.Fatalf("only %d bytes were compared", compared)
	}
}

func TestRoundTrip(t *testing.T) {
	needRoot(t)
	pid := start(t, t.TempDir())
	img := image(t, pid)
	if again := image(t, pid); !bytes.Equal(img, again) {
		t.Error("two dumps of the same process differ")
	}
	b := rebuild(t, img)
	end := b.task.Base + arch.Addr(b.arena.Size())
	was, is := picture(t, pid, b.task.Base, end), picture(t, b.task.Pid, b.task.Base, end)
	for i := range max(len(was), len(is)) {
		if i >= len(was) || i >= len(is) || was[i] != is[i] {
			t.Errorf("mappings differ at line %d:\nwas %s\nis  %s", i, strings.Join(was[min(i, len(was)):min(i+3, len(was))], "\n    "), strings.Join(is[min(i, len(is)):min(i+3, len(is))], "\n    "))
			break
		}
	}
	sameContents(t, pid, b.task.Pid)
	for _, name := range []string{"auxv", "cmdline", "environ", "coredump_filter"} {
		x, err1 := os.ReadFile(procfs.Path(pid, name))
		y, err2 := os.ReadFile(procfs.Path(b.task.Pid, name))
		if err1 != nil || err2 != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: %q (%v), was %q (%v)", name, y, err2, x, err1)
		}
	}
	x, _ := os.Readlink(procfs.Path(pid, "exe"))
	y, _ := os.Readlink(procfs.Path(b.task.Pid, "exe"))
	if x != y || x == "" {
		t.Errorf("exe: %q, was %q", y, x)
	}
	s, err := procfs.ReadStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	r, err := procfs.ReadStat(b.task.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range [][2]uint64{{s.StartCode, r.StartCode}, {s.EndCode, r.EndCode}, {s.StartStack, r.StartStack}, {s.StartData, r.StartData}, {s.EndData, r.EndData},
		{s.StartBrk, r.StartBrk}, {s.ArgStart, r.ArgStart}, {s.ArgEnd, r.ArgEnd}, {s.EnvStart, r.EnvStart}, {s.EnvEnd, r.EnvEnd}} {
		if f[0] != f[1] {
			t.Errorf("layout field %d is %#x, was %#x", i, f[1], f[0])
		}
	}
	b.run(t, func(batch *tracee.Batch) error {
		batch.Call(batch.Sys().Membarrier, 1<<9, 0, 0).Expect(1<<2 | 1<<4) // MEMBARRIER_CMD_GET_REGISTRATIONS
		return nil
	})
	wasGuards, _, err := guardsAndHuge(pid, native(t).TaskSize)
	if err != nil {
		t.Fatal(err)
	}
	isGuards, _, err := guardsAndHuge(b.task.Pid, native(t).TaskSize)
	if err != nil || !slices.Equal(wasGuards, isGuards) {
		t.Errorf("guard regions %x (%v), was %x", isGuards, err, wasGuards)
	}
}
