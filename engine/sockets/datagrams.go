package sockets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// The datagrams that wait in a UDP socket, oldest first. Their contents are "data": packets of IP as they came, header, UDP header
// and data, which tell sender, receiver, TTL and type of service. A restore sends them again, to the machine itself, through a raw
// socket (IPPROTO_RAW, raw(7)): the kernel takes the sender's address as it is written there, and a packet to an address of the
// machine's own comes by the loopback device, but counts as having come by the interface to which the raw socket is bound.
//
// So a datagram comes back exactly, or the dump refuses it by name: one to a multicast or broadcast address (everybody else who
// listens would get it again), several in one (UDP_GRO), with IP options or extension headers, from 0.0.0.0, with a partial
// checksum (UDP-Lite); and all of them where the socket asks for what cannot be had again: the time of arrival, marks, priorities,
// sizes of fragments, checksums.
type queueState struct {
	Count uint32     `msgpack:"count"`
	Runs  []queueRun `msgpack:"runs"`
}

// queueRun is of datagrams that follow one another.
type queueRun struct {
	Count     uint32 `msgpack:"count"`
	Interface string `msgpack:"interface,omitempty"` // by which they came; absent: the loopback device
	Pktinfo   bool   `msgpack:"pktinfo,omitempty"`   // IP_PKTINFO was on when they came, which the kernel keeps with each
}

// Lengths of headers in bytes.
const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
)

// stamped are the options with which a socket asks for what of a datagram cannot be had again.
var stamped = []string{"SO_TIMESTAMP", "SO_TIMESTAMPNS", "SO_TIMESTAMP_NEW", "SO_TIMESTAMPNS_NEW", "SO_TIMESTAMPING", "SO_TIMESTAMPING_NEW",
	"SO_RCVMARK", "SO_RCVPRIORITY", "IP_RECVFRAGSIZE", "IPV6_RECVFRAGSIZE", "IP_CHECKSUM", "IP_PASSSEC"}

// dumpDatagrams adds the queue of a socket, if there is something in it.
func dumpDatagrams(d *object.Dumper, f *object.OpenFile, s *udpState) (stream.Ref, error) {
	all, err := d.View.Datagrams(f.View.ID)
	if err != nil || len(all) == 0 {
		return stream.Ref{}, err
	}
	refuse := func(why string) error {
		return &object.Unsupported{What: fmt.Sprintf("%d unread datagrams wait in it, and %s", len(all), why), Do: "let it read them, and dump it again", Passes: true}
	}
	for _, name := range stamped {
		if find(s.Common.Options, name) != nil || find(s.IP.Options, name) != nil {
			return stream.Ref{}, refuse("it asks with " + name + " for what of them cannot be given back")
		}
	}
	fd, err := f.Descriptor()
	if err != nil {
		return stream.Ref{}, err
	}
	st := &queueState{Count: uint32(len(all))}
	names := map[int32]string{1: ""}
	packets := make([][]byte, len(all))
	for i := range all {
		g := &all[i]
		if why := unfit(g); why != "" {
			return stream.Ref{}, refuse(fmt.Sprintf("number %d %s, so that it cannot be given back as it came", i+1, why))
		}
		index := arrived(g)
		name, known := names[index]
		if !known {
			if name, err = interfaceName(fd, uint32(index)); err != nil {
				return stream.Ref{}, refuse(fmt.Sprintf("number %d came by an interface that is gone", i+1))
			}
			names[index] = name
		}
		run := queueRun{Count: 1, Interface: name, Pktinfo: g.Protocol == unix.ETH_P_IP && g.Pktinfo != 0}
		if n := len(st.Runs); n > 0 && st.Runs[n-1].Interface == run.Interface && st.Runs[n-1].Pktinfo == run.Pktinfo {
			st.Runs[n-1].Count++
		} else if st.Runs = append(st.Runs, run); n >= maxRuns {
			return stream.Ref{}, refuse("they came by too many interfaces in turn")
		}
		packets[i] = packetOf(g)
	}
	ref := d.Add(queueType, st)
	d.AddBulk(ref, func(w *stream.Writer) error { return writePackets(w, ref, packets) })
	return ref, nil
}

// maxRuns keeps the record well below the limit of its metadata.
const maxRuns = 1 << 13

// arrived is the interface by which a datagram counts as having come. That of a packet the machine has sent to itself is the
// loopback device, unless it was sent by way of another.
func arrived(g *kernelview.Datagram) int32 {
	if g.Pktinfo != 0 {
		return g.Pktinfo
	}
	return g.Index
}

// unfit says why a datagram cannot be given back exactly; "": it can.
func unfit(g *kernelview.Datagram) string {
	h := g.Network
	switch {
	case g.Type != unix.PACKET_HOST:
		return "was sent to a multicast or broadcast address"
	case g.GSOSize != 0:
		return "is several in one (UDP_GRO)"
	case g.Covered:
		return "has a partial checksum (UDP-Lite)"
	case g.Protocol == unix.ETH_P_IP && len(h) == ipv4Header && h[0] == 0x45 && h[9] == unix.IPPROTO_UDP:
		if binary.NativeEndian.Uint32(h[12:]) == 0 {
			return "came from 0.0.0.0"
		}
		if h[16] >= 224 || h[16] == 0 {
			return "was sent to a multicast or broadcast address"
		}
		return ""
	case g.Protocol == unix.ETH_P_IPV6 && len(h) == ipv6Header && h[0]>>4 == 6 && h[6] == unix.IPPROTO_UDP:
		if h[24] == 0xff {
			return "was sent to a multicast address"
		}
		return ""
	case len(h) >= ipv4Header && g.Protocol == unix.ETH_P_IP && h[9] == unix.IPPROTO_UDPLITE, len(h) >= ipv6Header && h[6] == unix.IPPROTO_UDPLITE:
		return "is of UDP-Lite"
	}
	return "has IP options or extension headers"
}

// packetOf puts together the packet that a datagram came in.
func packetOf(g *kernelview.Datagram) []byte {
	p := append([]byte(nil), g.Network...)
	length := uint16(udpHeader + len(g.Data))
	if g.Protocol == unix.ETH_P_IP {
		binary.BigEndian.PutUint16(p[2:], ipv4Header+length)
		binary.BigEndian.PutUint16(p[6:], 0) // it may have come in fragments
		binary.BigEndian.PutUint16(p[10:], 0)
	} else {
		binary.BigEndian.PutUint16(p[4:], length)
	}
	p = binary.BigEndian.AppendUint16(p, g.Source)
	p = binary.BigEndian.AppendUint16(p, g.Dest)
	p = binary.BigEndian.AppendUint16(p, length)
	p = binary.BigEndian.AppendUint16(p, 0) // checksums are made when it is sent
	return append(p, g.Data...)
}

// packetsPerRecord keeps the metadata of a record of packets short.
const packetsPerRecord = 1 << 14

// writePackets writes packets as data records.
func writePackets(w *stream.Writer, ref stream.Ref, packets [][]byte) error {
	var offset uint64
	for len(packets) > 0 {
		var buf []byte
		var lengths []uint32
		for len(packets) > 0 && len(buf)+len(packets[0]) <= stream.MaxPayload && len(lengths) < packetsPerRecord {
			buf = append(buf, packets[0]...)
			lengths = append(lengths, uint32(len(packets[0])))
			packets = packets[1:]
		}
		if err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: offset, Packets: lengths}, buf); err != nil {
			return err
		}
		offset += uint64(len(buf))
	}
	return nil
}

// madeQueue is the queue of a socket at restore.
type madeQueue struct {
	state  *queueState
	socket *udpState  // nil until its socket is met
	file   stream.Ref // of the socket
	done   uint32     // datagrams that are back
	fill   uint64     // bytes of them
	run    int        // the next one's run
	left   uint32     // datagrams of that run to come
	aimed  string     // what the socket is connected to for now
	routes map[string]bool
	sender *sender
}

func restoreQueue(r *object.Restorer, ref stream.Ref, s *queueState) error {
	total := uint64(0)
	for _, run := range s.Runs {
		if run.Count == 0 {
			return object.BadImagef("a run of no datagrams")
		}
		total += uint64(run.Count)
	}
	if total != uint64(s.Count) || s.Count == 0 {
		return object.BadImagef("%d unread datagrams in runs of together %d", s.Count, total)
	}
	m := &madeQueue{state: s, left: s.Runs[0].Count, routes: map[string]bool{}}
	r.Remember(ref, m)
	r.OnContent(ref, func(meta *object.Data, data []byte) error { return m.content(r, meta, data) })
	return nil
}

// ownMark is what marks the packets of a restore (SO_MARK), so that the socket takes no others until it has them all.
const ownMark = 0x63725f71

// prepare makes a socket ready for its datagrams before it is bound.
func (m *madeQueue) prepare(fd int) error {
	widen(fd)
	if err := attachFilter(fd, markFilter()); err != nil {
		return fmt.Errorf("attaching a filter: %w", err)
	}
	var err error
	m.sender, err = newSender(m.socket.Family == unix.AF_INET6)
	return err
}

// markFilter is a filter that takes what has ownMark.
func markFilter() []byte {
	const adOff, adMark = 0xfffff000, 20 // SKF_AD_OFF, SKF_AD_MARK of linux/filter.h
	var b []byte
	for _, in := range []struct {
		code   uint16
		jt, jf uint8
		k      uint32
	}{
		{unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, 0, 0, adOff + adMark},
		{unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, 0, 1, ownMark},
		{unix.BPF_RET | unix.BPF_K, 0, 0, 0xffffffff},
		{unix.BPF_RET | unix.BPF_K, 0, 0, 0},
	} {
		b = binary.NativeEndian.AppendUint16(b, in.code)
		b = append(b, in.jt, in.jf)
		b = binary.NativeEndian.AppendUint32(b, in.k)
	}
	return b
}

// content puts some of the datagrams back.
func (m *madeQueue) content(r *object.Restorer, meta *object.Data, data []byte) error {
	if m.socket == nil {
		return object.BadImagef("unread datagrams that no socket has")
	}
	if meta.Offset != m.fill || meta.Extend != 0 {
		return object.BadImagef("unread datagrams at byte %d do not follow byte %d", meta.Offset, m.fill)
	}
	fd, err := r.File(m.file)
	if err != nil {
		return err
	}
	m.fill += uint64(len(data))
	for _, length := range meta.Packets {
		if uint64(length) > uint64(len(data)) {
			return object.BadImagef("a datagram of %d bytes does not fit", length)
		}
		if m.done == m.state.Count {
			return object.BadImagef("more than %d unread datagrams", m.state.Count)
		}
		if m.left == 0 {
			m.run++
			m.left = m.state.Runs[m.run].Count
		}
		if err := m.give(fd, data[:length]); err != nil {
			return err
		}
		data = data[length:]
		m.done++
		m.left--
	}
	if len(data) > 0 {
		return object.BadImagef("%d bytes belong to no datagram", len(data))
	}
	if m.done < m.state.Count {
		return nil
	}
	return m.end(fd)
}

// end leaves the socket as if nothing had been done to give it its datagrams.
func (m *madeQueue) end(fd int) error {
	m.sender.close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return fmt.Errorf("detaching a filter: %w", err)
	}
	if err := m.setPktinfo(fd, numberOf(find(m.socket.IP.Options, "IP_PKTINFO")) != 0); err != nil {
		return err
	}
	if err := m.forget(fd); err != nil {
		return err
	}
	if err := m.socket.complete(fd); err != nil {
		return err
	}
	// Which processor has had the last packet tells the kernel among sockets that share a port.
	if find(m.socket.Common.Options, "SO_INCOMING_CPU") == nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_INCOMING_CPU, -1); err != nil {
			return fmt.Errorf("setting SO_INCOMING_CPU: %w", err)
		}
	}
	return nil
}

// forget ends a connection for the time of a datagram, and has again what was not given by bind(2), and the interface.
func (m *madeQueue) forget(fd int) error {
	s := m.socket
	if m.aimed == "" {
		return nil
	}
	if err := sys.Disconnect(fd); err != nil {
		return fmt.Errorf("disconnecting a socket: %w", err)
	}
	m.aimed = ""
	if err := s.setEarly(fd); err != nil {
		return err
	}
	if s.GivenPort {
		return nil
	}
	return s.bind(fd)
}

// setPktinfo turns IP_PKTINFO on or off.
func (m *madeQueue) setPktinfo(fd int, on bool) error {
	n := int32(0)
	if on {
		n = 1
	}
	o := &ipOptions[optionAt("IP_PKTINFO")]
	if on == (numberOf(mustValue(o, fd)) != 0) {
		return nil
	}
	return o.apply(fd, number(n))
}

func optionAt(name string) int {
	for i := range ipOptions {
		if ipOptions[i].name == name {
			return i
		}
	}
	return -1
}

// mustValue is what an option has, nothing where there is none.
func mustValue(o *option, fd int) []byte {
	b, err := o.value(fd)
	if err != nil {
		return nil
	}
	return b
}

// give sends the socket one of its datagrams.
func (m *madeQueue) give(fd int, packet []byte) error {
	p, err := m.parse(packet)
	if err != nil {
		return err
	}
	run := &m.state.Runs[m.run]
	index := uint32(0)
	if run.Interface != "" {
		if index, err = interfaceIndex(fd, run.Interface); err != nil {
			return err
		}
	}
	key := fmt.Sprint(index, p.dest)
	if !m.routes[key] {
		local, err := m.sender.isLocal(p.dest, index)
		if err != nil {
			return err
		}
		if !local {
			return &object.Lacking{What: "an unread datagram was sent to " + printAddress(p.dest, p.destPort) + ", which is not an address of this machine, or not by this interface",
				Do: "give it the address (ip-address(8))"}
		}
		m.routes[key] = true
	}
	if err := m.setPktinfo(fd, run.Pktinfo); err != nil {
		return err
	}
	if err := m.aim(fd, p, index); err != nil {
		return err
	}
	before, err := memoryOf(fd)
	if err != nil {
		return err
	}
	if err := m.sender.send(p, index, packet); err != nil {
		return fmt.Errorf("giving a socket an unread datagram: %w", err)
	}
	// It is there when the call returns, or, where another processor takes it, soon after.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		now, err := memoryOf(fd)
		if err != nil {
			return err
		}
		if now.received > before.received {
			return nil
		}
		if now.drops != before.drops || time.Now().After(deadline) {
			return &object.Lacking{What: fmt.Sprintf("unread datagram %d of %s, from %s to %s, does not get through to its socket", m.done+1,
				printAddress(m.socket.Addr, m.socket.Port), printAddress(p.source, p.sourcePort), printAddress(p.dest, p.destPort)),
				Do: "see whether a firewall (nft list ruleset) drops it on the loopback device"}
		}
	}
}

// aim connects a socket that may share its port with others to the sender of a datagram: among them the one that is connected to it
// gets what it sends. Where the address that the connection chooses is not the one to which the datagram was sent it stays without:
// then the datagram comes to the right one only if that is alone.
func (m *madeQueue) aim(fd int, p *datagram, index uint32) error {
	if len(m.socket.Peer) == 0 && find(m.socket.Common.Options, "SO_REUSEADDR") == nil && find(m.socket.Common.Options, "SO_REUSEPORT") == nil {
		return nil
	}
	source, dest := p.source, p.dest
	if len(source) == 4 && m.socket.Family == unix.AF_INET6 {
		source, dest = mapped(source), mapped(dest)
	}
	at := fmt.Sprint(source, p.sourcePort, dest, index)
	if at == m.aimed {
		return nil
	}
	if err := m.forget(fd); err != nil { // the address that it chose for the last one may not do for this one
		return err
	}
	if p.sourcePort == 0 {
		return nil
	}
	var lacking *object.Lacking
	if err := connectTo(fd, source, p.sourcePort, index); errors.As(err, &lacking) {
		return nil // no way to the sender
	} else if err != nil {
		return err
	}
	m.aimed = at
	local, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("asking for the address of a socket: %w", err)
	}
	if addr, _, _ := splitAddress(local); !bytes.Equal(addr, dest) {
		return m.forget(fd)
	}
	return nil
}

func mapped(addr []byte) []byte {
	return append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, addr...)
}

// datagram is what the headers of a packet say.
type datagram struct {
	v6                   bool
	source, dest         []byte
	sourcePort, destPort uint32
}

// parse checks a packet of an image: nothing may be sent that is not for this socket.
func (m *madeQueue) parse(b []byte) (*datagram, error) {
	bad := func() (*datagram, error) { return nil, object.BadImagef("%d bytes are not a UDP datagram", len(b)) }
	d := &datagram{}
	var h int
	switch {
	case len(b) >= ipv4Header+udpHeader && len(b) <= 0xffff && b[0] == 0x45 && b[9] == unix.IPPROTO_UDP &&
		int(binary.BigEndian.Uint16(b[2:])) == len(b) && b[6] == 0 && b[7] == 0:
		h, d.source, d.dest = ipv4Header, b[12:16], b[16:20]
		if binary.NativeEndian.Uint32(d.source) == 0 || d.dest[0] >= 224 || d.dest[0] == 0 {
			return bad()
		}
	case len(b) >= ipv6Header+udpHeader && len(b) <= ipv6Header+0xffff && b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP &&
		int(binary.BigEndian.Uint16(b[4:])) == len(b)-ipv6Header:
		h, d.source, d.dest, d.v6 = ipv6Header, b[8:24], b[24:40], true
		if d.dest[0] == 0xff {
			return bad()
		}
	default:
		return bad()
	}
	udp := b[h:]
	d.sourcePort, d.destPort = uint32(binary.BigEndian.Uint16(udp)), uint32(binary.BigEndian.Uint16(udp[2:]))
	if int(binary.BigEndian.Uint16(udp[4:])) != len(udp) || binary.BigEndian.Uint16(udp[6:]) != 0 || d.destPort == 0 || d.destPort != m.socket.Port ||
		d.v6 && m.socket.Family != unix.AF_INET6 || m.socket.Protocol != unix.IPPROTO_UDP {
		return bad()
	}
	return d, nil
}

// queueType is the record of the unread datagrams of a socket.
const queueType stream.Type = "datagrams"

// QueueObject is the record of the unread datagrams of a socket.
var QueueObject = object.NewKind(queueType, restoreQueue)
