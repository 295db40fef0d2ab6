package tasks

import (
	"strings"
	"testing"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// Where a process stands is said in the numbers of the tree's own pid namespace; who leads its group and session from
// outside is told from who is dead.
func TestPlace(t *testing.T) {
	alive := func(id int) bool { return id == 1 || id == 50 || id == 51 }
	inTree := func(id int) bool { return id == 100 || id == 101 || id == 1000 }
	parent := &object.Process{PID: 100, ID: 100}
	for name, c := range map[string]struct {
		p       object.Process
		pgid    []int
		sid     []int
		nspid   []int
		want    Process
		refused bool
	}{
		"leader of all": {object.Process{ID: 100}, []int{100}, []int{100}, []int{100}, Process{PID: 100, Group: 100, Session: 100}, false},
		"child": {object.Process{ID: 101, Parent: parent}, []int{101}, []int{100}, []int{101},
			Process{PID: 101, Parent: 100, Group: 101, Session: 100}, false},
		"job of a shell outside": {object.Process{ID: 100}, []int{100}, []int{50}, []int{100},
			Process{PID: 100, Group: 100, Session: 50, OutsideSession: true}, false},
		"member of a pipeline outside": {object.Process{ID: 100}, []int{51}, []int{50}, []int{100},
			Process{PID: 100, Group: 51, OutsideGroup: true, Session: 50, OutsideSession: true}, false},
		"daemon whose leader has died": {object.Process{ID: 100}, []int{98}, []int{98}, []int{100},
			Process{PID: 100, Group: 98, Session: 98}, false},
		"session from outside of its pid namespace": {object.Process{ID: 1, PID: 7000}, []int{7000, 0}, []int{50, 0}, []int{7000, 1},
			Process{PID: 1, OutsideGroup: true, OutsideSession: true}, false},
		"in a pid namespace": {object.Process{ID: 1000, PID: 7001}, []int{7001, 1000}, []int{7001, 1000}, []int{7001, 1000},
			Process{PID: 1000, Group: 1000, Session: 1000}, false},
		"a kernel that tells no numbers": {object.Process{ID: 100}, nil, nil, []int{100},
			Process{PID: 100, OutsideGroup: true, OutsideSession: true}, false},
		"a group outside in a session inside": {object.Process{ID: 101}, []int{50}, []int{100}, []int{101}, Process{}, true},
	} {
		c.p.Status = &procfs.Status{NSpid: c.nspid, NSpgid: c.pgid, NSsid: c.sid}
		c.p.Stat.ExitSignal = 17
		var have Process
		err := Place(&c.p, &have, inTree, alive)
		if (err != nil) != c.refused {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c.want.ExitSignal = 17
		if !c.refused && (have.PID != c.want.PID || have.Parent != c.want.Parent || have.Group != c.want.Group || have.Session != c.want.Session ||
			have.OutsideGroup != c.want.OutsideGroup || have.OutsideSession != c.want.OutsideSession || have.ExitSignal != c.want.ExitSignal) {
			t.Errorf("%s:\n%+v, want\n%+v", name, have, c.want)
		}
	}
}

func TestDumpZombie(t *testing.T) {
	for name, c := range map[string]struct {
		code    int32
		want    uint32
		refused string
	}{
		"exit 7":              {7 << 8, 0x700, ""},
		"killed":              {9, 9, ""},
		"dumped core":         {0x80 | 11, 0, "core"},
		"no status of zombie": {0x7f, 0, "internal"},
	} {
		p := &object.Process{PID: 5, Status: &procfs.Status{UID: [4]uint32{3, 4, 5, 6}, GID: [4]uint32{7, 8, 9, 10}}}
		p.Stat.Comm = "x"
		p.Stat.ExitCode = c.code
		var s Process
		err := DumpZombie(p, &s)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if !s.Zombie || s.WaitStatus != c.want || s.UID != 3 || s.GID != 7 || s.Comm != "x" {
			t.Errorf("%s: %+v", name, s)
		}
		if err := s.Check(); err != nil {
			t.Errorf("%s: the dump writes what a restore refuses: %v", name, err)
		}
	}
}

func TestLimitsCheck(t *testing.T) {
	good := make(Limits, 32)
	high := append(Limits(nil), good...)
	high[6] = 1
	for name, c := range map[string]struct {
		l  Limits
		ok bool
	}{"none": {nil, false}, "all zero": {good, true}, "one too few": {good[:30], false}, "odd": {good[:31], false}, "one too many": {append(good, 0, 0), false},
		"soft above hard": {high, false}} {
		if err := c.l.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
