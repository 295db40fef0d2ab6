package engine

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"crpipe/engine/internal/freezer"
	"crpipe/stream"
)

func sampleState() freezer.State {
	return freezer.State{
		BootID: "0f0e", PIDNS: 4026531836, ID: "abc123", Way: freezer.WayV2,
		Groups: []freezer.Group{{Path: "/a/crpipe-abc123", Transient: true}, {Path: "/b", Already: true}},
		Roots:  []int{42},
		Tasks: []freezer.Task{
			{PID: 42, TID: 42, Start: 1 << 40, PPID: 1, Comm: "a\xff b)", Before: freezer.BeforeRunning, Cgroup: "/a"},
			{PID: 42, TID: 43, Start: 7, PPID: 1, Comm: "t", Before: freezer.BeforeStopped, Cgroup: "/a"},
			{PID: 50, TID: 50, Start: 9, PPID: 42, Comm: "z", Before: freezer.BeforeZombie},
			{PID: 51, TID: 51, Start: 9, PPID: 42, Comm: "f", Before: freezer.BeforeFrozen, Cgroup: "/b"},
		},
	}
}

func TestTicketRoundTrip(t *testing.T) {
	st := sampleState()
	none := freezer.State{BootID: "x", PIDNS: 1, Way: freezer.WayNone, Tasks: st.Tasks[:1]}
	none.Tasks[0].Cgroup = ""
	for _, want := range []freezer.State{sampleState(), none} {
		var b bytes.Buffer
		if err := newTicket(&want).Write(&b, "test"); err != nil {
			t.Fatal(err)
		}
		got, err := ReadTicket(bytes.NewReader(b.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got.state, cmpopts.IgnoreUnexported(freezer.State{})); diff != "" {
			t.Error(diff)
		}
		for n := range b.Len() {
			if _, err := ReadTicket(bytes.NewReader(b.Bytes()[:n])); err == nil {
				t.Fatalf("%d of %d bytes are taken for a whole ticket", n, b.Len())
			}
		}
	}
}

// TestTicketHostile gives the reader tickets that are streams but must not be acted upon.
func TestTicketHostile(t *testing.T) {
	for name, change := range map[string]func(*freezer.State){
		"a pid of 0":          func(s *freezer.State) { s.Tasks[0].PID = 0 },
		"a pid of -1":         func(s *freezer.State) { s.Tasks[0].TID = -1 },
		"a root of -1":        func(s *freezer.State) { s.Roots[0] = -1 },
		"an unknown way":      func(s *freezer.State) { s.Way = "v3" },
		"no cgroup":           func(s *freezer.State) { s.Groups = nil },
		"the root cgroup":     func(s *freezer.State) { s.Groups[1].Path = "/" },
		"a relative cgroup":   func(s *freezer.State) { s.Groups[1].Path = "x" },
		"another's transient": func(s *freezer.State) { s.Groups[0].Path = "/system.slice" },
		"cgroup of a sigstop": func(s *freezer.State) { s.Way = freezer.WaySigstop },
		"an unknown state":    func(s *freezer.State) { s.Tasks[1].Before = "fine" },
		"a negative parent":   func(s *freezer.State) { s.Tasks[1].PPID = -1 },
	} {
		st := sampleState()
		change(&st)
		var b bytes.Buffer
		if err := newTicket(&st).Write(&b, "test"); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadTicket(&b); err == nil {
			t.Errorf("%s: %+v", name, got.state)
		}
	}
	var b bytes.Buffer
	w, err := stream.NewWriter(&b, stream.Header{Content: stream.ContentImage})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadTicket(&b); err == nil || !strings.Contains(err.Error(), "not a ticket") {
		t.Errorf("an image: %v", err)
	}
	b.Reset()
	if w, err = stream.NewWriter(&b, stream.Header{Content: stream.ContentTicket}); err != nil {
		t.Fatal(err)
	}
	if err := w.Fail("it did not work", 5, ""); err != nil {
		t.Fatal(err)
	}
	var remote *stream.RemoteError
	if _, err := ReadTicket(&b); !errors.As(err, &remote) {
		t.Errorf("the ticket of a producer that failed: %v", err)
	}
}

// TestFreezeThaw runs the engine's whole way: freeze, ticket through a stream, dump in between, thaw, kill.
func TestFreezeThaw(t *testing.T) {
	for _, way := range []string{"v2", "v1", "sigstop"} {
		t.Run(way, func(t *testing.T) {
			g := startBlocked(t)
			k, err := Freeze(FreezeOptions{PIDs: []int{g.pid}, Freezer: way})
			if err != nil {
				t.Skip(err)
			}
			var b bytes.Buffer
			if err := k.Write(&b, "test"); err != nil {
				t.Fatal(err)
			}
			if k, err = ReadTicket(&b); err != nil {
				t.Fatal(err)
			}
			w1, s1 := g.counts(t)
			h, err := takeHold(t.Context(), nil, k, FreezeOptions{}, func(s string) { t.Error(s) })
			if err != nil {
				t.Fatal(err)
			}
			if n := len(h.PIDs()); n != 3 {
				t.Errorf("%d processes are held, want 3", n)
			}
			if err := Thaw(k, ThawOptions{}); !IsBusy(err) || !strings.Contains(err.Error(), "being dumped by pid") {
				t.Errorf("thawing during a dump: %v", err)
			}
			if err := h.Release(); err != nil {
				t.Fatal(err)
			}
			if w2, s2 := g.counts(t); w1 != w2 || s1 != s2 {
				t.Error("the tree ran although it was to stay frozen")
			}
			if err := Thaw(k, ThawOptions{}); err != nil {
				t.Fatal(err)
			}
			g.mustRun(t)
			g.mustBeSilent(t)
			g.mustBeTidy(t)
			if err := Thaw(k, ThawOptions{}); !IsStale(err) {
				t.Errorf("a second thaw: %v", err)
			}
			if k, err = Freeze(FreezeOptions{PIDs: []int{g.pid}, Freezer: way}); err != nil {
				t.Fatal(err)
			}
			if err := Thaw(k, ThawOptions{Kill: true}); err != nil {
				t.Fatal(err)
			}
			if err := Thaw(k, ThawOptions{Kill: true}); !IsStale(err) {
				t.Errorf("a second kill: %v", err)
			}
		})
	}
}
