package sockets

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/nethold"
	"crpipe/engine/object"
)

// TestTCPTicketImage restores an image of a dump by a ticket: while the hold is there its connections go on, and when it is gone those with the
// outside are reset.
func TestTCPTicketImage(t *testing.T) {
	tcpNetwork(t)
	if out, err := exec.Command("ip", "route", "add", "203.0.113.0/24", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	boot, net, err := here()
	if err != nil {
		t.Fatal(err)
	}
	if net == 0 {
		t.Skip("needs SO_NETNS_COOKIE (Linux 5.14)")
	}
	name := HoldName([]byte("a ticket"))
	out := exampleTCP("127.0.0.1:1000", "203.0.113.5:80")
	in, other := exampleTCP("127.0.0.1:1001", "127.0.0.1:1002"), exampleTCP("127.0.0.1:1002", "127.0.0.1:1001")
	in.RcvNxt, in.SndUna, in.RcvWup, in.SndWl1 = 1000, 2000, 1000, 1000
	other.RcvNxt, other.SndUna, other.RcvWup, other.SndWl1 = 2000, 1000, 2000, 2000
	held := nethold.Packets{Conns: []nethold.Conn{{Local: plain(mustAddr(t, out.Local)), Remote: plain(mustAddr(t, out.Remote))}}}
	there := lastingHold{Name: name, Ticket: true, Boot: boot, Net: net}
	elsewhere, before, unknown := there, there, there
	elsewhere.Net++
	before.Boot = "00000000-0000-0000-0000-000000000000"
	unknown.Net = 0
	for what, test := range map[string]struct {
		record *lastingHold
		note   string // of a hold that there is; "": none
		keeps  bool
		lifts  bool
	}{
		"by --kill, forgotten": {&lastingHold{Name: name}, "", true, true},
		"ended":                {&there, noteEnded, true, true},
		"gone on":              {&there, "", false, true},
		"still there":          {&there, noteTicket, true, false},
		"another namespace":    {&elsewhere, "", true, true},
		"before the last boot": {&before, "", true, true},
		"of an older kernel":   {&unknown, "", true, true},
	} {
		if test.note != "" {
			if err := nethold.Leave(name, held, nethold.Lasting{Conns: time.Hour, Mark: markOf(name), Note: test.note}); err != nil {
				t.Fatal(err)
			}
		}
		m, err := remake(t, []*tcpState{out, in, other}, nil, test.record)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for i, want := range []uint8{kernelview.SocketClosed, kernelview.SocketEstablished, kernelview.SocketEstablished} {
			if test.keeps {
				want = kernelview.SocketEstablished
			}
			if got, err := stateOf(m.fds[i]); err != nil || got != want {
				t.Errorf("%s: connection %d is in state %d, not %d (%v)", what, i, got, want, err)
			}
		}
		if err := ReleasedTCP(m.r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if found, err := nethold.Find(name); err != nil || (found == nil) != test.lifts {
			t.Errorf("%s: held afterwards: %+v, %v", what, found, err)
		}
		for _, fd := range m.fds {
			_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, tcpRepair, 1) // says nothing at its end, if it is alive
		}
		m.close()
		if err := nethold.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	var bad *object.BadImage
	for _, wrong := range []string{"", "filter", nethold.Prefix, nethold.Prefix + "0123456789abcdeg", nethold.Prefix + "0123456789abcdef0", "x" + name} {
		if _, err := remake(t, []*tcpState{out}, nil, &lastingHold{Name: wrong, Ticket: true, Boot: boot, Net: net}); !errors.As(err, &bad) {
			t.Errorf("a hold named %q: %v", wrong, err)
		}
	}
}

// TestTCPTicketEnding ends a connection without a word to its peer, as cr-thaw --kill does, and only those that are held.
func TestTCPTicketEnding(t *testing.T) {
	tcpNetwork(t)
	var ends [2][2]int
	l := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 2)); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ends {
		ends[i][0] = newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
		if err := unix.Connect(ends[i][0], addr); err != nil {
			t.Fatal(err)
		}
		if ends[i][1], _, err = unix.Accept4(l, unix.SOCK_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(ends[i][1])
	}
	c, ok := connOfSocket(ends[0][0])
	if !ok {
		t.Fatal("a connection is none")
	}
	if _, ok := connOfSocket(l); ok {
		t.Error("a listening socket is a connection")
	}
	name := HoldName([]byte("another ticket"))
	if e, err := EndTicket(name, []int{os.Getpid()}); err != nil || len(e.silent) != 0 {
		t.Errorf("without a hold: %+v, %v", e, err)
	}
	if err := nethold.Leave(name, nethold.Packets{Conns: []nethold.Conn{c}, Ports: []uint16{9}}, nethold.Lasting{Conns: time.Hour, Ports: time.Hour, Note: noteTicket}); err != nil {
		t.Fatal(err)
	}
	e := &Ending{}
	if err := e.collect(os.Getpid(), map[nethold.Conn]bool{c: true}); err != nil {
		t.Fatal(err)
	}
	if len(e.silent) != 1 {
		t.Fatalf("%d connections are to end silently", len(e.silent))
	}
	if e, err := EndTicket(name, nil); err != nil || e == nil {
		t.Fatal(err)
	}
	found, err := nethold.Find(name)
	if err != nil || found == nil || found.Note != noteEnded || len(found.Conns) != 1 || len(found.Ports) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := LiftStale(name); err != nil { // that is for a restore
		t.Fatal(err)
	}
	if held, err := Holds(name); err != nil || !held {
		t.Errorf("a stale ticket has lifted what waits for a restore: %v", err)
	}
	if err := LiftTicket(name); err != nil {
		t.Fatal(err)
	}
	for i := range ends { // as when the process dies
		if err := unix.Dup2(l, ends[i][0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.End(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint8{kernelview.SocketEstablished, kernelview.SocketCloseWait} {
		if got, err := stateOf(ends[i][1]); err != nil || got != want {
			t.Errorf("the peer of connection %d is in state %d, not %d (%v)", i, got, want, err)
		}
	}
}

func mustAddr(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
