package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// segment is one that a socket gets as if it came from its peer: the only way into a state that a FIN or its acknowledgement, or urgent
// data, has led to. It never leaves the machine, because its destination is an address of it.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	window   uint16
	fin, rst bool
	urgent   bool
	pointer  uint16 // to the urgent byte
	data     []byte
}

const (
	tcpHeader   = 20
	ackFlag     = 0x10
	finFlag     = 0x01
	rstFlag     = 0x04
	urgentFlag  = 0x20
	injectTime  = 10 * time.Second
	injectPause = 200 * time.Millisecond
)

// packet is the segment with its headers (RFC 791, RFC 8200, RFC 9293).
func (s *segment) packet() []byte {
	t := make([]byte, tcpHeader)
	binary.BigEndian.PutUint16(t, s.from.Port())
	binary.BigEndian.PutUint16(t[2:], s.to.Port())
	binary.BigEndian.PutUint32(t[4:], s.seq)
	binary.BigEndian.PutUint32(t[8:], s.ack)
	t[12], t[13] = tcpHeader/4<<4, ackFlag
	if s.fin {
		t[13] |= finFlag
	}
	if s.rst {
		t[13] |= rstFlag
	}
	if s.urgent {
		t[13] |= urgentFlag
		binary.BigEndian.PutUint16(t[18:], s.pointer)
	}
	binary.BigEndian.PutUint16(t[14:], s.window)
	t = append(t, s.data...)
	src, dst := s.from.Addr().AsSlice(), s.to.Addr().AsSlice()
	pseudo := append(append(append([]byte{}, src...), dst...), 0, unix.IPPROTO_TCP)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(t)))
	binary.BigEndian.PutUint16(t[16:], segmentSum(append(pseudo, t...)))
	var h []byte
	if s.from.Addr().Is4() {
		h = make([]byte, ipv4Header)
		h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(h[2:], ipv4Header+uint16(len(t)))
		copy(h[12:], src)
		copy(h[16:], dst)
		binary.BigEndian.PutUint16(h[10:], segmentSum(h))
	} else {
		h = make([]byte, ipv6Header)
		h[0], h[6], h[7] = 0x60, unix.IPPROTO_TCP, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(t)))
		copy(h[8:], src)
		copy(h[24:], dst)
	}
	return append(h, t...)
}

// segmentSum is that of RFC 1071.
func segmentSum(b []byte) uint16 {
	var sum uint32
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// inject has the socket get a segment, and waits for the state that it leads to.
func (m *tcpMade) inject(t *tcpRestore, s segment, state uint8) error {
	return m.injectUntil(t, s, func() (bool, error) {
		now, err := stateOf(m.fd)
		return now == state, err
	})
}

// injectUntil has the socket get a segment, again and again until it has. What is held back lets packets with the mark pass.
func (m *tcpMade) injectUntil(t *tcpRestore, s segment, has func() (bool, error)) error {
	family, level, opt := unix.AF_INET, unix.IPPROTO_IP, unix.IP_HDRINCL
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(s.to.Addr().AsSlice()[:4])}
	if s.to.Addr().Is6() {
		// The port of a raw socket's address is its protocol, or 0.
		family, level, opt, to = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, &unix.SockaddrInet6{Addr: s.to.Addr().As16(), ZoneId: m.zone(s.to.Addr())}
	}
	n, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EPERM) {
		return &object.Lacking{What: "bringing a TCP connection into a state in which one end is closed, or urgent data waits", Err: err, Do: "give cr-restore CAP_NET_RAW"}
	}
	if err != nil {
		return fmt.Errorf("making a raw socket: %w", err)
	}
	raw := sys.NewFD(n)
	defer raw.Close()
	if err := errors.Join(unix.SetsockoptInt(n, level, opt, 1), unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_MARK, int(int32(t.mark)))); err != nil {
		return fmt.Errorf("making a raw socket: %w", err)
	}
	// It comes by the loopback device, of which a socket that is bound to another one takes nothing.
	if family == unix.AF_INET && find(m.s.Options, "SO_BINDTODEVICE") != nil {
		if err := sys.Setsockopt(m.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, []byte{0}); err != nil {
			return fmt.Errorf("freeing it from its network interface: %w", err)
		}
	}
	p := s.packet()
	for deadline := time.Now().Add(injectTime); ; {
		if err := unix.Sendto(n, p, 0, to); err != nil {
			return fmt.Errorf("sending a segment to it: %w", err)
		}
		for end := time.Now().Add(injectPause); ; time.Sleep(time.Millisecond) {
			if done, err := has(); err != nil || done {
				return err
			}
			if time.Now().After(end) {
				break
			}
		}
		if time.Now().After(deadline) {
			return errors.New("a segment does not reach it; is the loopback device up, and does no packet filter drop it?")
		}
	}
}

// A forger sends segments that seem to come from a peer.
type forger struct {
	raw *sys.FD
	to  unix.Sockaddr
}

// newForger makes one that sends to a local address. What is held back lets packets with the mark pass.
func newForger(to netip.Addr, mark uint32) (*forger, error) {
	f := &forger{}
	family, level, opt := unix.AF_INET, unix.IPPROTO_IP, unix.IP_HDRINCL
	if to.Is4() {
		f.to = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		family, level, opt, f.to = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, &unix.SockaddrInet6{Addr: to.As16()}
	}
	n, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EPERM) {
		return nil, &object.Lacking{What: "bringing a TCP connection into the queue of a listening socket", Err: err, Do: "give cr-restore CAP_NET_RAW"}
	}
	if err != nil {
		return nil, fmt.Errorf("making a raw socket: %w", err)
	}
	f.raw = sys.NewFD(n)
	if err := errors.Join(unix.SetsockoptInt(n, level, opt, 1), unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_MARK, int(int32(mark)))); err != nil {
		f.close()
		return nil, fmt.Errorf("making a raw socket: %w", err)
	}
	return f, nil
}

func (f *forger) close() { _ = f.raw.Close() }

// send sends a segment until it has done what it should.
func (f *forger) send(s *segment, done func() (bool, error)) error {
	for deadline := time.Now().Add(injectTime); ; {
		if ok, err := f.try(s, injectPause, done); ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("a segment does not reach it; is the loopback device up, and does no packet filter drop it?")
		}
	}
}

// try sends a segment and says whether it has done what it should, for which it has some time.
func (f *forger) try(s *segment, pause time.Duration, done func() (bool, error)) (bool, error) {
	if err := unix.Sendto(f.raw.Int(), s.packet(), 0, f.to); err != nil {
		return false, fmt.Errorf("sending a segment to it: %w", err)
	}
	for end := time.Now().Add(pause); ; time.Sleep(time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return ok, err
		}
		if time.Now().After(end) {
			return false, nil
		}
	}
}

// zone is the interface to which a socket with an address of a link is bound.
func (m *tcpMade) zone(a netip.Addr) uint32 {
	name := find(m.s.Options, "SO_BINDTODEVICE")
	if len(name) < 2 || !a.IsLinkLocalUnicast() {
		return 0
	}
	index, err := interfaceIndex(m.fd, string(name[:len(name)-1]))
	if err != nil {
		return 0
	}
	return index
}
