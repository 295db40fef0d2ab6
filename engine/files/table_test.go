package files_test

import (
	"slices"
	"strings"
	"testing"

	"crpipe/engine/files"
	"crpipe/engine/files/filestest"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// childrenOf returns the children of any thread of a process, stopped.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	tids, err := procfs.Threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, tid := range tids {
		children, err := procfs.ReadChildren(pid, tid)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, children...)
	}
	slices.Sort(all)
	for _, pid := range all {
		(&filestest.Child{PID: pid}).Stop(t)
	}
	return all
}

func TestSharedTables(t *testing.T) {
	view := filestest.View(t)
	c := filestest.Start(t, "family")
	children := childrenOf(t, c.PID)
	if len(children) != 2 {
		t.Fatalf("children %v", children)
	}
	d := filestest.Dumper(t, view, c.PID, children[0], children[1])
	image := filestest.Dump(t, d)
	parent, sharer, copier := d.Processes[0], d.Processes[1], d.Processes[2]
	if parent.Files.IsZero() || parent.Files != sharer.Files || parent.Files == copier.Files {
		t.Errorf("tables %v, %v, %v: the first two are one, the third is not", parent.Files, sharer.Files, copier.Files)
	}
	if parent.FS.IsZero() || parent.FS != sharer.FS || parent.FS == copier.FS {
		t.Errorf("directories %v, %v, %v: the first two are one, the third is not", parent.FS, sharer.FS, copier.FS)
	}
	r, err := filestest.Restore(t, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	byFD := func(p *object.Process) map[int32]files.TableEntry {
		s, err := object.State[files.TableState](r.Plan, p.Files)
		if err != nil {
			t.Fatal(err)
		}
		out := map[int32]files.TableEntry{}
		for _, e := range s.Entries {
			out[e.FD] = e
		}
		return out
	}
	one, other := byFD(parent), byFD(copier)
	for _, fd := range []int32{20, 21, 22} {
		if one[fd].File.IsZero() || one[fd].File != other[fd].File {
			t.Errorf("descriptor %d leads to %v and %v, which were one open file", fd, one[fd].File, other[fd].File)
		}
	}
	if _, ok := other[23]; ok || one[23].File.IsZero() {
		t.Error("23 belongs to the parent alone")
	}

	// Without the second child the pipe is shared with the outside. The kernel counts who holds it; no link tells.
	got := refused(t, filestest.Look(t, filestest.Dumper(t, view, c.PID, children[0])))
	for _, fd := range []int{20, 21} {
		if !strings.Contains(strings.Join(got[fd], ""), "held outside of the tree") {
			t.Errorf("fd %d: %q", fd, got[fd])
		}
	}
	if len(got) != 2 {
		t.Errorf("refused %v, want 20 and 21", got)
	}
}
