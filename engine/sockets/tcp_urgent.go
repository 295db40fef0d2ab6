package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// Urgent is the urgent data of a connection (MSG_OOB, tcp(7), RFC 6093): a place in the stream, one each way. That is the last byte that the
// peer has sent as urgent, which may have been read before all others, or announced and not come yet; and the last own one, as long as
// it is not acknowledged, which every segment up to it announces.
//
// The first can be had only from a segment that says so: a restore that has filled the receive queue up to that byte has the socket get
// one, as it does for a FIN. The second is sent as urgent in repair mode.
type Urgent struct {
	// At is where the urgent byte is among the unread bytes, counted from 1; above Unread it has not come yet. 0: there is none.
	At   uint32 `msgpack:"urgent,omitempty"`
	Read bool   `msgpack:"urgent_read,omitempty"` // recv(2) with MSG_OOB has given it
	// Send is how many bytes from SndUna on end with the own urgent byte; 0: there is none.
	Send uint32 `msgpack:"urgent_sent,omitempty"`
}

// farthest is how far ahead a segment can announce an urgent byte.
const farthest = 1<<16 - 1

// urgentOf takes both places from the kernel's memory.
func urgentOf(v *kernelview.TCP) (Urgent, error) {
	u := Urgent{}
	if v.Urgent != kernelview.UrgentNone {
		u.At, u.Read = v.UrgentSeq-v.CopiedSeq+1, v.Urgent == kernelview.UrgentRead
	}
	if v.SndUp != v.SndUna {
		u.Send = v.SndUp - v.SndUna
	}
	if v.Urgent != kernelview.UrgentNone && (u.At == 0 || u.At > uint32(len(v.Unread))+farthest || (v.Urgent == kernelview.UrgentAwaited) != (u.At > uint32(len(v.Unread)))) ||
		u.Send > uint32(len(v.Send)) {
		return u, object.Unsupportedf("its urgent data (MSG_OOB) is in a place where none should be, which cannot be checkpointed")
	}
	return u, nil
}

// checkUrgent refuses what no connection can have.
func (s *tcpState) checkUrgent() error {
	u := &s.Urgent
	if u.At > s.Unread+farthest || u.Read && (u.At == 0 || u.At > s.Unread) || u.Send > s.Sent+s.Unsent || *u != (Urgent{}) && !s.Kept {
		return object.BadImagef("a TCP socket with urgent bytes %d of %d and %d of %d", u.At, s.Unread, u.Send, s.Sent+s.Unsent)
	}
	return nil
}

// fillReceive fills the receive queue.
func (m *tcpMade) fillReceive(t *tcpRestore) error {
	s, data := m.s, m.content[:m.s.Unread]
	if s.Urgent.At == 0 {
		return m.fill(recvQueue, data)
	}
	before := min(s.Urgent.At-1, s.Unread)
	if err := m.fill(recvQueue, data[:before]); err != nil {
		return err
	}
	seq := s.RcvNxt - s.Unread - finReceived(s.State) + before
	// What it has got has taken the window that it offers, and nothing may come any more.
	const room = 1 << 16
	if err := m.setWindows(seq, s.SndWnd, max(s.MaxWindow, s.SndWnd), room, seq); err != nil {
		return err
	}
	g := segment{from: plain(m.remote), to: plain(m.local), seq: seq, ack: s.SndUna, urgent: true, window: uint16(min(s.SndWnd>>s.SndScale, 1<<16-1))}
	if s.State == kernelview.SocketFinWait2 { // whose FIN comes later
		g.ack--
	}
	g.pointer = uint16(s.Urgent.At - 1 - before)
	ahead, err := m.pointsBehind()
	if err != nil {
		return err
	}
	g.pointer += ahead
	if s.Urgent.At <= s.Unread {
		g.data = data[before : before+1]
	}
	if err := m.injectUntil(t, g, func() (bool, error) { return m.hasUrgent(g.data) }); err != nil {
		return err
	}
	if s.Urgent.Read {
		if _, _, err := unix.Recvfrom(m.fd, make([]byte, 1), unix.MSG_OOB|unix.MSG_DONTWAIT); err != nil {
			return fmt.Errorf("reading its urgent byte: %w", err)
		}
	}
	return m.fill(recvQueue, data[before+uint32(len(g.data)):])
}

// pointsBehind is 1 where the pointer of a segment points behind the urgent byte, as everybody's does, and 0 where it points at it
// (net.ipv4.tcp_stdurg, tcp_check_urg in net/ipv4/tcp_input.c).
func (m *tcpMade) pointsBehind() (uint16, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_stdurg")
	if err != nil {
		return 0, err
	}
	if string(bytes.TrimSpace(b)) == "0" {
		return 1, nil
	}
	return 0, nil
}

// hasUrgent says whether a socket has got its urgent byte or, without one, knows that it will come.
func (m *tcpMade) hasUrgent(want []byte) (bool, error) {
	b := make([]byte, 1)
	n, _, err := unix.Recvfrom(m.fd, b, unix.MSG_OOB|unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.EINVAL): // none
		return false, nil
	case errors.Is(err, unix.EAGAIN): // not yet
		return len(want) == 0, nil
	case err != nil:
		return false, fmt.Errorf("asking for its urgent byte: %w", err)
	case n != 1 || !bytes.Equal(b, want):
		return false, object.BadImagef("its urgent byte is %q, not %q", b[:n], want)
	}
	return true, nil
}

// write sends the part of the bytes to be sent from one place up to another; places count from SndUna.
func (m *tcpMade) write(from, to uint32) error {
	data := m.content[m.s.Unread:]
	at := m.s.Urgent.Send
	if at <= from || at > to {
		return send(m.fd, data[from:to], 0)
	}
	if err := send(m.fd, data[from:at-1], 0); err != nil {
		return err
	}
	if err := send(m.fd, data[at-1:at], unix.MSG_OOB); err != nil {
		return err
	}
	return send(m.fd, data[at:to], 0)
}
