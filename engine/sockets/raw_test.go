package sockets

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Raw and ICMP sockets.
func TestRawStates(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		t.Logf("ping_group_range: %v", err)
	}
	for _, k := range []struct{ family, kind, protocol int }{
		{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}, {unix.AF_INET, unix.SOCK_RAW, 253},
		{unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6}, {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW}, {unix.AF_INET6, unix.SOCK_RAW, 253},
	} {
		var local unix.Sockaddr = &unix.SockaddrInet4{Addr: loopback}
		if k.family == unix.AF_INET6 {
			local = &unix.SockaddrInet6{Addr: [16]byte{15: 1}}
		}
		for i := range 4 {
			fd := inetSocket(t, k.family, k.kind, k.protocol)
			if _, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_ROUTER_ALERT); err != nil && k.family == unix.AF_INET6 && k.protocol == unix.IPPROTO_RAW {
				refusedWith(t, v, fd, "IPV6_ROUTER_ALERT")
				continue
			}
			if i&1 != 0 {
				bound(t, fd, local)
			}
			if i&2 != 0 {
				if err := unix.Connect(fd, local); err != nil {
					t.Fatal(err)
				}
			}
			again(t, v, fd)
		}
	}
	fd := inetSocket(t, unix.AF_INET, unix.SOCK_RAW, 253)
	if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: loopback}); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, v, fd, "1 unread packets")
	alert := inetSocket(t, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW)
	setInt(t, alert, unix.IPPROTO_IPV6, unix.IPV6_ROUTER_ALERT, 3)
	refusedWith(t, v, alert, "IPV6_ROUTER_ALERT")
	router := inetSocket(t, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_IGMP)
	if err := unix.SetsockoptInt(router, unix.IPPROTO_IP, 200, 1); err == nil { // MRT_INIT
		refusedWith(t, v, router, "MRT_INIT")
	}
	ping := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	bound(t, ping, &unix.SockaddrInet4{Addr: loopback, Port: 77})
	again(t, v, ping)
}

// Netlink sockets that are refused.
func TestNetlinkRefused(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	fd := inetSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	bound(t, fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}) // RTNLGRP_LINK
	run(t, "ip", "link", "add", "crv0", "type", "veth", "peer", "name", "crv1")
	refusedWith(t, v, fd, "unread messages")
	refusedWith(t, v, inetSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_CONNECTOR), "protocol 11")
	filter := inetSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	bound(t, filter, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 4242})
	filter = again(t, v, filter)[0]
	ownTable(t, filter)
	refusedWith(t, v, filter, "owns a table")
	other := inetSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	bound(t, other, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 4243})
	again(t, v, other)
	groups := inetSocket(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	for _, g := range []int{13, 31, 32, 33, 34} { // of which nothing is heard here
		setInt(t, groups, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
	}
	if now, err := netlinkGroups(again(t, v, groups)[0]); err != nil || !slices.Equal(now, []uint32{13, 31, 32, 33, 34}) {
		t.Errorf("groups %v, %v", now, err)
	}
	for i, s := range []netlinkState{{}, {Type: unix.SOCK_RAW, Protocol: 99}, {Type: unix.SOCK_RAW, Port: 1}, {Type: unix.SOCK_RAW, Groups: []uint32{0}},
		{Type: unix.SOCK_RAW, Groups: []uint32{2, 1}}, {Type: unix.SOCK_RAW, Groups: []uint32{1 << 20}}} {
		s.Common.Flags = unix.O_RDWR
		if err := s.check(); err == nil {
			t.Errorf("netlink socket %d is taken", i)
		}
	}
}

// ownTable has a socket make a table that goes with it.
func ownTable(t *testing.T, fd int) {
	t.Helper()
	var b []byte
	message := func(kind, flags uint16, family byte, id uint16, attrs []byte) {
		b = binary.NativeEndian.AppendUint32(b, uint32(20+len(attrs)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, family, 0)
		b = append(binary.BigEndian.AppendUint16(b, id), attrs...)
	}
	const ownerFlag = 2 // NFT_TABLE_F_OWNER
	name := []byte{8, 0, unix.NFTA_TABLE_NAME, 0, 'o', 'w', 'n', 0}
	flags := []byte{8, 0, unix.NFTA_TABLE_FLAGS, 0, 0, 0, 0, ownerFlag}
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 { // big-endian
		name[0], name[1], name[2], name[3] = 0, 8, 0, unix.NFTA_TABLE_NAME
		flags[0], flags[1], flags[2], flags[3] = 0, 8, 0, unix.NFTA_TABLE_FLAGS
	}
	message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_ACK, unix.AF_INET, 0, append(name, flags...))
	message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < 20 || binary.NativeEndian.Uint32(answer[16:]) != 0 {
		t.Skipf("needs nf_tables with owners of tables: %v, %x", err, answer[:max(n, 0)])
	}
}

// Packet sockets in every state.
func TestPacketStates(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	fd := inetSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	again(t, v, fd)
	fd = inetSocket(t, unix.AF_PACKET, unix.SOCK_DGRAM, int(hostOrder(0x88b5)))
	again(t, v, fd)
	fd = inetSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	bound(t, fd, &unix.SockaddrLinklayer{Protocol: hostOrder(0x88b5), Ifindex: 1})
	setInt(t, fd, unix.SOL_PACKET, unix.PACKET_FANOUT, 77|unix.PACKET_FANOUT_LB<<16)
	m := unix.PacketMreq{Ifindex: 1, Type: unix.PACKET_MR_PROMISC}
	for range 2 {
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
			t.Fatal(err)
		}
	}
	m = unix.PacketMreq{Ifindex: 1, Type: unix.PACKET_MR_MULTICAST, Alen: 6, Address: [8]byte{1, 2, 3, 4, 5, 6}}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
		t.Fatal(err)
	}
	again(t, v, fd)
	fd = inetSocket(t, unix.AF_PACKET, unix.SOCK_RAW, int(hostOrder(unix.ETH_P_ALL)))
	udp := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err := unix.Sendto(udp, []byte("x"), 0, &unix.SockaddrInet4{Addr: loopback, Port: 9}); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, v, fd, "unread packets")
	_ = unix.Close(fd)
	fd = inetSocket(t, unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq{Block_size: 4096, Block_nr: 2, Frame_size: 2048, Frame_nr: 4}); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, v, fd, "PACKET_RX_RING")
	for i, s := range []packetState{{}, {Type: unix.SOCK_RAW, Protocol: 1 << 16}, {Type: unix.SOCK_RAW, Fanout: []byte{1}}, {Type: unix.SOCK_RAW, Memberships: []packetMembership{{}}},
		{Type: unix.SOCK_RAW, Memberships: []packetMembership{{Interface: "lo", Count: 1 << 30}}}, {Type: unix.SOCK_RAW, Memberships: []packetMembership{{Interface: "lo", Count: 1, Addr: make([]byte, 33)}}}} {
		s.Common.Flags = unix.O_RDWR
		if err := s.check(); err == nil {
			t.Errorf("packet socket %d is taken", i)
		}
	}
}
