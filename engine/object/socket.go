package object

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// families are the families of sockets as a person would call them (address_families(7)).
var families = map[int]string{
	unix.AF_UNIX: "unix", unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6", unix.AF_NETLINK: "netlink", unix.AF_PACKET: "packet",
	unix.AF_AX25: "AX.25", unix.AF_IPX: "IPX", unix.AF_APPLETALK: "AppleTalk", unix.AF_NETROM: "NET/ROM", unix.AF_X25: "X.25", unix.AF_ROSE: "ROSE",
	unix.AF_KEY: "IPsec key management (AF_KEY)", unix.AF_RDS: "RDS", unix.AF_PPPOX: "PPP", unix.AF_LLC: "LLC", unix.AF_IB: "InfiniBand",
	unix.AF_CAN: "CAN", unix.AF_TIPC: "TIPC", unix.AF_BLUETOOTH: "Bluetooth", unix.AF_RXRPC: "RxRPC", unix.AF_ISDN: "ISDN", unix.AF_PHONET: "Phonet",
	unix.AF_IEEE802154: "IEEE 802.15.4", unix.AF_CAIF: "CAIF", unix.AF_ALG: "kernel cryptography (AF_ALG)", unix.AF_NFC: "NFC",
	unix.AF_VSOCK: "virtual machine (AF_VSOCK)", unix.AF_KCM: "KCM", unix.AF_QIPCRTR: "Qualcomm IPC router", unix.AF_SMC: "SMC", unix.AF_XDP: "XDP (AF_XDP)",
	unix.AF_MCTP: "MCTP",
}

// protocols are those of IP that have sockets of their own.
var protocols = map[int]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_UDPLITE: "UDP-Lite", unix.IPPROTO_ICMP: "ICMP",
	unix.IPPROTO_ICMPV6: "ICMP", unix.IPPROTO_SCTP: "SCTP", unix.IPPROTO_DCCP: "DCCP", unix.IPPROTO_MPTCP: "MPTCP", unix.IPPROTO_L2TP: "L2TP"}

// describeSocket names a socket that no kind claims.
func describeSocket(f *OpenFile) string {
	fd, err := f.Descriptor()
	if err != nil {
		return "a socket"
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return "a socket"
	}
	name := families[family]
	switch family {
	case unix.AF_INET, unix.AF_INET6:
		kind, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		protocol, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err1 != nil || err2 != nil {
			break
		}
		if kind == unix.SOCK_RAW {
			return fmt.Sprintf("a raw socket of %s", name)
		}
		if p := protocols[protocol]; p != "" {
			return fmt.Sprintf("a socket of %s over %s", p, name)
		}
		return fmt.Sprintf("a socket of %s, protocol %d,", name, protocol)
	case unix.AF_UNIX, unix.AF_NETLINK, unix.AF_PACKET:
		return "a " + name + " socket"
	}
	if name == "" {
		return fmt.Sprintf("a socket of address family %d", family)
	}
	return "a socket of the address family " + name
}

// PeekOff is a change of SO_PEEK_OFF that is to be undone.
type PeekOff struct {
	PID int    `json:"pid"` // who has the socket, in the pid namespace of the caller
	FD  int    `json:"fd"`
	Ino uint64 `json:"ino"` // of the socket
	Was int    `json:"was"` // the value before
}
