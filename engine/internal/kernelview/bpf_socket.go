package kernelview

import (
	"errors"
	"fmt"
)

// What is read of sockets of any family (include/net/sock.h, linux/skbuff.h).
var (
	fSocketState = want("socket.state")
	fSocketFile  = want("socket.file")
	fSocketSk    = want("socket.sk")

	fSkFamily     = want("sock.__sk_common.skc_family")
	fSkState      = want("sock.__sk_common.skc_state")
	fSkNet        = want("sock.__sk_common.skc_net.net")
	fSkFlags      = want("sock.__sk_common.skc_flags")
	fSkSocket     = want("sock.sk_socket")
	fSkType       = want("sock.sk_type")
	fSkProtocol   = want("sock.sk_protocol")
	fSkShutdown   = want("sock.sk_shutdown")
	fSkErr        = want("sock.sk_err")
	fSkErrSoft    = want("sock.sk_err_soft")
	fSkAckBacklog = want("sock.sk_ack_backlog")
	fSkMaxBacklog = want("sock.sk_max_ack_backlog")
	fSkReceive    = want("sock.sk_receive_queue")
	fSkWrite      = want("sock.sk_write_queue")
	fSkErrors     = want("sock.sk_error_queue")
	fSkBacklog    = want("sock.sk_backlog.head")
	fSkDrops      = want("sock.sk_drops")
	fSkBudget     = want("sock.sk_busy_poll_budget")
	fSkKey        = want("sock.sk_tskey")
	fSkReuseport  = want("sock.sk_reuseport_cb")
	fReuseProg    = want("sock_reuseport.prog")
	fSkUserData   = want("sock.sk_user_data")
	fSkStorage    = want("sock.sk_bpf_storage")
	fSkReserved   = want("sock.sk_reserved_mem")
	fSockTxTime   = want("enum sock_flags.SOCK_TXTIME")

	fHeadNext = want("sk_buff_head.next")
	fHeadLen  = want("sk_buff_head.qlen")

	fSkbNext    = want("sk_buff.next")
	fSkbSk      = want("sk_buff.sk")
	fSkbTime    = want("sk_buff.tstamp")
	fSkbControl = want("sk_buff.cb")
	fSkbLen     = want("sk_buff.len")
	fSkbDataLen = want("sk_buff.data_len")
	fSkbMark    = want("sk_buff.mark")
	fSkbEnd     = want("sk_buff.end")
	fSkbHead    = want("sk_buff.head")
	fSkbData    = want("sk_buff.data")
	fShFrags    = want("skb_shared_info.frags")
	fShNrFrags  = want("skb_shared_info.nr_frags")
	fShList     = want("skb_shared_info.frag_list")
	fFragMem    = want("skb_frag.netmem") // since 6.10, before it:
	fFragLen    = want("skb_frag.len")
	fFragOffset = want("skb_frag.offset")
	fVecPage    = want("bio_vec.bv_page")
	fVecLen     = want("bio_vec.bv_len")
	fVecOffset  = want("bio_vec.bv_offset")
)

const (
	// maxPackets bounds the walk of a queue, maxPacket the bytes in one buffer: neither can be more by the limits of memory
	// that a socket has, which are signed 32-bit numbers of bytes.
	maxPackets = 1 << 22
	maxPacket  = 64 << 20
	// maxNested bounds chains of buffers inside of buffers.
	maxNested = 4
)

// sockOf returns the address of the struct sock behind an open file, and its struct socket.
func (v *bpfView) sockOf(file ID) (uint64, []byte, error) {
	b, _, err := v.content(file, KindSocket, "socket")
	if err != nil {
		return 0, nil, err
	}
	sk, ok := v.l.uint(b, fSocketSk)
	if !ok {
		return 0, nil, missingField(KindSocket)
	}
	return sk, b, nil
}

// Socket is documented with View.
func (v *bpfView) Socket(file ID) (Socket, error) {
	sk, _, err := v.sockOf(file)
	if err != nil {
		return Socket{}, err
	}
	return v.socket(sk)
}

// sock reads a struct sock.
func (v *bpfView) sock(addr uint64) ([]byte, error) {
	b, err := v.mem.peek(addr, v.l.span["sock"])
	if err != nil {
		return nil, fmt.Errorf("reading a socket: %w", err)
	}
	return b, nil
}

// socket reads the socket at an address, with its queues.
func (v *bpfView) socket(addr uint64) (Socket, error) {
	l := v.l
	for _, f := range []field{fSkFamily, fSkState, fSkNet, fSkSocket, fSkType, fSkProtocol, fSkShutdown, fSkErr, fSkErrSoft,
		fSkAckBacklog, fSkMaxBacklog, fSkReceive, fSkWrite, fSkErrors, fSkBacklog, fSocketState, fSocketFile} {
		if !l.has(f) {
			return Socket{}, &MissingError{What: "a kernel whose structures are known (" + fieldPaths[f] + " is not in its BTF)"}
		}
	}
	b, err := v.sock(addr)
	if err != nil {
		return Socket{}, err
	}
	get := func(f field) uint64 { n, _ := l.uint(b, f); return n }
	s := Socket{
		ID: v.id(addr), Net: v.id(get(fSkNet)), Family: uint16(get(fSkFamily)), Type: uint16(get(fSkType)), Protocol: uint16(get(fSkProtocol)),
		State: uint8(get(fSkState)), Shutdown: uint8(get(fSkShutdown)), Err: int32(get(fSkErr)), SoftErr: int32(get(fSkErrSoft)),
		Backlog: uint32(get(fSkAckBacklog)), MaxBacklog: uint32(get(fSkMaxBacklog)),
		Unsent:         get(fSkBacklog) != 0,
		DropCount:      num[uint32](l, b, fSkDrops),
		BusyPollBudget: num[uint16](l, b, fSkBudget), TimestampKey: num[uint32](l, b, fSkKey),
		UserData: flag(l, b, fSkUserData), Storage: flag(l, b, fSkStorage), MemoryReserved: num[uint32](l, b, fSkReserved),
		ReuseportGroup: flag(l, b, fSkReuseport),
	}
	if flags, ok := l.uint(b, fSkFlags); ok && l.has(fSockTxTime) {
		s.TxTime = Is(flags>>l.off(fSockTxTime)&1 != 0)
	}
	if group, ok := l.uint(b, fSkReuseport); ok && group == 0 {
		s.ReuseportProgram = Is(false)
	} else if ok && l.has(fReuseProg) {
		r, err := v.mem.peek(group, l.span["sock_reuseport"])
		if err != nil {
			return Socket{}, fmt.Errorf("reading a socket: %w", err)
		}
		s.ReuseportProgram = flag(l, r, fReuseProg)
	}
	if at := get(fSkSocket); at != 0 {
		o, err := v.mem.peek(at, l.span["socket"])
		if err != nil {
			return Socket{}, fmt.Errorf("reading a socket: %w", err)
		}
		state, _ := l.uint(o, fSocketState)
		file, _ := l.uint(o, fSocketFile)
		s.Connecting, s.File = uint8(state), v.id(file)
	}
	for _, q := range []struct {
		f  field
		to *[]Packet
	}{{fSkReceive, &s.Receive}, {fSkWrite, &s.Write}, {fSkErrors, &s.Errors}} {
		if *q.to, err = v.packets(addr + l.off(q.f)); err != nil {
			return Socket{}, fmt.Errorf("reading the queue of a socket: %w", err)
		}
	}
	return s, nil
}

// packets reads all buffers of a queue (struct sk_buff_head), the oldest first.
//
// The network may append to it meanwhile; those packets come after the moment of the look. Nobody takes from it: the readers stand
// still. A head that was read while one was being appended counts one more than it leads to.
func (v *bpfView) packets(head uint64) ([]Packet, error) {
	for range 3 {
		if out, err := v.walk(head); !errors.Is(err, errFault) {
			return out, err
		}
	}
	return v.walk(head)
}

func (v *bpfView) walk(head uint64) ([]Packet, error) {
	l := v.l
	b, err := v.mem.peek(head, l.span["sk_buff_head"])
	if err != nil {
		return nil, err
	}
	next, ok1 := l.uint(b, fHeadNext)
	n, ok2 := l.uint(b, fHeadLen)
	if !ok1 || !ok2 || !l.has(fSkbNext) {
		return nil, missingField(KindSocket)
	}
	if n > maxPackets {
		return nil, errFault
	}
	var out []Packet
	for next != head && uint64(len(out)) < n {
		p, err := v.packet(next)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
		next, _ = l.uint(p.block, fSkbNext)
	}
	if uint64(len(out)) != n {
		return nil, errFault
	}
	return out, nil
}

// packet reads one buffer.
func (v *bpfView) packet(addr uint64) (Packet, error) {
	l := v.l
	b, err := v.mem.peek(addr, l.span["sk_buff"])
	if err != nil {
		return Packet{}, err
	}
	sk, ok1 := l.uint(b, fSkbSk)
	control, ok2 := l.bytes(b, fSkbControl)
	if !ok1 || !ok2 || !l.has(fSkbMark) || !l.has(fSkbTime) {
		return Packet{}, missingField(KindSocket)
	}
	p := Packet{Sock: v.id(sk), addr: addr, block: b, control: control}
	at, _ := l.uint(b, fSkbTime)
	mark, _ := l.uint(b, fSkbMark)
	p.Time, p.Mark = int64(at), uint32(mark)
	if p.Data, err = v.packetData(b, maxNested); err != nil {
		return Packet{}, err
	}
	return p, nil
}

// packetData reads the bytes of a buffer: those that follow its headers, those in pages, and those of buffers chained to it.
func (v *bpfView) packetData(b []byte, nested int) ([]byte, error) {
	l := v.l
	size, ok1 := l.uint(b, fSkbLen)
	paged, ok2 := l.uint(b, fSkbDataLen)
	at, ok3 := l.uint(b, fSkbData)
	if !ok1 || !ok2 || !ok3 {
		return nil, missingField(KindSocket)
	}
	if size > maxPacket || paged > size || nested == 0 {
		return nil, errFault
	}
	if size == 0 {
		return nil, nil
	}
	data := make([]byte, 0, size)
	if linear := size - paged; linear > 0 {
		part, err := v.mem.peek(at, int(linear))
		if err != nil {
			return nil, err
		}
		data = append(data, part...)
	}
	if paged == 0 {
		return data, nil
	}
	end, ok1 := l.uint(b, fSkbEnd)
	head, ok2 := l.uint(b, fSkbHead)
	if !ok1 || !ok2 || !l.has(fShNrFrags) || !l.has(fShFrags) || !l.has(fShList) {
		return nil, missingField(KindSocket)
	}
	if l.fields[fSkbEnd].kind != locPointer { // on 64-bit machines it counts from the head
		end += head
	}
	info, err := v.mem.peek(end, l.span["skb_shared_info"])
	if err != nil {
		return nil, err
	}
	n, _ := l.uint(info, fShNrFrags)
	frags := l.fields[fShFrags]
	if n > uint64(frags.count) {
		return nil, errFault
	}
	all, _ := l.bytes(info, fShFrags)
	for i := range n {
		one := all[i*uint64(frags.element):][:frags.element]
		part, err := v.fragment(one)
		if err != nil {
			return nil, err
		}
		data = append(data, part...)
		if uint64(len(data)) > size {
			return nil, errFault
		}
	}
	next, _ := l.uint(info, fShList)
	for next != 0 {
		chained, err := v.mem.peek(next, l.span["sk_buff"])
		if err != nil {
			return nil, err
		}
		part, err := v.packetData(chained, nested-1)
		if err != nil {
			return nil, err
		}
		data = append(data, part...)
		if len(part) == 0 || uint64(len(data)) > size {
			return nil, errFault
		}
		next, _ = l.uint(chained, fSkbNext)
	}
	if uint64(len(data)) != size {
		return nil, errFault
	}
	return data, nil
}

// fragment reads the part of a page, or of several that follow one another, that a buffer has.
func (v *bpfView) fragment(b []byte) ([]byte, error) {
	l := v.l
	mem, length, offset := fFragMem, fFragLen, fFragOffset
	if !l.has(mem) {
		mem, length, offset = fVecPage, fVecLen, fVecOffset
	}
	page, ok1 := l.uint(b, mem)
	n, ok2 := l.uint(b, length)
	at, ok3 := l.uint(b, offset)
	if !ok1 || !ok2 || !ok3 {
		return nil, missingField(KindSocket)
	}
	if n > maxPacket || at > maxPacket {
		return nil, errFault
	}
	if page&1 != 0 { // NET_IOV of net/netmem.h: memory of a device
		return nil, &MissingError{What: "socket buffers in memory of this machine (one is in a device)"}
	}
	addr, err := v.pageAddress(page)
	if err != nil {
		return nil, err
	}
	return v.mem.peek(addr+at, int(n))
}
