// Package nethold keeps the packets of chosen TCP connections from reaching or leaving this machine.
//
// While a connection is in neither place, between the moment at which its queues are read and that at which it goes on, here or
// elsewhere, no packet of it may pass: the kernel would acknowledge data that nobody will have, and the close of a killed socket would
// end the connection for its peer. The kernel drops them by rules of nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET) in the hooks
// through which all packets from and to local sockets come; whoever has sent one sends it again.
//
// A hold is a table. One that is bound to the process (Bind) is owned by its netlink socket (NFT_TABLE_F_OWNER, Linux 5.12): the kernel
// removes it when that is closed, however the process ends. One that stays (Leave) outlives it, until Remove or, connection by connection,
// until its time is up: then a table is left that holds nothing, which the kernel cannot be told to remove by itself, and which whoever
// deals with holds next takes away (Sweep).
package nethold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// Prefix begins the name of every table that this package makes.
const Prefix = "crpipe-"

// Conn is one connection, as its local end sees it. Addresses of IPv4 are such, not mapped to IPv6.
type Conn struct{ Local, Remote netip.AddrPort }

// What a hold drops.
type Packets struct {
	Conns []Conn
	// Ports are those of listening sockets: segments with SYN to them, and nothing else.
	Ports []uint16
}

// Hold is a table that is bound to this process.
type Hold struct {
	link *link
	name string
	// Mark is what packets carry (SO_MARK) that are let through to the sockets.
	Mark uint32
}

// Bind drops the packets from now on until Close, or the end of this process. No packet that had passed before is still being processed
// when it returns. nil: there is nothing to be held.
func Bind(p Packets, mark uint32) (*Hold, error) {
	if len(p.Conns)+len(p.Ports) == 0 {
		return nil, nil
	}
	l, err := dial()
	if err != nil {
		return nil, err
	}
	h := &Hold{link: l, name: fmt.Sprintf("%s%d.%d", Prefix, os.Getpid(), l.id), Mark: mark}
	if err := l.makeTable(h.name, p, tableOptions{owner: true, mark: mark}); err != nil {
		_ = l.fd.Close() // and with it whatever was made
		return nil, err
	}
	settle()
	return h, nil
}

// Close lets the packets pass again. A nil Hold holds nothing.
func (h *Hold) Close() error {
	if h == nil || h.link == nil {
		return nil
	}
	// Removed by name, so that it is gone on return; the close alone would do it too, a little later perhaps.
	err := h.link.remove(h.name)
	err = errors.Join(err, h.link.fd.Close())
	h.link = nil
	return err
}

// Lasting says how long a hold that stays drops what, and the mark of packets that pass.
type Lasting struct {
	Conns, Ports time.Duration
	Mark         uint32
	// Note says until when it stays, for who asks nft(8) and for Find: fewer than 128 bytes, UTF-8.
	Note string
}

// Leave drops the packets until Remove is called with that name, and at most as long as given. It takes the place of a hold of that name,
// between which and itself no packet passes.
func Leave(name string, p Packets, o Lasting) error {
	l, err := dial()
	if err != nil {
		return err
	}
	defer l.fd.Close()
	if err := l.makeTable(name, p, tableOptions{replace: true, mark: o.Mark, conns: o.Conns, ports: o.Ports, note: o.Note}); err != nil {
		return err
	}
	settle()
	return nil
}

// Remove removes a table that Leave has left. One that is not there is no error.
func Remove(name string) error {
	l, err := dial()
	if err != nil {
		return err
	}
	defer l.fd.Close()
	return l.remove(name)
}

// settle waits until every processor is done with packets that it had begun with: whole runs of the network's softirq are RCU
// read-side critical sections, for whose end MEMBARRIER_CMD_GLOBAL waits (kernel/sched/membarrier.c).
func settle() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(20 * time.Millisecond) // not with nohz_full processors; a grace period is shorter
	}
}

// link is a netlink socket of nfnetlink.
type link struct {
	fd  *sys.FD
	id  uint32 // the kernel's number of the socket
	seq uint32
}

func dial() (*link, error) {
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, lacking(err)
	}
	l := &link{fd: sys.NewFD(n)}
	if err := unix.Bind(n, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = l.fd.Close()
		return nil, fmt.Errorf("binding a netlink socket: %w", err)
	}
	sa, err := unix.Getsockname(n)
	if err != nil {
		_ = l.fd.Close()
		return nil, fmt.Errorf("binding a netlink socket: %w", err)
	}
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		l.id = nl.Pid
	}
	// A transaction is one message of the socket. Without the right to a larger buffer fewer connections fit.
	_ = unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
	return l, nil
}

// MissingError says that this kernel or user cannot hold packets back.
type MissingError struct{ Err error }

func (e *MissingError) Error() string {
	return "holding the packets of TCP connections back needs nf_tables of Linux 5.12 or later (CONFIG_NF_TABLES_INET) and CAP_NET_ADMIN: " + e.Err.Error()
}
func (e *MissingError) Unwrap() error { return e.Err }
func (e *MissingError) ExitCode() int { return 5 } // the kernel or the privileges lack something
func (e *MissingError) Hint() string {
	return "run as root, or do without the connections (cr-dump --tcp drop)"
}

func lacking(err error) error { return &MissingError{err} }

func (l *link) remove(name string) error {
	t := l.begin()
	t.message(unix.NFT_MSG_DELTABLE, 0, stringAttr(unix.NFTA_TABLE_NAME, name))
	if err := l.commit(t); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing table %s: %w", name, err)
	}
	return nil
}

// commit sends a transaction and waits until the kernel has done it.
func (l *link) commit(t *transaction) error {
	t.end()
	if err := unix.Sendto(l.fd.Int(), t.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("sending to nf_tables: %w", err)
	}
	// Every message has asked for an answer. After an error in one, others may be answered too: all are read, the first error counts.
	var failed error
	buf := make([]byte, 64<<10)
	for t.asked > 0 {
		n, _, err := unix.Recvfrom(l.fd.Int(), buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hearing from nf_tables: %w", err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return errors.New("hearing from nf_tables: a message that is none")
			}
			if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR && size >= unix.NLMSG_HDRLEN+4 {
				code := int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))
				if code != 0 && failed == nil {
					failed = unix.Errno(-code)
				}
				if code != 0 && binary.NativeEndian.Uint32(b[8:]) == t.first {
					return failed // of the batch as a whole: no other answers come
				}
				t.asked--
			}
			b = b[min(len(b), (size+3)&^3):]
		}
		if failed != nil {
			return failed // a late answer to another message is of a transaction that nobody asks about any more
		}
	}
	return failed
}
