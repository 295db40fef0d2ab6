package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// Options of linux/tcp.h that x/sys has no name for on every machine.
const (
	tcpRepair        = 19
	tcpRepairQueue   = 20
	tcpQueueSeq      = 21
	tcpRepairOptions = 22
	tcpTimestamp     = 24
	tcpRepairWindow  = 29
	tcpRTOMax        = 44
	tcpRTOMin        = 45
	tcpDelackMax     = 46
)

// tcpOptions are those of IPPROTO_TCP (tcp(7)), in the order in which they are set. The usual value of most comes from a sysctl, so
// what a new socket of the machine of the dump has too goes into no image. Not among them: what only tells (TCP_INFO, TCP_CC_INFO,
// TCP_SAVED_SYN ...), what is for other programs (TCP_REPAIR ...), what does nothing (TCP_THIN_DUPACK), what is asked for once
// (TCP_ZEROCOPY_RECEIVE), and what is refused (TCP_MD5SIG, TCP_AO_*, TCP_ULP).
var tcpOptions = []option{
	{name: "TCP_CONGESTION", level: unix.IPPROTO_TCP, opt: unix.TCP_CONGESTION, usual: []byte{}, get: getCongestion, right: "CAP_NET_ADMIN"},
	{name: "TCP_MAXSEG", level: unix.IPPROTO_TCP, opt: unix.TCP_MAXSEG, get: untold}, // tells that of the connection
	tcpInteger("TCP_KEEPIDLE", unix.TCP_KEEPIDLE),
	tcpInteger("TCP_KEEPINTVL", unix.TCP_KEEPINTVL),
	tcpInteger("TCP_KEEPCNT", unix.TCP_KEEPCNT),
	tcpInteger("TCP_SYNCNT", unix.TCP_SYNCNT),
	tcpInteger("TCP_LINGER2", unix.TCP_LINGER2),
	tcpInteger("TCP_DEFER_ACCEPT", unix.TCP_DEFER_ACCEPT),
	tcpInteger("TCP_THIN_LINEAR_TIMEOUTS", unix.TCP_THIN_LINEAR_TIMEOUTS),
	tcpInteger("TCP_USER_TIMEOUT", unix.TCP_USER_TIMEOUT),
	tcpInteger("TCP_NOTSENT_LOWAT", unix.TCP_NOTSENT_LOWAT),
	tcpInteger("TCP_SAVE_SYN", unix.TCP_SAVE_SYN),
	tcpInteger("TCP_FASTOPEN", unix.TCP_FASTOPEN),
	{name: "TCP_FASTOPEN_KEY", level: unix.IPPROTO_TCP, opt: unix.TCP_FASTOPEN_KEY, usual: []byte{}},
	tcpInteger("TCP_FASTOPEN_CONNECT", unix.TCP_FASTOPEN_CONNECT),
	tcpInteger("TCP_FASTOPEN_NO_COOKIE", unix.TCP_FASTOPEN_NO_COOKIE),
	tcpInteger("TCP_INQ", unix.TCP_INQ),
	tcpInteger("TCP_TX_DELAY", unix.TCP_TX_DELAY),
	tcpInteger("TCP_RTO_MAX_MS", tcpRTOMax),
	tcpInteger("TCP_RTO_MIN_US", tcpRTOMin),
	tcpInteger("TCP_DELACK_MAX_US", tcpDelackMax),

	// Set last: what they change depends on the connection.
	tcpInteger("TCP_NODELAY", unix.TCP_NODELAY),
	tcpInteger("TCP_CORK", unix.TCP_CORK),
	tcpInteger("TCP_QUICKACK", unix.TCP_QUICKACK),
	tcpInteger("TCP_WINDOW_CLAMP", unix.TCP_WINDOW_CLAMP),
}

// lateTCP are the options that are set once there is a connection with its queues.
var lateTCP = map[string]bool{"TCP_NODELAY": true, "TCP_CORK": true, "TCP_QUICKACK": true, "TCP_WINDOW_CLAMP": true}

func tcpInteger(name string, opt int) option {
	return option{name: name, level: unix.IPPROTO_TCP, opt: opt}
}

// getCongestion returns the name of the congestion control algorithm without what follows it.
func getCongestion(fd int) ([]byte, error) {
	b := make([]byte, 16) // TCP_CA_NAME_MAX
	n, err := sys.Getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, b)
	b, _, _ = bytes.Cut(b[:min(n, len(b))], []byte{0})
	return b, err
}

// usualTCP caches what new sockets have, by protocol. A dump is one goroutine, and its options do not change.
type usualTCP map[int][]Option

// readTCPOptions returns the options that a new socket has not.
func (u usualTCP) read(fd, family, protocol int) ([]Option, error) {
	if u[protocol] == nil {
		n, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return nil, fmt.Errorf("making a socket to compare with: %w", err)
		}
		fresh, err := readOptions(n, tcpOptions)
		if err = errors.Join(err, unix.Close(n)); err != nil {
			return nil, err
		}
		u[protocol] = append([]Option{{}}, fresh...) // not nil
	}
	all, err := readOptions(fd, tcpOptions)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(o Option) bool {
		return slices.ContainsFunc(u[protocol], func(f Option) bool { return f.Name == o.Name && bytes.Equal(f.Value, o.Value) })
	}), nil
}
