package events

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// URing is an instance that is being restored. Its place in the pool is taken by something else until all tasks exist.
type URing struct {
	state    *uringState
	place    int
	contents []byte
	watches  lateWatches
	params   *tracee.Buf // struct io_uring_params, once it has been made
}

func restoreURing(r *object.Restorer, ref stream.Ref, s *uringState) (int, error) {
	if err := s.check(); err != nil {
		return -1, object.BadImagef("an io_uring instance with %w", err)
	}
	u := &URing{state: s}
	r.Remember(ref, u)
	r.OnContent(ref, func(meta *object.Data, data []byte) error {
		if meta.Offset != uint64(len(u.contents)) || meta.Offset+uint64(len(data)) > uint64(s.RingSize)+uint64(s.SQESize) {
			return object.BadImagef("contents of an io_uring instance at %d", meta.Offset)
		}
		u.contents = append(u.contents, data...)
		return nil
	})
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	return fd, nil
}

// URings returns the io_uring instances of an image, all of whose objects have been made. exists says whether it has a thread of a number.
func URings(r *object.Restorer, exists func(tid int32) bool) ([]*URing, error) {
	var all []*URing
	for _, f := range object.All[uringState](r.Plan) {
		u, err := object.Recall[URing](r, f.Ref)
		if err != nil {
			return nil, err
		}
		if u.place, err = r.File(f.Ref); err != nil {
			return nil, err
		}
		threads := []int32{}
		if f.State.Submitter != 0 {
			threads = append(threads, f.State.Submitter)
		}
		for _, p := range f.State.Registered {
			threads = append(threads, p.TID)
		}
		for _, q := range f.State.Requests {
			threads = append(threads, q.TID)
		}
		for _, tid := range threads {
			if !exists(tid) {
				return nil, object.BadImagef("an io_uring instance of thread %d, which the image does not have", tid)
			}
		}
		all = append(all, u)
	}
	return all, nil
}

// Place is its number in the pool.
func (u *URing) Place() int { return u.place }

// Submitter is the thread that must make it, 0 for any.
func (u *URing) Submitter() int32 { return u.state.Submitter }

// In says whether a descriptor table has it.
func (u *URing) In(r *object.Restorer, t *files.TableState) bool {
	return slices.ContainsFunc(t.Entries, func(e files.TableEntry) bool {
		found, err := object.Recall[URing](r, e.File)
		return err == nil && found == u
	})
}

// MakeCalls appends the calls that make the instance and put it at its place in the pool.
func (u *URing) MakeCalls(b *tracee.Batch) {
	s, n := u.state, b.Sys()
	params := make([]byte, 120) // struct io_uring_params: sq_entries, cq_entries, flags, ...
	if s.Setup&setupCQSize != 0 {
		binary.NativeEndian.PutUint32(params[4:], s.CQEntries)
	}
	binary.NativeEndian.PutUint32(params[8:], s.Setup)
	u.params = b.InOut(params)
	fd := b.Call(n.IoUringSetup, s.SQEntries, u.params).Note("io_uring with flags %#x (kernel.io_uring_disabled)", s.Setup)
	if flags := s.Flags &^ unix.O_ACCMODE; flags != 0 {
		b.Call(n.Fcntl, fd, unix.F_SETFL, flags).Note("io_uring")
	}
	b.Call(n.Dup3, fd, u.place, 0).Note("io_uring") // as inherited as the rest of the pool
	b.Call(n.Close, fd)
}

// Made says, when MakeCalls have run, whether this kernel lays the rings out as the program has seen it.
func (u *URing) Made() error {
	s, p := u.state, u.params.Bytes()
	field := func(at int) uint32 { return binary.NativeEndian.Uint32(p[at:]) }
	const sq, cq = 40, 80 // struct io_sqring_offsets and io_cqring_offsets
	got := []uint32{
		field(sq), field(sq + 4), field(sq + 8), field(sq + 12), field(sq + 16), field(sq + 20), // head, tail, ring_mask, ring_entries, flags, dropped
		field(cq), field(cq + 4), field(cq + 8), field(cq + 12), field(cq + 16), field(cq + 24), // head, tail, ring_mask, ring_entries, overflow, flags
		field(cq + 20), field(sq + 24), // cqes, array
	}
	if !slices.Equal(got, s.Offsets) || field(0) != s.SQEntries || field(4) != s.CQEntries {
		return &object.Lacking{What: fmt.Sprintf("the rings of io_uring lie otherwise on this kernel: %v, not %v", got, s.Offsets), Do: "restore on the kernel of the dump"}
	}
	return nil
}

// ShareCalls appends the calls that take the instance from the thread that has made it.
func (u *URing) ShareCalls(b *tracee.Batch, maker int32, isLeader bool) {
	n, flags := b.Sys(), 0
	if !isLeader {
		flags = unix.PIDFD_THREAD
	}
	opener := b.Call(n.PidfdOpen, maker, flags).Note("who has made an io_uring instance")
	fd := b.Call(n.PidfdGetfd, opener, u.place, 0).Note("io_uring")
	b.Call(n.Dup3, fd, u.place, 0).Note("io_uring")
	b.Call(n.Close, fd)
	b.Call(n.Close, opener)
}

// IORING_REGISTER_* of linux/io_uring.h.
const (
	registerFiles        = 2
	registerEventfd      = 4
	registerEventfdAsync = 7
	registerRingFDs      = 20
)

// RegisterCalls appends the calls by which the maker registers what was registered, and watches it with epoll.
func (u *URing) RegisterCalls(r *object.Restorer, b *tracee.Batch) error {
	s, n := u.state, b.Sys()
	if s.FileSlots > 0 {
		list := make([]byte, 4*s.FileSlots)
		for i := range list {
			list[i] = 0xff // -1: an empty place
		}
		for _, f := range s.Files {
			fd, err := r.File(f.File)
			if err != nil {
				return err
			}
			binary.NativeEndian.PutUint32(list[4*f.Index:], uint32(fd))
		}
		b.Call(n.IoUringRegister, u.place, registerFiles, list, s.FileSlots).Note("registered files of io_uring")
	}
	if !s.Eventfd.IsZero() {
		fd, err := r.File(s.Eventfd)
		if err != nil {
			return err
		}
		how := registerEventfd
		if s.EventfdAsync {
			how = registerEventfdAsync
		}
		b.Call(n.IoUringRegister, u.place, how, binary.NativeEndian.AppendUint32(nil, uint32(fd)), 1).Note("the eventfd of io_uring")
	}
	u.watches.calls(b)
	return nil
}

// PlaceCalls appends the calls by which a thread gets the instance among its registered rings.
func (u *URing) PlaceCalls(b *tracee.Batch, tid int32) {
	for _, p := range u.state.Registered {
		if p.TID != tid {
			continue
		}
		update := binary.NativeEndian.AppendUint32(nil, p.Index) // struct io_uring_rsrc_update
		update = binary.NativeEndian.AppendUint32(update, 0)
		update = binary.NativeEndian.AppendUint64(update, uint64(u.place))
		b.Call(b.Sys().IoUringRegister, u.place, registerRingFDs, b.InOut(update), 1).Expect(1).Note("a registered ring of thread %d", tid)
	}
}

// lateWatches are the epoll items that watch a file which does not exist yet.
type lateWatches struct {
	of     map[int][]watch // by the pool's number of the epoll instance
	epolls []int           // the keys, in the order of the image
}

func (l *lateWatches) add(epfd int, w watch) {
	if l.of == nil {
		l.of = map[int][]watch{}
	}
	if l.of[epfd] == nil {
		l.epolls = append(l.epolls, epfd)
	}
	l.of[epfd] = append(l.of[epfd], w)
}

// calls appends the calls that add the items.
func (l *lateWatches) calls(b *tracee.Batch) {
	for _, epfd := range l.epolls {
		for i := range l.of[epfd] {
			w := &l.of[epfd][i]
			w.add(b, epfd, w.Events)
		}
	}
}
