package sockets

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// sender sends packets to the machine itself as if they came from elsewhere. Its sockets belong to the network namespace of the thread
// that makes them, as the socket does for which the packets are.
type sender struct {
	raw   [2]*sys.FD // of IPv4 and IPv6
	bound [2]uint32  // to which interface
	route *sys.FD    // rtnetlink(7)
}

// newSender makes a sender on the thread that makes the sockets.
func newSender(v6 bool) (*sender, error) {
	s := &sender{}
	families := []int{unix.AF_INET}
	if v6 {
		families = append(families, unix.AF_INET6)
	}
	for i, family := range families {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err == nil {
			s.raw[i] = sys.NewFD(fd)
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, ownMark)
		}
		if err != nil {
			s.close()
			return nil, &object.Lacking{What: "giving a socket its unread datagrams", Do: "give cr-restore CAP_NET_RAW and CAP_NET_ADMIN", Err: err}
		}
		widen(fd)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("making a netlink socket: %w", err)
	}
	s.route = sys.NewFD(fd)
	return s, nil
}

func (s *sender) close() {
	for _, fd := range []*sys.FD{s.raw[0], s.raw[1], s.route} {
		if fd != nil {
			_ = fd.Close() // only sent through
		}
	}
}

// socket returns the raw socket of a family, bound to an interface.
func (s *sender) socket(v6 bool, index uint32) (int, error) {
	i := 0
	if v6 {
		i = 1
	}
	if s.raw[i] == nil {
		return -1, object.BadImagef("an unread datagram of another family than its socket")
	}
	fd := s.raw[i].Int()
	if s.bound[i] != index {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, int(index)); err != nil {
			return -1, err
		}
		s.bound[i] = index
	}
	return fd, nil
}

// send sends a packet, whose checksums are made here or by the kernel.
func (s *sender) send(d *datagram, index uint32, packet []byte) error {
	fd, err := s.socket(d.v6, index)
	if err != nil {
		return err
	}
	p := append([]byte(nil), packet...)
	if d.v6 {
		sum := checksum(d, p[ipv6Header:])
		binary.BigEndian.PutUint16(p[ipv6Header+6:], sum)
	}
	return unix.Sendto(fd, p, 0, joinAddress(d.dest, 0, index))
}

// checksum is that of UDP over IPv6 (RFC 8200 section 8.1), where there must be one.
func checksum(d *datagram, udp []byte) uint16 {
	pseudo := append(append([]byte(nil), d.source...), d.dest...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(udp)))
	pseudo = append(pseudo, 0, 0, 0, unix.IPPROTO_UDP)
	sum := uint64(0)
	for _, part := range [][]byte{pseudo, udp} {
		for len(part) > 1 {
			sum += uint64(binary.BigEndian.Uint16(part))
			part = part[2:]
		}
		if len(part) == 1 {
			sum += uint64(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff // 0 would be none
	}
	return ^uint16(sum)
}

// memory is what SO_MEMINFO tells (linux/sock_diag.h).
type memory struct{ received, drops uint32 }

func memoryOf(fd int) (memory, error) {
	b := make([]byte, 9*4)
	if n, err := sys.Getsockopt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO, b); err != nil || n < len(b) {
		return memory{}, fmt.Errorf("asking for SO_MEMINFO: %d bytes, %w", n, err)
	}
	return memory{binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[8*4:])}, nil
}

// isLocal asks rtnetlink(7) whether a packet to an address, sent by way of an interface (0: any), stays in the machine.
func (s *sender) isLocal(addr []byte, index uint32) (bool, error) {
	fd := s.route.Int()
	family := byte(unix.AF_INET)
	if len(addr) == 16 {
		family = unix.AF_INET6
	}
	attribute := func(b []byte, kind uint16, value []byte) []byte {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		return append(b, value...)
	}
	// struct nlmsghdr and struct rtmsg
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
	b[unix.SizeofNlMsghdr], b[unix.SizeofNlMsghdr+1] = family, byte(8*len(addr))
	b = attribute(b, unix.RTA_DST, addr)
	if index != 0 {
		b = attribute(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, index))
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_GETROUTE)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("asking for a route: %w", err)
	}
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return false, fmt.Errorf("asking for a route: %w", err)
	}
	const kindAt = unix.SizeofNlMsghdr + 7 // rtm_type
	if n <= kindAt || binary.NativeEndian.Uint16(answer[4:]) != unix.RTM_NEWROUTE {
		return false, nil // an error: there is none
	}
	return answer[kindAt] == unix.RTN_LOCAL, nil
}
