package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// ipState is what a socket of AF_INET or AF_INET6 has of the levels IPPROTO_IP and IPPROTO_IPV6 (ip(7), ipv6(7)): the options, the
// interfaces that some of them name, by name because numbers differ from machine to machine and boot to boot, and the multicast
// groups (groups.go). The kernel's memory tells what getsockopt(2) does not: whether a TTL was set or is the usual one, what
// IPV6_MTU and IPV6_PKTINFO have set, by which interface multicast goes.
//
// Refused by name: policies of IPsec, flow labels, anycast addresses, a router alert of IPv6 (its value is nowhere to be had),
// multicast routing.
type ipState struct {
	Options       []Option  `msgpack:"options,omitempty"`
	UnicastIf     string    `msgpack:"unicast_if,omitempty"`     // of IP_UNICAST_IF
	UnicastIf6    string    `msgpack:"unicast_if6,omitempty"`    // of IPV6_UNICAST_IF
	MulticastIf   string    `msgpack:"multicast_if,omitempty"`   // of IP_MULTICAST_IF
	MulticastAddr []byte    `msgpack:"multicast_addr,omitempty"` // the address that was given with it
	MulticastIf6  string    `msgpack:"multicast_if6,omitempty"`  // of IPV6_MULTICAST_IF
	PktinfoAddr   []byte    `msgpack:"pktinfo_addr,omitempty"`   // of IPV6_PKTINFO
	PktinfoIf     string    `msgpack:"pktinfo_if,omitempty"`     // of IPV6_PKTINFO
	Groups        []ipGroup `msgpack:"groups,omitempty"`
}

// dumpIP looks at a socket of AF_INET or AF_INET6.
func dumpIP(d *object.Dumper, f *object.OpenFile) (*ipState, *kernelview.Inet, error) {
	v, err := d.View.Inet(f.View.ID)
	if err != nil {
		return nil, nil, err
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, nil, err
	}
	if err := refuseIP(fd, &v); err != nil {
		return nil, nil, err
	}
	s := &ipState{}
	if s.Options, err = readOptions(fd, ipOptions); err != nil {
		return nil, nil, err
	}
	s.addUntold(&v)
	if err := s.interfaces(fd, &v); err != nil {
		return nil, nil, err
	}
	if s.Groups, err = readGroups(f.Process.Leader().TID, fd, v.V6 != nil); err != nil {
		return nil, nil, err
	}
	return s, &v, nil
}

// refuseIP refuses what cannot be kept.
func refuseIP(fd int, v *kernelview.Inet) error {
	refuse := func(what string) error { return object.Unsupportedf("%s, which cannot be checkpointed", what) }
	switch {
	case v.Policies:
		return refuse("it has an IPsec policy of its own (IP_XFRM_POLICY)")
	case v.Router:
		return refuse("it routes multicast (MRT_INIT)")
	case v.V6 == nil:
		return nil
	case v.V6.Anycast:
		return refuse("it has an anycast address (IPV6_JOIN_ANYCAST)")
	case v.V6.FlowLabels:
		return refuse("it has flow labels (IPV6_FLOWLABEL_MGR)")
	}
	// Only raw sockets of IPPROTO_RAW can have it. Kernels before 6.18 do not tell; there those are all refused.
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return fmt.Errorf("asking for SO_PROTOCOL: %w", err)
	}
	if protocol != unix.IPPROTO_RAW {
		return nil
	}
	alert, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_ROUTER_ALERT)
	if err != nil {
		return refuse("it is a raw socket of IPPROTO_RAW, of which this kernel does not tell whether it gets router alerts (IPV6_ROUTER_ALERT)")
	}
	if alert != 0 {
		return refuse("it gets router alerts (IPV6_ROUTER_ALERT)")
	}
	return nil
}

// addUntold adds the options that getsockopt(2) does not tell exactly, in the order of the table.
func (s *ipState) addUntold(v *kernelview.Inet) {
	add := func(name string, value int32) { s.Options = append(s.Options, Option{name, number(value)}) }
	if v.TTL != -1 {
		add("IP_TTL", int32(v.TTL))
	}
	if v.RouterAlert {
		add("IP_ROUTER_ALERT", 1)
	}
	if v.V6 == nil {
		return
	}
	if v.V6.HopLimit != -1 {
		add("IPV6_UNICAST_HOPS", int32(v.V6.HopLimit))
	}
	if v.V6.FragmentSize != 0 {
		add("IPV6_MTU", int32(v.V6.FragmentSize))
	}
}

// interfaces fills in the names of the interfaces to which options lead.
func (s *ipState) interfaces(fd int, v *kernelview.Inet) error {
	ask := func(level, opt int) uint32 {
		b := make([]byte, 4)
		if _, err := sys.Getsockopt(fd, level, opt, b); err != nil {
			return 0 // a socket that has no such option
		}
		if opt == unix.IPV6_MULTICAST_IF && level == unix.IPPROTO_IPV6 {
			return binary.NativeEndian.Uint32(b)
		}
		return binary.BigEndian.Uint32(b)
	}
	type named struct {
		index uint32
		name  *string
		what  string
	}
	all := []named{
		{ask(unix.IPPROTO_IP, unix.IP_UNICAST_IF), &s.UnicastIf, "IP_UNICAST_IF"},
		{uint32(v.MulticastIndex), &s.MulticastIf, "IP_MULTICAST_IF"},
	}
	if v.V6 != nil {
		all = append(all, named{ask(unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF), &s.UnicastIf6, "IPV6_UNICAST_IF"},
			named{ask(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF), &s.MulticastIf6, "IPV6_MULTICAST_IF"},
			named{uint32(v.V6.PktinfoIndex), &s.PktinfoIf, "IPV6_PKTINFO"})
		if v.V6.PktinfoAddr != [16]byte{} {
			s.PktinfoAddr = v.V6.PktinfoAddr[:]
		}
	}
	for _, x := range all {
		name, err := interfaceName(fd, x.index)
		if err != nil {
			return fmt.Errorf("looking at %s: %w", x.what, err)
		}
		*x.name = name
	}
	addr := make([]byte, 4)
	if _, err := sys.Getsockopt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, addr); err == nil && binary.NativeEndian.Uint32(addr) != 0 {
		s.MulticastAddr = addr
	}
	return nil
}

// check refuses what no socket can have.
func (s *ipState) check() error {
	if err := checkOptions(s.Options, ipOptions); err != nil {
		return err
	}
	if n := len(s.MulticastAddr); n != 0 && n != 4 {
		return object.BadImagef("an IPv4 address of %d bytes", n)
	}
	if n := len(s.PktinfoAddr); n != 0 && n != 16 {
		return object.BadImagef("an IPv6 address of %d bytes", n)
	}
	for i := range s.Groups {
		if err := s.Groups[i].check(); err != nil {
			return err
		}
	}
	return nil
}

// set gives a new socket, which is not bound yet, all of it.
func (s *ipState) set(fd int) error {
	// The type of service brings a priority with it, which is set by itself (SO_PRIORITY).
	priority, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY)
	if err != nil {
		return fmt.Errorf("asking for SO_PRIORITY: %w", err)
	}
	if err := setOptions(fd, s.Options, ipOptions, nil); err != nil {
		return err
	}
	if now, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY); err == nil && now != priority {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, priority); err != nil {
			return fmt.Errorf("setting SO_PRIORITY: %w", err)
		}
	}
	if err := s.setInterfaces(fd); err != nil {
		return err
	}
	for i := range s.Groups {
		if err := s.Groups[i].join(fd); err != nil {
			return err
		}
	}
	return nil
}

func (s *ipState) setInterfaces(fd int) error {
	set := func(name string, level, opt int, value func(index uint32) []byte, what string) error {
		if name == "" {
			return nil
		}
		index, err := interfaceIndex(fd, name)
		if err != nil {
			return err
		}
		if err := sys.Setsockopt(fd, level, opt, value(index)); err != nil {
			return fmt.Errorf("setting %s to %s: %w", what, name, err)
		}
		return nil
	}
	big := func(index uint32) []byte { return binary.BigEndian.AppendUint32(nil, index) }
	native := func(index uint32) []byte { return binary.NativeEndian.AppendUint32(nil, index) }
	if err := errors.Join(
		set(s.UnicastIf, unix.IPPROTO_IP, unix.IP_UNICAST_IF, big, "IP_UNICAST_IF"),
		set(s.UnicastIf6, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_IF, big, "IPV6_UNICAST_IF"),
		set(s.MulticastIf6, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, native, "IPV6_MULTICAST_IF"),
	); err != nil {
		return err
	}
	if s.MulticastIf != "" || len(s.MulticastAddr) != 0 {
		// struct ip_mreqn
		request := make([]byte, 12)
		copy(request[4:], s.MulticastAddr)
		if s.MulticastIf != "" {
			index, err := interfaceIndex(fd, s.MulticastIf)
			if err != nil {
				return err
			}
			binary.NativeEndian.PutUint32(request[8:], index)
		}
		if err := sys.Setsockopt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, request); err != nil {
			return fmt.Errorf("setting IP_MULTICAST_IF: %w", err)
		}
	}
	if s.PktinfoIf != "" || len(s.PktinfoAddr) != 0 {
		// struct in6_pktinfo
		info := make([]byte, 20)
		copy(info, s.PktinfoAddr)
		if s.PktinfoIf != "" {
			index, err := interfaceIndex(fd, s.PktinfoIf)
			if err != nil {
				return err
			}
			binary.NativeEndian.PutUint32(info[16:], index)
		}
		if err := sys.Setsockopt(fd, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info); err != nil {
			return fmt.Errorf("setting IPV6_PKTINFO: %w", err)
		}
	}
	return nil
}

// interfaceName returns the name of a network interface in the namespace of a socket, "" for number 0.
func interfaceName(fd int, index uint32) (string, error) {
	if index == 0 {
		return "", nil
	}
	r, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	r.SetUint32(index)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, r); errors.Is(err, unix.ENODEV) {
		return "", object.Unsupportedf("network interface %d, which it uses, is gone", index)
	} else if err != nil {
		return "", fmt.Errorf("asking for the name of network interface %d: %w", index, err)
	}
	return r.Name(), nil
}

// interfaceIndex is the other way round.
func interfaceIndex(fd int, name string) (uint32, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, object.BadImagef("a network interface called %q", clip(name))
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); errors.Is(err, unix.ENODEV) {
		return 0, &object.Lacking{What: fmt.Sprintf("there is no network interface %q, which a socket of the image uses", name),
			Do: "make it (ip-link(8)) before the restore, or rename it in the image with cr-filter jq"}
	} else if err != nil {
		return 0, fmt.Errorf("asking for the number of network interface %s: %w", name, err)
	}
	return r.Uint32(), nil
}
