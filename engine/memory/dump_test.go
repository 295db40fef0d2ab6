package memory

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/stream"
)

// TestRefusals dumps a process with mappings of many kinds that cannot be kept: all are named, at once.
func TestRefusals(t *testing.T) {
	needRoot(t)
	pid, said := startSaying(t, "strange "+t.TempDir())
	d := newDumper(t)
	p := process(t, pid)
	d.Processes = []*object.Process{p}
	if err := Dump(d, p); err != nil {
		t.Fatal(err)
	}
	err := d.Refusals()
	var list object.Refusals
	if !errors.As(err, &list) || list.ExitCode() != object.ExitUnsupported {
		t.Fatalf("refusals: %v", err)
	}
	made := strings.Split(strings.Join(said, ""), ",")
	if len(made) < 5 {
		t.Errorf("the child could only make %q", made)
	}
	for _, want := range made {
		found := 0
		for _, err := range list {
			if strings.Contains(err.Error(), want) {
				found++
			}
		}
		if found == 0 {
			t.Errorf("nothing is refused because of %q:\n%v", want, err)
		}
	}
	for _, err := range list {
		if !strings.HasPrefix(err.Error(), "pid ") {
			t.Errorf("%v: does not say which process", err)
		}
	}
	t.Log(err)
}

// TestZeros: memory of zeros takes no room in an image, nor do reservations.
func TestZeros(t *testing.T) {
	needRoot(t)
	img := image(t, start(t, "zero 256"))
	// What is left is the test program itself.
	if len(img) > 8<<20 {
		t.Errorf("an image of %d bytes for 256 MiB of zeros", len(img))
	}
}

// TestSharedOnce: two processes with the same address space, vdso and files have one record of each.
func TestSharedOnce(t *testing.T) {
	needRoot(t)
	d := newDumper(t)
	var refs []stream.Ref
	a, b := start(t, "fill 1"), start(t, "fill 1")
	for _, pid := range []int{a, a, b} {
		p := process(t, pid)
		if err := Dump(d, p); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, p.MM)
	}
	if refs[0] != refs[1] || refs[0] == refs[2] || refs[0].Class != "mm" {
		t.Errorf("references %v", refs)
	}
	// vdso, test program, mm of a; mm of b; the numbers are given out in order.
	if refs[2].ID-refs[0].ID != 1 {
		t.Errorf("the second process adds %d objects", refs[2].ID-refs[0].ID)
	}
}

// limited is a destination that fails after some bytes.
type limited struct{ left int }

var errFull = errors.New("full")

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		n := l.left
		l.left = 0
		return n, errFull
	}
	l.left -= len(p)
	return len(p), nil
}

// TestWriters compares the two ways of writing pages, whole and when the destination fails anywhere in between.
func TestWriters(t *testing.T) {
	pid := start(t, "fill 9")
	maps, err := procfs.ReadMaps(pid)
	if err != nil {
		t.Fatal(err)
	}
	c := contents{tid: pid, pageSize: os.Getpagesize()}
	for _, v := range maps {
		if v.Prot&procfs.ProtShared == 0 && !strings.HasPrefix(v.Path, "[v") {
			c.parts = append(c.parts, part{start: v.Start, end: v.End, zeros: v.Inode != 0, readable: v.Prot&procfs.ProtRead != 0})
		}
	}
	write := func(out io.Writer, ahead bool) error {
		w, err := stream.NewWriter(out, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: os.Getpagesize()})
		if err != nil {
			return err
		}
		ref := stream.Ref{ID: w.NewRef(), Class: "mm"}
		c.serial = !ahead
		return errors.Join(w.Put(TypeMM, ref.ID, &MM{Auxv: []uint64{}}, nil), c.write(w, ref), w.End())
	}
	var one, two bytes.Buffer
	if err := errors.Join(write(&one, false), write(&two, true)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) || one.Len() < 9<<20 {
		t.Errorf("images of %d and %d bytes", one.Len(), two.Len())
	}
	for left := 0; left < one.Len(); left += one.Len()/20 + 1 {
		for _, ahead := range []bool{false, true} {
			if err := write(&limited{left}, ahead); !errors.Is(err, errFull) {
				t.Errorf("a destination that takes %d bytes, reading ahead %v: %v", left, ahead, err)
			}
		}
	}
	c.tid = 1 << 30 // nobody
	for _, ahead := range []bool{false, true} {
		if err := write(io.Discard, ahead); err == nil {
			t.Errorf("a process that does not exist was dumped, reading ahead %v", ahead)
		}
	}
}
