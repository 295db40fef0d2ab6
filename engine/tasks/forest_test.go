package tasks

import (
	"math/rand"
	"slices"
	"testing"

	"crpipe/stream"
)

// simulate carries out a forest as the kernel would and returns for every live process of the image its parent,
// session and group at the end.
type simTask struct {
	pid, parent, session, group int32
	dead                        bool
	subreaper                   bool
}

func simulate(t *testing.T, f *Forest, init int32) map[int32]*simTask {
	t.Helper()
	tasks := map[int32]*simTask{}
	for _, b := range f.All {
		s := &simTask{pid: b.PID, subreaper: b.Process != nil && b.Process.Subreaper}
		if b.Creator != nil {
			c := tasks[b.Creator.PID]
			if c == nil {
				t.Fatalf("task %d made before its creator %d", b.PID, b.Creator.PID)
			}
			s.parent = c.pid
			if b.Sibling {
				s.parent = c.parent
			}
			before := false
			for _, x := range b.Creator.Before {
				before = before || x == b
			}
			s.session, s.group = c.session, c.group
			if before { // what the creator was before its own setsid
				s.session = *b.Creator.born
			}
		}
		if s.session != *b.born {
			t.Fatalf("task %d planned to be born into session %d, is in %d", b.PID, *b.born, s.session)
		}
		if b.Setsid {
			s.session, s.group = s.pid, s.pid
		}
		tasks[s.pid] = s
	}
	for _, b := range f.All {
		if b.Leads && !b.Setsid {
			tasks[b.PID].group = b.PID
		}
	}
	join := func(b *Birth) {
		for _, other := range tasks {
			if other.group == b.Group && other.session == tasks[b.PID].session && b.Group != 0 {
				tasks[b.PID].group = b.Group
				return
			}
		}
		if b.Group != 0 {
			t.Fatalf("task %d cannot join group %d", b.PID, b.Group)
		}
	}
	for _, b := range f.All {
		if !b.Leads && !b.Setsid {
			join(b)
		}
	}
	for _, b := range f.Movers {
		join(b)
	}
	for _, b := range f.All {
		if !b.Ghost() {
			continue
		}
		g := tasks[b.PID]
		g.dead = true
		for _, c := range tasks {
			if c.parent != g.pid || c.dead {
				continue
			}
			c.parent = 0
			for a := tasks[g.parent]; a != nil; a = tasks[a.parent] {
				if a.subreaper || a.pid == init {
					c.parent = a.pid
					break
				}
			}
		}
	}
	return tasks
}

// bare are processes of which only the leaders are known.
func bare(procs []*Process) []Family {
	out := make([]Family, len(procs))
	for i, p := range procs {
		out[i].Process = p
	}
	return out
}

func verify(t *testing.T, procs []*Process, init int32) {
	t.Helper()
	for _, p := range procs {
		p.ExitSignal = 17
	}
	f, err := PlanForest(bare(procs), init)
	if err != nil {
		t.Fatal(err)
	}
	tasks := simulate(t, f, init)
	for _, p := range procs {
		s := tasks[p.PID]
		if s == nil || s.dead {
			t.Fatalf("process %d is missing", p.PID)
		}
		if s.parent != p.Parent {
			t.Errorf("process %d: parent %d, want %d", p.PID, s.parent, p.Parent)
		}
		if !p.OutsideSession && s.session != p.Session {
			t.Errorf("process %d: session %d, want %d", p.PID, s.session, p.Session)
		}
		if !p.OutsideGroup && s.group != p.Group {
			t.Errorf("process %d: group %d, want %d", p.PID, s.group, p.Group)
		}
	}
}

func TestForestShapes(t *testing.T) {
	out := func(p *Process) *Process { p.OutsideSession, p.OutsideGroup = true, true; return p }
	tests := map[string][]*Process{
		"one task of a shell job": {out(&Process{PID: 10})},
		"session leader":          {{PID: 10, Session: 10, Group: 10}},
		"daemon whose session leader has died": {
			{PID: 10, Session: 9, Group: 9}, {PID: 11, Parent: 10, Session: 9, Group: 9}},
		"pipeline of a shell": {
			{PID: 10, Session: 10, Group: 10}, {PID: 11, Parent: 10, Session: 10, Group: 11}, {PID: 12, Parent: 10, Session: 10, Group: 11}},
		"group leader has died": {
			{PID: 10, Session: 10, Group: 10}, {PID: 12, Parent: 10, Session: 10, Group: 11}, {PID: 13, Parent: 10, Session: 10, Group: 11}},
		"child born before setsid": {
			out(&Process{PID: 10}), {PID: 11, Parent: 10, Session: 11, Group: 11}, out(&Process{PID: 12, Parent: 11})},
		"grandchild born before two setsids": {
			out(&Process{PID: 10}), {PID: 11, Parent: 10, Session: 11, Group: 11}, {PID: 12, Parent: 11, Session: 12, Group: 12},
			out(&Process{PID: 13, Parent: 12})},
		"orphan of a session whose leader lives": {
			{PID: 10, Session: 10, Group: 10, Subreaper: true}, {PID: 11, Parent: 10, Session: 11, Group: 11},
			{PID: 12, Parent: 10, Session: 11, Group: 11}},
		"orphan two levels down": {
			{PID: 10, Session: 10, Group: 10, Subreaper: true}, {PID: 11, Parent: 10, Session: 10, Group: 10},
			{PID: 12, Parent: 11, Session: 12, Group: 12}, {PID: 13, Parent: 10, Session: 12, Group: 12}},
		"orphan whose session leader has died": {
			{PID: 10, Session: 10, Group: 10, Subreaper: true}, {PID: 13, Parent: 10, Session: 12, Group: 12}},
		"zombies": {
			{PID: 10, Session: 10, Group: 10}, {PID: 11, Parent: 10, Session: 10, Group: 11, Zombie: true},
			{PID: 12, Parent: 10, Session: 10, Group: 11}, {PID: 13, Parent: 10, Session: 10, Group: 14, Zombie: true}},
		"live session of a zombie leader": {
			{PID: 10, Session: 10, Group: 10, Subreaper: true}, {PID: 11, Parent: 10, Session: 11, Group: 11, Zombie: true},
			{PID: 12, Parent: 10, Session: 11, Group: 11}},
	}
	tests["leaders in each other's groups"] = []*Process{
		{PID: 10, Session: 10, Group: 10}, {PID: 11, Parent: 10, Session: 10, Group: 12}, {PID: 12, Parent: 10, Session: 10, Group: 13},
		{PID: 13, Parent: 10, Session: 10, Group: 10}, {PID: 14, Parent: 10, Session: 10, Group: 11}}
	tests["a leader has left its group to a member"] = []*Process{
		{PID: 10, Session: 10, Group: 10}, {PID: 11, Parent: 10, Session: 10, Group: 10}, {PID: 12, Parent: 10, Session: 10, Group: 11}}
	for name, procs := range tests {
		t.Run(name, func(t *testing.T) { verify(t, procs, 0) })
	}
}

// TestForestRandom runs random histories of fork, setsid, setpgid and exit and asks for their outcome.
func TestForestRandom(t *testing.T) {
	for seed := int64(0); seed < 3000; seed++ {
		r := rand.New(rand.NewSource(seed))
		live := []*Process{{PID: 1, Session: 1, Group: 1}}
		next := int32(2)
		for i := 0; i < 25; i++ {
			p := live[r.Intn(len(live))]
			switch r.Intn(5) {
			case 0, 1:
				live = append(live, &Process{PID: next, Parent: p.PID, Session: p.Session, Group: p.Group})
				next++
			case 2:
				// EPERM while anybody is in a group with its number (ksys_setsid in kernel/sys.c).
				if !slices.ContainsFunc(live, func(q *Process) bool { return q.Group == p.PID }) {
					p.Session, p.Group = p.PID, p.PID
				}
			case 3:
				if p.Session != p.PID {
					p.Group = p.PID
					if q := live[r.Intn(len(live))]; q.Session == p.Session && r.Intn(2) == 0 && !circle(live, p.PID, q.Group) {
						p.Group = q.Group
					}
				}
			case 4:
				if p.PID == 1 {
					continue
				}
				for j := range live {
					if live[j] == p {
						live = append(live[:j:j], live[j+1:]...)
						break
					}
				}
				for _, c := range live {
					if c.Parent == p.PID {
						c.Parent = 1 // init adopts
					}
				}
			}
		}
		verify(t, live, 1)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// circle says whether p, once in a group, would be in one whose leader is, from group to group, in p's own: allowed by the
// kernel, refused by us.
func circle(live []*Process, p, group int32) bool {
	for range live {
		if group == p {
			return true
		}
		for _, l := range live {
			if l.PID == group {
				if l.Group == group {
					return false
				}
				group = l.Group
				break
			}
		}
	}
	return false
}

// A tree that is deep or wide is planned in time that grows with its size, and one too deep is refused.
func TestForestLarge(t *testing.T) {
	var chain, fan []*Process
	for i := int32(1); i <= 100000; i++ {
		chain = append(chain, &Process{PID: i, Parent: i - 1, Session: 1, Group: 1, ExitSignal: 17})
		fan = append(fan, &Process{PID: i, Parent: min(i-1, 1), Session: 1, Group: 1, ExitSignal: 17})
	}
	if _, err := PlanForest(bare(chain), 0); err == nil {
		t.Error("a tree of 100000 generations was planned")
	}
	if _, err := PlanForest(bare(chain[:MaxDepth]), 0); err != nil {
		t.Error(err)
	}
	if _, err := PlanForest(bare(fan), 0); err != nil {
		t.Error(err)
	}
}

func TestRenumber(t *testing.T) {
	procs := []*Process{{PID: 10, Session: 10, Group: 10, Subreaper: true, ExitSignal: 17}, {PID: 11, Parent: 10, Session: 11, Group: 11, Zombie: true, ExitSignal: 17},
		{PID: 12, Parent: 10, Session: 10, Group: 10, ExitSignal: 17}, {PID: 13, Parent: 12, Session: 14, Group: 14, ExitSignal: 17}}
	procs[3].Parent = 10
	procs[3].Session = 15
	procs = append(procs, &Process{PID: 15, Parent: 12, Session: 15, Group: 15, ExitSignal: 17})
	procs[3].Group = 15
	families := bare(procs)
	families[0].Threads = []*Thread{{TID: 10}, {TID: 31999}}
	families[0].MM, families[0].Sighand = stream.Ref{ID: 1}, stream.Ref{ID: 2}
	f, err := PlanForest(families, 0)
	if err != nil {
		t.Fatal(err)
	}
	var helper *Birth
	for _, b := range f.All {
		if b.Helper {
			helper = b
		}
	}
	if helper == nil {
		t.Fatal("no helper in the plan")
	}
	if helper.PID != 32000 || f.Of(32000) != helper {
		t.Errorf("the helper has the number %d", helper.PID)
	}
	if !f.Renumber(helper) || helper.PID != 31998 || f.Of(31998) != helper || f.Of(32000) != nil {
		t.Errorf("the helper has the number %d, want 31998", helper.PID)
	}
	for f.Renumber(helper) {
	}
	if helper.PID <= 0 {
		t.Errorf("the helper has the number %d", helper.PID)
	}
}

func TestForestHostile(t *testing.T) {
	tests := map[string][]*Process{
		"pid zero":                 {{PID: 0}},
		"negative group":           {{PID: 1, Group: -1}},
		"twice":                    {{PID: 5, Session: 5, Group: 5}, {PID: 5, Session: 5, Group: 5}},
		"unknown parent":           {{PID: 5, Parent: 4, Session: 5, Group: 5}},
		"own parent":               {{PID: 5, Parent: 5, Session: 5, Group: 5}},
		"cycle":                    {{PID: 5, Parent: 6, Session: 5, Group: 5}, {PID: 6, Parent: 5, Session: 5, Group: 5}},
		"parent is zombie":         {{PID: 5, Zombie: true, Session: 5, Group: 5}, {PID: 6, Parent: 5, Session: 5, Group: 5}},
		"no group":                 {{PID: 5, Session: 5}},
		"no session":               {{PID: 5, Group: 5}},
		"leaders swapped":          {{PID: 5, Session: 5, Group: 5}, {PID: 6, Parent: 5, Session: 5, Group: 7}, {PID: 7, Parent: 5, Session: 5, Group: 6}},
		"above all numbers":        {{PID: MaxPID + 1, Session: MaxPID + 1, Group: MaxPID + 1}},
		"group of another session": {{PID: 5, Session: 5, Group: 5}, {PID: 6, Parent: 5, Session: 6, Group: 5}},
	}
	for name, procs := range tests {
		if f, err := PlanForest(bare(procs), 0); err == nil {
			t.Errorf("%s: planned as %v", name, f)
		}
	}
}
