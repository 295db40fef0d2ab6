package nethold

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownNetwork puts the test, on a thread of its own that ends with it, into a network namespace of its own with a loopback.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs root: a network namespace: %v", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("needs ip (Debian: iproute2): %v: %s", err, out)
	}
}

func pair(t *testing.T, host string) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("needs a loopback: %v", err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func conn(c *net.TCPConn) Conn {
	return Conn{netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())}
}

// passes says whether a byte gets from a to b soon.
func passes(t *testing.T, a, b *net.TCPConn, patience time.Duration) bool {
	t.Helper()
	if _, err := a.Write([]byte{1}); err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
	if err := b.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, err := b.Read(make([]byte, 1))
	return err == nil
}

func TestHold(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			ownNetwork(t)
			a, b := pair(t, host)
			c, d := pair(t, host)
			h, err := Bind(Packets{Conns: []Conn{conn(a)}}, 4711)
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close()
			if !passes(t, c, d, 10*time.Second) {
				t.Error("another connection is held too")
			}
			if passes(t, a, b, 300*time.Millisecond) || passes(t, b, a, 300*time.Millisecond) {
				t.Error("a packet has passed")
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			if !passes(t, a, b, 10*time.Second) {
				t.Error("it does not go on")
			}
			if n := tables(t); n != 0 {
				t.Errorf("%d tables are left", n)
			}
		})
	}
}

// TestLeave has a hold that stays, and one of a port.
func TestLeave(t *testing.T) {
	ownNetwork(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	const name = Prefix + "0123456789abcdef"
	for range 2 { // the second takes the place of the first
		if err := Leave(name, Packets{Ports: []uint16{port}}, Lasting{Ports: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond); err == nil {
		t.Error("a connection was made")
		_ = c.Close()
	}
	if n := tables(t); n != 1 {
		t.Errorf("%d tables", n)
	}
	for range 2 { // the second finds nothing
		if err := Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	c, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// TestManyHeld has more than one message of elements.
func TestManyHeld(t *testing.T) {
	ownNetwork(t)
	var p Packets
	for i := range 3000 {
		p.Conns = append(p.Conns, Conn{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), 80),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 4711)})
	}
	h, err := Bind(p, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if h, err := Bind(Packets{}, 1); h != nil || err != nil || h.Close() != nil {
		t.Error("nothing to be held is something")
	}
}

// TestHoldDies has the holder killed, after which nothing is left.
func TestHoldDies(t *testing.T) {
	if os.Getenv("NETHOLD_CHILD") != "" {
		if _, err := Bind(Packets{Ports: []uint16{9}}, 1); err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		select {}
	}
	ownNetwork(t)
	child := exec.Command("/proc/self/exe", "-test.run=^TestHoldDies$")
	child.Env = append(os.Environ(), "NETHOLD_CHILD=1")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if n := tables(t); n != 1 {
		t.Errorf("%d tables of a holder", n)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	for deadline := time.Now().Add(10 * time.Second); tables(t) != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a table is left")
		}
	}
}

// tables counts the tables of this package in the network namespace.
func tables(t *testing.T) int {
	t.Helper()
	names, err := List()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.HasPrefix(n, Prefix) {
			t.Errorf("List says %q", n)
		}
	}
	return len(names)
}

// TestFind has a hold that stays tell what it has.
func TestFind(t *testing.T) {
	ownNetwork(t)
	const name, note = Prefix + "00000000000000ff", "until somebody comes"
	if found, err := Find(name); found != nil || err != nil {
		t.Errorf("nothing is %+v, %v", found, err)
	}
	p := Packets{Ports: []uint16{80, 443}}
	for i := range 1000 {
		n := byte(i >> 8)
		p.Conns = append(p.Conns, Conn{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), 80), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, n, byte(i)}), 4711)},
			Conn{netip.AddrPortFrom(netip.AddrFrom16([16]byte{1}), 80), netip.AddrPortFrom(netip.AddrFrom16([16]byte{1, n, byte(i)}), 4711)})
	}
	if err := Leave(name, p, Lasting{Conns: time.Hour, Ports: time.Hour, Note: note}); err != nil {
		t.Fatal(err)
	}
	found, err := Find(name)
	if err != nil || found == nil {
		t.Fatal(err)
	}
	if found.Note != note || len(found.Ports) != 2 || len(found.Conns) != len(p.Conns) {
		t.Errorf("note %q, ports %v, %d connections", found.Note, found.Ports, len(found.Conns))
	}
	all := map[Conn]bool{}
	for _, c := range found.Conns {
		all[c], all[Conn{c.Remote, c.Local}] = true, true
	}
	for _, c := range p.Conns {
		if !all[c] {
			t.Fatalf("%v is not found", c)
		}
	}
	if err := Remove(name); err != nil {
		t.Fatal(err)
	}
}

// TestSweep: what nothing is left of goes, all else stays.
func TestSweep(t *testing.T) {
	ownNetwork(t)
	const over, lasts, partly = Prefix + "0000000000000001", Prefix + "0000000000000002", Prefix + "0000000000000003"
	c := Conn{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:81")}
	for name, o := range map[string]Lasting{
		over: {Conns: time.Millisecond, Ports: time.Millisecond}, lasts: {Conns: time.Hour, Ports: time.Hour}, partly: {Conns: time.Millisecond, Ports: time.Hour},
	} {
		if err := Leave(name, Packets{Conns: []Conn{c}, Ports: []uint16{80}}, o); err != nil {
			t.Fatal(err)
		}
	}
	h, err := Bind(Packets{Ports: []uint16{9}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if found, err := Find(over); err != nil {
			t.Fatal(err)
		} else if found == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not forgotten")
		}
	}
	if n := tables(t); n != 4 {
		t.Errorf("%d tables before", n)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	names, err := List()
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 3 || strings.Contains(strings.Join(names, " "), over) {
		t.Errorf("%q are left", names)
	}
}
