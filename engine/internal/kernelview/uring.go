package kernelview

import "slices"

// IOUring is an instance of io_uring_setup(2), struct io_ring_ctx of
// io_uring/io_uring.c.
type IOUring struct {
	Setup     uint32 // IORING_SETUP_*; IORING_SETUP_R_DISABLED goes when it is enabled
	SQEntries uint32
	CQEntries uint32

	// How far the kernel has come, whatever the ring says, which the program can
	// write to: entries taken from the submission queue and put into the completion
	// queue since the beginning, modulo 2^32.
	SQHead, CQTail uint32

	// Of the mapping at IORING_OFF_SQ_RING: bytes from its start to the completions
	// and to the array of indices (0 with IORING_SETUP_NO_SQARRAY). Where the
	// counters lie, in the order of IOUringCounters.
	CQEs, Array uint32
	Counters    [IOUringCounters]uint32

	Rings []byte // the whole of that mapping
	SQEs  []byte // and of the one at IORING_OFF_SQES

	Submitter int   // the thread to which IORING_SETUP_SINGLE_ISSUER binds it, in the caller's pid namespace; 0: to none
	InFlight  int64 // requests that are not complete

	// NoDrain says that IOSQE_IO_DRAIN is refused since a request had IOSQE_CQE_SKIP_SUCCESS.
	NoDrain bool

	// Files are the registered files, 0 for an empty place.
	Files []ID

	nodes []uint64 // of them: what requests hold

	// Eventfd is the open file of the registered eventfd among those that Files has
	// shown; HasEventfd with 0: it is none of these.
	HasEventfd   bool
	EventfdAsync bool
	Eventfd      ID

	// Registered is by which threads and indices it was registered with
	// IORING_REGISTER_RING_FDS, among those that have used the ring.
	Registered []IOUringPlace

	// Requests are those in flight of which everything is known; when they are fewer
	// than InFlight, Unkept names one that is another.
	Requests []IOURequest
	Unkept   string

	// Odd names what else was registered or is under way, as a person calls it.
	Odd []string
}

// Holds are the open files that the instance holds a reference to: those that
// are registered, and those of requests that were given a descriptor.
func (u *IOUring) Holds() []ID {
	var all []ID
	for _, f := range u.Files {
		if f != 0 {
			all = append(all, f)
		}
	}
	for i := range u.Requests {
		if r := &u.Requests[i]; r.Slot < 0 && r.File != 0 {
			all = append(all, r.File)
		}
	}
	return all
}

// slotOf returns where a registered file is by its node, -1 for nowhere.
func (u *IOUring) slotOf(node uint64) int { return slices.Index(u.nodes, node) }

// IOUringPlace is an index among the registered rings of a thread.
type IOUringPlace struct {
	Tid   int // in the caller's pid namespace
	Index int
}

// The counters of a ring: of the submission queue head, tail, ring_mask,
// ring_entries, flags, dropped; of the completion queue head, tail, ring_mask,
// ring_entries, overflow, flags.
const IOUringCounters = 12

// IOUringView is a View that knows what is behind an io_uring instance. The
// classical source does not: fdinfo shows only parts of it.
type IOUringView interface {
	// IOUring tells of an open file of KindIOUring. tids are the threads among
	// whose registered rings it is looked for.
	IOUring(file ID, tids []int) (IOUring, error)
}

// IOURequest is a request that waits: for its file to become ready, or for its
// time. Its entry (struct io_uring_sqe) can be made of it.
type IOURequest struct {
	Op   uint8  // IORING_OP_POLL_ADD, TIMEOUT, ACCEPT, READ or RECV
	Data uint64 // user_data
	Tid  int    // the thread that has submitted it, in the caller's pid namespace
	File ID     // 0 for a timeout
	Slot int    // of the registered files; -1: it was given a descriptor
	Skip bool   // IOSQE_CQE_SKIP_SUCCESS

	Prio   uint16 // ioprio, which has flags of sockets
	Offset uint64 // off, or addr2
	Addr   uint64
	Len    uint32 // of a poll its IORING_POLL_*
	Flags  uint32 // poll32_events, timeout_flags, accept_flags, rw_flags, msg_flags
	Left   int64  // ns until a timeout expires, at the moment of SetNow
}
