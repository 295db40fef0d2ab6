package namespaces

import (
	"errors"
	"math"
	"os"
	"testing"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

func TestTimeOffsets(t *testing.T) {
	if _, err := os.Stat("/proc/self/timens_offsets"); err != nil {
		t.Skip("this kernel has no time namespaces (CONFIG_TIME_NS)")
	}
	boot, err := procfs.BootID()
	if err != nil {
		t.Fatal(err)
	}
	mine, err := procfs.ReadTimeOffsets("self")
	if err != nil {
		t.Fatal(err)
	}
	s := &Time{Monotonic: 5e9, Boottime: -7, MonotonicAt: 1e15, BoottimeAt: 2e15, Boot: boot}
	if o, err := s.Offsets(); err != nil || o != (procfs.TimeOffsets{Monotonic: 5e9, Boottime: -7}) {
		t.Errorf("in the same boot: %+v, %v", o, err)
	}
	s.Boot = "another"
	before, err := sys.Now()
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Offsets()
	after, err2 := sys.Now()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	// Some moment between the two was to be MonotonicAt.
	if at := before.Monotonic - mine.Monotonic + o.Monotonic; at > s.MonotonicAt || after.Monotonic-mine.Monotonic+o.Monotonic < s.MonotonicAt {
		t.Errorf("CLOCK_MONOTONIC goes on from %d, not from %d", at, s.MonotonicAt)
	}
	if at := before.Boottime - mine.Boottime + o.Boottime; at > s.BoottimeAt || after.Boottime-mine.Boottime+o.Boottime < s.BoottimeAt {
		t.Errorf("CLOCK_BOOTTIME goes on from %d, not from %d", at, s.BoottimeAt)
	}
	for _, bad := range []Time{{Monotonic: math.MinInt64}, {Boottime: math.MaxInt64}, {MonotonicAt: -1}, {BoottimeAt: math.MaxInt64}} {
		if o, err := bad.Offsets(); !badImage(err) {
			t.Errorf("%+v is %+v, %v", bad, o, err)
		}
	}
}

func TestCgroupRoots(t *testing.T) {
	good := Cgroup{Roots: []CgroupRoot{{"", "/"}, {"memory", "/a/b"}}}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for _, bad := range []Cgroup{
		{[]CgroupRoot{{"", ""}}}, {[]CgroupRoot{{"", "a"}}}, {[]CgroupRoot{{"", "/a/../b"}}}, {[]CgroupRoot{{"", "/a\x00"}}}, {[]CgroupRoot{{"", "/.."}}},
		{[]CgroupRoot{{"", "/a/"}}}, {[]CgroupRoot{{"x", "/a"}, {"x", "/b"}}},
	} {
		if err := bad.Check(); !badImage(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func badImage(err error) bool {
	var bad *object.BadImage
	return errors.As(err, &bad)
}
