package kernelview

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// What is read of TCP sockets (linux/tcp.h, net/inet_connection_sock.h, net/tcp.h).
var (
	fSkRcvSaddr = want("sock.__sk_common.skc_rcv_saddr")
	fSkNum      = want("sock.__sk_common.skc_num")
	fSkV6Saddr  = want("sock.__sk_common.skc_v6_rcv_saddr")
	fSkRtx      = want("sock.tcp_rtx_queue.rb_node")
	fSkPeekOff  = want("sock.sk_peek_off")
	fSkZckey    = want("sock.sk_zckey")
	fSockDone   = want("enum sock_flags.SOCK_DONE")

	fIcskHalf = want("inet_connection_sock.icsk_accept_queue.qlen")
	fIcskHead = want("inet_connection_sock.icsk_accept_queue.rskq_accept_head")
	fReqNext  = want("request_sock.dl_next")
	fReqSock  = want("request_sock.sk")
	fReqTFO   = want("tcp_request_sock.tfo_listener")
	fReqAttrs = want("bpf_tcp_req_attrs.mss") // what a kernel has that can make such a one
	fIcskULP  = want("inet_connection_sock.icsk_ulp_ops")

	fTcpWriteSeq  = want("tcp_sock.write_seq")
	fTcpSndUna    = want("tcp_sock.snd_una")
	fTcpSndNxt    = want("tcp_sock.snd_nxt")
	fTcpRcvNxt    = want("tcp_sock.rcv_nxt")
	fTcpCopied    = want("tcp_sock.copied_seq")
	fTcpSndWl1    = want("tcp_sock.snd_wl1")
	fTcpSndWnd    = want("tcp_sock.snd_wnd")
	fTcpMaxWindow = want("tcp_sock.max_window")
	fTcpRcvWnd    = want("tcp_sock.rcv_wnd")
	fTcpRcvWup    = want("tcp_sock.rcv_wup")
	fTcpMSSClamp  = want("tcp_sock.rx_opt.mss_clamp")
	fTcpUserMSS   = want("tcp_sock.rx_opt.user_mss")
	fTcpTstampOK  = want("tcp_sock.rx_opt.tstamp_ok")
	fTcpSackOK    = want("tcp_sock.rx_opt.sack_ok")
	fTcpWscaleOK  = want("tcp_sock.rx_opt.wscale_ok")
	fTcpSndWscale = want("tcp_sock.rx_opt.snd_wscale")
	fTcpRcvWscale = want("tcp_sock.rx_opt.rcv_wscale")
	fTcpUrgData   = want("tcp_sock.urg_data")
	fTcpUrgSeq    = want("tcp_sock.urg_seq")
	fTcpSndUp     = want("tcp_sock.snd_up")
	fTcpRepair    = want("tcp_sock.repair")
	fTcpMptcp     = want("tcp_sock.is_mptcp")
	fTcpMD5       = want("tcp_sock.md5sig_info")
	fTcpAO        = want("tcp_sock.ao_info")
	fTcpFastopen  = want("tcp_sock.fastopen_req")
	fTcpSavedSYN  = want("tcp_sock.saved_syn")
	fTcpTSOffset  = want("tcp_sock.tsoffset")
	fTcpTSRecent  = want("tcp_sock.rx_opt.ts_recent")
	fTcpUsecTS    = want("tcp_sock.tcp_usec_ts")

	fCbSeq    = want("tcp_skb_cb.seq")
	fCbEndSeq = want("tcp_skb_cb.end_seq")
	fCbFlags  = want("tcp_skb_cb.tcp_flags")
	fSkbRb    = want("sk_buff.rbnode")

	fMptcpFirst = want("mptcp_sock.first")
)

// The bits of sk_userlocks (net/sock.h).
const (
	bindAddrLock = 4
	bindPortLock = 8
)

// The bits of urg_data (TCP_URG_VALID and TCP_URG_NOTYET of net/tcp.h).
const (
	urgentValid   = 0x100
	urgentAwaited = 0x200
)

const (
	tcpFIN = 1
	tcpSYN = 2
)

// TCPEnds is documented with View.
func (v *bpfView) TCPEnds(file ID) (TCPEnds, error) {
	addr, _, err := v.sockOf(file)
	if err != nil {
		return TCPEnds{}, err
	}
	e, _, err := v.tcpEnds(addr)
	return e, err
}

// tcpEnds reads them of the socket at an address, and returns the struct sock too.
func (v *bpfView) tcpEnds(addr uint64) (TCPEnds, []byte, error) {
	l := v.l
	for _, f := range []field{fSkFamily, fSkState, fSkType, fSkProtocol, fInPeer, fSkRcvSaddr, fInPort, fSkNum, fSkAckBacklog, fIcskHalf} {
		if !l.has(f) {
			return TCPEnds{}, nil, missingTCP(f)
		}
	}
	b, err := v.sock(addr)
	if err != nil {
		return TCPEnds{}, nil, err
	}
	get := func(f field) uint64 { n, _ := l.uint(b, f); return n }
	e := TCPEnds{Family: uint16(get(fSkFamily)), Protocol: uint16(get(fSkProtocol)), State: uint8(get(fSkState))}
	if e.Family != unix.AF_INET && e.Family != unix.AF_INET6 || get(fSkType) != unix.SOCK_STREAM ||
		e.Protocol != unix.IPPROTO_TCP && e.Protocol != unix.IPPROTO_MPTCP&0xffff {
		return TCPEnds{}, nil, fmt.Errorf("reading a TCP socket: %w", ErrKind)
	}
	local, remote := fSkRcvSaddr, fInPeer
	if e.Family == unix.AF_INET6 {
		local, remote = fSkV6Saddr, fInPeer6
	}
	src, ok1 := l.bytes(b, local)
	dst, ok2 := l.bytes(b, remote)
	port, ok3 := l.bytes(b, fInPort)
	if !ok1 || !ok2 || !ok3 || len(port) != 2 {
		return TCPEnds{}, nil, missingTCP(local)
	}
	from, _ := netip.AddrFromSlice(src)
	to, _ := netip.AddrFromSlice(dst)
	e.Local = netip.AddrPortFrom(from, uint16(get(fSkNum)))
	e.Remote = netip.AddrPortFrom(to, binary.BigEndian.Uint16(port))
	if e.State != SocketListening {
		return e, b, nil
	}
	queue, backlog := addr, b
	if e.Protocol != unix.IPPROTO_TCP { // connections come to its first subflow
		if !l.has(fMptcpFirst) {
			return TCPEnds{}, nil, missingTCP(fMptcpFirst)
		}
		m, err := v.mem.peek(addr, l.span["mptcp_sock"])
		if err != nil {
			return TCPEnds{}, nil, fmt.Errorf("reading an MPTCP socket: %w", err)
		}
		if queue, _ = l.uint(m, fMptcpFirst); queue == 0 {
			return e, b, nil
		}
		if backlog, err = v.sock(queue); err != nil {
			return TCPEnds{}, nil, err
		}
	}
	waiting, _ := l.uint(backlog, fSkAckBacklog)
	c, err := v.mem.peek(queue, l.span["inet_connection_sock"])
	if err != nil {
		return TCPEnds{}, nil, fmt.Errorf("reading a TCP socket: %w", err)
	}
	half, _ := l.uint(c, fIcskHalf)
	e.Backlog, e.Half = uint32(waiting), uint32(half)
	return e, b, nil
}

func missingTCP(f field) error {
	return &MissingError{What: "a kernel whose structures are known (" + fieldPaths[f] + " is not in its BTF)"}
}

// TCP is documented with View.
func (v *bpfView) TCP(file ID) (TCP, error) {
	l := v.l
	for _, f := range []field{fSkLocks, fSkRtx, fSockDone, fTcpWriteSeq, fTcpSndUna, fTcpSndNxt, fTcpRcvNxt, fTcpCopied, fTcpSndWl1,
		fTcpSndWnd, fTcpMaxWindow, fTcpRcvWnd, fTcpRcvWup, fTcpMSSClamp, fTcpUserMSS, fTcpTstampOK, fTcpSackOK, fTcpWscaleOK, fTcpSndWscale,
		fTcpRcvWscale, fTcpUrgData, fTcpUrgSeq, fTcpSndUp, fTcpRepair, fCbSeq, fCbEndSeq, fCbFlags, fSkbRb, fSkFlags, fIcskHalf} {
		if !l.has(f) {
			return TCP{}, missingTCP(f)
		}
	}
	addr, _, err := v.sockOf(file)
	if err != nil {
		return TCP{}, err
	}
	return v.tcpAt(addr)
}

// tcpAt reads the socket at an address.
func (v *bpfView) tcpAt(addr uint64) (TCP, error) {
	l, t := v.l, TCP{}
	var sk []byte
	var err error
	if t.Ends, sk, err = v.tcpEnds(addr); err != nil {
		return TCP{}, err
	}
	if t.Socket, err = v.socket(addr); err != nil {
		return TCP{}, err
	}
	locks, _ := l.uint(sk, fSkLocks)
	t.BoundAddress, t.BoundPort = locks&bindAddrLock != 0, locks&bindPortLock != 0
	flags, _ := l.uint(sk, fSkFlags)
	t.Done = flags>>l.off(fSockDone)&1 != 0
	t.PeekOff = num[int32](l, sk, fSkPeekOff)
	if t.Ends.Protocol != unix.IPPROTO_TCP {
		return t, nil
	}
	b, err := v.mem.peek(addr, max(l.span["tcp_sock"], l.span["inet_connection_sock"]))
	if err != nil {
		return TCP{}, fmt.Errorf("reading a TCP socket: %w", err)
	}
	u32 := func(f field) uint32 { n, _ := l.uint(b, f); return uint32(n) }
	t.WriteSeq, t.SndUna, t.SndNxt, t.RcvNxt, t.CopiedSeq = u32(fTcpWriteSeq), u32(fTcpSndUna), u32(fTcpSndNxt), u32(fTcpRcvNxt), u32(fTcpCopied)
	t.SndWl1, t.SndWnd, t.MaxWindow, t.RcvWnd, t.RcvWup = u32(fTcpSndWl1), u32(fTcpSndWnd), u32(fTcpMaxWindow), u32(fTcpRcvWnd), u32(fTcpRcvWup)
	t.MSSClamp, t.UserMSS = uint16(u32(fTcpMSSClamp)), uint16(u32(fTcpUserMSS))
	t.TimestampOK, t.SackOK, t.WscaleOK = u32(fTcpTstampOK) != 0, u32(fTcpSackOK) != 0, u32(fTcpWscaleOK) != 0
	t.SndWscale, t.RcvWscale = uint8(u32(fTcpSndWscale)), uint8(u32(fTcpRcvWscale))
	t.UrgentSeq, t.SndUp, t.Repair = u32(fTcpUrgSeq), u32(fTcpSndUp), u32(fTcpRepair) != 0
	switch data := u32(fTcpUrgData); {
	case data&urgentValid != 0:
		t.Urgent = UrgentWaits
	case data&urgentAwaited != 0:
		t.Urgent = UrgentAwaited
	case data != 0:
		t.Urgent = UrgentRead
	}
	t.Subflow, t.ULP = flag(l, b, fTcpMptcp), flag(l, b, fIcskULP)
	t.Fastopen, t.SavedSYN = flag(l, b, fTcpFastopen), flag(l, b, fTcpSavedSYN)
	// A kernel without these has them not in its structures: there can be no key then.
	md5, _ := l.uint(b, fTcpMD5)
	ao, _ := l.uint(b, fTcpAO)
	t.Signed = Is(md5 != 0 || ao != 0)
	if t.Ends.State == SocketListening || t.Ends.State == SocketSynSent {
		return t, nil
	}
	if err := v.tcpQueues(&t, sk); err != nil {
		return TCP{}, fmt.Errorf("reading the queues of a TCP socket: %w", err)
	}
	return t, nil
}

// TCPWaitingEnds is documented with View.
func (v *bpfView) TCPWaitingEnds(file ID) ([]TCPEnds, error) {
	var all []TCPEnds
	err := v.waiting(file, func(_ []byte, child uint64, at *TCPEnds) error {
		e, _, err := v.tcpEnds(child)
		e.atPort(at)
		all = append(all, e)
		return err
	})
	return all, err
}

// TCPWaiting is documented with View.
func (v *bpfView) TCPWaiting(file ID) ([]TCP, error) {
	l := v.l
	if !l.hasAll(fReqTFO, fTcpTSOffset, fTcpTSRecent) {
		return nil, missingTCP(fReqTFO)
	}
	var all []TCP
	err := v.waiting(file, func(request []byte, child uint64, at *TCPEnds) error {
		t, err := v.tcpAt(child)
		if err != nil {
			return err
		}
		t.Ends.atPort(at)
		b, err := v.mem.peek(child, l.span["tcp_sock"])
		if err != nil {
			return err
		}
		t.Fastopen = flag(l, request, fReqTFO)
		t.TSOffset, t.TSRecent, t.UsecTS = num[uint32](l, b, fTcpTSOffset), num[uint32](l, b, fTcpTSRecent), flag(l, b, fTcpUsecTS)
		all = append(all, t)
		return nil
	})
	return all, err
}

// atPort gives a connection that its peer has reset the port of its listening socket again (inet_put_port in net/ipv4/inet_hashtables.c).
func (e *TCPEnds) atPort(listener *TCPEnds) {
	if e.Local.Port() == 0 {
		e.Local = netip.AddrPortFrom(e.Local.Addr(), listener.Local.Port())
	}
}

// waiting calls f for each connection of a listening socket that waits for accept(2), with its struct tcp_request_sock, the address of its
// socket, and the ends of the listening one.
func (v *bpfView) waiting(file ID, f func(request []byte, child uint64, at *TCPEnds) error) error {
	l := v.l
	if !l.has(fReqAttrs) {
		return &MissingError{What: "a kernel that can put connections into the queue of a listening socket", Fix: "use Linux 6.9 or later (bpf_sk_assign_tcp_reqsk)"}
	}
	if !l.hasAll(fIcskHead, fReqNext, fReqSock, fSkAckBacklog) {
		return missingTCP(fIcskHead)
	}
	addr, _, err := v.sockOf(file)
	if err != nil {
		return err
	}
	e, _, err := v.tcpEnds(addr)
	if err != nil {
		return err
	}
	if e.State != SocketListening || e.Protocol != unix.IPPROTO_TCP {
		return fmt.Errorf("reading the connections of a listening TCP socket: %w", ErrKind)
	}
	c, err := v.mem.peek(addr, l.span["inet_connection_sock"])
	if err != nil {
		return fmt.Errorf("reading a TCP socket: %w", err)
	}
	next, _ := l.uint(c, fIcskHead)
	for n := uint32(0); next != 0; n++ {
		if n > maxPackets { // what was read is no list: nobody can have that many files
			return fmt.Errorf("reading the connections of a listening TCP socket: %w", errFault)
		}
		r, err := v.mem.peek(next, max(l.span["request_sock"], l.span["tcp_request_sock"]))
		if err != nil {
			return fmt.Errorf("reading a connection that waits: %w", err)
		}
		child, _ := l.uint(r, fReqSock)
		if err := f(r, child, &e); err != nil {
			return fmt.Errorf("reading a connection that waits: %w", err)
		}
		next, _ = l.uint(r, fReqNext)
	}
	return nil
}

// tcpQueues puts the streams together of which the queues have the parts.
func (v *bpfView) tcpQueues(t *TCP, sk []byte) error {
	l := v.l
	var err error
	t.Unread, t.GotFIN, err = v.tcpStream(t.CopiedSeq, t.Receive)
	if err != nil {
		return err
	}
	if t.State == SocketClosed { // its numbers mean nothing any more, and what it had to send is gone
		return nil
	}
	if t.CopiedSeq+uint32(len(t.Unread))+one(t.GotFIN) != t.RcvNxt {
		return errFault
	}
	root, _ := l.uint(sk, fSkRtx)
	sent, err := v.packetTree(root, 0)
	if err != nil {
		return err
	}
	t.Send, t.SentFIN, err = v.tcpStream(t.SndUna, append(sent, t.Write...))
	if err != nil {
		return err
	}
	if t.SndUna+uint32(len(t.Send))+one(t.SentFIN) != t.WriteSeq {
		return errFault
	}
	return nil
}

func one(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// tcpStream returns the bytes of the stream from number seq on. Parts may overlap: a segment that comes again with more.
func (v *bpfView) tcpStream(seq uint32, parts []Packet) (data []byte, fin bool, err error) {
	l := v.l
	total := 0
	for i := range parts {
		total += len(parts[i].Data)
	}
	data = make([]byte, 0, total)
	for i := range parts {
		p := &parts[i]
		start, ok1 := l.uint(p.control, fCbSeq)
		flags, ok2 := l.uint(p.control, fCbFlags)
		if !ok1 || !ok2 {
			return nil, false, missingTCP(fCbSeq)
		}
		if flags&tcpSYN != 0 {
			start++
		}
		skip := int32(seq - uint32(start))
		if skip < 0 || fin {
			return nil, false, errFault
		}
		if int(skip) < len(p.Data) {
			data = append(data, p.Data[skip:]...)
			seq += uint32(len(p.Data) - int(skip))
		}
		fin = flags&tcpFIN != 0
	}
	return data, fin, nil
}

// maxTreeHeight is above that of any balanced tree.
const maxTreeHeight = 128

// packetTree reads the buffers below a node of a tree, in order.
func (v *bpfView) packetTree(node uint64, depth int) ([]Packet, error) {
	if node == 0 {
		return nil, nil
	}
	if depth > maxTreeHeight {
		return nil, errFault
	}
	l := v.l
	p, err := v.packet(node - l.off(fSkbRb))
	if err != nil {
		return nil, err
	}
	rb, _ := l.bytes(p.block, fSkbRb)
	left, ok1 := l.uint(rb, fRbLeft)
	right, ok2 := l.uint(rb, fRbRight)
	if !ok1 || !ok2 {
		return nil, missingTCP(fRbLeft)
	}
	before, err := v.packetTree(left, depth+1)
	if err != nil {
		return nil, err
	}
	after, err := v.packetTree(right, depth+1)
	if err != nil {
		return nil, err
	}
	return append(append(before, p), after...), nil
}
