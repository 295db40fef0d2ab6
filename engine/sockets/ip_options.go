package sockets

import "golang.org/x/sys/unix"

// Options of linux/in.h and linux/in6.h that x/sys has no name for.
const (
	ipLocalPortRange     = 51
	ipv6RecvErrRFC4884   = 31
	ipv6RouterIsolate    = 30
	ipRecvErrRFC4884     = 26
	ipv6FlowInfo         = 11
	ipv6FlowInfoSend     = 33
	ipv6MinHopCount      = 73
	ipv6AddrPreferences  = 72
	usualAddrPreferences = 0x500 // IPV6_PREFER_SRC_PUBTMP_DEFAULT | IPV6_PREFER_SRC_HOME
)

// ipOptions are those of IPPROTO_IP and IPPROTO_IPV6 whose value getsockopt(2) tells as setsockopt(2) takes it (ip(7), ipv6(7)),
// in the order in which they are set. What a sysctl gives a new socket always goes into an image. Not among them: what only tells
// (IP_MTU, IP_PROTOCOL, IPV6_PATHMTU ...), what ipState has, and the older names of what has a newer one (IPV6_2292HOPOPTS ...).
var ipOptions = []option{
	integer("IP_HDRINCL", unix.IPPROTO_IP, unix.IP_HDRINCL, 0),
	integer("IP_NODEFRAG", unix.IPPROTO_IP, unix.IP_NODEFRAG, 0),
	integer("IP_FREEBIND", unix.IPPROTO_IP, unix.IP_FREEBIND, 0),
	integer("IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 0).needs("CAP_NET_ADMIN"),
	integer("IP_BIND_ADDRESS_NO_PORT", unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 0),
	integer("IP_LOCAL_PORT_RANGE", unix.IPPROTO_IP, ipLocalPortRange, 0),
	integer("IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, 0).needs("CAP_NET_ADMIN"),
	{name: "IP_OPTIONS", level: unix.IPPROTO_IP, opt: unix.IP_OPTIONS, usual: []byte{}, right: "CAP_NET_RAW"},
	integer("IP_RECVOPTS", unix.IPPROTO_IP, unix.IP_RECVOPTS, 0),
	integer("IP_RETOPTS", unix.IPPROTO_IP, unix.IP_RETOPTS, 0),
	integer("IP_PKTINFO", unix.IPPROTO_IP, unix.IP_PKTINFO, 0),
	{name: "IP_MTU_DISCOVER", level: unix.IPPROTO_IP, opt: unix.IP_MTU_DISCOVER},
	integer("IP_RECVERR", unix.IPPROTO_IP, unix.IP_RECVERR, 0),
	integer("IP_RECVERR_RFC4884", unix.IPPROTO_IP, ipRecvErrRFC4884, 0),
	integer("IP_RECVTTL", unix.IPPROTO_IP, unix.IP_RECVTTL, 0),
	integer("IP_RECVTOS", unix.IPPROTO_IP, unix.IP_RECVTOS, 0),
	integer("IP_PASSSEC", unix.IPPROTO_IP, unix.IP_PASSSEC, 0),
	integer("IP_RECVORIGDSTADDR", unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 0),
	integer("IP_MINTTL", unix.IPPROTO_IP, unix.IP_MINTTL, 0),
	integer("IP_CHECKSUM", unix.IPPROTO_IP, unix.IP_CHECKSUM, 0),
	integer("IP_RECVFRAGSIZE", unix.IPPROTO_IP, unix.IP_RECVFRAGSIZE, 0),
	integer("IP_MULTICAST_TTL", unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 1),
	integer("IP_MULTICAST_LOOP", unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1),
	{name: "IP_MULTICAST_ALL", level: unix.IPPROTO_IP, opt: unix.IP_MULTICAST_ALL}, // 1 with AF_INET, 0 with AF_INET6

	{name: "IPV6_V6ONLY", level: unix.IPPROTO_IPV6, opt: unix.IPV6_V6ONLY},
	{name: "IPV6_CHECKSUM", level: unix.IPPROTO_IPV6, opt: unix.IPV6_CHECKSUM},
	integer("IPV6_HDRINCL", unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, 0),
	integer("IPV6_FREEBIND", unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 0),
	integer("IPV6_TRANSPARENT", unix.IPPROTO_IPV6, unix.IPV6_TRANSPARENT, 0).needs("CAP_NET_ADMIN"),
	integer("IPV6_2292PKTINFO", unix.IPPROTO_IPV6, unix.IPV6_2292PKTINFO, 0),
	integer("IPV6_2292HOPOPTS", unix.IPPROTO_IPV6, unix.IPV6_2292HOPOPTS, 0),
	integer("IPV6_2292DSTOPTS", unix.IPPROTO_IPV6, unix.IPV6_2292DSTOPTS, 0),
	integer("IPV6_2292RTHDR", unix.IPPROTO_IPV6, unix.IPV6_2292RTHDR, 0),
	integer("IPV6_2292HOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_2292HOPLIMIT, 0),
	integer("IPV6_FLOWINFO", unix.IPPROTO_IPV6, ipv6FlowInfo, 0),
	integer("IPV6_FLOWINFO_SEND", unix.IPPROTO_IPV6, ipv6FlowInfoSend, 0),
	integer("IPV6_RECVPKTINFO", unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 0),
	integer("IPV6_RECVHOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 0),
	integer("IPV6_RECVHOPOPTS", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPOPTS, 0),
	integer("IPV6_RECVRTHDR", unix.IPPROTO_IPV6, unix.IPV6_RECVRTHDR, 0),
	integer("IPV6_RECVDSTOPTS", unix.IPPROTO_IPV6, unix.IPV6_RECVDSTOPTS, 0),
	integer("IPV6_RECVPATHMTU", unix.IPPROTO_IPV6, unix.IPV6_RECVPATHMTU, 0),
	integer("IPV6_RECVTCLASS", unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 0),
	integer("IPV6_RECVORIGDSTADDR", unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, 0),
	integer("IPV6_RECVFRAGSIZE", unix.IPPROTO_IPV6, unix.IPV6_RECVFRAGSIZE, 0),
	integer("IPV6_RECVERR", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 0),
	integer("IPV6_RECVERR_RFC4884", unix.IPPROTO_IPV6, ipv6RecvErrRFC4884, 0),
	integer("IPV6_ROUTER_ALERT_ISOLATE", unix.IPPROTO_IPV6, ipv6RouterIsolate, 0),
	{name: "IPV6_MTU_DISCOVER", level: unix.IPPROTO_IPV6, opt: unix.IPV6_MTU_DISCOVER},
	integer("IPV6_MULTICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 1),
	integer("IPV6_MULTICAST_LOOP", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 1),
	integer("IPV6_MULTICAST_ALL", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 1),
	integer("IPV6_DONTFRAG", unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 0),
	integer("IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0),
	{name: "IPV6_AUTOFLOWLABEL", level: unix.IPPROTO_IPV6, opt: unix.IPV6_AUTOFLOWLABEL},
	integer("IPV6_ADDR_PREFERENCES", unix.IPPROTO_IPV6, ipv6AddrPreferences, usualAddrPreferences),
	integer("IPV6_MINHOPCOUNT", unix.IPPROTO_IPV6, ipv6MinHopCount, 0),
	{name: "IPV6_HOPOPTS", level: unix.IPPROTO_IPV6, opt: unix.IPV6_HOPOPTS, usual: []byte{}, right: "CAP_NET_RAW"},
	{name: "IPV6_RTHDRDSTOPTS", level: unix.IPPROTO_IPV6, opt: unix.IPV6_RTHDRDSTOPTS, usual: []byte{}, right: "CAP_NET_RAW"},
	{name: "IPV6_RTHDR", level: unix.IPPROTO_IPV6, opt: unix.IPV6_RTHDR, usual: []byte{}},
	{name: "IPV6_DSTOPTS", level: unix.IPPROTO_IPV6, opt: unix.IPV6_DSTOPTS, usual: []byte{}, right: "CAP_NET_RAW"},

	// What no call tells exactly: ipState.
	{name: "IP_TTL", level: unix.IPPROTO_IP, opt: unix.IP_TTL, get: untold},
	{name: "IP_ROUTER_ALERT", level: unix.IPPROTO_IP, opt: unix.IP_ROUTER_ALERT, get: untold},
	{name: "IPV6_UNICAST_HOPS", level: unix.IPPROTO_IPV6, opt: unix.IPV6_UNICAST_HOPS, get: untold},
	{name: "IPV6_MTU", level: unix.IPPROTO_IPV6, opt: unix.IPV6_MTU, get: untold},
}

// untold is for an option whose value comes from the kernel's memory.
func untold(int) ([]byte, error) { return nil, nil }
