package kernelview

// Socket is what the kernel knows of a socket, whatever its family, and what no call tells without changing it.
type Socket struct {
	ID       ID     // of the socket itself (struct sock): what its peer, or the queue of who accepts it, leads to
	File     ID     // the open file that it belongs to; 0: none, as before accept(2) and behind the last close(2)
	Net      ID     // its network namespace
	Family   uint16 // AF_*
	Type     uint16 // SOCK_*
	Protocol uint16
	// State is one of include/net/tcp_states.h, for all families.
	State    uint8
	Shutdown uint8 // ShutRead, ShutWrite
	// Connecting is what struct socket has beside State: SS_* of linux/net.h; 0 without a file.
	Connecting uint8
	// Err is what SO_ERROR will say and then forget; SoftErr what it says after that.
	Err, SoftErr int32
	// Backlog are the connections that wait for accept(2), of at most MaxBacklog, which is as listen(2) was told.
	Backlog, MaxBacklog uint32
	DropCount           Maybe[uint32] // SO_RXQ_OVFL

	BusyPollBudget   Maybe[uint16] // SO_BUSY_POLL_BUDGET; 0: never set
	TxTime           Maybe[bool]   // SO_TXTIME was called
	TimestampKey     Maybe[uint32] // the next id of SOF_TIMESTAMPING_OPT_ID
	ReuseportProgram Maybe[bool]   // a program chooses among those that share its port
	ReuseportGroup   Maybe[bool]   // it is in such a group
	UserData         Maybe[bool]   // something in the kernel (a sockmap, a tunnel, a protocol on top) uses it
	Storage          Maybe[bool]   // BPF programs keep something with it
	MemoryReserved   Maybe[uint32] // bytes, SO_RESERVE_MEM
	Unsent           bool          // bytes have been written that wait for the owner of the socket's lock
	Receive, Write   []Packet
	Errors           []Packet
}

// The bits of Socket.Shutdown.
const (
	ShutRead  = 1
	ShutWrite = 2
)

// The states of net/tcp_states.h.
const (
	SocketEstablished = 1
	SocketSynSent     = 2
	SocketSynReceived = 3
	SocketFinWait1    = 4
	SocketFinWait2    = 5
	SocketTimeWait    = 6
	SocketClosed      = 7
	SocketCloseWait   = 8
	SocketLastAck     = 9
	SocketListening   = 10
	SocketClosing     = 11
)

// Packet is one buffer (struct sk_buff) of a queue.
type Packet struct {
	Data []byte // all of it, from its first byte that is not a header taken off already
	Sock ID     // the socket that it belongs to: the sender of one that waits in a unix socket
	Time int64  // when it came, in ns since 1970, where the kernel noted it; else 0 (for TCP it means something else)
	Mark uint32

	addr    uint64
	block   []byte // struct sk_buff
	control []byte // its cb
}
