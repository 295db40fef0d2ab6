//go:build amd64

package kernelview

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func newSocket(t *testing.T, domain, kind, protocol int) int {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Skipf("needs a socket of family %d, type %d, protocol %d: %v", domain, kind, protocol, err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func setInt(t *testing.T, fd, level, name, value int) {
	t.Helper()
	if err := unix.SetsockoptInt(fd, level, name, value); err != nil {
		t.Fatal(level, name, err)
	}
}

func TestInet(t *testing.T) {
	v := view(t)
	fd := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	get := func() Inet {
		t.Helper()
		s, err := v.Inet(fileOf(t, v, os.Getpid(), fd).ID)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := get()
	if s.TTL != -1 || s.MulticastIndex != 0 || s.Policies || s.UserLocks != 0 || s.V6 != nil || s.UDP == nil || *s.UDP != (UDP{}) {
		t.Errorf("a new socket: %+v", s)
	}
	setInt(t, fd, unix.IPPROTO_IP, unix.IP_TTL, 17)
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: 1}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	setInt(t, fd, unix.IPPROTO_UDP, unix.UDP_CORK, 1)
	to, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil {
		t.Fatal(err)
	}
	s = get()
	if s.TTL != 17 || s.MulticastIndex != 1 || s.UserLocks != LockBindAddress || !s.UDP.Corked {
		t.Errorf("%+v", s)
	}
}

func TestInet6(t *testing.T) {
	v := view(t)
	fd := newSocket(t, unix.AF_INET6, unix.SOCK_DGRAM, 0)
	get := func() Inet {
		t.Helper()
		s, err := v.Inet(fileOf(t, v, os.Getpid(), fd).ID)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := get(); *s.V6 != (Inet6{HopLimit: -1}) {
		t.Errorf("a new socket: %+v", s.V6)
	}
	setInt(t, fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 9)
	setInt(t, fd, unix.IPPROTO_IPV6, unix.IPV6_MTU, 1400)
	if s := get(); *s.V6 != (Inet6{HopLimit: 9, FragmentSize: 1400}) {
		t.Errorf("%+v", s.V6)
	}
}

func TestRouterAlert(t *testing.T) {
	v := view(t)
	for _, on := range []bool{false, true} {
		fd := newSocket(t, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_IGMP)
		if on {
			setInt(t, fd, unix.IPPROTO_IP, unix.IP_ROUTER_ALERT, 1)
		}
		if s, err := v.Inet(fileOf(t, v, os.Getpid(), fd).ID); err != nil || s.RouterAlert != on {
			t.Errorf("%+v, %v, want %v", s, err, on)
		}
	}
}

func TestDatagrams(t *testing.T) {
	v := view(t)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		from, to := newSocket(t, family, unix.SOCK_DGRAM, 0), newSocket(t, family, unix.SOCK_DGRAM, 0)
		var local unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
		if family == unix.AF_INET6 {
			local = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
		}
		setInt(t, to, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		for _, fd := range []int{from, to} {
			if err := unix.Bind(fd, local); err != nil {
				t.Skipf("needs the loopback device: %v", err)
			}
		}
		at, err := unix.Getsockname(to)
		if err != nil {
			t.Fatal(err)
		}
		var want [][]byte
		for i, size := range []int{5, 0, 1400, 30000, 65000, 1} {
			if i == 2 {
				setInt(t, to, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
			want = append(want, bytes.Repeat([]byte(fmt.Sprint(i)), size))
			if err := unix.Sendto(from, want[i], 0, at); err != nil {
				t.Fatal(err)
			}
			if i == 1 { // takes the queue into the reader's
				if _, err := unix.Read(to, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
			}
		}
		want = want[1:]
		got, err := v.Datagrams(fileOf(t, v, os.Getpid(), to).ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d datagrams, want %d", len(got), len(want))
		}
		for i := range got {
			d := &got[i]
			if !bytes.Equal(d.Data, want[i]) || d.Index != 1 || d.GSOSize != 0 || d.Type != unix.PACKET_HOST || d.Covered {
				t.Errorf("family %d, datagram %d: %d bytes, %+v", family, i, len(d.Data), d.Network)
			}
			if family == unix.AF_INET && (d.Pktinfo == 1) != (i > 0) {
				t.Errorf("datagram %d: pktinfo %d", i, d.Pktinfo)
			}
		}
	}
}

func TestNetlink(t *testing.T) {
	v := view(t)
	fd := newSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	for _, bound := range []bool{false, true} {
		if bound {
			if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := v.Netlink(fileOf(t, v, os.Getpid(), fd).ID); err != nil || s != (Netlink{Bound: bound}) {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

func TestPacketSocket(t *testing.T) {
	v := view(t)
	fd := newSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0a0a, Ifindex: 1}); err != nil {
		t.Skipf("needs the loopback device: %v", err)
	}
	m := unix.PacketMreq{Ifindex: 1, Type: unix.PACKET_MR_MULTICAST, Alen: 6, Address: [8]byte{1, 2, 3, 4, 5, 6}}
	for range 2 {
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
			t.Fatal(err)
		}
	}
	setInt(t, fd, unix.SOL_PACKET, unix.PACKET_COPY_THRESH, 5)
	s, err := v.PacketSocket(fileOf(t, v, os.Getpid(), fd).ID)
	if err != nil {
		t.Fatal(err)
	}
	if s.Index != 1 || s.CopyThresh != 5 || s.Rings || s.Fanout != nil || len(s.Memberships) != 1 || s.Memberships[0].Count != 2 ||
		!bytes.Equal(s.Memberships[0].Addr, m.Address[:6]) {
		t.Errorf("%+v", s)
	}
}
