package memory

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// openView opens the kernel view once for all tests.
var openView = sync.OnceValues(func() (kernelview.View, error) {
	return kernelview.Open(kernelview.Options{NoCache: true})
})

// view returns the kernel view, one that knows nothing where there is none.
func view(t testing.TB) kernelview.View {
	t.Helper()
	v, err := openView()
	var missing *kernelview.MissingError
	if errors.As(err, &missing) {
		return blind{}
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func needView(t testing.TB) kernelview.View {
	t.Helper()
	v := view(t)
	if _, err := openView(); err != nil {
		t.Skip(err)
	}
	return v
}

// blind is a view that does not know mappings. Nothing else of a view is asked for here.
type blind struct{ kernelview.View }

func (blind) Areas(int) (kernelview.Maybe[[]kernelview.Area], error) {
	return kernelview.Maybe[[]kernelview.Area]{}, nil
}

// newBlind is a dumper that has to read smaps.
func newBlind(t testing.TB) *object.Dumper {
	d := newDumper(t)
	d.View = blind{d.View}
	return d
}

// TestKnownMappings dumps a process with mappings of every kind with what the kernel view knows and with smaps: the images
// are the same.
func TestKnownMappings(t *testing.T) {
	needRoot(t)
	needView(t)
	pid := start(t, t.TempDir())
	m := &mmDump{d: newDumper(t), arch: native(t), tid: pid}
	list, policies, err := m.known(mapsOf(t, m.tid))
	if err != nil {
		t.Fatal(err)
	}
	if list == nil || policies {
		t.Errorf("the kernel view knows %d mappings, policies %v", len(list), policies)
	}
	if seen := imageBy(t, newDumper(t), pid); !bytes.Equal(seen, imageBy(t, newBlind(t), pid)) {
		t.Error("with the kernel view the image is another one than with smaps")
	}
}

// TestKnownRefusals refuses the same both ways.
func TestKnownRefusals(t *testing.T) {
	needRoot(t)
	needView(t)
	pid, _ := startSaying(t, "strange "+t.TempDir())
	var said []string
	for _, d := range []*object.Dumper{newDumper(t), newBlind(t)} {
		p := process(t, pid)
		d.Processes = []*object.Process{p}
		if err := Dump(d, p); err != nil {
			t.Fatal(err)
		}
		said = append(said, d.Refusals().Error())
	}
	if said[0] != said[1] {
		t.Errorf("with the kernel view:\n%s\nwith smaps:\n%s", said[0], said[1])
	}
}

// TestKnownEverywhere compares what the kernel view and smaps say of all processes of this machine, which run.
func TestKnownEverywhere(t *testing.T) {
	needRoot(t)
	v := needView(t)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	compared, unknown := 0, 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		m := &mmDump{d: &object.Dumper{View: v, Arch: native(t)}, arch: native(t), tid: pid}
		difference := ""
		for range 20 {
			before, err := procfs.ReadSmaps(pid)
			if err != nil || len(before) == 0 {
				difference = ""
				break // gone, a kernel thread, or not ours
			}
			_, huge, err1 := guardsAndHuge(pid, m.d.Arch.TaskSize)
			list, _, err2 := m.known(mapsOf(t, m.tid))
			after, err3 := procfs.ReadSmaps(pid)
			if errors.Join(err1, err2, err3) != nil || !slices.EqualFunc(before, after, asGood) {
				continue
			}
			if difference = ""; list == nil {
				t.Logf("process %d: not known because of %v", pid, unexplained(v, pid, before))
				unknown++
				break
			}
			if huge != nil {
				markHuge(list, *huge)
			}
			for i := range list {
				if huge == nil { // a kernel without PAGEMAP_SCAN: then only smaps tells
					list[i].AnonHuge = before[i].AnonHuge
				}
				got, gotErr := areaOf(m.d.Arch, &list[i])
				want, wantErr := areaOf(m.d.Arch, &before[i])
				if list[i].VMA != before[i].VMA || got != want || (gotErr == nil) != (wantErr == nil) || gotErr != nil && gotErr.Error() != wantErr.Error() {
					difference = nameOf(&before[i].VMA) + " has the flags " + string(before[i].Flags) + ", and " + string(list[i].Flags) + ": " + want.Flags + ", and " + got.Flags
					break
				}
			}
			if difference == "" {
				compared++
				break
			}
		}
		if difference != "" {
			t.Errorf("process %d: %s", pid, difference)
		}
	}
	t.Logf("%d processes compared, %d not known", compared, unknown)
	if compared == 0 {
		t.Error("no process was compared")
	}
}

// unexplained lists the flags of mappings that the view cannot explain.
func unexplained(v kernelview.View, pid int, list []procfs.SmapsVMA) (flags []procfs.VMFlags) {
	areas, err := v.Areas(pid)
	for i := range areas.V {
		if err == nil && i < len(list) && !areas.V[i].Flags.Known {
			flags = append(flags, list[i].Flags)
		}
	}
	return flags
}

// asGood says whether nothing has changed that this package looks at.
func asGood(x, y procfs.SmapsVMA) bool {
	return x.VMA == y.VMA && x.Flags == y.Flags && x.AnonHuge == y.AnonHuge
}

// TestUnknownMappings: what calibration could not explain is left to smaps.
func TestUnknownMappings(t *testing.T) {
	v := needView(t)
	pid := start(t, "fill 1")
	real, err := v.Areas(pid)
	if err != nil || !real.Known {
		t.Fatal(real.Known, err)
	}
	last := len(real.V) - 1
	for name, change := range map[string]func(*[]kernelview.Area){
		"flags that nobody can explain": func(a *[]kernelview.Area) { (*a)[3].Flags.Known = false },
		"userfaultfd":                   func(a *[]kernelview.Area) { (*a)[3].Userfault = kernelview.Is(true) },
		"one more":                      func(a *[]kernelview.Area) { *a = append(*a, (*a)[last]) },
		"one less":                      func(a *[]kernelview.Area) { *a = (*a)[:last] },
		"another address":               func(a *[]kernelview.Area) { (*a)[3].End += page },
		"a file more":                   func(a *[]kernelview.Area) { (*a)[last-1].File ^= 1 << 40 },
	} {
		areas := slices.Clone(real.V)
		change(&areas)
		if name == "a file more" && real.V[last-1].File != 0 {
			continue
		}
		m := &mmDump{d: newDumper(t), arch: native(t), tid: pid}
		m.d.View = says{v, areas}
		if list, _, err := m.known(mapsOf(t, m.tid)); err != nil || list != nil {
			t.Errorf("%s: %d mappings are known (%v)", name, len(list), err)
		}
	}
	// Nor are policies overlooked that the view cannot know.
	for _, policy := range []kernelview.Maybe[bool]{{}, kernelview.Is(true)} {
		areas := slices.Clone(real.V)
		areas[3].Policy = policy
		m := &mmDump{d: newDumper(t), arch: native(t), tid: pid}
		m.d.View = says{v, areas}
		if list, policies, err := m.known(mapsOf(t, m.tid)); err != nil || list == nil || !policies {
			t.Errorf("policy %v: %d mappings, policies %v (%v)", policy, len(list), policies, err)
		}
	}
}

// says is a view that tells what it was told of mappings.
type says struct {
	kernelview.View
	areas []kernelview.Area
}

func (s says) Areas(int) (kernelview.Maybe[[]kernelview.Area], error) {
	return kernelview.Is(s.areas), nil
}

// TestMarkHuge cuts huge pages along mappings.
func TestMarkHuge(t *testing.T) {
	list := make([]procfs.SmapsVMA, 4)
	for i := range list {
		list[i].Start, list[i].End = addr(uint64(i)<<22), addr(uint64(i)<<22+1<<22)
	}
	markHuge(list, []Range{{1 << 21, 1<<22 + 1<<21}, {3 << 22, 3<<22 + 1<<21}, {1 << 40, 1<<40 + 1}})
	for i, want := range []uint64{2048, 2048, 0, 2048} {
		if list[i].AnonHuge != want {
			t.Errorf("mapping %d has %d KiB, not %d", i, list[i].AnonHuge, want)
		}
	}
}

// TestUserfault has memory registered with userfaultfd, which is refused by name.
func TestUserfault(t *testing.T) {
	needRoot(t)
	v := needView(t)
	pid, said := startSaying(t, "userfault")
	if len(said) > 0 {
		t.Skip(said)
	}
	m := &mmDump{d: newDumper(t), arch: native(t), tid: pid}
	if list, _, err := m.known(mapsOf(t, m.tid)); err != nil || list != nil {
		t.Errorf("%d mappings are known (%v)", len(list), err)
	}
	areas, err := v.Areas(pid)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(areas.V, func(a kernelview.Area) bool { return a.Userfault == kernelview.Is(true) }) {
		t.Error("no mapping is registered")
	}
	p := process(t, pid)
	if err := Dump(m.d, p); err != nil {
		t.Fatal(err)
	}
	if err := m.d.Refusals(); err == nil || !strings.Contains(err.Error(), "userfaultfd") {
		t.Errorf("refusals: %v", err)
	}
}

func mapsOf(t testing.TB, tid int) []procfs.VMA {
	t.Helper()
	maps, err := procfs.ReadMaps(tid)
	if err != nil {
		t.Fatal(err)
	}
	return maps
}
