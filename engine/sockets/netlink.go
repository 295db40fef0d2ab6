package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A netlink socket (netlink(7)): protocol, port id, what it is connected to, the groups in which it is (NETLINK_LIST_MEMBERSHIPS)
// and its options. Everything else of it is in the conversation, which it begins anew with each request.
//
// Refused by name: messages that nobody has read, an answer of several messages of which not all have been made (NLM_F_DUMP), lost
// messages that it was not told of; and what the kernel keeps for a port id and takes away with it: queues, logs and owned tables of
// netfilter, everything of connector and audit, and generic netlink where there is a wireless card (nl80211 keeps for a port id which
// frames it wants).
//
// Lost, because nothing tells of it: what other families of generic netlink keep so (listeners of taskstats, filters of devlink, memory
// that is bound to a network card).
type netlinkState struct {
	Common
	Type       uint32   `msgpack:"type"`     // SOCK_RAW or SOCK_DGRAM
	Protocol   uint32   `msgpack:"protocol"` // NETLINK_*
	Bound      bool     `msgpack:"bound,omitempty"`
	Port       uint32   `msgpack:"port,omitempty"` // port id
	Connected  bool     `msgpack:"connected,omitempty"`
	PeerPort   uint32   `msgpack:"peer_port,omitempty"`
	PeerGroups uint32   `msgpack:"peer_groups,omitempty"` // a bit set, as nl_groups
	Groups     []uint32 `msgpack:"groups,omitempty"`      // their numbers, ascending
	Options    []Option `msgpack:"netlink,omitempty"`
}

const (
	netlinkExtAck      = 11
	netlinkGetStrict   = 12
	netlinkConnected   = 1       // NETLINK_CONNECTED, the state of such a socket
	maxNetlinkGroup    = 1 << 16 // far above what any protocol has
	maxNetlinkProtocol = 32      // MAX_LINKS
)

var netlinkOptions = []option{
	integer("NETLINK_PKTINFO", unix.SOL_NETLINK, unix.NETLINK_PKTINFO, 0),
	integer("NETLINK_BROADCAST_ERROR", unix.SOL_NETLINK, unix.NETLINK_BROADCAST_ERROR, 0),
	integer("NETLINK_NO_ENOBUFS", unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 0),
	integer("NETLINK_LISTEN_ALL_NSID", unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, 0).needs("CAP_NET_BROADCAST"),
	integer("NETLINK_CAP_ACK", unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 0),
	integer("NETLINK_EXT_ACK", unix.SOL_NETLINK, netlinkExtAck, 0),
	integer("NETLINK_GET_STRICT_CHK", unix.SOL_NETLINK, netlinkGetStrict, 0),
}

// keptProtocols are those of which the kernel keeps nothing for a port id.
var keptProtocols = map[uint16]bool{unix.NETLINK_ROUTE: true, unix.NETLINK_USERSOCK: true, unix.NETLINK_SOCK_DIAG: true, unix.NETLINK_XFRM: true,
	unix.NETLINK_FIB_LOOKUP: true, unix.NETLINK_KOBJECT_UEVENT: true, unix.NETLINK_GENERIC: true, unix.NETLINK_NETFILTER: true,
	unix.NETLINK_AUDIT: true, unix.NETLINK_SELINUX: true, unix.NETLINK_CRYPTO: true, unix.NETLINK_SCSITRANSPORT: true}

func isNetlink(s *kernelview.Socket) bool { return s.Family == unix.AF_NETLINK }

func dumpNetlink(d *object.Dumper, f *object.OpenFile) (*netlinkState, error) {
	if err := refuseShared(d, f); err != nil {
		return nil, err
	}
	s, err := d.View.Socket(f.View.ID)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Netlink(f.View.ID)
	if err != nil {
		return nil, err
	}
	again := "let it read what it is told, and dump it again"
	switch n := len(s.Receive); {
	case !keptProtocols[s.Protocol]:
		return nil, object.Unsupportedf("a netlink socket of protocol %d, for which the kernel keeps more than it tells, cannot be checkpointed", s.Protocol)
	case n > 0:
		return nil, unread(n, "messages")
	case v.Dumping || v.DumpErrno > 0:
		return nil, &object.Unsupported{What: "a long answer (NLM_F_DUMP) to it is under way, which cannot be checkpointed", Do: again, Passes: true}
	case v.Congested:
		return nil, &object.Unsupported{What: "it has lost messages and was not told of it yet (ENOBUFS), which cannot be checkpointed", Do: again, Passes: true}
	}
	if err := refusePending(&s); err != nil {
		return nil, err
	}
	if s.Protocol == unix.NETLINK_AUDIT {
		if err := refuseAuditDaemon(d); err != nil {
			return nil, err
		}
	}
	c, err := dumpCommon(f, &s)
	if err != nil {
		return nil, err
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, err
	}
	st := &netlinkState{Common: *c, Type: uint32(s.Type), Protocol: uint32(s.Protocol), Bound: v.Bound}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("asking for its address: %w", err)
	}
	if a, ok := local.(*unix.SockaddrNetlink); ok {
		st.Port = a.Pid
	}
	if s.State == netlinkConnected {
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return nil, fmt.Errorf("asking for its peer: %w", err)
		}
		if a, ok := peer.(*unix.SockaddrNetlink); ok {
			st.Connected, st.PeerPort, st.PeerGroups = true, a.Pid, a.Groups
		}
	}
	if st.Groups, err = netlinkGroups(fd); err != nil {
		return nil, err
	}
	if st.Options, err = readOptions(fd, netlinkOptions); err != nil {
		return nil, err
	}
	return st, refuseNetlink(f.Process.Leader().TID, fd, st)
}

// netlinkGroups returns the groups in which a socket is.
func netlinkGroups(fd int) ([]uint32, error) {
	b := make([]byte, maxNetlinkGroup/8)
	n, err := sys.Getsockopt(fd, unix.SOL_NETLINK, unix.NETLINK_LIST_MEMBERSHIPS, b)
	if err != nil {
		return nil, fmt.Errorf("asking for its groups: %w", err)
	}
	if n > len(b) {
		return nil, object.Unsupportedf("it has %d groups, which cannot be checkpointed", 8*n)
	}
	var groups []uint32
	for i := 0; i+4 <= n; i += 4 {
		for word := binary.NativeEndian.Uint32(b[i:]); word != 0; word &= word - 1 {
			groups = append(groups, uint32(8*i+bits.TrailingZeros32(word)+1))
		}
	}
	return groups, nil
}

// refuseNetlink refuses a socket for whose port id the kernel keeps something.
func refuseNetlink(pid, fd int, s *netlinkState) error {
	switch s.Protocol {
	case unix.NETLINK_GENERIC:
		if cards, err := os.ReadDir("/sys/class/ieee80211"); err == nil && len(cards) > 0 {
			return object.Unsupportedf("a socket of generic netlink, with which it may control a wireless card, cannot be checkpointed")
		}
	case unix.NETLINK_NETFILTER:
		var owner bool
		if err := namespaces.InNetOf(fd, func() (err error) {
			owner, err = ownsTables(s.Port)
			return err
		}); err != nil {
			return err
		}
		if owner {
			return object.Unsupportedf("it owns a table of nf_tables, which goes with it (NFT_TABLE_F_OWNER), which cannot be checkpointed")
		}
		for _, name := range []string{"nfnetlink_queue", "nfnetlink_log"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/netfilter/%s", pid, name))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("reading who gets packets from netfilter: %w", err)
			}
			for line := range strings.Lines(string(b)) {
				if words := strings.Fields(line); len(words) > 1 && words[1] == strconv.FormatUint(uint64(s.Port), 10) {
					return object.Unsupportedf("netfilter gives packets to it (%s), which cannot be checkpointed", name)
				}
			}
		}
	}
	return nil
}

// ownsTables asks nf_tables of this network namespace whether a port id owns one of its tables, which would be deleted with the socket
// (nft_rcv_nl_event in net/netfilter/nf_tables_api.c).
func ownsTables(port uint32) (bool, error) {
	n, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return false, fmt.Errorf("asking nf_tables for its tables: %w", err)
	}
	s := sys.NewFD(n)
	defer s.Close() //nolint:errcheck // a socket of ours
	// struct nlmsghdr and struct nfgenmsg
	b := binary.NativeEndian.AppendUint32(nil, unix.NLMSG_HDRLEN+4)
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, unix.AF_UNSPEC, 0, 0, 0)
	if err := unix.Sendto(n, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("asking nf_tables for its tables: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		got, _, err := unix.Recvfrom(n, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("asking nf_tables for its tables: %w", err)
		}
		all, err := syscall.ParseNetlinkMessage(buf[:got])
		if err != nil {
			return false, fmt.Errorf("asking nf_tables for its tables: %w", err)
		}
		for i := range all {
			switch all[i].Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR: // a kernel without nf_tables says EINVAL
				return false, nil
			}
			if owner, ok := tableOwner(all[i].Data); ok && owner == port {
				return true, nil
			}
		}
	}
}

// tableOwner finds the owner in a message about a table.
func tableOwner(b []byte) (uint32, bool) {
	const header, owner = 4, 7 // struct nfgenmsg; NFTA_TABLE_OWNER of linux/netfilter/nf_tables.h
	for b = b[min(header, len(b)):]; len(b) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:]) == owner && size == unix.SizeofNlAttr+4 {
			return binary.BigEndian.Uint32(b[unix.SizeofNlAttr:]), true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return 0, false
}

func (s *netlinkState) check() error {
	if s.Type != unix.SOCK_RAW && s.Type != unix.SOCK_DGRAM || s.Protocol >= maxNetlinkProtocol || !keptProtocols[uint16(s.Protocol)] || s.Port != 0 && !s.Bound {
		return object.BadImagef("a netlink socket of type %d, protocol %d and port id %d is impossible", s.Type, s.Protocol, s.Port)
	}
	last := uint32(0)
	for _, g := range s.Groups {
		if g <= last || g > maxNetlinkGroup {
			return object.BadImagef("netlink group %d does not belong here", g)
		}
		last = g
	}
	return errors.Join(s.Common.check(), checkOptions(s.Options, netlinkOptions))
}

func restoreNetlink(_ *object.Restorer, _ stream.Ref, s *netlinkState) (int, error) {
	if err := s.check(); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, int(s.Type)|unix.SOCK_CLOEXEC, int(s.Protocol))
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return -1, &object.Lacking{What: fmt.Sprintf("this kernel has no netlink protocol %d", s.Protocol), Err: err}
	}
	if err != nil {
		return -1, fmt.Errorf("making a netlink socket: %w", err)
	}
	if err := s.make(fd); err != nil {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, err
	}
	return fd, nil
}

func (s *netlinkState) make(fd int) error {
	if err := s.setEarly(fd); err != nil {
		return err
	}
	if err := setOptions(fd, s.Options, netlinkOptions, nil); err != nil {
		return err
	}
	// The rest comes behind it: the filter and the size of the buffer are for the messages of the groups.
	if err := s.finish(fd); err != nil {
		return err
	}
	if s.Bound {
		err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: s.Port})
		if errors.Is(err, unix.EADDRINUSE) {
			return &object.Lacking{What: fmt.Sprintf("somebody else has port id %d of netlink protocol %d", s.Port, s.Protocol), Err: err,
				Do: "see who in /proc/net/netlink, and end it"}
		}
		if err != nil {
			return fmt.Errorf("binding a netlink socket: %w", err)
		}
	}
	if s.Connected {
		err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: s.PeerPort, Groups: s.PeerGroups})
		if err != nil {
			return fmt.Errorf("connecting a netlink socket: %w", err)
		}
	}
	for _, g := range s.Groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil {
			return &object.Lacking{What: fmt.Sprintf("joining group %d of netlink protocol %d", g, s.Protocol), Err: err, Do: "give cr-restore CAP_NET_ADMIN, and the kernel what has the group"}
		}
	}
	return files.SetTimes(fd, s.Access, s.Modify)
}

// NetlinkKind is the kind of netlink sockets.
var NetlinkKind = object.NewFileKind("file.socket.netlink", claims(isNetlink), dumpNetlink, restoreNetlink)
