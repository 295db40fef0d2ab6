package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Contexts of asynchronous I/O (io_setup(2), fs/aio.c). Each has a ring that the kernel maps into the process: a header of
// 32 bytes (its index, the number of slots, head and tail), then the events of requests that are done. Where the ring is mapped is the
// context's number, which mremap(2) changes. The kernel has a tail of its own, and counts free slots; the kernel view tells both, and so whether
// any request is in flight. The dump waits a moment for those.
//
// A restore makes the contexts in the order of their indices, with others in the gaps that it ends again, moves the rings to their
// places, and has each take and finish requests that read nothing until head and tail are where they were. Then the events that nobody has read
// are put in place.
//
// Refused by name: requests that wait for a file to become ready (IOCB_CMD_POLL); requests that do not finish in time; a ring that was
// written to, mapped in parts, or left by a parent in its child. Lost: what the ring still shows of events that have been read.

// AIO is one context.
type AIO struct {
	Ring   uint64 `msgpack:"ring"`             // the address of its ring, which is its number
	Size   uint64 `msgpack:"size"`             // bytes of the mapping
	Index  uint32 `msgpack:"index,omitempty"`  // in its header
	MaxReq uint32 `msgpack:"max"`              // as io_setup(2) was asked for
	Slots  uint32 `msgpack:"slots"`            // of the ring
	Head   uint32 `msgpack:"head,omitempty"`   // the slot of the first event that was not read
	Tail   uint32 `msgpack:"tail,omitempty"`   // the slot behind the last
	Events []byte `msgpack:"events,omitempty"` // those, of 32 bytes (struct io_event)
}

const (
	aioHeader    = 32 // struct aio_ring
	aioEvent     = 32 // struct io_event
	aioMagic     = 0xa10a10a1
	maxAIO       = 1024     // contexts, and the highest index
	maxAIOSize   = 16 << 20 // bytes of a ring: fs.aio-max-nr is 65536 by default
	maxAIOEvents = 4096     // unread in all rings of an address space, so that they fit into its record
	maxAIOSlots  = 1 << 20  // of all rings of an address space
	aioPatience  = 2 * time.Second
)

// aio looks at the contexts of the address space.
func (m *mmDump) aio(as *kernelview.AddressSpace) ([]AIO, error) {
	n, ok := as.AIOContexts.Get()
	if !ok {
		return nil, m.unknown("asynchronous I/O")
	}
	if n == 0 {
		return nil, nil
	}
	list, ok := as.AIO.Get()
	if !ok {
		m.d.Refuse(m.p.Error("", &object.Unsupported{What: "asynchronous I/O (io_setup) cannot be checkpointed without a look at the kernel's memory", Do: "run cr-dump as root on a kernel with BTF"}))
		return nil, nil
	}
	if m.arch != m.d.Arch {
		m.d.Refuse(m.p.Error("", object.Unsupportedf("asynchronous I/O (io_setup) of a 32-bit program cannot be checkpointed")))
		return nil, nil
	}
	list, err := m.awaitAIO(list)
	if err != nil {
		return nil, m.refuse("", err)
	}
	out := make([]AIO, 0, len(list))
	events, slots := 0, uint32(0)
	for i := range list {
		one, err := m.aioContext(&list[i])
		if err == nil {
			if slots += one.Slots; slots > maxAIOSlots {
				err = object.Unsupportedf("asynchronous I/O (io_setup) with more than %d slots in its rings cannot be checkpointed", maxAIOSlots)
			}
		}
		if err == nil {
			if events += len(one.Events) / aioEvent; events > maxAIOEvents {
				err = object.Unsupportedf("more than %d unread events of asynchronous I/O cannot be checkpointed", maxAIOEvents)
			}
		}
		if err != nil {
			if err = m.refuse("", err); err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, *one)
	}
	slices.SortFunc(out, func(a, b AIO) int { return int(a.Index) - int(b.Index) })
	return out, nil
}

// awaitAIO waits until no request is in flight: what the disk does ends by itself, and nobody is there to ask for more.
func (m *mmDump) awaitAIO(list []kernelview.AIOContext) ([]kernelview.AIOContext, error) {
	for end := time.Now().Add(aioPatience); ; time.Sleep(time.Millisecond) {
		busy := 0
		for i := range list {
			n, ok := list[i].InFlight.Get()
			switch {
			case list[i].Polls:
				return nil, &object.Unsupported{What: "a request of asynchronous I/O that waits for a file to become ready (IOCB_CMD_POLL) cannot be checkpointed", Do: "dump when none is under way"}
			case !ok:
				return nil, object.Unsupportedf("asynchronous I/O (io_setup) cannot be checkpointed: this kernel does not tell what is in flight")
			}
			busy += n
		}
		if busy == 0 {
			return list, nil
		}
		if time.Now().After(end) {
			return nil, &object.Unsupported{What: fmt.Sprintf("%d requests of asynchronous I/O (io_submit) are still in flight after %v", busy, aioPatience), Do: "dump when they are done", Passes: true}
		}
		now, err := m.d.View.Processes([]int{m.tid})
		if err != nil {
			return nil, err
		}
		as, ok := now[0].MM.Get()
		if !ok {
			return nil, m.unknown("the address space")
		}
		if list, ok = as.AIO.Get(); !ok {
			return nil, m.unknown("asynchronous I/O")
		}
	}
}

// aioContext reads the ring of a context.
func (m *mmDump) aioContext(c *kernelview.AIOContext) (*AIO, error) {
	mem, err := m.mem()
	if err != nil {
		return nil, err
	}
	ring := make([]byte, aioHeader)
	if n, err := readAt(mem, ring, uint64(c.Ring)); err != nil || n < len(ring) {
		return nil, object.Unsupportedf("asynchronous I/O (io_setup) whose ring at %v is not mapped cannot be checkpointed", c.Ring)
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(ring[4*i:]) }
	index, slots, head, tail := word(0), word(1), word(2), word(3)
	if index != c.Index || slots != c.Slots || tail != c.Tail || head >= slots || word(4) != aioMagic || index > maxAIO || c.Size > maxAIOSize {
		return nil, object.Unsupportedf("asynchronous I/O (io_setup) whose ring at %v is too large, or was written to, cannot be checkpointed", c.Ring)
	}
	a := &AIO{Ring: uint64(c.Ring), Size: c.Size, Index: index, MaxReq: c.MaxReq, Slots: slots, Head: head, Tail: tail}
	for _, p := range a.unread() {
		events := make([]byte, p.bytes)
		if n, err := readAt(mem, events, a.Ring+p.at); err != nil || n < len(events) {
			return nil, fmt.Errorf("reading events of asynchronous I/O: %d bytes of %d: %w", n, len(events), errors.Join(err, unix.EFAULT))
		}
		a.Events = append(a.Events, events...)
	}
	return a, nil
}

// isAIO says whether a mapping is the ring of a context, which is no area of the image. The error says why it cannot be kept.
func (m *mmDump) isAIO(mm *MM, v *procfs.SmapsVMA) (bool, error) {
	if v.Path != "/[aio] (deleted)" && v.Path != "/[aio]" {
		return false, nil
	}
	for i := range mm.AIO {
		a := &mm.AIO[i]
		if uint64(v.Start) != a.Ring {
			continue
		}
		for _, code := range v.Flags.Codes() {
			if code != "de" && !slices.Contains(natural[:], code) {
				return true, object.Unsupportedf("the ring of asynchronous I/O (io_setup) with the flag %q of memory cannot be checkpointed", code)
			}
		}
		if uint64(v.End) != a.Ring+a.Size || v.Prot.String() != "rw-s" || v.Offset != 0 {
			return true, object.Unsupportedf("the ring of asynchronous I/O (io_setup), a part of which was unmapped or protected, cannot be checkpointed")
		}
		return true, nil
	}
	return true, &object.Unsupported{What: "the ring of asynchronous I/O (io_setup) that belongs to nobody here, as a child has it of its parent, cannot be checkpointed", Do: "have the program unmap it, or make its contexts after it has forked"}
}

// stretch is a part of a ring.
type stretch struct{ at, bytes uint64 }

// unread returns where the unread events are.
func (a *AIO) unread() []stretch {
	at := func(slot uint32) uint64 { return aioHeader + uint64(slot)*aioEvent }
	switch {
	case a.Head == a.Tail:
		return nil
	case a.Head < a.Tail:
		return []stretch{{at(a.Head), uint64(a.Tail-a.Head) * aioEvent}}
	}
	all := []stretch{{at(a.Head), uint64(a.Slots-a.Head) * aioEvent}, {at(0), uint64(a.Tail) * aioEvent}}
	if a.Tail == 0 {
		return all[:1]
	}
	return all
}

func (a *AIO) check(pageSize int) error {
	switch {
	case !pageAligned(a.Ring|a.Size, pageSize) || a.Size == 0 || a.Size > maxAIOSize || a.Ring+a.Size < a.Ring:
		return fmt.Errorf("a ring of asynchronous I/O of %d bytes at %#x", a.Size, a.Ring)
	case uint64(a.Slots) != (a.Size-aioHeader)/aioEvent || a.Head >= a.Slots || a.Tail >= a.Slots || a.MaxReq == 0 || a.MaxReq > a.Slots:
		return fmt.Errorf("a ring of asynchronous I/O of %d slots in %d bytes for %d requests, head %d, tail %d", a.Slots, a.Size, a.MaxReq, a.Head, a.Tail)
	case a.Index > maxAIO:
		return fmt.Errorf("the index %d of asynchronous I/O", a.Index)
	}
	want := uint64(0)
	for _, p := range a.unread() {
		want += p.bytes
	}
	if uint64(len(a.Events)) != want {
		return fmt.Errorf("%d bytes of events of asynchronous I/O instead of %d", len(a.Events), want)
	}
	return nil
}

// addAIO checks the contexts, and adds to the mappings what keeps the place of the rings until these are there.
func (s *Space) addAIO() error {
	last, slots := -1, uint32(0)
	for i := range s.MM.AIO {
		a := &s.MM.AIO[i]
		if err := a.check(s.pageSize); err != nil {
			return err
		}
		if slots += a.Slots; slots > maxAIOSlots {
			return fmt.Errorf("more than %d slots of asynchronous I/O", maxAIOSlots)
		}
		if int(a.Index) <= last || s.arch != s.native {
			return fmt.Errorf("contexts of asynchronous I/O are out of order, or of a 32-bit program")
		}
		last = int(a.Index)
		v := area{start: arch.Addr(a.Ring), end: arch.Addr(a.Ring + a.Size), prot: unix.PROT_NONE, flags: flagNoReserve}
		if v.end > s.arch.TaskSize {
			return fmt.Errorf("a ring of asynchronous I/O outside of the address space")
		}
		at := s.find(v.start)
		if at < len(s.areas) && s.areas[at].start < v.end {
			return fmt.Errorf("a ring of asynchronous I/O at %v overlaps another mapping", v.start)
		}
		s.areas = slices.Insert(s.areas, at, v)
	}
	return nil
}

// aioHandle is a file from which the rings of an address space get their events.
type aioHandle struct{ fd int }

func restoreMM(r *object.Restorer, ref stream.Ref, m *MM) error {
	if len(m.AIO) == 0 {
		return nil
	}
	fd, err := unix.MemfdCreate("aio", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("making a file for events of asynchronous I/O: %w", err)
	}
	var all []byte
	for i := range m.AIO {
		all = append(all, m.AIO[i].Events...)
	}
	for at := 0; at < len(all); {
		n, err := unix.Pwrite(fd, all[at:], int64(at))
		if err != nil {
			_ = unix.Close(fd) // new, nothing is lost
			return fmt.Errorf("writing events of asynchronous I/O: %w", err)
		}
		at += n
	}
	h := &aioHandle{}
	if h.fd, err = r.Pool(fd); err != nil {
		return err
	}
	r.Remember(ref, h)
	return nil
}

// aioCalls appends the calls that make the contexts.
func (s *Space) aioCalls(r *object.Restorer, b *tracee.Batch) error {
	if len(s.MM.AIO) == 0 {
		return nil
	}
	h, err := object.Recall[aioHandle](r, s.Ref)
	if err != nil {
		return err
	}
	nr := b.Sys()
	var gaps []*tracee.Buf
	next, offset := uint32(0), uint64(0)
	for i := range s.MM.AIO {
		a := &s.MM.AIO[i]
		ask, err := a.request()
		if err != nil {
			return err
		}
		for ; next < a.Index; next++ {
			gap := b.Space(8)
			b.Call(nr.IoSetup, 1, gap).Note("a context of asynchronous I/O (fs.aio-max-nr)")
			gaps = append(gaps, gap)
		}
		next++
		ctx := b.Space(8)
		b.Call(nr.IoSetup, ask, ctx).Note("a context of asynchronous I/O for %d requests (fs.aio-max-nr)", a.MaxReq)
		b.Call(nr.Mremap, tracee.Word{Buf: ctx}, a.Size, a.Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, a.Ring).Expect(a.Ring).Note("the ring of asynchronous I/O at %#x", a.Ring)
		a.advance(b, h.fd)
		for _, p := range a.unread() {
			b.Call(nr.Pread64, h.fd, a.Ring+p.at, p.bytes, offset).Expect(p.bytes).Note("events of asynchronous I/O")
			offset += p.bytes
		}
	}
	for _, gap := range gaps {
		b.Call(nr.IoDestroy, tracee.Word{Buf: gap})
	}
	return nil
}

// advance appends the calls that move head and tail of an empty new ring to their places, by requests that read nothing from a file.
func (a *AIO) advance(b *tracee.Batch, fd int) {
	const most = 64 // requests at once; any ring has room for more
	nr := b.Sys()
	iocb := make([]byte, 64) // struct iocb: aio_data, aio_key, aio_rw_flags, aio_lio_opcode (0: IOCB_CMD_PREAD), aio_reqprio, aio_fildes, ...
	binary.NativeEndian.PutUint32(iocb[20:], uint32(fd))
	one := b.Data(iocb)
	list := b.Data(make([]byte, 8*most)) // pointers to it
	for i := range most {
		list.Pointer(8*i, one)
	}
	room, now := b.Space(aioEvent*most), b.Data(make([]byte, 16))
	submit := func(n uint32, read bool) {
		for n > 0 {
			k := min(n, most, max(a.Slots/2, 1))
			b.Call(nr.IoSubmit, a.Ring, k, list).Expect(uint64(k)).Note("the place in a ring of asynchronous I/O")
			if read {
				b.Call(nr.IoGetevents, a.Ring, k, k, room, now).Expect(uint64(k)).Note("the place in a ring of asynchronous I/O")
			}
			n -= k
		}
	}
	submit(a.Head, true)
	submit((a.Tail+a.Slots-a.Head)%a.Slots, false)
}

// request returns for how many requests io_setup(2) must be asked here so that the ring has its size: at least 4 for each possible processor, twice
// that, and 2 more (ioctx_alloc and aio_setup_ring in fs/aio.c).
func (a *AIO) request() (uint32, error) {
	cpus, err := possibleCPUs()
	if err != nil {
		return 0, err
	}
	page := uint64(os.Getpagesize())
	size := func(ask uint32) uint64 {
		n := uint64(max(ask, uint32(cpus)*4))*2 + 2
		return (aioHeader + aioEvent*n + page - 1) / page * page
	}
	for _, ask := range []uint32{a.MaxReq, (a.Slots - 2) / 2} {
		if ask > 0 && size(ask) == a.Size {
			return ask, nil
		}
	}
	return 0, &object.Lacking{What: fmt.Sprintf("a ring of asynchronous I/O of %d bytes on a machine with %d possible processors, where the smallest has %d", a.Size, cpus, size(1))}
}

// possibleCPUs returns how many processors the kernel is prepared for.
func possibleCPUs() (int, error) {
	data, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	n := 0
	for _, part := range strings.Split(string(bytes.TrimSpace(data)), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil || last < first {
			return 0, fmt.Errorf("parsing the list of possible processors %q: %w", data, errors.Join(err, unix.EINVAL))
		}
		n += last - first + 1
	}
	return n, nil
}
