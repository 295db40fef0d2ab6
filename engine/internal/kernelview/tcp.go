package kernelview

import "net/netip"

// TCPEnds are the state and the addresses of a TCP socket, or of an MPTCP one (Protocol IPPROTO_MPTCP), whose own they are.
type TCPEnds struct {
	Family   uint16 // AF_INET, AF_INET6
	Protocol uint16
	State    uint8
	// Local and Remote as the socket was given them: those of IPv4 on a socket of AF_INET6 are mapped. An unspecified address is
	// one. A port of 0: none.
	Local, Remote netip.AddrPort
	// Half is how many connections to a listening socket are being made; Backlog how many wait for accept(2).
	Half, Backlog uint32
}

// TCP is the state of a TCP socket, beyond what all sockets have, that no call tells, or not without a change to it. All of it is known,
// except what is Maybe.
type TCP struct {
	Socket
	Ends TCPEnds

	// Sequence numbers (RFC 9293). From SndUna to WriteSeq is what Send has, and a FIN where SentFIN says so; from CopiedSeq to RcvNxt
	// what Unread has, and a FIN where GotFIN says so.
	WriteSeq, SndUna, SndNxt, RcvNxt, CopiedSeq uint32
	SentFIN, GotFIN                             bool // in the part of the stream that the queues hold
	Send, Unread                                []byte

	SndWl1, SndWnd, MaxWindow, RcvWnd, RcvWup uint32 // as struct tcp_repair_window
	MSSClamp                                  uint16 // the maximum that the peer told
	UserMSS                                   uint16 // TCP_MAXSEG, 0: never set
	TimestampOK, SackOK, WscaleOK             bool
	SndWscale, RcvWscale                      uint8

	// Urgent is one of Urgent*: what is with the last urgent byte (MSG_OOB) of the peer, at number UrgentSeq, as long as the reader has not
	// passed by it. SndUp is the number behind the last own one; SndUna: there is none that is not acknowledged.
	Urgent    uint8
	UrgentSeq uint32
	SndUp     uint32
	Repair    bool // somebody has put it into repair mode
	// BoundAddress and BoundPort say what bind(2) was told: not 0 (SOCK_BINDADDR_LOCK, SOCK_BINDPORT_LOCK).
	BoundAddress, BoundPort bool
	Done                    bool // SOCK_DONE: the end of the stream has come

	Subflow  Maybe[bool] // of an MPTCP connection
	ULP      Maybe[bool] // a protocol on top in the kernel: tls, mptcp ...
	Signed   Maybe[bool] // TCP-MD5 (RFC 2385) or TCP-AO (RFC 5925) keys
	ZeroCopy Maybe[bool] // it has sent memory that is not copied, which is being waited for
	Fastopen Maybe[bool] // a connect with data is under way
	PeekOff  Maybe[int32]
	SavedSYN Maybe[bool] // the SYN is there still, for TCP_SAVED_SYN

	// Only TCPWaiting tells these: by what the own time stamps differ from the clock, the last one of the peer, and whether they count
	// microseconds.
	TSOffset, TSRecent Maybe[uint32]
	UsecTS             Maybe[bool]
}

// What TCP.Urgent may be.
const (
	UrgentNone    = iota
	UrgentWaits   // it is there
	UrgentAwaited // it has been announced
	UrgentRead    // MSG_OOB has read it
)
