package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A UDP or UDP-Lite socket (udp(7), udplite(7)): where it is bound and connected, its options, and the datagrams that nobody has
// read (datagrams.go).
//
// Refused by name: a datagram that was begun and not sent (UDP_CORK, MSG_MORE), UDP_ENCAP and whatever else has the kernel itself
// take the datagrams, an error that was not told yet, messages in the error queue.
//
// Lost: the time of the last datagram (SIOCGSTAMP).
type udpState struct {
	Common
	Inet
	Options []Option   `msgpack:"udp,omitempty"`       // of the level of the protocol
	Queue   stream.Ref `msgpack:"datagrams,omitempty"` // the unread datagrams
}

// Options of linux/udp.h and net/udplite.h.
const (
	udpEncap         = 100
	udpNoCheck6Tx    = 101
	udpNoCheck6Rx    = 102
	udpSegment       = 103
	udpGRO           = 104
	udpliteSendCscov = 10
	udpliteRecvCscov = 11
)

// udpOptions are those of IPPROTO_UDP, which sockets of UDP-Lite have too.
var udpOptions = []option{
	integer("UDP_NO_CHECK6_TX", unix.IPPROTO_UDP, udpNoCheck6Tx, 0),
	integer("UDP_NO_CHECK6_RX", unix.IPPROTO_UDP, udpNoCheck6Rx, 0),
	integer("UDP_SEGMENT", unix.IPPROTO_UDP, udpSegment, 0),
	integer("UDP_GRO", unix.IPPROTO_UDP, udpGRO, 0),
	integer("UDP_CORK", unix.IPPROTO_UDP, unix.UDP_CORK, 0),
	integer("UDPLITE_SEND_CSCOV", unix.IPPROTO_UDPLITE, udpliteSendCscov, 0),
	integer("UDPLITE_RECV_CSCOV", unix.IPPROTO_UDPLITE, udpliteRecvCscov, 0),
}

func isUDP(s *kernelview.Socket) bool {
	return (s.Family == unix.AF_INET || s.Family == unix.AF_INET6) && s.Type == unix.SOCK_DGRAM &&
		(s.Protocol == unix.IPPROTO_UDP || s.Protocol == unix.IPPROTO_UDPLITE)
}

func dumpUDP(d *object.Dumper, f *object.OpenFile) (*udpState, error) {
	if err := refuseShared(d, f); err != nil {
		return nil, err
	}
	s, err := d.View.Socket(f.View.ID)
	if err != nil {
		return nil, err
	}
	c, err := dumpCommon(f, &s)
	if err != nil {
		return nil, err
	}
	in, v, err := dumpInet(d, f, &s)
	if err != nil {
		return nil, err
	}
	switch {
	case v.UDP == nil:
		return nil, errors.New("internal error: not a UDP socket")
	case v.UDP.Corked || len(s.Write) > 0:
		return nil, &object.Unsupported{What: "a datagram that was begun and not sent (UDP_CORK, MSG_MORE) waits in it, which cannot be checkpointed",
			Do: "let it send that, and dump it again", Passes: true}
	case v.UDP.Encap:
		return nil, object.Unsupportedf("the kernel itself takes its datagrams (UDP_ENCAP, a tunnel), which cannot be checkpointed")
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, err
	}
	st := &udpState{Common: *c, Inet: *in}
	if st.Options, err = readOptions(fd, udpOptions); err != nil {
		return nil, err
	}
	st.Queue, err = dumpDatagrams(d, f, st)
	return st, err
}

func restoreUDP(r *object.Restorer, ref stream.Ref, s *udpState) (int, error) {
	if err := errors.Join(s.Common.check(), s.Inet.check(), checkOptions(s.Options, udpOptions)); err != nil {
		return -1, err
	}
	if s.Protocol != unix.IPPROTO_UDP && s.Protocol != unix.IPPROTO_UDPLITE {
		return -1, object.BadImagef("protocol %d does not belong here", s.Protocol)
	}
	var queue *madeQueue
	if !s.Queue.IsZero() {
		q, err := object.Recall[madeQueue](r, s.Queue)
		if err != nil {
			return -1, err
		}
		if q.socket != nil {
			return -1, object.BadImagef("two sockets have the same unread datagrams")
		}
		queue, q.socket, q.file = q, s, ref
	}
	fd, err := unix.Socket(int(s.Family), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(s.Protocol))
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, &object.Lacking{What: fmt.Sprintf("this kernel has no datagram sockets of family %d and protocol %d", s.Family, s.Protocol), Err: err}
	}
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	if err := s.make(fd, queue); err != nil {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, err
	}
	return fd, nil
}

func (s *udpState) make(fd int, queue *madeQueue) error {
	// Whose it is decides who may share its port (SO_REUSEPORT).
	if err := s.ownInode(fd); err != nil {
		return err
	}
	if err := s.setEarly(fd); err != nil {
		return err
	}
	if err := s.IP.set(fd); err != nil {
		return err
	}
	if queue != nil {
		if err := queue.prepare(fd); err != nil {
			return err
		}
	}
	if err := s.bind(fd); err != nil {
		return err
	}
	if queue != nil {
		return nil // the rest follows the datagrams
	}
	return s.complete(fd)
}

// complete does what comes after the unread datagrams.
func (s *udpState) complete(fd int) error {
	if err := s.connect(fd); err != nil {
		return err
	}
	if err := setOptions(fd, s.Options, udpOptions, nil); err != nil {
		return err
	}
	if err := s.shut(fd); err != nil {
		return err
	}
	return s.finish(fd)
}

// UDPKind is the kind of UDP and UDP-Lite sockets.
var UDPKind = object.NewFileKind("file.socket.udp", claims(isUDP), dumpUDP, restoreUDP)
