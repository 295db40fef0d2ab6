package memory

import (
	"errors"
	"strings"
	"testing"

	"crpipe/engine/object"
	"crpipe/stream"
)

// TestRefusals dumps a process with mappings of many kinds that cannot be kept: all are named, at once.
func TestRefusals(t *testing.T) {
	needRoot(t)
	pid, said := startSaying(t, "strange "+t.TempDir())
	d := newDumper(t)
	if err := Dump(d, process(t, pid)); err != nil {
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
