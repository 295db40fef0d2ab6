package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A raw socket (raw(7)), or one of ICMP for those who have no right to one (SOCK_DGRAM and IPPROTO_ICMP, icmp(7)): where it is bound
// and connected, its options, and ICMP_FILTER or ICMP6_FILTER.
//
// Refused by name: packets that nobody has read. They could be given back only by sending them once more to everybody who listens
// for the protocol.
type rawState struct {
	Common
	Inet
	Type       uint32 `msgpack:"type"`                  // SOCK_RAW or SOCK_DGRAM
	ICMPFilter []byte `msgpack:"icmp_filter,omitempty"` // struct icmp_filter or icmp6_filter, in the machine's byte order
}

// solRaw is SOL_RAW of linux/socket.h; its one option, and that of IPPROTO_ICMPV6 in linux/icmpv6.h, is 1.
const (
	solRaw     = 255
	icmpFilter = 1
)

func isRaw(s *kernelview.Socket) bool {
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 {
		return false
	}
	return s.Type == unix.SOCK_RAW || s.Type == unix.SOCK_DGRAM && (s.Protocol == unix.IPPROTO_ICMP || s.Protocol == unix.IPPROTO_ICMPV6)
}

// filterOption is where the filter of a socket is, and how long it is; 0: it has none.
func (s *rawState) filterOption() (level, length int) {
	switch {
	case s.Type != unix.SOCK_RAW:
		return 0, 0
	case s.Family == unix.AF_INET && s.Protocol == unix.IPPROTO_ICMP:
		return solRaw, 4
	case s.Family == unix.AF_INET6 && s.Protocol == unix.IPPROTO_ICMPV6:
		return unix.IPPROTO_ICMPV6, 32
	}
	return 0, 0
}

func dumpRaw(d *object.Dumper, f *object.OpenFile) (*rawState, error) {
	if err := refuseShared(d, f); err != nil {
		return nil, err
	}
	s, err := d.View.Socket(f.View.ID)
	if err != nil {
		return nil, err
	}
	if n := len(s.Receive); n > 0 {
		return nil, unread(n, "packets")
	}
	if len(s.Write) > 0 {
		return nil, object.Unsupportedf("a packet that was begun and not sent (MSG_MORE) waits in it, which cannot be checkpointed")
	}
	c, err := dumpCommon(f, &s)
	if err != nil {
		return nil, err
	}
	in, _, err := dumpInet(d, f, &s)
	if err != nil {
		return nil, err
	}
	st := &rawState{Common: *c, Inet: *in, Type: uint32(s.Type)}
	if st.Type == unix.SOCK_RAW && st.Port == 0 && st.Protocol != 0 {
		return nil, object.Unsupportedf("it was connected, disconnected, and is deaf since (net/ipv4/udp.c), which cannot be checkpointed")
	}
	if level, length := st.filterOption(); length > 0 {
		fd, err := f.Descriptor()
		if err != nil {
			return nil, err
		}
		st.ICMPFilter = make([]byte, length)
		if n, err := sys.Getsockopt(fd, level, icmpFilter, st.ICMPFilter); err != nil || n != length {
			return nil, fmt.Errorf("asking for the ICMP filter: %d bytes, %w", n, err)
		}
	}
	return st, nil
}

// unread refuses what waits in a socket.
func unread(n int, what string) error {
	return &object.Unsupported{What: fmt.Sprintf("%d unread %s wait in it, which cannot be checkpointed", n, what), Do: "let it read them, and dump it again", Passes: true}
}

func restoreRaw(_ *object.Restorer, _ stream.Ref, s *rawState) (int, error) {
	if err := errors.Join(s.Common.check(), s.Inet.check()); err != nil {
		return -1, err
	}
	_, length := s.filterOption()
	ping := s.Type == unix.SOCK_DGRAM && (s.Protocol == unix.IPPROTO_ICMP || s.Protocol == unix.IPPROTO_ICMPV6)
	if s.Type != unix.SOCK_RAW && !ping || len(s.ICMPFilter) != length {
		return -1, object.BadImagef("a raw socket of type %d and protocol %d with a filter of %d bytes is impossible", s.Type, s.Protocol, len(s.ICMPFilter))
	}
	fd, err := unix.Socket(int(s.Family), int(s.Type)|unix.SOCK_CLOEXEC, int(s.Protocol))
	switch {
	case errors.Is(err, unix.EPERM):
		return -1, &object.Lacking{What: "making a raw socket", Do: "give cr-restore CAP_NET_RAW", Err: err}
	case ping && errors.Is(err, unix.EACCES):
		return -1, &object.Lacking{What: "making a socket of ICMP", Do: "have the group of cr-restore in net.ipv4.ping_group_range", Err: err}
	case err != nil:
		return -1, fmt.Errorf("making a socket of family %d, type %d and protocol %d: %w", s.Family, s.Type, s.Protocol, err)
	}
	if err := s.make(fd); err != nil {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, err
	}
	return fd, nil
}

func (s *rawState) make(fd int) error {
	if err := s.setEarly(fd); err != nil {
		return err
	}
	if s.Type == unix.SOCK_RAW && s.Protocol == unix.IPPROTO_RAW { // which has it on at first
		level, opt, name := unix.IPPROTO_IP, unix.IP_HDRINCL, "IP_HDRINCL"
		if s.Family == unix.AF_INET6 {
			level, opt, name = unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, "IPV6_HDRINCL"
		}
		if find(s.IP.Options, name) == nil {
			if err := unix.SetsockoptInt(fd, level, opt, 0); err != nil {
				return fmt.Errorf("setting %s: %w", name, err)
			}
		}
	}
	if err := s.IP.set(fd); err != nil {
		return err
	}
	// The kernel does not remember of raw sockets whether bind(2) or connect(2) gave the address, and of ICMP sockets chooses
	// the port, which is the id in the packets, by itself.
	in := s.Inet
	in.GivenAddr, in.GivenPort = !in.any(), true
	if s.Type == unix.SOCK_RAW {
		in.Port = 0
	}
	if err := in.bind(fd); err != nil {
		return err
	}
	if err := s.connect(fd); err != nil {
		return err
	}
	if level, length := s.filterOption(); length > 0 {
		if err := sys.Setsockopt(fd, level, icmpFilter, s.ICMPFilter); err != nil {
			return fmt.Errorf("setting the ICMP filter: %w", err)
		}
	}
	if err := s.shut(fd); err != nil {
		return err
	}
	return s.finish(fd)
}

// RawKind is the kind of raw sockets, and of those of ICMP.
var RawKind = object.NewFileKind("file.socket.raw", claims(isRaw), dumpRaw, restoreRaw)
