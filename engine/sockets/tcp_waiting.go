package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/handshake"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/nethold"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// A connection that waits for accept(2): its handshake is over, and its program knows nothing of it. So it has written nothing, and what is to
// be kept are its numbers, what both ends have agreed upon, what the peer has sent, and how the peer has ended it. Its options are those that
// its listening socket had when it came, which are taken to be those that this has now.
//
// It comes back into the queue by packets that seem to come from its peer: the last one of a handshake (package handshake), then the data, then
// the end. Not kept are the handshakes under way: the dump waits for them a moment, and who has only sent a SYN sends it again.
type waitingState struct {
	Local  string `msgpack:"local"` // address and port
	Remote string `msgpack:"remote"`
	// State is one of net/tcp_states.h: 1 established, 8 the peer has no more to say, 7 it was reset.
	State    uint8  `msgpack:"state"`
	RcvNxt   uint32 `msgpack:"rcv_nxt"` // as in tcpState
	SndUna   uint32 `msgpack:"snd_una"`
	SndWnd   uint32 `msgpack:"snd_wnd"`
	Unread   uint32 `msgpack:"unread,omitempty"` // bytes, which follow those of the connections before
	MSS      uint16 `msgpack:"mss"`
	Stamps   bool   `msgpack:"timestamps,omitempty"`
	Stamp    uint32 `msgpack:"timestamp,omitempty"`
	Recent   uint32 `msgpack:"recent,omitempty"` // the last time stamp of the peer
	SACK     bool   `msgpack:"sack,omitempty"`
	Scaling  bool   `msgpack:"scaling,omitempty"`
	SndScale uint8  `msgpack:"snd_scale,omitempty"`
	RcvScale uint8  `msgpack:"rcv_scale,omitempty"`
}

// settleTime is how long a frozen tree's handshakes under way are waited for.
const settleTime = 300 * time.Millisecond

// holdWaiting holds the connections that wait for accept(2) at listening sockets too, if they can be kept.
func (h *tcpHold) holdWaiting(d *object.Dumper, ends []tcpEnd) ([]tcpEnd, error) {
	if h.policy == PolicyDrop || h.policy == PolicyListen || h.ownNet {
		return ends, nil
	}
	for begin := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		var more []nethold.Conn
		var half uint32
		for _, e := range ends {
			if e.State != kernelview.SocketListening || e.Protocol != unix.IPPROTO_TCP || e.Backlog+e.Half == 0 {
				continue
			}
			half += e.Half
			waiting, err := d.View.TCPWaitingEnds(e.file)
			if errors.Is(err, kernelview.ErrKind) || isNotSeen(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			h.inQueue[e.file] = true
			for i := range waiting {
				if c := connOf(&waiting[i]); !h.waits[c] && h.keepsWaiting(c) {
					h.waits[c] = true
					more = append(more, c)
				}
			}
		}
		if len(more) > 0 {
			bound, err := nethold.Bind(nethold.Packets{Conns: more}, markOf(h.name()))
			if err != nil {
				return nil, err
			}
			h.alsoBound = append(h.alsoBound, bound)
		} else if half == 0 || !h.moves() || time.Since(begin) > settleTime {
			break
		}
		var err error
		if ends, err = tcpEnds(d); err != nil { // in which more may have come until they were held
			return nil, err
		}
	}
	for c := range h.waits {
		if !h.connecting[nethold.Conn{Local: c.Remote, Remote: c.Local}] {
			h.lasting.Conns = append(h.lasting.Conns, c)
		}
	}
	return ends, nil
}

// isNotSeen says of an error that this kernel does not show something, or has no place for it.
func isNotSeen(err error) bool {
	var missing *kernelview.MissingError
	return errors.As(err, &missing)
}

// keepsWaiting says whether a connection that waits is kept: any where it goes on with the image alone, and those whose client is in it.
func (h *tcpHold) keepsWaiting(c nethold.Conn) bool {
	return h.moves() || h.connecting[nethold.Conn{Local: c.Remote, Remote: c.Local}]
}

// dumpWaiting reads the connections that wait at a listening socket, and what they have to be read.
func (h *tcpHold) dumpWaiting(d *object.Dumper, f *object.OpenFile, listener *kernelview.TCP, fd int) (states []waitingState, contents []byte, err error) {
	if listener.Ends.Backlog == 0 || !h.inQueue[f.View.ID] {
		return nil, nil, nil
	}
	all, err := d.View.TCPWaiting(f.View.ID)
	if err != nil {
		return nil, nil, err
	}
	var clock uint32
	for i := range all {
		v := &all[i]
		c := connOf(&v.Ends)
		switch {
		case !h.keepsWaiting(c):
			continue
		case !h.waits[c]:
			return nil, nil, &object.Unsupported{What: "connections to it are being made, which cannot be checkpointed", Do: "try again", Passes: true}
		}
		if what := refuseWaiting(listener, v); what != "" {
			return nil, nil, &object.Unsupported{What: fmt.Sprintf("a connection from %s waits for accept(2) that cannot be checkpointed: %s", c.Remote, what),
				Do: "dump when the program has accepted it, or pass --tcp drop", Passes: true}
		}
		s := waitingState{Local: v.Ends.Local.String(), Remote: v.Ends.Remote.String(), State: v.State, RcvNxt: v.RcvNxt, SndUna: v.SndUna, SndWnd: v.SndWnd,
			Unread: uint32(len(v.Unread)), MSS: v.MSSClamp, Stamps: v.TimestampOK, SACK: v.SackOK, Scaling: v.WscaleOK}
		if v.WscaleOK {
			s.SndScale, s.RcvScale = v.SndWscale, v.RcvWscale
		}
		if v.TimestampOK {
			if clock == 0 {
				if clock, err = stampClock(fd); err != nil {
					return nil, nil, err
				}
			}
			s.Stamp, s.Recent = clock+v.TSOffset.V+2, v.TSRecent.V // as in fromView
		}
		states, contents = append(states, s), append(contents, v.Unread...)
	}
	return states, contents, nil
}

// refuseWaiting says what cannot be kept of a connection that waits, "" if there is nothing.
func refuseWaiting(listener, v *kernelview.TCP) string {
	fin := one(v.GotFIN)
	switch {
	case listener.ReuseportGroup.V:
		return "its listening socket shares its address with others (SO_REUSEPORT)"
	case v.Signed.V:
		return "its segments are signed (TCP_MD5SIG, TCP_AO_ADD_KEY)"
	case v.Subflow.V || v.ULP.V:
		return "a protocol in the kernel is on top of it"
	case v.Fastopen.V:
		return "it was made with data in its SYN (TCP Fast Open)"
	case v.SavedSYN.V:
		return "the SYN of its peer is kept for TCP_SAVED_SYN"
	case v.UsecTS.V:
		return "its time stamps count microseconds"
	case v.Urgent != kernelview.UrgentNone:
		return "it has urgent data (MSG_OOB)"
	case v.Ends.Local.Addr().IsLinkLocalUnicast() || v.Ends.Remote.Addr().IsLinkLocalUnicast():
		return "its addresses are those of a link"
	case v.MSSClamp < handshake.LeastMSS(plain(v.Ends.Remote).Addr()):
		return fmt.Sprintf("its peer takes segments of %d bytes only", v.MSSClamp)
	case v.State == kernelview.SocketEstablished && v.Err == 0 && fin == 0 && v.WriteSeq == v.SndUna:
	case v.State == kernelview.SocketCloseWait && v.Err == 0 && fin == 1 && v.WriteSeq == v.SndUna:
	case v.State == kernelview.SocketClosed && unix.Errno(v.Err) == unix.ECONNRESET && fin == 0:
	default:
		return fmt.Sprintf("it is in state %d with error %d", v.State, v.Err)
	}
	return ""
}

func one(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// stampClock is the clock of TCP time stamps, to which each connection adds a number of its own: what TCP_TIMESTAMP tells of a socket that
// has none.
func stampClock(fd int) (uint32, error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return 0, fmt.Errorf("asking for SO_DOMAIN: %w", err)
	}
	n, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, fmt.Errorf("making a socket: %w", err)
	}
	defer unix.Close(n) //nolint:errcheck // only asked
	b := make([]byte, 4)
	if _, err := sys.Getsockopt(n, unix.IPPROTO_TCP, tcpTimestamp, b); err != nil {
		return 0, fmt.Errorf("asking for TCP_TIMESTAMP: %w", err)
	}
	return binary.NativeEndian.Uint32(b), nil
}

// checkWaiting refuses what no listening socket can have.
func (s *tcpState) checkWaiting() error {
	if len(s.Waiting) > 0 && (s.State != kernelview.SocketListening || s.Protocol != unix.IPPROTO_TCP) {
		return object.BadImagef("%d connections wait at a TCP socket in state %d", len(s.Waiting), s.State)
	}
	if len(s.Waiting) > 0 && uint64(len(s.Waiting)) > uint64(s.Backlog)+1 { // sk_acceptq_is_full
		return object.BadImagef("%d connections wait in a queue of %d", len(s.Waiting), s.Backlog)
	}
	total := uint64(0)
	for i := range s.Waiting {
		w := &s.Waiting[i]
		for _, text := range []string{w.Local, w.Remote} {
			a, err := parseAddr(text, s.Family)
			if err != nil {
				return err
			}
			if b := plain(a).Addr(); a.Port() == 0 || b.IsUnspecified() || b.IsMulticast() || b.IsLinkLocalUnicast() {
				return object.BadImagef("a connection that waits has the address %q", clip(text))
			}
		}
		switch w.State {
		case kernelview.SocketEstablished, kernelview.SocketCloseWait, kernelview.SocketClosed:
		default:
			return object.BadImagef("a connection that waits is in state %d", w.State)
		}
		if w.SndScale > 14 || w.RcvScale > 14 {
			return object.BadImagef("a connection that waits with window scales %d and %d", w.SndScale, w.RcvScale)
		}
		total += uint64(w.Unread)
	}
	if len(s.Waiting) > 0 && total != uint64(s.Unread) || s.State == kernelview.SocketListening && total == 0 && s.Unread != 0 {
		return object.BadImagef("connections that wait with %d bytes of %d", total, s.Unread)
	}
	return nil
}

func (w *waitingState) conn(family uint16) nethold.Conn {
	local, _ := parseAddr(w.Local, family) // check has done it before
	remote, _ := parseAddr(w.Remote, family)
	return nethold.Conn{Local: plain(local), Remote: plain(remote)}
}

// admitAll puts the connections that wait into the queues of their listening sockets.
func (t *tcpRestore) admitAll() error {
	var maker *handshake.Maker
	for _, m := range t.all {
		at := 0
		for i := range m.s.Waiting {
			w := &m.s.Waiting[i]
			unread := m.content[at:][:w.Unread]
			if at += int(w.Unread); t.lost[w.conn(m.s.Family)] {
				continue
			}
			if maker == nil {
				var err error
				if maker, err = handshake.Open(t.mark); err != nil {
					return err
				}
				defer maker.Close() //nolint:errcheck // it goes with this process at the latest
			}
			if err := m.admit(t, maker, w, unread); err != nil {
				return fmt.Errorf("TCP connection from %s that waits for accept(2) at %s: %w", w.Remote, m.s.Local, err)
			}
		}
	}
	return nil
}

// admit puts one connection into the queue.
func (m *tcpMade) admit(t *tcpRestore, maker *handshake.Maker, w *waitingState, unread []byte) error {
	c := w.conn(m.s.Family)
	if err := stays(c); err != nil {
		return err
	}
	f, err := newForger(c.Local.Addr(), t.mark)
	if err != nil {
		return err
	}
	defer f.close()
	was, err := queued(m.fd)
	if err != nil {
		return err
	}
	if err := maker.Arm(&handshake.Request{From: c.Remote, To: c.Local, MSS: w.MSS, SACK: w.SACK, Scaling: w.Scaling, SndScale: w.SndScale, RcvScale: w.RcvScale,
		Stamps: w.Stamps, Stamp: w.Stamp, Recent: w.Recent}); err != nil {
		return err
	}
	s := segment{from: c.Remote, to: c.Local, ack: w.SndUna, window: uint16(min(w.SndWnd>>w.SndScale, 1<<16-1)),
		seq: w.RcvNxt - uint32(len(unread)) - one(w.State == kernelview.SocketCloseWait)}
	if err := f.send(&s, func() (bool, error) {
		if taken, err := maker.Taken(); !taken || err != nil {
			return false, err
		}
		n, err := queued(m.fd)
		return n > was, err
	}); err != nil {
		return err
	}
	if err := m.fillWaiting(f, s, &c, unread); err != nil {
		return err
	}
	s.seq += uint32(len(unread))
	switch w.State {
	case kernelview.SocketCloseWait:
		s.fin = true
		return f.send(&s, func() (bool, error) {
			state, _, err := diagOf(&c)
			return state == kernelview.SocketCloseWait, err
		})
	case kernelview.SocketClosed:
		s.rst = true
		return f.send(&s, func() (bool, error) {
			_, _, err := diagOf(&c)
			if errors.Is(err, unix.ENOENT) {
				return true, nil
			}
			return false, err
		})
	}
	return nil
}

// fillWaiting has a connection receive data. As with any sender each segment must fit into the window, which nobody tells, and which grows
// the better the fewer segments there are.
func (m *tcpMade) fillWaiting(f *forger, s segment, c *nethold.Conn, unread []byte) error {
	const (
		most  = 63 << 10 // bytes, with headers and what the kernel adds to a buffer just below a power of two
		least = 256
		pause = 50 * time.Millisecond
	)
	first, piece := s.seq, most
	for done, deadline := 0, time.Now().Add(injectTime); done < len(unread); {
		s.seq, s.data = first+uint32(done), unread[done:min(done+piece, len(unread))]
		now := done
		taken, err := f.try(&s, pause, func() (bool, error) {
			_, n, err := diagOf(c)
			now = int(n)
			return now > done, err
		})
		switch {
		case err != nil:
			return err
		case now < done || now > len(unread):
			return fmt.Errorf("there are %d bytes to be read after %d of %d", now, done, len(unread))
		case taken:
			done, deadline = now, time.Now().Add(injectTime)
		case time.Now().After(deadline):
			return &object.Lacking{What: fmt.Sprintf("only %d of the %d bytes that its peer has sent fit into it", done, len(unread)),
				Do: "raise net.ipv4.tcp_rmem to what it was at the dump"}
		case piece > least:
			piece /= 2
		}
	}
	return nil
}

// stays makes sure that a packet to the local end does not leave the machine.
func stays(c nethold.Conn) error {
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("making a netlink socket: %w", err)
	}
	s := sender{route: sys.NewFD(n)}
	defer s.route.Close()
	local, err := s.isLocal(c.Local.Addr().AsSlice(), 0)
	if err == nil && !local {
		err = &object.Lacking{What: fmt.Sprintf("address %s is not one of this machine", c.Local.Addr()),
			Do: fmt.Sprintf("add it (ip address add %s dev ...); connections can be given up with --tcp drop", c.Local.Addr())}
	}
	return err
}

// queued is how many connections wait for accept(2) at a listening socket (tcp_get_info in net/ipv4/tcp.c).
func queued(fd int) (uint32, error) {
	const unacked = 24 // offset of tcpi_unacked in struct tcp_info
	b := make([]byte, unacked+4)
	if _, err := sys.Getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b[unacked:]), nil
}

// diagOf asks sock_diag(7) for the state of a connection, and how many bytes it has to be read.
func diagOf(c *nethold.Conn) (state uint8, unread uint32, err error) {
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, 0, fmt.Errorf("making a netlink socket: %w", err)
	}
	defer unix.Close(n) //nolint:errcheck // only asked
	answer, err := askDiag(n, diagMessageOf(sockDiagByFamily, c, nil))
	if err != nil {
		return 0, 0, err
	}
	if len(answer) < diagMessage {
		return 0, 0, errors.New("asking for a connection: an answer that is none")
	}
	if answer[1] == kernelview.SocketListening { // what the lookup falls back to
		return 0, 0, unix.ENOENT
	}
	return answer[1], binary.NativeEndian.Uint32(answer[diagUnread:]), nil
}
