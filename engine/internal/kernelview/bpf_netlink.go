package kernelview

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What is read of sockets of AF_NETLINK and AF_PACKET (net/netlink/af_netlink.h, net/packet/internal.h).
var (
	fNlRunning = want("netlink_sock.cb_running")
	fNlErrno   = want("netlink_sock.dump_done_errno")
	fNlBound   = want("netlink_sock.bound")
	fNlState   = want("netlink_sock.state")

	fPkRx      = want("packet_sock.rx_ring.pg_vec")
	fPkTx      = want("packet_sock.tx_ring.pg_vec")
	fPkThresh  = want("packet_sock.copy_thresh")
	fPkIndex   = want("packet_sock.ifindex")
	fPkFanout  = want("packet_sock.fanout")
	fPkList    = want("packet_sock.mclist")
	fFoID      = want("packet_fanout.id")
	fFoType    = want("packet_fanout.type")
	fFoFlags   = want("packet_fanout.flags")
	fFoMax     = want("packet_fanout.max_num_members") // since 5.10, before it 256
	fMclNext   = want("packet_mclist.next")
	fMclIndex  = want("packet_mclist.ifindex")
	fMclCount  = want("packet_mclist.count")
	fMclType   = want("packet_mclist.type")
	fMclLength = want("packet_mclist.alen")
	fMclAddr   = want("packet_mclist.addr")
)

// maxMemberships bounds the walk along the memberships of a packet socket.
const maxMemberships = 1 << 16

// Netlink is documented with View.
func (v *bpfView) Netlink(file ID) (Netlink, error) {
	l := v.l
	_, b, err := v.family(file, "netlink_sock", unix.AF_NETLINK)
	if err != nil {
		return Netlink{}, err
	}
	if !l.hasAll(fNlRunning, fNlErrno, fNlBound, fNlState) {
		return Netlink{}, missingField(KindSocket)
	}
	running, _ := l.uint(b, fNlRunning)
	bound, _ := l.uint(b, fNlBound)
	state, _ := l.uint(b, fNlState)
	const congested = 1 << 0 // NETLINK_S_CONGESTED
	return Netlink{Dumping: running != 0, DumpErrno: num[int32](l, b, fNlErrno).V, Bound: bound != 0, Congested: state&congested != 0}, nil
}

// PacketSocket is documented with View.
func (v *bpfView) PacketSocket(file ID) (PacketSocket, error) {
	l := v.l
	_, b, err := v.family(file, "packet_sock", unix.AF_PACKET)
	if err != nil {
		return PacketSocket{}, err
	}
	if !l.hasAll(fPkRx, fPkTx, fPkThresh, fPkIndex, fPkFanout, fPkList, fFoID, fFoType, fFoFlags, fFoMax, fMclNext, fMclIndex,
		fMclCount, fMclType, fMclLength, fMclAddr) {
		return PacketSocket{}, missingField(KindSocket)
	}
	rx, _ := l.uint(b, fPkRx)
	tx, _ := l.uint(b, fPkTx)
	s := PacketSocket{Rings: rx != 0 || tx != 0, CopyThresh: num[int32](l, b, fPkThresh).V, Index: num[int32](l, b, fPkIndex).V}
	if at, _ := l.uint(b, fPkFanout); at != 0 {
		o, err := v.mem.peek(at, l.span["packet_fanout"])
		if err != nil {
			return PacketSocket{}, fmt.Errorf("reading a packet socket: %w", err)
		}
		s.Fanout = &Fanout{ID: num[uint16](l, o, fFoID).V, Type: num[uint8](l, o, fFoType).V, Flags: num[uint8](l, o, fFoFlags).V,
			Max: num[uint32](l, o, fFoMax).V}
	}
	at, _ := l.uint(b, fPkList)
	for at != 0 {
		m, err := v.mem.peek(at, l.span["packet_mclist"])
		if err != nil {
			return PacketSocket{}, fmt.Errorf("reading a packet socket: %w", err)
		}
		length := num[uint16](l, m, fMclLength).V
		addr, _ := l.bytes(m, fMclAddr)
		if int(length) > len(addr) || len(s.Memberships) == maxMemberships {
			return PacketSocket{}, fmt.Errorf("reading a packet socket: %w", errFault)
		}
		one := PacketMembership{Index: num[int32](l, m, fMclIndex).V, Count: num[int32](l, m, fMclCount).V,
			Type: num[uint16](l, m, fMclType).V, Addr: append([]byte(nil), addr[:length]...)}
		s.Memberships = append([]PacketMembership{one}, s.Memberships...) // the newest is the first
		at, _ = l.uint(m, fMclNext)
	}
	return s, nil
}
