package memory

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// TestPolicies: a NUMA policy is kept whole where the kernel view knows it, and refused where only numa_maps shows it.
func TestPolicies(t *testing.T) {
	needRoot(t)
	if err := bind(); errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel has no NUMA policies")
	}
	pid := start(t, "numa")
	for name, huge := range map[string]*[]Range{"with PAGEMAP_SCAN": {}, "without": nil} {
		d := &object.Dumper{View: needView(t), Arch: native(t), Warn: t.Logf}
		m := &mmDump{d: d, arch: native(t), p: process(t, pid), tid: pid}
		if _, err := m.mappings(mapsOf(t, m.tid), huge); err != nil {
			t.Fatal(err)
		}
		if err := d.Refusals(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(m.policies) != 1 {
			t.Fatalf("%s: policies %+v", name, m.policies)
		}
		p := m.policies[0]
		if want := (Policy{Start: p.Start, End: p.Start + 2*page, Mode: 2, Nodes: []uint64{1}}); !reflect.DeepEqual(p, want) {
			t.Errorf("%s: policy %+v, want %+v", name, p, want)
		}
	}
	blind := newBlind(t)
	if err := Dump(blind, process(t, pid)); err != nil {
		t.Fatal(err)
	}
	if err := blind.Refusals(); err == nil || !strings.Contains(err.Error(), "NUMA policy bind") {
		t.Errorf("without a kernel view: %v", err)
	}
}
