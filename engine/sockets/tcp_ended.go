package sockets

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// remakeEnded has the socket go through a connection over the loopback device that ends as the one of the image has: with what was
// received and not read still there to be read, and then the end (no error), ECONNRESET or EPIPE. Its old address is nobody's any
// more, so that getsockname(2) telling another one is all that shows.
func (m *tcpMade) remakeEnded(how unix.Errno) error {
	s := m.s
	widen(m.fd)
	if len(find(s.Options, "SO_BINDTODEVICE")) > 0 {
		if err := sys.Setsockopt(m.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, []byte{0}); err != nil {
			return fmt.Errorf("freeing it from its network interface: %w", err)
		}
	}
	l, addr, err := loopbackAddress(int(s.Family), s.only6())
	if err != nil {
		return err
	}
	defer l.Close()
	if s.Connecting {
		// To a port at which nobody listens.
		if _, err := unix.FcntlInt(uintptr(m.fd), unix.F_SETFL, unix.O_NONBLOCK); err != nil {
			return fmt.Errorf("setting status flags: %w", err)
		}
		if err := unix.Connect(m.fd, addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connecting it in vain: %w", err)
		}
		if err := m.await(kernelview.SocketClosed); err != nil {
			return err
		}
		if _, err := unix.FcntlInt(uintptr(m.fd), unix.F_SETFL, 0); err != nil {
			return fmt.Errorf("setting status flags: %w", err)
		}
		return m.forget(how)
	}
	if err := unix.Listen(l.Int(), 1); err != nil {
		return fmt.Errorf("listening at the loopback device: %w", err)
	}
	if err := unix.Connect(m.fd, addr); err != nil {
		return fmt.Errorf("connecting it at the loopback device: %w", err)
	}
	n, _, err := unix.Accept4(l.Int(), unix.SOCK_CLOEXEC)
	if err != nil {
		return fmt.Errorf("accepting a connection at the loopback device: %w", err)
	}
	peer := sys.NewFD(n)
	defer peer.Close()
	if err := m.receive(peer, m.content[:s.Unread]); err != nil {
		return err
	}
	if how != unix.ECONNRESET {
		if err := unix.Shutdown(n, unix.SHUT_WR); err != nil {
			return fmt.Errorf("ending a connection: %w", err)
		}
		if err := m.await(kernelview.SocketCloseWait); err != nil {
			return err
		}
	}
	if how == 0 {
		err = unix.Shutdown(m.fd, unix.SHUT_WR)
	} else {
		err = errors.Join(unix.SetsockoptLinger(n, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), peer.Close())
	}
	if err != nil {
		return fmt.Errorf("ending a connection: %w", err)
	}
	if err := m.await(kernelview.SocketClosed); err != nil {
		return err
	}
	if m.reset {
		return nil // it has not been told yet
	}
	return m.forget(how)
}

// receive has the socket receive data from its peer of the moment.
func (m *tcpMade) receive(peer *sys.FD, data []byte) error {
	want := len(data)
	for begin := time.Now(); ; {
		n, err := unix.SendmsgN(peer.Int(), data, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == nil {
			data = data[n:]
		} else if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("filling its receive queue: %w", err)
		}
		have, err := unix.IoctlGetInt(m.fd, unix.SIOCINQ)
		if err != nil {
			return fmt.Errorf("asking how much it has received: %w", err)
		}
		if have == want {
			return nil
		}
		if time.Since(begin) > closingTime {
			return &object.Lacking{What: fmt.Sprintf("%d bytes do not fit into the receive buffer of a socket", want),
				Do: "raise net.core.rmem_max, or give cr-restore CAP_NET_ADMIN"}
		}
		if len(data) == 0 || err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}

// await waits for a state, which comes as fast as the loopback device is.
func (m *tcpMade) await(state uint8) error {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		now, err := stateOf(m.fd)
		if err != nil || now == state {
			return err
		}
		if time.Since(begin) > closingTime {
			return fmt.Errorf("it is in state %d, not %d", now, state)
		}
	}
}

// forget takes the error that the program has been told of already.
func (m *tcpMade) forget(how unix.Errno) error {
	if unix.Errno(m.s.Err) == how && how != 0 {
		return nil
	}
	_, err := unix.GetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err
}

// only6 says whether it takes addresses of IPv6 alone.
func (s *tcpState) only6() bool { return numberOf(find(s.IP.Options, "IPV6_V6ONLY")) != 0 }

// loopbackAddress makes a socket that is bound to an address of the loopback device, and returns that.
func loopbackAddress(family int, only6 bool) (*sys.FD, unix.Sockaddr, error) {
	to := []unix.Sockaddr{&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}}
	if family == unix.AF_INET6 {
		to = []unix.Sockaddr{&unix.SockaddrInet6{Addr: [16]byte{15: 1}}}
		if !only6 {
			to = append(to, &unix.SockaddrInet6{Addr: [16]byte{10: 0xff, 11: 0xff, 12: 127, 15: 1}})
		}
	}
	n, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket: %w", err)
	}
	fd := sys.NewFD(n)
	for _, a := range to {
		if err = unix.Bind(n, a); err == nil {
			break
		}
	}
	if err != nil {
		_ = fd.Close()
		return nil, nil, &object.Lacking{What: "a TCP connection that has ended needs the loopback device", Err: err, Do: "bring it up (ip link set lo up)"}
	}
	addr, err := unix.Getsockname(n)
	if err != nil {
		_ = fd.Close()
		return nil, nil, fmt.Errorf("asking for the address of a socket: %w", err)
	}
	return fd, addr, nil
}
