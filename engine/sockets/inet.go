package sockets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Inet is where a datagram or raw socket of AF_INET or AF_INET6 is bound and connected, beside its options. bind(2) and
// connect(2) choose what they are not given, and only what they were given outlives a disconnect (connect(2) to AF_UNSPEC); the
// kernel's memory tells the one from the other.
//
// A port that the kernel chose is had again without bind(2) having given it by letting it choose from that port alone
// (IP_LOCAL_PORT_RANGE, Linux 6.3). Lost on older kernels, and for ICMP sockets on all: that it was the kernel's choice.
type Inet struct {
	Family    uint32  `msgpack:"family"` // AF_INET or AF_INET6
	Protocol  uint32  `msgpack:"protocol"`
	IP        ipState `msgpack:"ip"`
	Addr      []byte  `msgpack:"addr"` // 4 or 16 bytes
	Port      uint32  `msgpack:"port,omitempty"`
	Scope     string  `msgpack:"scope,omitempty"`      // the interface of a link-local address
	GivenAddr bool    `msgpack:"given_addr,omitempty"` // by bind(2)
	GivenPort bool    `msgpack:"given_port,omitempty"`
	Peer      []byte  `msgpack:"peer,omitempty"` // absent: not connected
	PeerPort  uint32  `msgpack:"peer_port,omitempty"`
	PeerScope string  `msgpack:"peer_scope,omitempty"`
	Shutdown  uint32  `msgpack:"shutdown,omitempty"` // 1: no more receiving, 2: no more sending
}

// dumpInet looks at the addresses and the options.
func dumpInet(d *object.Dumper, f *object.OpenFile, s *kernelview.Socket) (*Inet, *kernelview.Inet, error) {
	if err := refusePending(s); err != nil {
		return nil, nil, err
	}
	ip, v, err := dumpIP(d, f)
	if err != nil {
		return nil, nil, err
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, nil, err
	}
	st := &Inet{Family: uint32(s.Family), Protocol: uint32(s.Protocol), IP: *ip, Shutdown: uint32(s.Shutdown),
		GivenAddr: v.UserLocks&kernelview.LockBindAddress != 0, GivenPort: v.UserLocks&kernelview.LockBindPort != 0}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("asking for its address: %w", err)
	}
	scope := uint32(0)
	st.Addr, st.Port, scope = splitAddress(local)
	if st.Scope, err = interfaceName(fd, scope); err != nil {
		return nil, nil, err
	}
	if s.State != kernelview.SocketEstablished {
		return st, v, nil
	}
	if numberOf(find(ip.Options, "IPV6_FLOWINFO_SEND")) != 0 {
		return nil, nil, object.Unsupportedf("it is connected with a flow label or traffic class (IPV6_FLOWINFO_SEND), which cannot be checkpointed")
	}
	st.Peer, st.PeerPort = v.Peer, uint32(v.PeerPort)
	if peer, err := unix.Getpeername(fd); err == nil { // which fails for port 0
		_, _, scope := splitAddress(peer)
		if st.PeerScope, err = interfaceName(fd, scope); err != nil {
			return nil, nil, err
		}
	}
	return st, v, nil
}

// refusePending refuses what a datagram socket has under way.
func refusePending(s *kernelview.Socket) error {
	try := "let it take that, and dump it again"
	for _, err := range []int32{s.Err, s.SoftErr} {
		if err != 0 {
			return &object.Unsupported{What: fmt.Sprintf("it has an error that it was not told yet (%v), which cannot be checkpointed", unix.Errno(max(err, -err))), Do: try, Passes: true}
		}
	}
	if s.Unsent {
		return &object.Unsupported{What: "packets wait for it to be unlocked, which cannot be checkpointed", Do: try, Passes: true}
	}
	return nil
}

// splitAddress returns address, port and number of the interface.
func splitAddress(sa unix.Sockaddr) (addr []byte, port, scope uint32) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return a.Addr[:], uint32(a.Port), 0
	case *unix.SockaddrInet6:
		return a.Addr[:], uint32(a.Port), a.ZoneId
	}
	return nil, 0, 0
}

// joinAddress is the other way round.
func joinAddress(addr []byte, port, scope uint32) unix.Sockaddr {
	if len(addr) == 4 {
		return &unix.SockaddrInet4{Addr: [4]byte(addr), Port: int(port)}
	}
	return &unix.SockaddrInet6{Addr: [16]byte(addr), Port: int(port), ZoneId: scope}
}

// printAddress is for messages.
func printAddress(addr []byte, port uint32) string {
	a, ok := netip.AddrFromSlice(addr)
	if !ok {
		return "?"
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)).String()
}

// length is that of an address in bytes.
func (s *Inet) length() int {
	if s.Family == unix.AF_INET6 {
		return 16
	}
	return 4
}

// check refuses what no socket can have.
func (s *Inet) check() error {
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 || s.Protocol > 0xff {
		return object.BadImagef("a socket of family %d and protocol %d does not belong here", s.Family, s.Protocol)
	}
	n := s.length()
	if len(s.Addr) != n || len(s.Peer) != 0 && len(s.Peer) != n || s.Port > 0xffff || s.PeerPort > 0xffff || s.Shutdown > 3 {
		return object.BadImagef("addresses of %d and %d bytes, ports %d and %d, shutdown %d of a socket are impossible", len(s.Addr), len(s.Peer), s.Port, s.PeerPort, s.Shutdown)
	}
	return s.IP.check()
}

// any says whether no address is bound.
func (s *Inet) any() bool { return bytes.Equal(s.Addr, make([]byte, len(s.Addr))) }

// bind binds a socket that is neither bound nor connected.
func (s *Inet) bind(fd int) error {
	addr, port := s.Addr, s.Port
	if !s.GivenAddr {
		addr = make([]byte, len(addr))
	}
	if !s.GivenAddr && port == 0 {
		return nil
	}
	scope := uint32(0)
	if s.Scope != "" {
		index, err := interfaceIndex(fd, s.Scope)
		if err != nil {
			return err
		}
		scope = index
	}
	if port != 0 && !s.GivenPort {
		undo, ok, err := choosePort(fd, port)
		if err != nil {
			return err
		}
		if ok {
			port = 0
			defer undo()
		}
	}
	err := unix.Bind(fd, joinAddress(addr, port, scope))
	what := printAddress(addr, s.Port)
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return &object.Lacking{What: "this machine does not have the address " + what + " of a socket", Err: err,
			Do: "give it the address (ip-address(8)), or change it in the image with cr-filter jq"}
	case errors.Is(err, unix.EADDRINUSE):
		return &object.Lacking{What: "somebody else has the address and port " + what + " of a socket", Err: err, Do: "see who with ss -lunp, and end it"}
	case errors.Is(err, unix.EACCES):
		return &object.Lacking{What: "binding a socket to " + what, Err: err, Do: "give cr-restore CAP_NET_BIND_SERVICE"}
	case err != nil:
		return fmt.Errorf("binding a socket to %s: %w", what, err)
	}
	return nil
}

// choosePort has the kernel, when it chooses a port next, choose that one. ok is false where it cannot be told so.
func choosePort(fd int, port uint32) (undo func(), ok bool, err error) {
	old := make([]byte, 4)
	if _, err := sys.Getsockopt(fd, unix.IPPROTO_IP, ipLocalPortRange, old); err != nil {
		return nil, false, nil
	}
	late := make([]byte, 4)
	if _, err := sys.Getsockopt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, late); err != nil {
		return nil, false, nil
	}
	undo = func() { // to values that it has had
		_ = sys.Setsockopt(fd, unix.IPPROTO_IP, ipLocalPortRange, old)
		_ = sys.Setsockopt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, late)
	}
	if err := sys.Setsockopt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, number(0)); err != nil {
		return nil, false, fmt.Errorf("setting IP_BIND_ADDRESS_NO_PORT: %w", err)
	}
	if err := sys.Setsockopt(fd, unix.IPPROTO_IP, ipLocalPortRange, binary.NativeEndian.AppendUint32(nil, port<<16|port)); err != nil {
		return nil, false, fmt.Errorf("setting IP_LOCAL_PORT_RANGE: %w", err)
	}
	return undo, true, nil
}

// connect connects a socket to its peer, if it has one, and proves that it then is what it was.
func (s *Inet) connect(fd int) error {
	if len(s.Peer) > 0 {
		scope := uint32(0)
		if s.PeerScope != "" {
			index, err := interfaceIndex(fd, s.PeerScope)
			if err != nil {
				return err
			}
			scope = index
		}
		if err := connectTo(fd, s.Peer, s.PeerPort, scope); err != nil {
			return err
		}
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("asking for the address of a socket: %w", err)
	}
	if addr, port, _ := splitAddress(local); !bytes.Equal(addr, s.Addr) || port != s.Port {
		return &object.Lacking{What: fmt.Sprintf("a socket of the image has the address %s, here it would have %s", printAddress(s.Addr, s.Port), printAddress(addr, port)),
			Do: "give this machine the same addresses, routes and net.ipv4.ip_local_port_range"}
	}
	return nil
}

func connectTo(fd int, addr []byte, port, scope uint32) error {
	err := unix.Connect(fd, joinAddress(addr, port, scope))
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EADDRNOTAVAIL):
		return &object.Lacking{What: "this machine has no route to " + printAddress(addr, port) + ", to which a socket is connected", Err: err,
			Do: "give it the same addresses and routes"}
	case err != nil:
		return fmt.Errorf("connecting a socket to %s: %w", printAddress(addr, port), err)
	}
	return nil
}

// shut shuts a socket down as it was. One that is not connected is shut down too, though the call then fails (inet_shutdown in
// net/ipv4/af_inet.c).
func (s *Inet) shut(fd int) error {
	if s.Shutdown == 0 {
		return nil
	}
	if err := unix.Shutdown(fd, int(s.Shutdown)-1); err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("shutting a socket down: %w", err)
	}
	return nil
}
