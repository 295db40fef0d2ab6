package sockets

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
)

// A socket that was connecting gets its port again although a connection from it to another port is in TIME_WAIT.
func TestBindBesideTimeWait(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(c.LocalAddr().String())
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close() // first: TIME_WAIT is its
	if n, err := peer.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Fatalf("read %d, %v", n, err)
	}
	peer.Close()

	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	plainly := socket()
	if err := unix.SetsockoptInt(plainly, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(plainly, tcpSockaddr(port)); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("bind(2) does not mind TIME_WAIT: %v", err)
	}
	m := &tcpMade{s: &tcpState{State: kernelview.SocketSynSent, Local: port.String()}, fd: socket(), local: port}
	if err := m.setTCP(tcpRepair, 1); errors.Is(err, unix.EPERM) {
		t.Skip("TCP_REPAIR needs CAP_NET_ADMIN")
	}
	if err := m.connect(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.Getsockname(m.fd); err != nil || got.(*unix.SockaddrInet4).Port != int(port.Port()) {
		t.Errorf("it is bound to %v, %v", got, err)
	}
	for opt, want := range map[[2]int]int{{unix.IPPROTO_TCP, tcpRepair}: 0, {unix.SOL_SOCKET, unix.SO_REUSEADDR}: 1} {
		if have, err := unix.GetsockoptInt(m.fd, opt[0], opt[1]); err != nil || have != want {
			t.Errorf("option %v is %d, %v, want %d", opt, have, err, want)
		}
	}
}
