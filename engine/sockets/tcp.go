package sockets

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A TCP socket, or a listening or not connected MPTCP one (tcp(7), Documentation/networking/mptcp.rst): its addresses, its options,
// and of a connection the sequence numbers, what both ends have agreed upon, and both queues: what was received and not read, and
// what was written and not acknowledged, with what is urgent of it (tcp_urgent.go). Segments that came out of order are not kept: their sender has them until they are
// acknowledged (RFC 2018 section 8 lets a receiver give up what it has selectively acknowledged). What is known of the path
// (congestion window, round-trip times) is found out anew.
//
// A connection goes on only where nobody else goes on with it: when the dump has ended the processes (see tcp_hold.go), or when its
// other end is in the image too. Any other comes back as one that its peer has reset.
//
// Refused by name: connections that wait for accept(2) where they cannot be put into the queue of a listener (tcp_waiting.go); urgent data of
// one that does not go on; TCP-MD5 and TCP-AO keys; a protocol on top in the kernel (kTLS); MPTCP connections; a SYN that is kept for TCP_SAVED_SYN; a connect with data
// (TCP Fast Open) under way; an error that the program has not seen and no restore can cause again (ETIMEDOUT ...).
type tcpState struct {
	Common
	Family   uint16 `msgpack:"family"`
	Protocol uint16 `msgpack:"protocol"` // IPPROTO_TCP or IPPROTO_MPTCP
	// State is one of net/tcp_states.h, Shutdown what shutdown(2) or the end of the connection has closed: 1 reading, 2 writing.
	State    uint8 `msgpack:"state"`
	Shutdown uint8 `msgpack:"shutdown,omitempty"`
	// Ended: there was a connection, or an attempt to make one. Connecting: a connect(2) that does not wait is, or was, under way, and
	// its result has not been asked for.
	Ended      bool   `msgpack:"ended,omitempty"`
	Connecting bool   `msgpack:"connecting,omitempty"`
	Err        int32  `msgpack:"errno,omitempty"`  // SO_ERROR has not told it yet
	Local      string `msgpack:"local,omitempty"`  // address and port, absent: none
	Remote     string `msgpack:"remote,omitempty"` // of a connection
	Backlog    uint32 `msgpack:"backlog,omitempty"`
	// Waiting are the connections that wait for accept(2), in their order. Then Unread has the bytes of all of them.
	Waiting []waitingState `msgpack:"waiting,omitempty"`
	IP      ipState        `msgpack:"ip"`
	TCP     []Option       `msgpack:"tcp,omitempty"`
	// Kept: the connection goes on; else it comes back reset. The fields below are of a connection that goes on.
	Kept      bool   `msgpack:"kept,omitempty"`
	RcvNxt    uint32 `msgpack:"rcv_nxt,omitempty"` // the number that is expected next
	SndUna    uint32 `msgpack:"snd_una,omitempty"` // the first that is not acknowledged
	Unread    uint32 `msgpack:"unread,omitempty"`  // bytes received and not read: the first part of the contents
	Sent      uint32 `msgpack:"sent,omitempty"`    // bytes sent and not acknowledged: the second part
	Unsent    uint32 `msgpack:"unsent,omitempty"`  // bytes written and not sent: the third part
	MSS       uint16 `msgpack:"mss,omitempty"`     // bytes; what the peer takes at most
	Stamps    bool   `msgpack:"timestamps,omitempty"`
	Stamp     uint32 `msgpack:"timestamp,omitempty"` // TCP_TIMESTAMP
	SACK      bool   `msgpack:"sack,omitempty"`
	Scaling   bool   `msgpack:"scaling,omitempty"` // of windows
	SndScale  uint8  `msgpack:"snd_scale,omitempty"`
	RcvScale  uint8  `msgpack:"rcv_scale,omitempty"`
	SndWl1    uint32 `msgpack:"snd_wl1,omitempty"` // as struct tcp_repair_window
	SndWnd    uint32 `msgpack:"snd_wnd,omitempty"`
	MaxWindow uint32 `msgpack:"max_window,omitempty"`
	RcvWnd    uint32 `msgpack:"rcv_wnd,omitempty"`
	RcvWup    uint32 `msgpack:"rcv_wup,omitempty"`
	Urgent
}

// mptcp is IPPROTO_MPTCP, which has more than 8 bits.
const mptcp = 262

// States of struct socket (linux/net.h).
const (
	ssUnconnected = 1
	ssConnecting  = 2
)

func claimsTCP(d *object.Dumper, f *object.OpenFile) bool {
	return claims(func(s *kernelview.Socket) bool {
		return (s.Family == unix.AF_INET || s.Family == unix.AF_INET6) && s.Type == unix.SOCK_STREAM &&
			(s.Protocol == unix.IPPROTO_TCP || s.Protocol == mptcp)
	})(d, f)
}

func dumpTCP(d *object.Dumper, f *object.OpenFile) (*tcpState, error) {
	v, err := d.View.TCP(f.View.ID)
	if err != nil {
		return nil, err
	}
	h := holdOf(d)
	if err := refuseTCP(&v, d.TCP, h.mustAccept(&tcpEnd{v.Ends, f.View.ID})); err != nil {
		return nil, err
	}
	// The kernel keeps something of its own with the sockets of MPTCP; of others socket.go refuses that.
	common := v.Socket
	if v.Protocol == mptcp {
		common.UserData = kernelview.Is(false)
	}
	c, err := dumpCommon(f, &common)
	if err != nil {
		return nil, err
	}
	ip, _, err := dumpIP(d, f)
	if err != nil {
		return nil, err
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, err
	}
	s := &tcpState{Common: *c, Family: v.Family, Protocol: v.Protocol, State: v.State, Shutdown: v.Shutdown,
		Connecting: v.Connecting == ssConnecting, Err: v.Err, IP: withoutMulticast(ip)}
	if s.TCP, err = h.usual.read(fd, int(v.Family), int(v.Protocol)); err != nil {
		return nil, err
	}
	if v.UserMSS != 0 {
		s.TCP = insertOption(s.TCP, Option{"TCP_MAXSEG", number(int32(v.UserMSS))}, tcpOptions)
	}
	switch v.State {
	case kernelview.SocketListening:
		s.Local, s.Backlog = v.Ends.Local.String(), v.MaxBacklog
		if s.Waiting, v.Unread, err = h.dumpWaiting(d, f, &v, fd); err != nil {
			return nil, err
		}
		if len(s.Waiting) > 0 && find(s.Options, "SO_BINDTODEVICE") != nil {
			return nil, &object.Unsupported{What: "connections wait for accept(2) at a socket that is bound to a network interface, which cannot be checkpointed",
				Do: "dump when the program has accepted them, or pass --tcp drop", Passes: true}
		}
		s.Unread = uint32(len(v.Unread))
	case kernelview.SocketClosed:
		if s.Ended = v.Connecting != ssUnconnected; s.Ended {
			s.Unread = uint32(len(v.Unread))
			break
		}
		if v.Ends.Local.Port() != 0 || v.BoundAddress {
			s.Local = v.Ends.Local.String()
		}
	case kernelview.SocketSynSent:
		s.Local, s.Remote = v.Ends.Local.String(), v.Ends.Remote.String()
	default:
		s.Local, s.Remote = v.Ends.Local.String(), v.Ends.Remote.String()
		s.Unread = uint32(len(v.Unread))
		if s.Kept = h.keeps(&v.Ends); !s.Kept {
			break
		}
		if s.Urgent, err = urgentOf(&v); err != nil {
			return nil, err
		}
		if err := s.fromView(&v, fd); err != nil {
			return nil, err
		}
		if err := h.closeSilently(fd); err != nil {
			return nil, err
		}
	}
	if !s.Kept && v.Urgent != kernelview.UrgentNone {
		return nil, &object.Unsupported{What: "it has urgent data (MSG_OOB), and comes back as one that has ended, which cannot be checkpointed", Do: "let it read that, and dump it again", Passes: true}
	}
	if n := int(s.Unread + s.Sent + s.Unsent); n > 0 {
		h.contents[s] = append(v.Unread, v.Send...)[:n]
	}
	return s, nil
}

// withoutMulticast leaves out what does nothing on a TCP socket and cannot be set: the kernel notes there by which interface a SYN came,
// and its hop limit (tcp_v4_syn_recv_sock in net/ipv4/tcp_ipv4.c).
func withoutMulticast(ip *ipState) ipState {
	s := *ip
	s.MulticastIf, s.MulticastAddr, s.MulticastIf6 = "", nil, ""
	s.Options = slices.DeleteFunc(s.Options, func(o Option) bool { return strings.Contains(o.Name, "_MULTICAST_") })
	return s
}

// tcpContents adds the bytes of both queues.
func tcpContents(d *object.Dumper, ref stream.Ref, s *tcpState) {
	all := holdOf(d).contents[s]
	if len(all) == 0 {
		return
	}
	d.AddBulk(ref, func(w *stream.Writer) error {
		for at := 0; at < len(all); at += stream.MaxPayload {
			part := all[at:min(at+stream.MaxPayload, len(all))]
			if err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: uint64(at)}, part); err != nil {
				return err
			}
		}
		return nil
	})
}

// shutBoth is SHUTDOWN_MASK.
const shutBoth = kernelview.ShutRead | kernelview.ShutWrite

// fromView fills in what a connection needs to go on.
func (s *tcpState) fromView(v *kernelview.TCP, fd int) error {
	end := v.WriteSeq
	if v.SentFIN {
		end--
	}
	unsent := end - v.SndNxt
	if int32(unsent) < 0 { // the FIN has been sent too
		unsent = 0
	}
	s.RcvNxt, s.SndUna = v.RcvNxt, v.SndUna
	s.Unsent = min(unsent, uint32(len(v.Send)))
	s.Sent = uint32(len(v.Send)) - s.Unsent
	s.MSS, s.Stamps, s.SACK, s.Scaling = v.MSSClamp, v.TimestampOK, v.SackOK, v.WscaleOK
	if v.WscaleOK {
		s.SndScale, s.RcvScale = v.SndWscale, v.RcvWscale
	}
	s.SndWl1, s.SndWnd, s.MaxWindow, s.RcvWnd, s.RcvWup = v.SndWl1, v.SndWnd, v.MaxWindow, v.RcvWnd, v.RcvWup
	if v.TimestampOK {
		b := make([]byte, 4)
		if _, err := sys.Getsockopt(fd, unix.IPPROTO_TCP, tcpTimestamp, b); err != nil {
			return fmt.Errorf("asking for TCP_TIMESTAMP: %w", err)
		}
		// The lowest bit says in which unit it counts, so the time may be one less than what the peer has seen already.
		s.Stamp = binary.NativeEndian.Uint32(b) + 2
	}
	return nil
}

// refuseTCP refuses what cannot be kept. waiting connections would have to be accepted before.
func refuseTCP(v *kernelview.TCP, policy string, waiting uint32) error {
	refuse := func(what string) error { return object.Unsupportedf("%s, which cannot be checkpointed", what) }
	yes := func(m kernelview.Maybe[bool]) bool { return m.V }
	connected := isConnection(v.State)
	switch {
	case v.Protocol == mptcp && v.State != kernelview.SocketListening && v.State != kernelview.SocketClosed:
		return &object.Unsupported{What: "an MPTCP connection cannot be checkpointed", Do: "have the program use TCP (GODEBUG=multipathtcp=0 for one written in Go)"}
	case yes(v.Subflow):
		return refuse("it is part of an MPTCP connection")
	case yes(v.ULP) && v.Protocol != mptcp:
		return refuse("a protocol in the kernel is on top of it (TCP_ULP: kTLS ...)")
	case yes(v.Signed):
		return refuse("its segments are signed (TCP_MD5SIG, TCP_AO_ADD_KEY)")
	case v.Protocol == mptcp && v.State == kernelview.SocketClosed && (v.Connecting != ssUnconnected || v.Shutdown != 0 || v.Err != 0):
		return refuse("it is an MPTCP connection that has ended")
	case v.Repair:
		return refuse("somebody is repairing it (TCP_REPAIR)")
	case v.State == kernelview.SocketSynReceived || v.State == kernelview.SocketTimeWait || v.State == 0 || v.State > kernelview.SocketClosing:
		return refuse(fmt.Sprintf("its connection is being made (state %d)", v.State))
	case yes(v.Fastopen):
		return refuse("a connect with data (TCP Fast Open) is under way")
	case yes(v.SavedSYN):
		return refuse("the SYN of its peer is kept for TCP_SAVED_SYN")
	case v.State == kernelview.SocketListening && waiting > 0:
		return &object.Unsupported{What: fmt.Sprintf("%d connections wait for accept(2), which cannot be checkpointed", waiting),
			Do: "dump when the program has accepted them, or pass --tcp drop"}
	case connected && policy == PolicyListen:
		return &object.Unsupported{What: fmt.Sprintf("it is a connection from %s to %s, and --tcp listen-only keeps none", v.Ends.Local, v.Ends.Remote),
			Do: "end it before the dump, or pass --tcp drop"}
	case connected && v.Err != 0:
		return refuse(fmt.Sprintf("it has an error that the program has not seen (%s)", unix.ErrnoName(unix.Errno(v.Err))))
	case v.State == kernelview.SocketClosed && v.Err != 0 && !remakable(v):
		return refuse(fmt.Sprintf("it has ended with an error that the program has not seen (%s)", unix.ErrnoName(unix.Errno(v.Err))))
	}
	return nil
}

// remakable says whether a restore can cause the error of a connection that has ended.
func remakable(v *kernelview.TCP) bool {
	switch unix.Errno(v.Err) {
	case unix.ECONNREFUSED:
		return v.Connecting == ssConnecting
	case unix.ECONNRESET, unix.EPIPE:
		return v.Connecting > ssConnecting
	}
	return false
}

// isConnection says whether a state has two ends that know of each other.
func isConnection(state uint8) bool {
	switch state {
	case kernelview.SocketEstablished, kernelview.SocketFinWait1, kernelview.SocketFinWait2, kernelview.SocketCloseWait,
		kernelview.SocketLastAck, kernelview.SocketClosing:
		return true
	}
	return false
}

// insertOption puts an option where its place in the table is.
func insertOption(all []Option, o Option, table []option) []Option {
	place := func(name string) int {
		for i := range table {
			if table[i].name == name {
				return i
			}
		}
		return len(table)
	}
	at := 0
	for at < len(all) && place(all[at].Name) < place(o.Name) {
		at++
	}
	return append(all[:at:at], append([]Option{o}, all[at:]...)...)
}

// check refuses what no socket can have.
func (s *tcpState) check() error {
	if err := s.Common.check(); err != nil {
		return err
	}
	if err := s.IP.check(); err != nil {
		return err
	}
	if err := checkOptions(s.TCP, tcpOptions); err != nil {
		return err
	}
	if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 || s.Protocol != unix.IPPROTO_TCP && s.Protocol != mptcp {
		return object.BadImagef("a TCP socket of family %d and protocol %d", s.Family, s.Protocol)
	}
	connected := isConnection(s.State)
	switch {
	case s.State == kernelview.SocketListening, s.State == kernelview.SocketClosed:
	case s.Protocol == mptcp:
		return object.BadImagef("an MPTCP connection")
	case s.State != kernelview.SocketSynSent && !connected:
		return object.BadImagef("a TCP socket in state %d", s.State)
	}
	if s.Shutdown&^shutBoth != 0 || s.Kept && !connected || s.SndScale > 14 || s.RcvScale > 14 {
		return object.BadImagef("a TCP socket in state %d with shutdown %d and window scales %d and %d", s.State, s.Shutdown, s.SndScale, s.RcvScale)
	}
	if s.Err != 0 && (s.State != kernelview.SocketClosed || unix.Errno(s.Err) != unix.ECONNREFUSED && unix.Errno(s.Err) != unix.ECONNRESET && unix.Errno(s.Err) != unix.EPIPE) {
		return object.BadImagef("a TCP socket in state %d with error %d", s.State, s.Err)
	}
	if s.Ended && (s.State != kernelview.SocketClosed || s.Protocol == mptcp) || s.Err != 0 && !s.Ended || s.Protocol == mptcp && s.Shutdown != 0 {
		return object.BadImagef("a TCP socket in state %d whose connection has ended", s.State)
	}
	need := map[string]bool{"local": connected || s.State == kernelview.SocketListening || s.State == kernelview.SocketSynSent,
		"remote": connected || s.State == kernelview.SocketSynSent}
	for name, text := range map[string]string{"local": s.Local, "remote": s.Remote} {
		a, err := parseAddr(text, s.Family)
		if err != nil {
			return err
		}
		if need[name] && a.Port() == 0 {
			return object.BadImagef("%s address %s of a TCP socket has no port", name, a)
		}
	}
	const most = 1 << 30 // tcp_rmem and tcp_wmem are of 31 bits
	if s.Unread > most || s.Sent > most || s.Unsent > most {
		return object.BadImagef("a TCP socket with %d, %d and %d bytes", s.Unread, s.Sent, s.Unsent)
	}
	if !s.Kept {
		s.Sent, s.Unsent = 0, 0
	}
	if err := s.checkWaiting(); err != nil {
		return err
	}
	return s.checkUrgent()
}

// parseAddr reads the address of a socket, if it has one.
func parseAddr(s string, family uint16) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Addr().Zone() != "" || a.Addr().Is4() != (family == unix.AF_INET) {
		return netip.AddrPort{}, object.BadImagef("%q is not the address of a socket of family %d", clip(s), family)
	}
	return a, nil
}

// plain is an address as packets have it.
func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func tcpSockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

const tcpType stream.Type = "file.socket.tcp"

// TCPKind is the kind of TCP and MPTCP sockets.
var TCPKind = object.NewContentFileKind(tcpType, claimsTCP, dumpTCP, tcpContents, restoreTCP)
