package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/stream"
)

// startForked starts a process with that much memory and a child that has it too, and stops both.
func startForked(t testing.TB, mib int) (parent, kid int) {
	t.Helper()
	parent, said := startSaying(t, "fork "+strconv.Itoa(mib))
	if len(said) != 1 {
		t.Fatalf("the child says %q", said)
	}
	kid, err := strconv.Atoi(said[0])
	if err != nil || kid <= 0 {
		t.Fatalf("the child says %q", said)
	}
	if err := unix.Kill(kid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if st, err := procfs.ReadStat(kid); err == nil && st.State == 'T' {
			return parent, kid
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the child's child does not stop")
	return 0, 0
}

// frames returns the page table entries of the anonymous pages of a process's private mappings.
func frames(t testing.TB, pid int) map[arch.Addr]uint64 {
	t.Helper()
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(procfs.Path(pid, "pagemap"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[arch.Addr]uint64{}
	for _, v := range maps {
		if v.Prot&procfs.ProtShared != 0 || v.Size() > 1<<30 || v.Path == "[vsyscall]" {
			continue
		}
		b := make([]byte, v.Size()/page*8)
		if _, err := f.ReadAt(b, int64(v.Start/page*8)); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(b); i += 8 {
			if e := binary.NativeEndian.Uint64(b[i:]); e&(pagemapPresent|pagemapFile) == pagemapPresent {
				out[v.Start+arch.Addr(i/8*page)] = e
			}
		}
	}
	return out
}

// TestNothingUnshared: what parent and child share since the fork they still share after a dump of both.
func TestNothingUnshared(t *testing.T) {
	needRoot(t)
	parent, kid := startForked(t, 3)
	pids := []int{parent, kid}
	var before []map[arch.Addr]uint64
	for _, pid := range pids {
		before = append(before, frames(t, pid))
	}
	shared := 0
	const frame = 1<<55 - 1
	for at, e := range before[0] {
		if e&frame != 0 && before[1][at]&frame == e&frame {
			shared++
		}
	}
	if shared < 3<<8 {
		t.Fatalf("only %d pages are shared beforehand", shared)
	}
	d := newDumper(t)
	for _, pid := range pids {
		if err := Dump(d, process(t, pid)); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: d.Arch.Name, PageSize: os.Getpagesize()})
	if err := errors.Join(err, d.Refusals(), d.WriteRecords(w), d.WriteBulk(w), w.End()); err != nil {
		t.Fatal(err)
	}
	for i, pid := range pids {
		wrong := 0
		after := frames(t, pid)
		for at, e := range before[i] {
			if after[at] != e {
				t.Logf("%x: %x, was %x, the other %x", at, after[at], e, before[1-i][at])
				wrong++
			}
		}
		if wrong > 0 || len(after) != len(before[i]) {
			t.Errorf("process %d of 2: %d of its %d pages are not what they were, and it has %d pages now", i+1, wrong, len(before[i]), len(after))
		}
	}
}

// imageOfAll dumps processes into one image, with what they share in it once.
func imageOfAll(t testing.TB, pids ...int) []byte {
	t.Helper()
	d := newDumper(t)
	for _, pid := range pids {
		p := process(t, pid)
		d.Processes = append(d.Processes, p)
		if err := Dump(d, p); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: d.Arch.Name, PageSize: os.Getpagesize()})
	if err := errors.Join(err, Share(d), d.Refusals(), d.WriteRecords(w), d.WriteBulk(w), w.End()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestSharedPagesOnce: what parent and child have in common is in the image once.
func TestSharedPagesOnce(t *testing.T) {
	needRoot(t)
	parent, kid := startForked(t, 8)
	if one, both := len(imageOfAll(t, parent)), len(imageOfAll(t, parent, kid)); one < 8<<20 || both > one+1<<20 {
		t.Errorf("the image of one process has %d bytes, that of both %d", one, both)
	}
}

// TestPlainPageMap: a kernel without PAGEMAP_SCAN has the same images.
func TestPlainPageMap(t *testing.T) {
	needRoot(t)
	parent, kid := startForked(t, 3)
	for name, pids := range map[string][]int{"zoo": {start(t, t.TempDir())}, "forked": {parent, kid}, "zeros": {start(t, "zero 8")}} {
		want := imageOfAll(t, pids...)
		plainPageMap = true
		got := imageOfAll(t, pids...)
		plainPageMap = false
		if !bytes.Equal(got, want) {
			t.Errorf("%s: an image of %d bytes, and with PAGEMAP_SCAN of %d", name, len(got), len(want))
		}
	}
}
