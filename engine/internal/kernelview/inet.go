package kernelview

// Inet is what no call tells of a socket of AF_INET or AF_INET6, or not exactly.
type Inet struct {
	UserLocks uint8 // what the program has set itself, and disconnecting does not forget: Lock*
	// Policies: IP_XFRM_POLICY, IP_IPSEC_POLICY or the like gave the socket a policy of its own.
	Policies bool
	// TTL is IP_TTL; -1: that of net.ipv4.ip_default_ttl.
	TTL int16
	// MulticastIndex is the interface of IP_MULTICAST_IF, 0: by the address.
	MulticastIndex int32
	Peer           []byte // what it is connected to, 4 or 16 bytes; of one that is not connected without meaning
	PeerPort       uint16
	RouterAlert    bool   // IP_ROUTER_ALERT
	Router         bool   // the socket of a multicast routing daemon (MRT_INIT)
	V6             *Inet6 // nil for a socket of AF_INET
	UDP            *UDP   // nil for other protocols
}

// The bits of UserLocks (include/net/sock.h; the first two are those of SO_BUF_LOCK).
const (
	LockSendBuffer    = 1 << 0
	LockReceiveBuffer = 1 << 1
	LockBindAddress   = 1 << 2 // bind(2) gave an address
	LockBindPort      = 1 << 3 // bind(2) gave a port
)

// Inet6 is the part of AF_INET6.
type Inet6 struct {
	HopLimit     int16  // IPV6_UNICAST_HOPS, -1: that of the route or the interface
	FragmentSize uint32 // what IPV6_MTU has set, 0: nothing
	PktinfoAddr  [16]byte
	PktinfoIndex int32 // IPV6_PKTINFO, the sticky one
	Anycast      bool  // IPV6_JOIN_ANYCAST
	FlowLabels   bool  // IPV6_FLOWLABEL_MGR gave it labels
}

// UDP is what no call tells of a UDP socket.
type UDP struct {
	Corked bool // it has a datagram that is not sent yet (UDP_CORK, MSG_MORE)
	Encap  bool // UDP_ENCAP, or the kernel itself takes its datagrams
}

// Datagram is a packet in the queue of a UDP socket, oldest first.
type Datagram struct {
	Data     []byte
	Protocol uint16 // ETH_P_IP or ETH_P_IPV6
	Network  []byte // its network header, with all that follows up to the transport header
	Source   uint16 // port
	Dest     uint16 // port
	Index    int32  // the interface by which it came
	Pktinfo  int32  // the interface that IP_PKTINFO tells of it; 0: that was off when it came
	Mark     uint32 // SO_RCVMARK
	Priority uint32 // SO_RCVPRIORITY
	GSOSize  uint16 // not 0: several datagrams in one (UDP_GRO)
	Type     uint8  // PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST ...
	Covered  bool   // a checksum over a part of it (udplite(7))
}

// Netlink is the state of a netlink(7) socket.
type Netlink struct {
	Dumping   bool  // an answer to NLM_F_DUMP is under way
	DumpErrno int32 // what the end of such an answer will say
	Bound     bool  // has a port id
	Congested bool  // messages were lost, and not told of yet
}

// PacketSocket is the state of a packet(7) socket.
type PacketSocket struct {
	Rings       bool // PACKET_RX_RING, PACKET_TX_RING
	CopyThresh  int32
	Index       int32              // what it is bound to, 0: every interface, -1: one that is gone
	Fanout      *Fanout            // nil: none
	Memberships []PacketMembership // the oldest first
}

// Fanout is PACKET_FANOUT.
type Fanout struct {
	ID    uint16
	Type  uint8
	Flags uint8
	Max   uint32
}

// PacketMembership is one PACKET_ADD_MEMBERSHIP.
type PacketMembership struct {
	Index int32
	Count int32
	Type  uint16
	Addr  []byte
}
