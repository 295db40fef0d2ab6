package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A packet socket (packet(7)): type, protocol, interface, options, memberships and fanout group.
//
// Refused by name: packets that nobody has read (a program that looks at traffic may count on having seen all that came before), rings
// (PACKET_RX_RING, PACKET_TX_RING), fanout by a program.
//
// Lost: the counts of PACKET_STATISTICS and PACKET_ROLLOVER_STATS, the place among the sockets of a fanout group.
type packetState struct {
	Common
	Type        uint32             `msgpack:"type"`                // SOCK_RAW, SOCK_DGRAM or SOCK_PACKET
	Protocol    uint32             `msgpack:"protocol,omitempty"`  // ETH_P_*
	Interface   string             `msgpack:"interface,omitempty"` // absent: all
	Options     []Option           `msgpack:"packet,omitempty"`
	Memberships []packetMembership `msgpack:"memberships,omitempty"`
	Fanout      []byte             `msgpack:"fanout,omitempty"` // as PACKET_FANOUT takes it
}

// packetMembership is one of PACKET_ADD_MEMBERSHIP.
type packetMembership struct {
	Interface string `msgpack:"interface"`
	Type      uint32 `msgpack:"type"`           // PACKET_MR_*
	Addr      []byte `msgpack:"addr,omitempty"` // a link-layer address
	Count     uint32 `msgpack:"count"`          // how often it was added
}

const (
	packetIgnoreOutgoing = 23
	packetVnetHdrSz      = 24
	maxLinkAddr          = 32   // MAX_ADDR_LEN
	maxMemberships       = 4096 // of one address; no program adds one as often
	fanoutCBPF           = 6
	fanoutEBPF           = 7
)

var packetOptions = []option{
	integer("PACKET_AUXDATA", unix.SOL_PACKET, unix.PACKET_AUXDATA, 0),
	integer("PACKET_ORIGDEV", unix.SOL_PACKET, unix.PACKET_ORIGDEV, 0),
	integer("PACKET_VERSION", unix.SOL_PACKET, unix.PACKET_VERSION, 0),
	integer("PACKET_RESERVE", unix.SOL_PACKET, unix.PACKET_RESERVE, 0),
	integer("PACKET_LOSS", unix.SOL_PACKET, unix.PACKET_LOSS, 0),
	integer("PACKET_VNET_HDR", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 0),
	integer("PACKET_VNET_HDR_SZ", unix.SOL_PACKET, packetVnetHdrSz, 0),
	integer("PACKET_TIMESTAMP", unix.SOL_PACKET, unix.PACKET_TIMESTAMP, 0),
	integer("PACKET_TX_HAS_OFF", unix.SOL_PACKET, unix.PACKET_TX_HAS_OFF, 0),
	integer("PACKET_QDISC_BYPASS", unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 0),
	integer("PACKET_IGNORE_OUTGOING", unix.SOL_PACKET, packetIgnoreOutgoing, 0),
	{name: "PACKET_COPY_THRESH", level: unix.SOL_PACKET, opt: unix.PACKET_COPY_THRESH, get: untold},
}

func isPacket(s *kernelview.Socket) bool { return s.Family == unix.AF_PACKET }

func dumpPacket(d *object.Dumper, f *object.OpenFile) (*packetState, error) {
	if err := refuseShared(d, f); err != nil {
		return nil, err
	}
	s, err := d.View.Socket(f.View.ID)
	if err != nil {
		return nil, err
	}
	v, err := d.View.PacketSocket(f.View.ID)
	if err != nil {
		return nil, err
	}
	switch n := len(s.Receive); {
	case v.Rings:
		return nil, object.Unsupportedf("a packet socket with a ring (PACKET_RX_RING, PACKET_TX_RING) cannot be checkpointed")
	case n > 0:
		return nil, unread(n, "packets")
	case v.Fanout != nil && (v.Fanout.Type == fanoutCBPF || v.Fanout.Type == fanoutEBPF):
		return nil, object.Unsupportedf("a program chooses among the packet sockets of its group (PACKET_FANOUT), which cannot be checkpointed")
	case v.Index < 0:
		return nil, object.Unsupportedf("the network interface to which it is bound is gone")
	}
	if err := refusePending(&s); err != nil {
		return nil, err
	}
	c, err := dumpCommon(f, &s)
	if err != nil {
		return nil, err
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, err
	}
	st := &packetState{Common: *c, Type: uint32(s.Type)}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("asking for its address: %w", err)
	}
	if a, ok := local.(*unix.SockaddrLinklayer); ok {
		st.Protocol = uint32(hostOrder(a.Protocol))
	}
	if st.Interface, err = interfaceName(fd, uint32(v.Index)); err != nil {
		return nil, err
	}
	if st.Options, err = readOptions(fd, packetOptions); err != nil {
		return nil, err
	}
	if v.CopyThresh != 0 {
		st.Options = append(st.Options, Option{"PACKET_COPY_THRESH", number(v.CopyThresh)})
	}
	for _, m := range v.Memberships {
		one := packetMembership{Type: uint32(m.Type), Addr: m.Addr, Count: uint32(m.Count)}
		if one.Interface, err = interfaceName(fd, uint32(m.Index)); err != nil {
			return nil, err
		}
		if m.Count > maxMemberships {
			return nil, object.Unsupportedf("it has added one membership %d times, which cannot be checkpointed", m.Count)
		}
		st.Memberships = append(st.Memberships, one)
	}
	if o := v.Fanout; o != nil {
		st.Fanout = binary.NativeEndian.AppendUint32(nil, uint32(o.ID)|uint32(o.Type)<<16|uint32(o.Flags)<<24)
		st.Fanout = binary.NativeEndian.AppendUint32(st.Fanout, o.Max)
	}
	return st, nil
}

// hostOrder turns a 16-bit number of the network's byte order round, and back.
func hostOrder(n uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, n))
}

func (s *packetState) check() error {
	if s.Type != unix.SOCK_RAW && s.Type != unix.SOCK_DGRAM && s.Type != unix.SOCK_PACKET || s.Protocol > 0xffff || len(s.Fanout) != 0 && len(s.Fanout) != 8 {
		return object.BadImagef("a packet socket of type %d and protocol %#x, with a fanout of %d bytes, is impossible", s.Type, s.Protocol, len(s.Fanout))
	}
	for _, m := range s.Memberships {
		if len(m.Addr) > maxLinkAddr || m.Type > 0xffff || m.Count == 0 || m.Count > maxMemberships || m.Interface == "" {
			return object.BadImagef("a membership of type %d with %d bytes, %d times, is impossible", m.Type, len(m.Addr), m.Count)
		}
	}
	return errors.Join(s.Common.check(), checkOptions(s.Options, packetOptions))
}

func restorePacket(_ *object.Restorer, _ stream.Ref, s *packetState) (int, error) {
	if err := s.check(); err != nil {
		return -1, err
	}
	// Protocol 0: it receives nothing yet.
	fd, err := unix.Socket(unix.AF_PACKET, int(s.Type)|unix.SOCK_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EPERM):
		return -1, &object.Lacking{What: "making a packet socket", Do: "give cr-restore CAP_NET_RAW", Err: err}
	case errors.Is(err, unix.EAFNOSUPPORT):
		return -1, &object.Lacking{What: "this kernel has no packet sockets", Err: err}
	case err != nil:
		return -1, fmt.Errorf("making a packet socket: %w", err)
	}
	if err := s.make(fd); err != nil {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, err
	}
	return fd, nil
}

func (s *packetState) make(fd int) error {
	if err := setOptions(fd, s.Options, packetOptions, nil); err != nil {
		return err
	}
	for i := range s.Memberships {
		if err := s.Memberships[i].add(fd); err != nil {
			return err
		}
	}
	if err := s.finish(fd); err != nil { // with the filter, before anything can come
		return err
	}
	if s.Protocol == 0 && s.Interface == "" {
		return nil
	}
	a := &unix.SockaddrLinklayer{Protocol: hostOrder(uint16(s.Protocol))}
	if s.Interface != "" {
		index, err := interfaceIndex(fd, s.Interface)
		if err != nil {
			return err
		}
		a.Ifindex = int(index)
	}
	if err := unix.Bind(fd, a); err != nil {
		return fmt.Errorf("binding a packet socket to %q: %w", s.Interface, err)
	}
	// One that is bound to an interface that is down has an error, of which the program has been told.
	if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		return fmt.Errorf("asking for SO_ERROR: %w", err)
	}
	if len(s.Fanout) > 0 {
		if err := sys.Setsockopt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, s.Fanout); err != nil {
			return fmt.Errorf("setting PACKET_FANOUT: %w", err)
		}
	}
	return files.SetTimes(fd, s.Access, s.Modify)
}

// add adds a membership as often as it was added.
func (m *packetMembership) add(fd int) error {
	index, err := interfaceIndex(fd, m.Interface)
	if err != nil {
		return err
	}
	// struct packet_mreq, whose address may be longer
	b := binary.NativeEndian.AppendUint32(nil, index)
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Type))
	b = binary.NativeEndian.AppendUint16(b, uint16(len(m.Addr)))
	b = append(append(b, m.Addr...), make([]byte, max(8, len(m.Addr))-len(m.Addr))...)
	for range m.Count {
		if err := sys.Setsockopt(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, b); err != nil {
			return fmt.Errorf("adding a membership on %s: %w", m.Interface, err)
		}
	}
	return nil
}

// PacketKind is the kind of packet sockets.
var PacketKind = object.NewFileKind("file.socket.packet", claims(isPacket), dumpPacket, restorePacket)
