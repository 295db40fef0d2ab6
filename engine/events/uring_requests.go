package events

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A request of io_uring that waits for a file to become ready, or for its time, has done nothing yet: polls, timeouts, accept, read and
// recv. It is submitted again, by the same thread, when all is in place. What is ready at the restore completes at once, and a multishot
// poll reports once more what it reported before the dump.
//
// While the tree is frozen such a request can complete: the kernel wakes a frozen task for it (get_signal in kernel/signal.c), which then
// reads into its memory. So the instance is looked at again when everything has been written.
type uringRequest struct {
	Op     uint8      `msgpack:"op"`
	Data   uint64     `msgpack:"data,omitempty"`
	TID    int32      `msgpack:"tid"`
	File   stream.Ref `msgpack:"file,omitempty"`
	Fixed  bool       `msgpack:"fixed,omitempty"`
	Slot   uint32     `msgpack:"slot,omitempty"`
	Skip   bool       `msgpack:"skip,omitempty"`
	Prio   uint16     `msgpack:"prio,omitempty"`
	Offset uint64     `msgpack:"offset,omitempty"`
	Addr   uint64     `msgpack:"addr,omitempty"`
	Len    uint32     `msgpack:"len,omitempty"`
	Ask    uint32     `msgpack:"ask,omitempty"`
	Left   int64      `msgpack:"left,omitempty"`
}

// IORING_OP_* of linux/io_uring.h.
const (
	opPollAdd = 6
	opTimeout = 11
	opAccept  = 13
	opRead    = 22
	opRecv    = 27

	maxRequests = 4096 // of an instance, so that they fit into its record
)

// dumpRequests adds the requests that wait.
func (s *uringState) dumpRequests(d *object.Dumper, u *kernelview.IOUring) error {
	takes := map[kernelview.ID]bool{}
	for i := range u.Requests {
		r := &u.Requests[i]
		q := uringRequest{Op: r.Op, Data: r.Data, TID: numberIn(d, r.Tid, true), Skip: r.Skip, Prio: r.Prio, Offset: r.Offset, Addr: r.Addr, Len: r.Len, Ask: r.Flags, Left: r.Left}
		if q.TID == 0 {
			return object.Unsupportedf("it has a request in flight of a thread that is not in the tree")
		}
		if r.Op != opPollAdd && r.Op != opTimeout {
			if takes[r.File] {
				return object.Unsupportedf("it has several requests in flight that take from the same file, whose order is not known")
			}
			takes[r.File] = true
		}
		switch {
		case r.Slot >= 0:
			q.Fixed, q.Slot = true, uint32(r.Slot)
		case r.Op != opTimeout:
			ref, err := heldFile(d, r.File)
			if err != nil {
				return err
			}
			if ref.IsZero() {
				return object.Unsupportedf("it has a request in flight of a file that no process of the tree has open any more")
			}
			q.File = ref
		}
		s.Requests = append(s.Requests, q)
	}
	return nil
}

// unchanged says whether no request has been completed since the instance was looked at.
func unchanged(view kernelview.IOUringView, file kernelview.ID, was *kernelview.IOUring) error {
	is, err := view.IOUring(file, nil)
	if err != nil {
		return fmt.Errorf("looking at the io_uring instance again: %w", err)
	}
	if is.CQTail != was.CQTail || is.SQHead != was.SQHead || is.InFlight != was.InFlight || !bytes.Equal(is.Rings, was.Rings[:len(is.Rings)]) || len(is.Requests) != len(was.Requests) {
		return errors.New("a request of io_uring was completed while the tree was dumped; the image is of no use: dump again")
	}
	return nil
}

func (q *uringRequest) check(s *uringState) error {
	known := slices.Contains([]uint8{opPollAdd, opTimeout, opAccept, opRead, opRecv}, q.Op)
	switch {
	case !known:
		return fmt.Errorf("the operation %d in flight", q.Op)
	case q.TID <= 0 || s.Submitter != 0 && q.TID != s.Submitter:
		return fmt.Errorf("a request in flight of thread %d", q.TID)
	case q.Left < 0 || q.Left > int64(maxLeft) || q.Op != opTimeout && q.Left != 0:
		return fmt.Errorf("a timeout in %d ns", q.Left)
	case q.Op == opTimeout && (q.Fixed || !q.File.IsZero() || q.Offset != 0 || q.Addr != 0):
		return fmt.Errorf("a timeout of a file")
	case q.Op != opTimeout && q.Fixed == !q.File.IsZero():
		return fmt.Errorf("a request in flight of no file, or of two")
	case q.Fixed && !slices.ContainsFunc(s.Files, func(f uringFile) bool { return f.Index == q.Slot }):
		return fmt.Errorf("a request in flight of the registered file %d", q.Slot)
	case len(s.Requests) > maxRequests:
		return fmt.Errorf("%d requests in flight", len(s.Requests))
	}
	return nil
}

const maxLeft = 1 << 62 * time.Nanosecond

// entry is the request as struct io_uring_sqe. file is its number in the pool, when the address of a timeout's time.
func (q *uringRequest) entry(file int, when uint64) []byte {
	b, ne := make([]byte, sqeSize), binary.NativeEndian
	b[0] = q.Op
	if q.Fixed {
		b[sqeFlags] |= sqeFixed
		file = int(q.Slot)
	}
	if q.Skip {
		b[sqeFlags] |= cqeSkip
	}
	if q.Op == opTimeout {
		file = -1
	}
	ne.PutUint16(b[2:], q.Prio)
	ne.PutUint32(b[sqeFD:], uint32(file))
	ne.PutUint64(b[8:], q.Offset)
	ne.PutUint64(b[16:], q.Addr|when)
	ne.PutUint32(b[24:], q.Len)
	ne.PutUint32(b[28:], q.Ask)
	ne.PutUint64(b[32:], q.Data)
	return b
}

const sqeFixed = 1 // IOSQE_FIXED_FILE

// Resubmit submits the requests that were in flight. run has a thread of the image, by its number, run a batch; tid is that by which this
// process knows it.
func (u *URing) Resubmit(r *object.Restorer, run func(id int32, build func(*tracee.Batch)) (tid int, err error)) (err error) {
	s := u.state
	if len(s.Requests) == 0 {
		return nil
	}
	m, err := mapRing(u.place, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmap()) }()
	tail, next := m.load(atSQTail), s.SQHead-uint32(len(s.Requests))
	for i := range s.Requests {
		q := &s.Requests[i]
		fd := -1
		if !q.File.IsZero() {
			if fd, err = r.File(q.File); err != nil {
				return err
			}
		}
		if err := u.resubmit(m, q, fd, next, run); err != nil {
			return err
		}
		next++
	}
	m.store(atSQTail, tail)
	return nil
}

// resubmit submits one request as that of a number, through a place in the queue that gets its contents back.
func (u *URing) resubmit(m *ringMemory, q *uringRequest, fd int, number uint32, run func(int32, func(*tracee.Batch)) (int, error)) error {
	s := u.state
	var when *tracee.Call
	addr := uint64(0)
	if q.Op == opTimeout {
		tid, err := run(q.TID, func(b *tracee.Batch) {
			when = b.Call(b.Sys().Mmap, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0).Note("the time of a request of io_uring")
		})
		if err != nil {
			return err
		}
		addr = uint64(when.Result())
		ts := binary.NativeEndian.AppendUint64(nil, uint64(q.Left/1e9)) // struct __kernel_timespec
		ts = binary.NativeEndian.AppendUint64(ts, uint64(q.Left%1e9))
		if err := sys.Write(tid, arch.Addr(addr), ts); err != nil {
			return fmt.Errorf("writing the time of a request of io_uring: %w", err)
		}
	}
	at := number & (s.SQEntries - 1)
	size := sqeSize
	if s.Setup&setupSQE128 != 0 {
		size = 2 * sqeSize
	}
	place := m.sqes[int(at)*size:][:size]
	kept := bytes.Clone(place)
	clear(place)
	copy(place, q.entry(fd, addr))
	index := []byte{}
	if s.Setup&setupNoSQArray == 0 {
		index = m.rings[s.Offsets[atSQArray]+4*at:][:4]
	}
	keptIndex := bytes.Clone(index)
	copy(index, binary.NativeEndian.AppendUint32(nil, at))
	m.store(atSQTail, number+1)
	_, err := run(q.TID, func(b *tracee.Batch) {
		b.Call(b.Sys().IoUringEnter, u.place, 1, 0, 0, 0, 0).Expect(1).Note("a request of io_uring that was in flight")
		if q.Op == opTimeout {
			b.Call(b.Sys().Munmap, addr, unix.Getpagesize())
		}
	})
	copy(place, kept)
	copy(index, keptIndex)
	return err
}
