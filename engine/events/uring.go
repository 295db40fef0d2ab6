package events

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An io_uring instance (io_uring(7), io_uring/io_uring.c): two rings that the program maps and the kernel has its own mind of: how
// many entries it has taken from one and put into the other counts for ever, and no call sets it. Only the kernel's memory tells, and
// whether a request is in flight. fdinfo shows less.
//
// A restore makes the instance in the task that it is bound to (IORING_SETUP_SINGLE_ISSUER), or in any that has it, before memory is
// laid out, and has it take and complete requests that do nothing (IORING_OP_NOP) until the counters are where they were; then the
// contents of the rings are put in place. Completions without a request of their own, of multishot ones, come by messages from another
// instance (IORING_OP_MSG_RING).
//
// Kept with it: registered files and the eventfd, the threads' registered rings, and requests that wait (uring_requests.go). Refused by
// name: all other requests in flight; buffers and all else that can be registered; a polling thread (IORING_SETUP_SQPOLL), rings in the program's own memory (IORING_SETUP_NO_MMAP).
// Lost: which place of the registered files is tried first for a new one; that the memory of the rings counts for RLIMIT_MEMLOCK.
type uringState struct {
	Flags        uint32         `msgpack:"flags"` // as F_GETFL
	Setup        uint32         `msgpack:"setup,omitempty"`
	SQEntries    uint32         `msgpack:"sq_entries"`
	CQEntries    uint32         `msgpack:"cq_entries"`
	SQHead       uint32         `msgpack:"sq_head,omitempty"`
	CQTail       uint32         `msgpack:"cq_tail,omitempty"`
	Offsets      []uint32       `msgpack:"offsets"`
	RingSize     uint32         `msgpack:"ring_size"`
	SQESize      uint32         `msgpack:"sqe_size"`
	Submitter    int32          `msgpack:"submitter,omitempty"`
	NoDrain      bool           `msgpack:"no_drain,omitempty"`
	Eventfd      stream.Ref     `msgpack:"eventfd,omitempty"`
	EventfdAsync bool           `msgpack:"eventfd_async,omitempty"`
	FileSlots    uint32         `msgpack:"file_slots,omitempty"`
	Files        []uringFile    `msgpack:"files,omitempty"`
	Registered   []uringPlace   `msgpack:"registered,omitempty"`
	Requests     []uringRequest `msgpack:"requests,omitempty"`

	contents []byte `msgpack:"-"` // of the rings, and behind them of the entries: data records
}

// uringFile is a registered file.
type uringFile struct {
	Index uint32     `msgpack:"index"`
	File  stream.Ref `msgpack:"file"`
}

// uringPlace is where a thread has the instance among its registered rings.
type uringPlace struct {
	TID   int32  `msgpack:"tid"`
	Index uint32 `msgpack:"index"`
}

// IORING_SETUP_* of linux/io_uring.h.
const (
	setupCQSize      = 1 << 3
	setupClamp       = 1 << 4
	setupRDisabled   = 1 << 6
	setupSubmitAll   = 1 << 7
	setupCoopTaskrun = 1 << 8
	setupTaskrunFlag = 1 << 9
	setupSQE128      = 1 << 10
	setupCQE32       = 1 << 11
	setupSingle      = 1 << 12
	setupDefer       = 1 << 13
	setupNoSQArray   = 1 << 16

	setupKept = setupCQSize | setupClamp | setupRDisabled | setupSubmitAll | setupCoopTaskrun | setupTaskrunFlag | setupSQE128 | setupCQE32 |
		setupSingle | setupDefer | setupNoSQArray
)

// setupNames are the names of flags that are not kept.
var setupNames = []struct {
	bit  uint32
	name string
}{
	{1 << 0, "IORING_SETUP_IOPOLL"}, {1 << 1, "IORING_SETUP_SQPOLL"}, {1 << 2, "IORING_SETUP_SQ_AFF"}, {1 << 5, "IORING_SETUP_ATTACH_WQ"},
	{1 << 14, "IORING_SETUP_NO_MMAP"}, {1 << 15, "IORING_SETUP_REGISTERED_FD_ONLY"}, {1 << 17, "IORING_SETUP_HYBRID_IOPOLL"},
	{1 << 18, "IORING_SETUP_CQE_MIXED"},
}

const (
	maxSQEntries   = 1 << 15 // IORING_MAX_ENTRIES
	maxCQEntries   = 2 * maxSQEntries
	maxURingFiles  = 1 << 15 // slots: what fits into a record
	uringPlaces    = 16      // IO_RINGFD_REG_MAX
	uringHeader    = 64      // above every counter of struct io_rings
	uringCallsMost = 1 << 22 // calls that bring the counters to their values
)

// uringLink is what /proc/PID/fd shows.
const uringLink = "anon_inode:[io_uring]"

// The indices of what is looked at in uringState.Offsets, which are those of kernelview.IOUring.Counters and, behind them, of the
// completions and the array.
const (
	atSQHead = iota
	atSQTail
	_
	_
	_
	_
	atCQHead
	atCQTail
	atCQEs    = kernelview.IOUringCounters
	atSQArray = kernelview.IOUringCounters + 1
	offsets   = kernelview.IOUringCounters + 2
)

// word reads a counter of the rings.
func (s *uringState) word(rings []byte, at int) uint32 {
	return binary.NativeEndian.Uint32(rings[s.Offsets[at]:])
}

func dumpURing(d *object.Dumper, f *object.OpenFile) (*uringState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	view, ok := d.View.(kernelview.IOUringView)
	if !ok {
		return nil, &object.Unsupported{What: "an io_uring instance cannot be checkpointed without a look at the kernel's memory", Do: "run cr-dump as root on a kernel with BTF"}
	}
	u, err := view.IOUring(f.View.ID, threadsOf(d))
	if err != nil {
		return nil, fmt.Errorf("looking at the io_uring instance: %w", err)
	}
	if err := refuseURing(&u); err != nil {
		return nil, err
	}
	s := &uringState{Flags: flags, Setup: u.Setup, SQEntries: u.SQEntries, CQEntries: u.CQEntries, SQHead: u.SQHead, CQTail: u.CQTail,
		Offsets: append(slices.Clone(u.Counters[:]), u.CQEs, u.Array), RingSize: uint32(len(u.Rings)), SQESize: uint32(len(u.SQEs)), NoDrain: u.NoDrain}
	if u.Submitter != 0 {
		if s.Submitter = numberIn(d, u.Submitter, true); s.Submitter == 0 {
			return nil, object.Unsupportedf("it is bound to thread %d (IORING_SETUP_SINGLE_ISSUER), which is not in the tree", u.Submitter)
		}
	}
	for _, p := range u.Registered {
		s.Registered = append(s.Registered, uringPlace{numberIn(d, p.Tid, true), uint32(p.Index)})
	}
	if u.HasEventfd {
		if s.Eventfd, err = heldFile(d, u.Eventfd); err != nil {
			return nil, err
		}
		if s.Eventfd.IsZero() {
			return nil, object.Unsupportedf("its registered eventfd is one that no process of the tree has open any more")
		}
		s.EventfdAsync = u.EventfdAsync
	}
	if s.FileSlots = uint32(len(u.Files)); s.FileSlots > maxURingFiles {
		return nil, object.Unsupportedf("more than %d registered files cannot be checkpointed", maxURingFiles)
	}
	for i, id := range u.Files {
		if id == 0 {
			continue
		}
		ref, err := heldFile(d, id)
		if err != nil {
			return nil, err
		}
		if ref.IsZero() {
			return nil, object.Unsupportedf("its registered file %d is one that no process of the tree has open any more", i)
		}
		s.Files = append(s.Files, uringFile{uint32(i), ref})
	}
	if err := s.dumpRequests(d, &u); err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, object.Unsupportedf("it cannot be checkpointed: %v", err)
	}
	s.contents = append(u.Rings, u.SQEs...)
	if err := s.checkContents(s.contents); err != nil {
		return nil, object.Unsupportedf("its ring was written to, or a completion is under way (%v)", err)
	}
	if u.InFlight > 0 {
		d.Steady = append(d.Steady, func() error { return unchanged(view, f.View.ID, &u) })
	}
	return s, nil
}

// refuseURing refuses what would be lost.
func refuseURing(u *kernelview.IOUring) error {
	for _, n := range setupNames {
		if u.Setup&n.bit != 0 {
			return object.Unsupportedf("an io_uring instance made with %s cannot be checkpointed", n.name)
		}
	}
	switch {
	case int(u.InFlight) != len(u.Requests) && u.Unkept == "":
		u.Unkept = "one that has just come"
	case u.InFlight > maxRequests:
		u.Unkept = "more than there is room for"
	}
	switch {
	case u.Setup&^setupKept != 0:
		return object.Unsupportedf("an io_uring instance made with flags (%#x) that this build does not know cannot be checkpointed", u.Setup)
	case u.Unkept != "":
		return &object.Unsupported{What: fmt.Sprintf("an io_uring instance with %d requests in flight, among them %s, cannot be checkpointed", u.InFlight, u.Unkept),
			Do: "dump when they are done, or have the program do without (an option of its own, UV_USE_IO_URING=0 for node)", Passes: true}
	case len(u.Odd) > 0:
		return object.Unsupportedf("an io_uring instance with %s cannot be checkpointed", u.Odd[0])
	}
	return nil
}

// threadsOf are all threads of the tree, by the caller's numbers.
func threadsOf(d *object.Dumper) []int {
	var tids []int
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			tids = append(tids, t.TID)
		}
	}
	return tids
}

// heldFile dumps an open file that a descriptor of the tree leads to; zero when none does.
func heldFile(d *object.Dumper, id kernelview.ID) (stream.Ref, error) {
	holders, err := files.Holders(d, id)
	if err != nil || len(holders) == 0 {
		return stream.Ref{}, err
	}
	h := holders[0]
	held, err := object.Meet(h.Process, h.FD, h.File)
	if err != nil {
		return stream.Ref{}, err
	}
	defer held.Close()
	ref, err := d.File(held)
	if err == nil && ref.IsZero() {
		err = object.Unsupportedf("it needs the open file of descriptor %d (%s), which is refused itself", h.FD, held.Link)
	}
	return ref, err
}

// check says what of an instance is impossible.
func (s *uringState) check() error {
	cqe, sqe := uint64(16), uint64(64)
	if s.Setup&setupCQE32 != 0 {
		cqe *= 2
	}
	if s.Setup&setupSQE128 != 0 {
		sqe *= 2
	}
	pow2 := func(n uint32) bool { return n != 0 && n&(n-1) == 0 }
	switch {
	case s.Setup&^setupKept != 0 || s.Setup&setupDefer != 0 && s.Setup&setupSingle == 0:
		return fmt.Errorf("the flags %#x", s.Setup)
	case s.Flags&^keptFlags != 0 || s.Flags&unix.O_ACCMODE != unix.O_RDWR:
		return fmt.Errorf("the open flags %#o", s.Flags)
	case !pow2(s.SQEntries) || !pow2(s.CQEntries) || s.SQEntries > maxSQEntries || s.CQEntries > maxCQEntries || s.CQEntries < s.SQEntries:
		return fmt.Errorf("rings of %d and %d entries", s.SQEntries, s.CQEntries)
	case s.Setup&setupCQSize == 0 && s.CQEntries != 2*s.SQEntries:
		return fmt.Errorf("rings of %d and %d entries, which were resized", s.SQEntries, s.CQEntries)
	case len(s.Offsets) != offsets:
		return fmt.Errorf("%d offsets", len(s.Offsets))
	case uint64(s.SQESize) < uint64(s.SQEntries)*sqe || uint64(s.SQESize) > uint64(s.SQEntries)*sqe+1<<16:
		return fmt.Errorf("%d bytes of entries", s.SQESize)
	case uint64(s.Offsets[atCQEs])+uint64(s.CQEntries)*cqe > uint64(s.RingSize), s.Offsets[atCQEs] < uringHeader, s.RingSize > 4<<20,
		s.Setup&setupNoSQArray == 0 && uint64(s.Offsets[atSQArray])+4*uint64(s.SQEntries) > uint64(s.RingSize):
		return fmt.Errorf("a ring of %d bytes", s.RingSize)
	case s.Setup&setupRDisabled != 0 && (s.SQHead != 0 || s.CQTail != 0 || s.Submitter != 0 || s.NoDrain || len(s.Requests) > 0):
		return fmt.Errorf("requests before it was enabled")
	case s.Submitter < 0 || s.Setup&setupRDisabled == 0 && (s.Setup&setupSingle != 0) != (s.Submitter != 0):
		return fmt.Errorf("the submitter %d", s.Submitter)
	case s.FileSlots > maxURingFiles || s.EventfdAsync && s.Eventfd.IsZero():
		return fmt.Errorf("%d registered files, or a way to tell no eventfd", s.FileSlots)
	}
	for _, at := range s.Offsets[:kernelview.IOUringCounters] {
		if at%4 != 0 || at >= uringHeader {
			return fmt.Errorf("a counter at %d", at)
		}
	}
	last := -1
	for _, f := range s.Files {
		if f.Index >= s.FileSlots || int(f.Index) <= last {
			return fmt.Errorf("the registered file %d of %d", f.Index, s.FileSlots)
		}
		last = int(f.Index)
	}
	seen := map[uringPlace]bool{}
	for _, p := range s.Registered {
		if p.TID <= 0 || p.Index >= uringPlaces || seen[p] {
			return fmt.Errorf("the registered ring %d of thread %d", p.Index, p.TID)
		}
		seen[p] = true
	}
	for i := range s.Requests {
		if err := s.Requests[i].check(s); err != nil {
			return err
		}
	}
	_, err := s.advance()
	return err
}

// checkContents says whether the counters in the rings are those of the kernel.
func (s *uringState) checkContents(contents []byte) error {
	switch {
	case uint64(len(contents)) != uint64(s.RingSize)+uint64(s.SQESize):
		return fmt.Errorf("%d bytes of contents", len(contents))
	case s.word(contents, atSQHead) != s.SQHead || s.word(contents, atCQTail) != s.CQTail:
		return fmt.Errorf("submissions up to %d and completions up to %d, not %d and %d", s.word(contents, atSQHead), s.word(contents, atCQTail), s.SQHead, s.CQTail)
	case s.CQTail-s.word(contents, atCQHead) > s.CQEntries:
		return fmt.Errorf("%d completions of %d are read", s.word(contents, atCQHead), s.CQTail)
	}
	return nil
}

// uringContents adds the contents as data records.
func uringContents(d *object.Dumper, ref stream.Ref, s *uringState) {
	contents := s.contents
	d.AddBulk(ref, func(w *stream.Writer) error {
		for at := 0; at < len(contents); at += stream.MaxPayload {
			part := contents[at:min(at+stream.MaxPayload, len(contents))]
			if err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: uint64(at)}, part); err != nil {
				return err
			}
		}
		return nil
	})
}

// URingKind is the kind of io_uring instances.
var URingKind = object.NewContentFileKind(files.URingType, claims(kernelview.KindIOUring, uringLink), dumpURing, uringContents, restoreURing)
