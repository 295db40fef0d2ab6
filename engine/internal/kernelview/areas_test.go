//go:build amd64

package kernelview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// areasOf asks for the mappings of a process that stands still.
func areasOf(t testing.TB, v *bpfView, pid int) []Area {
	t.Helper()
	a, err := v.Areas(pid)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Known {
		t.Fatal("this kernel does not let mappings be known")
	}
	return a.V
}

// areaAt returns the mapping that begins at an address.
func areaAt(t testing.TB, v *bpfView, pid int, at uint64) *Area {
	t.Helper()
	for _, a := range areasOf(t, v, pid) {
		if uint64(a.Start) == at {
			return &a
		}
	}
	t.Fatalf("no mapping begins at %#x", at)
	return nil
}

// differ says where areas and smaps tell different things of one process.
func differ(areas []Area, list []procfs.SmapsVMA) string {
	if n := len(list); n > 0 && list[n-1].Path == "[vsyscall]" {
		list = list[:n-1]
	}
	if len(areas) != len(list) {
		return fmt.Sprintf("%d areas, %d lines", len(areas), len(list))
	}
	for i := range list {
		a, s := &areas[i], &list[i]
		hasFile := s.Inode != 0 || s.Major != 0 || s.Minor != 0
		switch {
		case a.Start != s.Start || a.End != s.End:
			return fmt.Sprintf("%v-%v and %v-%v", a.Start, a.End, s.Start, s.End)
		case a.Flags.Known && a.Flags.V != strings.Replace(strings.Join(s.Flags.Codes(), " "), "lo ??", "lo lf", 1): // before Linux 6.18
			return fmt.Sprintf("%v-%v %s has the flags %q, and %q", s.Start, s.End, s.Path, s.Flags, a.Flags.V)
		case hasFile != (a.File != 0), hasFile && a.Offset != s.Offset:
			return fmt.Sprintf("%v-%v %s at %#x: file %v at %#x", s.Start, s.End, s.Path, s.Offset, a.File, a.Offset)
		case a.Named.Known && a.Named.V != strings.HasPrefix(s.Path, "[anon:") && !hasFile:
			return fmt.Sprintf("%v-%v %s: named %v", s.Start, s.End, s.Path, a.Named)
		}
	}
	return ""
}

// TestAreasAhead: what is read of many processes at once is what is read of each, once, and until the next moment.
func TestAreasAhead(t *testing.T) {
	v := view(t)
	one, two := newChild(t).pid(), newChild(t).pid()
	want := map[int][]Area{one: areasOf(t, v, one), two: areasOf(t, v, two)}
	v.AreasAhead([]int{two, one, two}) // the one twice, as by two threads
	if len(v.ahead) != 2 {
		t.Errorf("%d of 2 address spaces were read ahead", len(v.ahead))
	}
	for pid, areas := range want {
		if got := areasOf(t, v, pid); !reflect.DeepEqual(got, areas) {
			t.Errorf("pid %d: %v read ahead, %v by itself", pid, got, areas)
		}
	}
	if len(v.ahead) != 0 {
		t.Errorf("%d address spaces are there a second time", len(v.ahead))
	}
	v.AreasAhead([]int{one})
	now, err := sys.Now()
	if err != nil {
		t.Fatal(err)
	}
	v.SetNow(now)
	v.clocks.fixed = nil // other tests use the view too
	if len(v.ahead) != 0 {
		t.Error("what was read at another moment still counts")
	}
	v.AreasAhead([]int{one, 1 << 30}) // nobody
	if len(v.ahead) != 0 {
		t.Error("something was read ahead although one of the processes is not there")
	}
}

// TestAreasKinds compares the flags of mappings of every kind with smaps, and
// has unknown ones for what calibration did not see.
func TestAreasKinds(t *testing.T) {
	v := view(t)
	c := newChild(t)
	rw := uint64(unix.PROT_READ | unix.PROT_WRITE)
	anon := uint64(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS)
	none := ^uint64(0)
	for _, flags := range []uint64{anon, unix.MAP_SHARED | unix.MAP_ANONYMOUS, anon | unix.MAP_NORESERVE, anon | unix.MAP_GROWSDOWN} {
		for prot := range uint64(8) {
			c.must(unix.SYS_MMAP, 0, 1<<16, prot, flags, none, 0)
		}
	}
	for _, advice := range []uint64{unix.MADV_DONTFORK, unix.MADV_DONTDUMP, unix.MADV_WIPEONFORK, unix.MADV_HUGEPAGE, unix.MADV_NOHUGEPAGE, unix.MADV_RANDOM, unix.MADV_SEQUENTIAL} {
		at := uint64(c.must(unix.SYS_MMAP, 0, 1<<16, rw, anon, none, 0))
		c.must(unix.SYS_MADVISE, at, 1<<14, advice)
	}
	at := uint64(c.must(unix.SYS_MMAP, 0, 1<<16, rw, anon, none, 0))
	c.must(unix.SYS_MLOCK2, at, 1<<14, mlockOnFault)
	name := c.put(0, []byte("a name\x00"))
	named := uint64(c.must(unix.SYS_MMAP, 0, 1<<16, rw, anon, none, 0))
	if _, err := c.call(unix.SYS_PRCTL, unix.PR_SET_VMA, unix.PR_SET_VMA_ANON_NAME, named, 1<<16, name); err == nil {
		same(t, "a named mapping", areaAt(t, v, c.pid(), named).Named, true)
	}
	fd := uint64(c.must(unix.SYS_OPENAT, none, c.put(64, []byte("/proc/self/exe\x00")), unix.O_RDONLY, 0))
	file := uint64(c.must(unix.SYS_MMAP, 0, 4096, unix.PROT_READ, unix.MAP_SHARED, fd, 0))
	if _, err := (&calibration{v, c.helper}).asleep(); err != nil {
		t.Fatal(err)
	}
	list, err := procfs.ReadSmaps(c.pid())
	if err != nil {
		t.Fatal(err)
	}
	areas := areasOf(t, v, c.pid())
	if d := differ(areas, list); d != "" {
		t.Error(d)
	}
	for i := range areas {
		a := &areas[i]
		// Memory that can be executed only may have a protection key of the kernel's
		// choice, and some kernels have bits that they show as ?? themselves.
		keyed := list[i].Flags.Has("ex") && !list[i].Flags.Has("rd")
		if !a.Flags.Known && !keyed && !list[i].Flags.Has("??") {
			t.Errorf("the flags of %v are unknown: %s", a.Start, list[i].Flags)
		}
		same(t, "NUMA policy", a.Policy, false)
		if a.Userfault.Known {
			same(t, "userfaultfd", a.Userfault, false)
		}
	}
	// The file is the one that the descriptor leads to.
	tables, err := v.Files([]int{c.pid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tables[0].FDs {
		if d.FD == int(fd) && d.File.ID != areaAt(t, v, c.pid(), file).File {
			t.Error("the mapped file is another one than the open one")
		}
	}
	// A protection key has no code.
	if key, err := c.call(unix.SYS_PKEY_ALLOC, 0, 0); err == nil {
		at := uint64(c.must(unix.SYS_MMAP, 0, 1<<16, rw, anon|unix.MAP_NORESERVE, none, 0))
		c.must(unix.SYS_PKEY_MPROTECT, at, 1<<16, rw, uint64(key))
		if a := areaAt(t, v, c.pid(), at); a.Flags.Known {
			t.Errorf("a mapping with a protection key has the flags %q", a.Flags.V)
		}
	}
}

// TestAreasPolicies sets NUMA policies of mappings and of shared memory.
func TestAreasPolicies(t *testing.T) {
	v := view(t)
	c := newChild(t)
	rw, none := uint64(unix.PROT_READ|unix.PROT_WRITE), ^uint64(0)
	mask := c.putWords(0, 1)
	const bind = 2 // MPOL_BIND
	own := uint64(c.must(unix.SYS_MMAP, 0, 1<<16, rw, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, none, 0))
	if _, err := c.call(unix.SYS_MBIND, own, 4096, bind, mask, 64, 0); errors.Is(err, unix.ENOSYS) {
		t.Skip("a kernel without NUMA")
	} else if err != nil {
		t.Fatal(err)
	}
	same(t, "policy of a private mapping", areaAt(t, v, c.pid(), own).Policy, true)
	same(t, "policy behind it", areaAt(t, v, c.pid(), own+4096).Policy, false)
	// What one mapping of shared memory is told, the other shows.
	shared := uint64(c.must(unix.SYS_MMAP, 0, 1<<16, rw, unix.MAP_SHARED|unix.MAP_ANONYMOUS, none, 0))
	other := uint64(c.must(unix.SYS_MREMAP, shared, 0, 1<<16, unix.MREMAP_MAYMOVE, 0))
	for _, at := range []uint64{shared, other} {
		same(t, "no policy", areaAt(t, v, c.pid(), at).Policy, false)
	}
	c.must(unix.SYS_MBIND, shared, 1<<16, bind, mask, 64, 0)
	for _, at := range []uint64{shared, other} {
		same(t, "policy of shared memory", areaAt(t, v, c.pid(), at).Policy, true)
	}
}

// TestAreasMany walks a tree of several levels.
func TestAreasMany(t *testing.T) {
	v := view(t)
	c := newChild(t)
	const n = 3000
	base := uint64(c.must(unix.SYS_MMAP, 0, 2*n*4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uint64(0), 0))
	for i := range uint64(n) {
		c.must(unix.SYS_MPROTECT, base+2*i*4096, 4096, unix.PROT_READ)
		if i%3 == 0 {
			c.must(unix.SYS_MUNMAP, base+(2*i+1)*4096, 4096)
		}
	}
	list, err := procfs.ReadSmaps(c.pid())
	if err != nil {
		t.Fatal(err)
	}
	areas := areasOf(t, v, c.pid())
	if len(areas) < n*5/3 {
		t.Errorf("only %d mappings", len(areas))
	}
	if d := differ(areas, list); d != "" {
		t.Error(d)
	}
}

// TestAreasEverywhere compares all processes of this machine as they are.
func TestAreasEverywhere(t *testing.T) {
	v := view(t)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var d string
		for range 20 { // it may be running
			before, err := procfs.ReadSmaps(pid)
			if err != nil || len(before) == 0 {
				break // gone, a kernel thread, or not ours
			}
			areas, err := v.Areas(pid)
			if err != nil && !errors.Is(err, errFault) && !errors.Is(err, unix.ESRCH) {
				t.Fatalf("process %d: %v", pid, err)
			}
			after, errAfter := procfs.ReadSmaps(pid)
			same := errAfter == nil && slices.EqualFunc(before, after, func(x, y procfs.SmapsVMA) bool { return x.VMA == y.VMA && x.Flags == y.Flags })
			if err != nil || !same {
				continue
			}
			if d = differ(areas.V, before); d == "" && areas.Known {
				compared++
				break
			}
		}
		if d != "" {
			t.Errorf("process %d: %s", pid, d)
		}
	}
	t.Logf("%d processes compared", compared)
	if compared == 0 {
		t.Error("no process was compared")
	}
}

// TestAreasNone asks for what has no mappings, or does not exist.
func TestAreasNone(t *testing.T) {
	v := view(t)
	if a, err := v.Areas(2); err != nil || !a.Known || len(a.V) != 0 { // kthreadd, in the initial namespace
		if b, _ := os.ReadFile("/proc/2/comm"); string(b) == "kthreadd\n" {
			t.Errorf("kthreadd has %v (%v)", a, err)
		}
	}
	if _, err := v.Areas(1 << 30); !errors.Is(err, unix.ESRCH) {
		t.Errorf("nobody: %v", err)
	}
}

// TestMapleSlots gives nodes that no maple tree has.
func TestMapleSlots(t *testing.T) {
	v := view(t)
	build := func(pivots, slots []uint64) []byte {
		b := make([]byte, 256)
		for i, p := range pivots {
			binary.NativeEndian.PutUint64(b[v.l.off(fRange64Pivot)+uint64(i)*8:], p)
		}
		for i, s := range slots {
			binary.NativeEndian.PutUint64(b[v.l.off(fRange64Slot)+uint64(i)*8:], s)
		}
		return b
	}
	const last = 1 << 40
	for name, c := range map[string]struct {
		kind          uint64
		pivots, slots []uint64
		want          []mapleRef // nil: no node
	}{
		"ends with its last":  {mapleLeaf64, []uint64{9, 19, last}, []uint64{7, 0, 8}, []mapleRef{{7, 0, 9}, {8, 20, last}}},
		"ends with zero":      {mapleLeaf64, []uint64{9, 19}, []uint64{7, 0, 8, 99}, []mapleRef{{7, 0, 9}, {8, 20, last}}},
		"descends":            {mapleLeaf64, []uint64{9, 5, last}, []uint64{7, 8, 9}, nil},
		"beyond its last":     {mapleLeaf64, []uint64{9, last + 1}, []uint64{7, 8, 9}, nil},
		"a hole for a node":   {mapleRange64, []uint64{9, last}, []uint64{7, 0}, nil},
		"an unknown type":     {9, []uint64{9, last}, []uint64{7, 8}, nil},
		"a dense node":        {0, []uint64{9, last}, []uint64{7, 8}, nil},
		"the whole range":     {mapleRange64, []uint64{last}, []uint64{7}, []mapleRef{{7, 0, last}}},
		"one index, the rest": {mapleLeaf64, []uint64{0, 0}, []uint64{7, 8}, []mapleRef{{7, 0, 0}, {8, 1, last}}},
	} {
		got, ok := v.mapleSlots(nil, c.kind, mapleRef{1, 0, last}, build(c.pivots, c.slots))
		if ok != (c.want != nil) || ok && !slices.Equal(got, c.want) {
			t.Errorf("%s: %v %v", name, got, ok)
		}
	}
	if _, ok := v.mapleSlots(nil, mapleLeaf64, mapleRef{1, 0, last}, nil); ok {
		t.Error("a node that cannot be read")
	}
}
