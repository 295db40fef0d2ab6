package sockets

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// TestMPTCPFallback has a listening MPTCP socket, as servers written in Go have, accept a client that speaks TCP: what is accepted is a TCP
// socket and kept. One of a client that speaks MPTCP is refused, and so is an MPTCP client of a TCP server, which the kernel keeps as MPTCP.
func TestMPTCPFallback(t *testing.T) {
	tcpNetwork(t)
	server, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcp)
	if err != nil {
		t.Skipf("needs MPTCP (net.mptcp.enabled): %v", err)
	}
	defer unix.Close(server)
	must(t, errors.Join(unix.Bind(server, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(server, 5)))
	plainServer := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	must(t, errors.Join(unix.Bind(plainServer, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(plainServer, 5)))
	connect := func(l, protocol int) (client, accepted int) {
		t.Helper()
		addr, err := unix.Getsockname(l)
		if err != nil {
			t.Fatal(err)
		}
		if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol); err != nil {
			t.Fatal(err)
		}
		must(t, unix.Connect(client, addr))
		if accepted, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = unix.Close(client), unix.Close(accepted) })
		return client, accepted
	}
	client, fallen := connect(server, unix.IPPROTO_TCP)
	client2, whole := connect(server, mptcp)
	client3, _ := connect(plainServer, mptcp)

	d := tcpDumper(t, true)
	must(t, HoldTCP(d))
	defer func() { must(t, Unhold(d)) }()
	must(t, second(unix.Write(client, []byte("hello"))))
	state, err := dumpTCP(d, tcpFile(t, d, fallen))
	if err != nil {
		t.Fatal(err)
	}
	if !state.Kept || state.Protocol != unix.IPPROTO_TCP || state.State != kernelview.SocketEstablished {
		t.Errorf("what was accepted is protocol %d in state %d, kept: %v", state.Protocol, state.State, state.Kept)
	}
	if _, err := dumpTCP(d, tcpFile(t, d, client)); err != nil {
		t.Errorf("its client: %v", err)
	}
	if s, err := dumpTCP(d, tcpFile(t, d, server)); err != nil || s.Protocol != mptcp || s.State != kernelview.SocketListening {
		t.Errorf("the listening socket: %+v, %v", s, err)
	}
	for name, fd := range map[string]int{"the client of an MPTCP connection": client2, "its other end": whole, "an MPTCP client of a TCP server": client3} {
		var refused *object.Unsupported
		if _, err := dumpTCP(d, tcpFile(t, d, fd)); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
