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
