package namespaces

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestUTS(t *testing.T) {
	needRoot(t)
	name, _ := os.Hostname()
	for _, s := range []UTS{{}, {"a", "b.example"}, {strings.Repeat("x", 64), strings.Repeat("y", 64)}} {
		var have unix.Utsname
		if err := onThread(func() error {
			if err := s.Make(); err != nil {
				return err
			}
			return unix.Uname(&have)
		}); err != nil {
			t.Fatal(err)
		}
		if h, d := unix.ByteSliceToString(have.Nodename[:]), unix.ByteSliceToString(have.Domainname[:]); h != s.Host || d != s.Domain {
			t.Errorf("%+v became %q, %q", s, h, d)
		}
	}
	for _, s := range []UTS{{Host: strings.Repeat("x", 65)}, {Domain: "a\x00b"}} {
		if err := onThread(s.Make); err == nil {
			t.Errorf("%+v passes", s)
		}
	}
	if now, _ := os.Hostname(); now != name {
		t.Errorf("the own host name is %q now", now)
	}
}

// Two fresh network namespaces do not differ, and what is set shows.
func TestNetState(t *testing.T) {
	needRoot(t)
	for _, up := range []bool{false, true} {
		var states [2]map[string]string
		for i := range states {
			if err := onThread(func() error {
				if err := (&Net{Up: up}).Make(); err != nil {
					return err
				}
				var err error
				states[i], err = netState()
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if len(states[0]) < 100 {
			t.Errorf("only %d values are looked at", len(states[0]))
		}
		for name := range states[0] {
			if states[0][name] != states[1][name] {
				t.Errorf("%s: %q and %q", name, states[0][name], states[1][name])
			}
		}
	}
}
