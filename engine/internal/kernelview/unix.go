package kernelview

// Unix is what the kernel knows of a unix(7) socket beside what all sockets have. What waits in it is in Messages, not in Receive.
type Unix struct {
	Socket

	// Address is what was given to bind(2), without the family: it begins with a zero byte when it is abstract, and ends with one
	// when it is a path. Bound: it is found by that. A socket that accept(2) gave has the address of its listener, and is not.
	// Autobound addresses are abstract.
	Address []byte
	Bound   bool
	// Where the socket of a path lies, which may have been moved, unlinked or replaced since; 0: no path.
	Dev, Ino uint64
	Links    uint32 // names of that inode
	// Name is where the name by which it was bound is by now: the id of the mount in /proc/PID/mountinfo, and the path below what
	// is mounted there. Without Mount that name is gone; the inode may have others.
	Mount int32
	Name  string

	// Peer is whom it is connected to; 0: nobody. That may be closed by now (Unix.Dead), or not be connected back.
	Peer ID
	Dead bool // closed, and kept by those who are connected to it, or by what it has sent

	PeerCred *PeerCred // SO_PEERCRED; nil: there is none
	OOB      bool      // the last byte sent with MSG_OOB has not been read
	Inq      bool      // SO_INQ
	Pending  []Unix    // of a listening one: what accept(2) will give, in order
	Messages []UnixMessage
}

// PeerCred is what SO_PEERCRED and SO_PEERGROUPS tell, with ids of the initial user namespace.
type PeerCred struct {
	PID      int   // in the caller's pid namespace, 0: outside of it
	Numbers  []int // in that and those within, down to its own
	Process  ID    // equal: the same process
	UID, GID uint32
	Groups   []uint32
}

// UnixMessage is one message in the queue of a unix socket, or a part of its byte stream.
type UnixMessage struct {
	Data   []byte // what has not been read of it
	Sender ID     // the socket that it came from
	Files  []ID   // SCM_RIGHTS: the open files that are in flight
	// PID, UID and GID are of SCM_CREDENTIALS. Without Credentials none were noted: nobody had asked for them.
	Credentials bool
	PID         int    // in the caller's pid namespace, 0: outside of it
	Numbers     []int  // as in PeerCred
	UID, GID    uint32 // in the initial user namespace
	Time        int64  // SO_TIMESTAMP: ns since 1970; 0: not noted
	OOB         bool   // sent with MSG_OOB
	Security    uint32 // SO_PASSSEC: the label's number
}
