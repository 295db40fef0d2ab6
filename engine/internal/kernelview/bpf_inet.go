package kernelview

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// What is read of sockets of AF_INET and AF_INET6 (include/net/inet_sock.h, linux/ipv6.h, linux/udp.h).
var (
	fSkLocks  = want("sock.sk_userlocks")
	fSkPolicy = want("sock.sk_policy") // with CONFIG_XFRM only

	fInPeer    = want("sock.__sk_common.skc_daddr")
	fInPeer6   = want("sock.__sk_common.skc_v6_daddr") // with IPv6 only
	fInPort    = want("sock.__sk_common.skc_dport")
	fInPinet6  = want("inet_sock.pinet6") // with IPv6 only
	fInTTL     = want("inet_sock.uc_ttl")
	fInMcIndex = want("inet_sock.mc_index")
	fInLabels  = want("inet_sock.ipv6_fl_list") // since 6.17, before it:
	fIn6Labels = want("ipv6_pinfo.ipv6_fl_list")
	fInRAChain = want("net.ipv4.ra_chain")
	fRANext    = want("ip_ra_chain.next")
	fRASk      = want("ip_ra_chain.sk")
	fRADestroy = want("ip_ra_chain.destructor")

	fIn6Hops    = want("ipv6_pinfo.hop_limit")
	fIn6Frag    = want("ipv6_pinfo.frag_size")
	fIn6Sticky  = want("ipv6_pinfo.sticky_pktinfo.ipi6_addr")
	fIn6StickyI = want("ipv6_pinfo.sticky_pktinfo.ipi6_ifindex")
	fIn6Anycast = want("ipv6_pinfo.ipv6_ac_list")

	fUDPPending = want("udp_sock.pending")
	fUDPEncap   = want("udp_sock.encap_rcv")
	fUDPReader  = want("udp_sock.reader_queue")

	fSkbProtocol  = want("sk_buff.protocol")
	fSkbNetwork   = want("sk_buff.network_header")
	fSkbTransport = want("sk_buff.transport_header")
	fSkbIif       = want("sk_buff.skb_iif")
	fSkbPriority  = want("sk_buff.priority")
	fSkbType      = want("sk_buff.pkt_type")
	fShGSO        = want("skb_shared_info.gso_size")
	fCBPktinfo    = want("in_pktinfo.ipi_ifindex") // over skb.cb: PKTINFO_SKB_CB of net/ip.h
	fCBCovered    = want("udp_skb_cb.partial_cov")
)

// maxRouterAlerts bounds the walk along the sockets with IP_ROUTER_ALERT of a network namespace.
const maxRouterAlerts = 1 << 16

// hasAll says whether this kernel has all of the fields.
func (l *layout) hasAll(fields ...field) bool {
	for _, f := range fields {
		if !l.has(f) {
			return false
		}
	}
	return true
}

// family reads the struct sock behind an open file, with what a family of sockets has behind it.
func (v *bpfView) family(file ID, structure string, families ...uint16) (uint64, []byte, error) {
	l := v.l
	sk, _, err := v.sockOf(file)
	if err != nil {
		return 0, nil, err
	}
	b, err := v.mem.peek(sk, max(l.span["sock"], l.span[structure]))
	if err != nil {
		return 0, nil, fmt.Errorf("reading a socket: %w", err)
	}
	family, _ := l.uint(b, fSkFamily)
	for _, f := range families {
		if family == uint64(f) {
			return sk, b, nil
		}
	}
	return 0, nil, fmt.Errorf("reading a socket: %w", ErrKind)
}

// Inet is documented with View.
func (v *bpfView) Inet(file ID) (Inet, error) {
	l := v.l
	sk, b, err := v.family(file, "inet_sock", unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return Inet{}, err
	}
	if !l.hasAll(fSkFamily, fSkProtocol, fSkType, fSkLocks, fInTTL, fInMcIndex, fInPeer, fInPort) {
		return Inet{}, missingField(KindSocket)
	}
	s := Inet{UserLocks: num[uint8](l, b, fSkLocks).V, TTL: num[int16](l, b, fInTTL).V, MulticastIndex: num[int32](l, b, fInMcIndex).V}
	if policies, ok := l.bytes(b, fSkPolicy); ok {
		for _, c := range policies {
			s.Policies = s.Policies || c != 0
		}
	}
	peer := fInPeer
	family, _ := l.uint(b, fSkFamily)
	if family == unix.AF_INET6 {
		if peer = fInPeer6; !l.has(peer) {
			return Inet{}, missingField(KindSocket)
		}
		if s.V6, err = v.inet6(b); err != nil {
			return Inet{}, err
		}
	}
	addr, _ := l.bytes(b, peer)
	port, _ := l.bytes(b, fInPort)
	s.Peer, s.PeerPort = append([]byte(nil), addr...), binary.BigEndian.Uint16(port)
	protocol, _ := l.uint(b, fSkProtocol)
	kind, _ := l.uint(b, fSkType)
	switch {
	case kind == unix.SOCK_DGRAM && (protocol == unix.IPPROTO_UDP || protocol == unix.IPPROTO_UDPLITE):
		s.UDP, err = v.udp(sk)
	case kind == unix.SOCK_RAW && family == unix.AF_INET:
		err = v.routerAlert(&s, sk, b)
	}
	return s, err
}

func (v *bpfView) inet6(b []byte) (*Inet6, error) {
	l := v.l
	if !l.hasAll(fInPinet6, fIn6Hops, fIn6Frag, fIn6Sticky, fIn6StickyI, fIn6Anycast) || !l.has(fInLabels) && !l.has(fIn6Labels) {
		return nil, missingField(KindSocket)
	}
	at, _ := l.uint(b, fInPinet6)
	np, err := v.mem.peek(at, l.span["ipv6_pinfo"])
	if err != nil {
		return nil, fmt.Errorf("reading a socket: %w", err)
	}
	hops, _ := l.uint(np, fIn6Hops)
	if bits := l.fields[fIn6Hops].bits; bits > 0 && hops>>(bits-1) == 1 { // of 9 bits before 6.9, the first of them the sign
		hops -= 1 << bits
	}
	s := &Inet6{HopLimit: int16(hops), FragmentSize: num[uint32](l, np, fIn6Frag).V,
		PktinfoIndex: num[int32](l, np, fIn6StickyI).V}
	addr, _ := l.bytes(np, fIn6Sticky)
	copy(s.PktinfoAddr[:], addr)
	anycast, _ := l.uint(np, fIn6Anycast)
	labels, ok := l.uint(b, fInLabels)
	if !ok {
		labels, _ = l.uint(np, fIn6Labels)
	}
	s.Anycast, s.FlowLabels = anycast != 0, labels != 0
	return s, nil
}

func (v *bpfView) udp(sk uint64) (*UDP, error) {
	l := v.l
	if !l.hasAll(fUDPPending, fUDPEncap) {
		return nil, missingField(KindSocket)
	}
	b, err := v.mem.peek(sk, l.span["udp_sock"])
	if err != nil {
		return nil, fmt.Errorf("reading a socket: %w", err)
	}
	pending, _ := l.uint(b, fUDPPending)
	encap, _ := l.uint(b, fUDPEncap)
	return &UDP{Corked: pending != 0, Encap: encap != 0}, nil
}

// routerAlert looks for a raw socket on the list of those that get what needs a router's attention. One that a multicast routing
// daemon has has a destructor there, which ends the routing (net/ipv4/ipmr.c).
func (v *bpfView) routerAlert(s *Inet, sk uint64, b []byte) error {
	l := v.l
	if !l.hasAll(fSkNet, fInRAChain, fRANext, fRASk, fRADestroy) {
		return missingField(KindSocket)
	}
	net, _ := l.uint(b, fSkNet)
	first, err := v.mem.peek(net+l.off(fInRAChain), 8)
	if err != nil {
		return fmt.Errorf("reading a network namespace: %w", err)
	}
	at := binary.NativeEndian.Uint64(first)
	for range maxRouterAlerts {
		if at == 0 {
			return nil
		}
		item, err := v.mem.peek(at, l.span["ip_ra_chain"])
		if err != nil {
			return fmt.Errorf("reading a network namespace: %w", err)
		}
		if of, _ := l.uint(item, fRASk); of == sk {
			destructor, _ := l.uint(item, fRADestroy)
			s.RouterAlert, s.Router = destructor == 0, destructor != 0
			return nil
		}
		at, _ = l.uint(item, fRANext)
	}
	return fmt.Errorf("reading a network namespace: %w", errFault)
}

// Datagrams is documented with View. A reader of UDP takes the whole queue into one of its own, and reads from that
// (net/ipv4/udp.c), so that one is the older.
func (v *bpfView) Datagrams(file ID) ([]Datagram, error) {
	l := v.l
	sk, b, err := v.family(file, "inet_sock", unix.AF_INET, unix.AF_INET6)
	if err != nil {
		return nil, err
	}
	protocol, _ := l.uint(b, fSkProtocol)
	if kind, _ := l.uint(b, fSkType); kind != unix.SOCK_DGRAM || protocol != unix.IPPROTO_UDP && protocol != unix.IPPROTO_UDPLITE {
		return nil, fmt.Errorf("reading a receive queue: %w", ErrKind)
	}
	if !l.hasAll(fSkReceive, fUDPReader, fSkbHead, fSkbProtocol, fSkbNetwork, fSkbTransport, fSkbIif, fSkbPriority, fSkbType,
		fSkbEnd, fShGSO, fCBPktinfo, fCBCovered) {
		return nil, missingField(KindSocket)
	}
	var all []Datagram
	for _, f := range []field{fUDPReader, fSkReceive} {
		packets, err := v.packets(sk + l.off(f))
		if err != nil {
			return nil, fmt.Errorf("reading a receive queue: %w", err)
		}
		for i := range packets {
			d, err := v.datagram(&packets[i])
			if err != nil {
				return nil, fmt.Errorf("reading a receive queue: %w", err)
			}
			all = append(all, *d)
		}
	}
	return all, nil
}

// udpHeader is the length of a UDP header in bytes (RFC 768).
const udpHeader = 8

// datagram adds what the headers in front of the data say, which the kernel keeps for recvmsg(2) to tell.
func (v *bpfView) datagram(p *Packet) (*Datagram, error) {
	l, b := v.l, p.block
	protocol, _ := l.bytes(b, fSkbProtocol)
	d := &Datagram{Data: p.Data, Mark: p.Mark, Protocol: binary.BigEndian.Uint16(protocol), Index: num[int32](l, b, fSkbIif).V,
		Priority: num[uint32](l, b, fSkbPriority).V, Type: num[uint8](l, b, fSkbType).V,
		Pktinfo: num[int32](l, p.control, fCBPktinfo).V}
	covered, _ := l.uint(p.control, fCBCovered)
	d.Covered = covered != 0
	head, _ := l.uint(b, fSkbHead)
	network, _ := l.uint(b, fSkbNetwork)
	transport, _ := l.uint(b, fSkbTransport)
	if network >= transport {
		return nil, errFault
	}
	headers, err := v.mem.peek(head+network, int(transport-network)+udpHeader)
	if err != nil {
		return nil, err
	}
	udp := headers[transport-network:]
	d.Network = headers[:transport-network]
	d.Source, d.Dest = binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])
	end, _ := l.uint(b, fSkbEnd)
	if l.fields[fSkbEnd].kind != locPointer {
		end += head
	}
	shared, err := v.mem.peek(end, l.span["skb_shared_info"])
	if err != nil {
		return nil, err
	}
	d.GSOSize = num[uint16](l, shared, fShGSO).V
	return d, nil
}
