package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/nethold"
	"crpipe/engine/internal/sys"
)

// Of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	diagRequest      = 56 // sizeof(struct inet_diag_req_v2)
	diagMessage      = 72 // sizeof(struct inet_diag_msg)
	diagID           = 8  // offset of its struct inet_diag_sockid in a request,
	diagIDAnswer     = 4  // and in an answer
	diagCookie       = 40 // offset of the cookie in that
	diagUnread       = 56 // offset in an answer of what there is to read, in bytes
	diagInode        = 68 // and of the inode number
)

// clearRemains ends what the kernel still has of connections whose processes are gone: sockets in TIME_WAIT, or without a file, that
// have the very addresses of connections of the image. They would keep the addresses for a minute or more. Best effort: what is still
// in the way is named when an address cannot be had.
func clearRemains(conns []nethold.Conn) {
	if len(conns) == 0 {
		return
	}
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return
	}
	fd := sys.NewFD(n)
	defer fd.Close()
	for _, c := range conns {
		answer, err := askDiag(n, diagMessageOf(sockDiagByFamily, &c, nil))
		if err != nil || len(answer) < diagMessage {
			continue
		}
		state := answer[1]
		orphan := binary.NativeEndian.Uint32(answer[diagInode:]) == 0 && isConnection(state)
		if state == kernelview.SocketTimeWait || orphan {
			_, _ = askDiag(n, diagMessageOf(sockDestroy, &c, answer[diagIDAnswer+diagCookie:][:8])) // Linux 4.5, CONFIG_INET_DIAG_DESTROY
		}
	}
}

// diagMessageOf is a request about a connection: struct nlmsghdr and struct inet_diag_req_v2. cookie nil: whichever socket it is.
func diagMessageOf(kind uint16, c *nethold.Conn, cookie []byte) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+diagRequest)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	flags := uint16(unix.NLM_F_REQUEST)
	if kind == sockDestroy {
		flags |= unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint16(b[6:], flags)
	r := b[unix.NLMSG_HDRLEN:]
	r[0], r[1] = unix.AF_INET, unix.IPPROTO_TCP
	if c.Local.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(r[4:], ^uint32(0)) // all states
	id := r[diagID:]
	binary.BigEndian.PutUint16(id, c.Local.Port())
	binary.BigEndian.PutUint16(id[2:], c.Remote.Port())
	copy(id[4:], c.Local.Addr().AsSlice())
	copy(id[20:], c.Remote.Addr().AsSlice())
	if cookie == nil {
		cookie = []byte{255, 255, 255, 255, 255, 255, 255, 255} // INET_DIAG_NOCOOKIE
	}
	copy(id[diagCookie:], cookie)
	return b
}

// askDiag sends a request and returns the message of the answer without its header.
func askDiag(fd int, request []byte) ([]byte, error) {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("asking for a connection: %w", err)
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, fmt.Errorf("asking for a connection: %w", err)
	}
	if n < unix.NLMSG_HDRLEN+4 {
		return nil, errors.New("asking for a connection: a message that is none")
	}
	if binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_ERROR {
		if code := int32(binary.NativeEndian.Uint32(buf[unix.NLMSG_HDRLEN:])); code != 0 {
			return nil, unix.Errno(-code)
		}
		return nil, nil
	}
	return buf[unix.NLMSG_HDRLEN:n], nil
}
