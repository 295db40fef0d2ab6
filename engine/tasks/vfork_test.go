package tasks

import (
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/stream"
)

// vforked are a parent whose thread waits and a child that shares its memory.
func vforked(change func(parent, child *Process, waiter, first *Thread)) []Family {
	ref := func(id uint32) stream.Ref { return stream.Ref{ID: id, Class: "x"} }
	parent := &Process{PID: 10, Group: 10, Session: 10, ExitSignal: 17, MM: ref(1), Files: ref(2), FS: ref(3), Sighand: ref(4)}
	child := &Process{PID: 20, Parent: 10, ParentThread: 11, Group: 10, Session: 10, ExitSignal: 17, MM: ref(1), Files: ref(5), FS: ref(6), Sighand: ref(7)}
	lead, waiter, first := &Thread{TID: 10}, &Thread{TID: 11, Vfork: 20}, &Thread{TID: 20}
	if change != nil {
		change(parent, child, waiter, first)
	}
	return []Family{{parent, []*Thread{lead, waiter}}, {child, []*Thread{first}}}
}

func TestVforkIsLast(t *testing.T) {
	f, err := PlanForest(vforked(nil), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Last) != 1 || f.Last[0].PID != 20 || f.Last[0].Creator != f.OfThread(11) || f.Last[0].Share != unix.CLONE_VM|unix.CLONE_VFORK {
		t.Errorf("last: %+v", f.Last)
	}
	for _, b := range f.All {
		if b.PID == 20 {
			t.Error("the child is among those that are made first")
		}
	}
	// A child that has left the session is a leader of nobody but itself.
	if _, err := PlanForest(vforked(func(_, c *Process, _, _ *Thread) { c.Group, c.Session = 20, 20 }), 0); err != nil {
		t.Error(err)
	}
}

func TestVforkRefused(t *testing.T) {
	for name, change := range map[string]func(p, c *Process, w, f *Thread){
		"nobody's child":     func(_, _ *Process, w, _ *Thread) { w.Vfork = 30 },
		"itself":             func(_, _ *Process, w, _ *Thread) { w.Vfork = 11 },
		"its own process":    func(_, _ *Process, w, _ *Thread) { w.Vfork = 10 },
		"negative":           func(_, _ *Process, w, _ *Thread) { w.Vfork = -1 },
		"of another thread":  func(_, c *Process, _, _ *Thread) { c.ParentThread = 0 },
		"memory of its own":  func(_, c *Process, _, _ *Thread) { c.MM.ID = 9 },
		"another user":       func(_, _ *Process, _, f *Thread) { f.Creds.UID = []uint32{1, 1, 1, 1} },
		"more capabilities":  func(_, _ *Process, _, f *Thread) { f.Creds.Effective = 1 },
		"stopped":            func(_, c *Process, _, _ *Thread) { c.StopSignal = 19 },
		"parent stopped":     func(p, _ *Process, _, _ *Thread) { p.StopSignal = 19 },
		"subreaper":          func(_, c *Process, _, _ *Thread) { c.Subreaper = true },
		"both wait":          func(_, _ *Process, _, f *Thread) { f.Vfork = 10 },
		"filters":            func(_, _ *Process, _, f *Thread) { f.Seccomp = []stream.Ref{{ID: 8, Class: "seccomp"}} },
		"a group of another": func(p, c *Process, _, _ *Thread) { c.Group, p.Group = 20, 20; p.Session, c.Session = 1, 1 },
		"zombie":             func(_, c *Process, _, _ *Thread) { c.Zombie = true },
	} {
		if _, err := PlanForest(vforked(change), 0); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
}
