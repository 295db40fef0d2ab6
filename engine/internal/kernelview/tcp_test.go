//go:build amd64

package kernelview

import (
	"bytes"
	"errors"
	"math/rand"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair makes a connection over the loopback device, and its listener.
func tcpPair(t *testing.T, family int) (client, server, listener int) {
	t.Helper()
	l, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if family == unix.AF_INET6 {
		addr = &unix.SockaddrInet6{Addr: netip.MustParseAddr("::1").As16()}
	}
	if err := unix.Bind(l, addr); err != nil {
		t.Skipf("needs an address of the loopback device: %v", err)
	}
	if err := unix.Listen(l, 7); err != nil {
		t.Fatal(err)
	}
	if addr, err = unix.Getsockname(l); err != nil {
		t.Fatal(err)
	}
	c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(c, addr); err != nil {
		t.Fatal(err)
	}
	s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range []int{l, c, s} {
			_ = unix.Close(fd)
		}
	})
	return c, s, l
}

func tcpOf(t *testing.T, fd int) TCP {
	t.Helper()
	v := view(t)
	file := fileOf(t, v, os.Getpid(), fd).ID
	s, err := v.TCP(file)
	for range 100 { // segments still come and go
		if !errors.Is(err, errFault) {
			break
		}
		time.Sleep(10 * time.Millisecond)
		s, err = v.TCP(file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// until waits for a state that the other end brings about.
func until(t *testing.T, fd int, what string, is func(*TCP) bool) TCP {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := tcpOf(t, fd)
		if is(&s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: it is %+v", what, s.Ends)
		}
	}
}

// TestTCP compares what is read of connections with what they were given, and with what the other end has.
func TestTCP(t *testing.T) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		c, s, l := tcpPair(t, family)
		if e := tcpOf(t, l); e.State != SocketListening || e.Backlog != 0 || e.MaxBacklog != 7 || !e.BoundAddress || e.BoundPort {
			t.Errorf("listener: %+v", e.Ends)
		}
		// More than the receiver takes: the rest waits at the sender, part of it never sent.
		if err := unix.SetNonblock(c, true); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10); err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewSource(1))
		var all []byte
		for full := time.Now(); time.Since(full) < 300*time.Millisecond && len(all) < 400<<10; {
			b := make([]byte, 1+random.Intn(20000))
			random.Read(b)
			n, err := unix.Write(c, b)
			if errors.Is(err, unix.EAGAIN) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			all, full = append(all, b[:n]...), time.Now()
		}
		got := make([]byte, 777)
		if n, err := unix.Read(s, got); n != len(got) || err != nil {
			t.Fatal(n, err)
		}
		a, b := tcpOf(t, c), tcpOf(t, s)
		if a.Ends.Local != b.Ends.Remote || a.Ends.Remote != b.Ends.Local || a.Ends.Family != uint16(family) || a.State != SocketEstablished {
			t.Errorf("%+v and %+v", a.Ends, b.Ends)
		}
		again := int32(b.RcvNxt - a.SndUna) // what has arrived without the sender's knowing it yet
		if again < 0 || int(again) > len(a.Send) {
			t.Fatalf("acknowledged to %d, received to %d", a.SndUna, b.RcvNxt)
		}
		if stream := append(append(got, b.Unread...), a.Send[again:]...); !bytes.Equal(stream, all) {
			t.Errorf("%d read, %d unread, %d not acknowledged: not the %d that were written", len(got), len(b.Unread), len(a.Send), len(all))
		}
		if len(a.Send) == 0 || a.SndNxt == a.WriteSeq {
			t.Logf("nothing is unsent: %d of %d", a.SndNxt-a.SndUna, len(a.Send))
		}
		if !a.TimestampOK || !a.SackOK || !a.WscaleOK || a.SndWscale != b.RcvWscale || a.MSSClamp == 0 || a.Urgent != UrgentNone || a.SndUp != a.SndUna || a.Repair {
			t.Errorf("options: %+v", a)
		}
		for name, m := range map[string]Maybe[bool]{"subflow": a.Subflow, "ulp": a.ULP, "signed": a.Signed, "fastopen": a.Fastopen, "syn": a.SavedSYN} {
			if !m.Known || m.V {
				t.Errorf("%s: %+v", name, m)
			}
		}
	}
}

// TestTCPClosing goes through the states of a connection that ends.
func TestTCPClosing(t *testing.T) {
	c, s, _ := tcpPair(t, unix.AF_INET)
	if _, err := unix.Write(c, []byte("end")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Shutdown(c, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	b := until(t, s, "FIN", func(x *TCP) bool { return x.State == SocketCloseWait })
	if !b.GotFIN || string(b.Unread) != "end" || b.Shutdown != ShutRead || !b.Done {
		t.Errorf("%+v", b)
	}
	a := until(t, c, "ACK of FIN", func(x *TCP) bool { return x.State == SocketFinWait2 })
	if a.SentFIN || len(a.Send) != 0 || a.SndUna != a.WriteSeq || a.Shutdown != ShutWrite {
		t.Errorf("%+v", a)
	}
	if n, err := unix.Read(s, make([]byte, 10)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := unix.Read(s, make([]byte, 10)); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if b = tcpOf(t, s); b.GotFIN || b.CopiedSeq != b.RcvNxt {
		t.Errorf("%+v", b)
	}
	// The other one ends it too, and what was the first is closed.
	if err := unix.Shutdown(s, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	until(t, c, "the end", func(x *TCP) bool { return x.State == SocketClosed })
	until(t, s, "the end", func(x *TCP) bool { return x.State == SocketClosed })
}

// TestTCPBacklog has a connection that nobody has accepted, and one of a listener of MPTCP.
func TestTCPBacklog(t *testing.T) {
	v := view(t)
	for _, protocol := range []int{0, unix.IPPROTO_MPTCP} {
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Skipf("needs MPTCP: %v", err)
		}
		defer unix.Close(l)
		if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 5)); err != nil {
			t.Fatal(err)
		}
		addr, err := unix.Getsockname(l)
		if err != nil {
			t.Fatal(err)
		}
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		if err := unix.Connect(c, addr); err != nil {
			t.Fatal(err)
		}
		id := fileOf(t, v, os.Getpid(), l).ID
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			e, err := v.TCPEnds(id)
			if err != nil {
				t.Fatal(err)
			}
			if e.Backlog == 1 && e.Half == 0 && int(e.Local.Port()) == addr.(*unix.SockaddrInet4).Port {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("protocol %d: %+v", protocol, e)
			}
		}
	}
	if _, err := v.TCP(0); !errors.Is(err, ErrKind) {
		t.Errorf("no socket: %v", err)
	}
}

// TestTCPWaiting reads the connections that wait for accept(2).
func TestTCPWaiting(t *testing.T) {
	_, _, l := tcpPair(t, unix.AF_INET)
	v := view(t)
	id := fileOf(t, v, os.Getpid(), l).ID
	if all, err := v.TCPWaiting(id); err != nil || len(all) != 0 {
		var missing *MissingError
		if errors.As(err, &missing) {
			t.Skip(err)
		}
		t.Fatalf("nobody waits: %+v, %v", all, err)
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	const clients, closed, reset = 4, 2, 3
	var fds [clients]int
	for i := range fds {
		if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(fds[i], addr); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fds[i], bytes.Repeat([]byte{byte(i)}, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Shutdown(fds[closed], unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptLinger(fds[reset], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fds[reset]); err != nil {
		t.Fatal(err)
	}
	var all []TCP
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if all, err = v.TCPWaiting(id); err != nil {
			t.Fatal(err)
		}
		if len(all) == clients && all[closed].State == SocketCloseWait && all[reset].State == SocketClosed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections wait, %+v", len(all), all)
		}
	}
	ends, err := v.TCPWaitingEnds(id)
	if err != nil || len(ends) != clients {
		t.Fatalf("%+v, %v", ends, err)
	}
	for i := range all {
		if all[i].Ends != ends[i] || ends[i].Local != netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(addr.(*unix.SockaddrInet4).Port)) {
			t.Errorf("connection %d: %+v, %+v", i, all[i].Ends, ends[i])
		}
		if !bytes.Equal(all[i].Unread, bytes.Repeat([]byte{byte(i)}, i)) || len(all[i].Send) != 0 {
			t.Errorf("connection %d: %d bytes to be read, %d to be sent", i, len(all[i].Unread), len(all[i].Send))
		}
		if i == reset {
			continue
		}
		c := tcpOf(t, fds[i])
		if c.Ends.Local != ends[i].Remote || c.SndNxt != all[i].RcvNxt || c.RcvNxt != all[i].SndUna || all[i].SndUna != all[i].WriteSeq {
			t.Errorf("connection %d is not what its client has: %+v, %+v", i, all[i].Ends, c.Ends)
		}
		if f := all[i].Fastopen; !f.Known || f.V || !all[i].TSOffset.Known || !all[i].TSRecent.Known {
			t.Errorf("connection %d: not all is known", i)
		}
		_ = unix.Close(fds[i])
	}
	if _, err := v.TCPWaiting(fileOf(t, v, os.Getpid(), tcpListenerless(t)).ID); !errors.Is(err, ErrKind) {
		t.Errorf("of a socket that does not listen: %v", err)
	}
}

func tcpListenerless(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
