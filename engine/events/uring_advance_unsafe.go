package events

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// How a new instance comes to have taken and completed as many requests as the one that was dumped.
//
// The kernel counts both modulo 2^32 and compares them with what the rings say. A new instance is full of zeros: every entry of it is
// an IORING_OP_NOP, and every index leads to the first of them.

// A ringCourse is how many requests of which sort bring an instance to its counters.
type ringCourse struct {
	silent uint32 // without a completion (IOSQE_CQE_SKIP_SUCCESS), after which IOSQE_IO_DRAIN is refused
	plain  uint32 // with one
	extra  uint32 // completions without a request
}

// advance returns the course to the counters of an instance; the error says why there is none.
func (s *uringState) advance() (ringCourse, error) {
	var c ringCourse
	taken := s.SQHead - uint32(len(s.Requests)) // before those that are in flight
	switch ahead := s.CQTail - taken; {
	case ahead < 1<<31 && !s.NoDrain:
		c = ringCourse{plain: taken, extra: ahead}
	case ahead < 1<<31 && taken > 0:
		c = ringCourse{silent: 1, plain: taken - 1, extra: ahead + 1}
	case ahead >= 1<<31 && s.NoDrain && s.CQTail <= taken:
		c = ringCourse{silent: -ahead, plain: s.CQTail}
	default:
		return c, fmt.Errorf("%d requests and %d completions", s.SQHead, s.CQTail)
	}
	if calls := (uint64(c.silent)+uint64(c.plain))/uint64(s.SQEntries) + uint64(c.extra)/uint64(min(s.CQEntries, messages)); calls > uringCallsMost {
		return c, fmt.Errorf("%d requests through a ring of %d", s.SQHead, s.SQEntries)
	}
	return c, nil
}

// messages is how many completions the helper sends at once, at most.
const messages = 256

// IORING_OP_MSG_RING, the offsets of struct io_uring_sqe, and IORING_OFF_SQES of linux/io_uring.h.
const (
	opMsgRing = 40
	sqeFlags  = 1
	sqeFD     = 4
	sqeSize   = 64
	cqeSkip   = 1 << 6
	getEvents = 1
	offSQRing = 0
	offSQEs   = 0x10000000
)

// ringMemory is what this process maps of an instance.
type ringMemory struct {
	rings, sqes []byte
	offsets     []uint32
}

func mapRing(fd int, s *uringState) (*ringMemory, error) {
	rings, err := unix.Mmap(fd, offSQRing, int(s.RingSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the rings of io_uring: %w", err)
	}
	sqes, err := unix.Mmap(fd, offSQEs, int(s.SQESize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping the entries of io_uring: %w", err), unix.Munmap(rings))
	}
	return &ringMemory{rings, sqes, s.Offsets}, nil
}

func (m *ringMemory) unmap() error { return errors.Join(unix.Munmap(m.rings), unix.Munmap(m.sqes)) }

// word is a counter, which the kernel reads and writes at the same time.
func (m *ringMemory) word(at int) *uint32 {
	return (*uint32)(unsafe.Pointer(&m.rings[m.offsets[at]])) // aligned: checked, and mappings are
}

func (m *ringMemory) load(at int) uint32     { return atomic.LoadUint32(m.word(at)) }
func (m *ringMemory) store(at int, v uint32) { atomic.StoreUint32(m.word(at), v) }

func enterRing(fd int, submit uint32, flags uint32) error {
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), 0, uintptr(flags), 0, 0)
	switch {
	case errno != 0:
		return fmt.Errorf("entering io_uring: %w", errno)
	case n != uintptr(submit):
		return fmt.Errorf("entering io_uring: %d requests of %d were taken", n, submit)
	}
	return nil
}

// Settle brings the instance, which this process has at its place in the pool, to the counters and contents of the image. run has the
// maker run a batch; only that may use an instance that is bound to it.
func (u *URing) Settle(run func(func(*tracee.Batch)) error) (err error) {
	s := u.state
	if len(u.contents) == 0 {
		return object.BadImagef("an io_uring instance without contents")
	}
	if err := s.checkContents(u.contents); err != nil {
		return object.BadImagef("an io_uring instance with %w", err)
	}
	course, err := s.advance()
	if err != nil {
		return object.BadImagef("an io_uring instance with %w", err)
	}
	m, err := mapRing(u.place, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmap()) }()
	enter := func(counts []uint32, flags uint32) error {
		for _, n := range counts {
			if err := enterRing(u.place, n, flags); err != nil {
				return err
			}
		}
		return nil
	}
	if s.Submitter != 0 {
		enter = func(counts []uint32, flags uint32) error {
			return run(func(b *tracee.Batch) {
				for _, n := range counts {
					b.Call(b.Sys().IoUringEnter, u.place, n, 0, flags, 0, 0).Expect(uint64(n)).Note("the place in an io_uring instance")
				}
			})
		}
	}
	if err := alone(func() error { return u.walk(m, course, enter) }); err != nil {
		return err
	}
	taken := s.SQHead - uint32(len(s.Requests))
	if got := [...]uint32{m.load(atSQHead), m.load(atCQTail)}; got != [...]uint32{taken, s.CQTail} {
		return fmt.Errorf("an io_uring instance has come to %d requests and completions instead of %d and %d", got, taken, s.CQTail)
	}
	copy(m.rings, u.contents[:s.RingSize])
	copy(m.sqes, u.contents[s.RingSize:])
	return nil
}

// alone calls f on a thread that then ends: whoever enters an instance is remembered there for as long as it lives.
func alone(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}

// walk has the instance take and complete requests. Completions are taken up to the one that is the first unread in the image, so
// that the kernel's idea of which places are free is never larger than that of the image.
func (u *URing) walk(m *ringMemory, c ringCourse, enter func(counts []uint32, flags uint32) error) error {
	s := u.state
	unread := s.CQTail - s.word(u.contents, atCQHead)
	read := func() { // before each step
		tail := m.load(atCQTail)
		if left := s.CQTail - tail; left >= unread {
			m.store(atCQHead, tail)
		} else {
			m.store(atCQHead, s.CQTail-unread)
		}
	}
	submit := func(n uint32, flags byte) error {
		for at := 0; at < len(m.sqes); at += sqeSize { // without an array each is used
			m.sqes[at+sqeFlags] = flags
		}
		for n > 0 {
			// As many calls at once as there is room for completions.
			var counts []uint32
			for room := s.CQEntries; n > 0 && room >= s.SQEntries && len(counts) < 64; room -= s.SQEntries {
				counts = append(counts, min(n, s.SQEntries))
				n -= counts[len(counts)-1]
			}
			total := uint32(0)
			for _, k := range counts {
				total += k
			}
			read()
			m.store(atSQTail, m.load(atSQTail)+total)
			if err := enter(counts, 0); err != nil {
				return err
			}
		}
		return nil
	}
	if s.NoDrain || c.silent > 0 {
		if err := submit(c.silent, cqeSkip); err != nil {
			return err
		}
	}
	if err := submit(c.plain, 0); err != nil {
		return err
	}
	if c.extra == 0 {
		return nil
	}
	return u.sendCompletions(c.extra, func(send func(n uint32) error) error {
		for n := c.extra; n > 0; {
			k := min(n, messages, s.CQEntries)
			n -= k
			read()
			if err := send(k); err != nil {
				return err
			}
			if s.Setup&setupDefer == 0 {
				continue
			}
			if err := enter([]uint32{0}, getEvents); err != nil { // its task puts them there
				return err
			}
		}
		return nil
	})
}

// sendCompletions makes an instance that sends completions, and calls f with what sends some of them.
func (u *URing) sendCompletions(most uint32, f func(send func(n uint32) error) error) (err error) {
	params := make([]byte, 120)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, messages, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return fmt.Errorf("making an io_uring instance: %w", errno)
	}
	defer func() { err = errors.Join(err, unix.Close(int(fd))) }()
	field := func(at int) uint32 { return binary.NativeEndian.Uint32(params[at:]) }
	helper := &uringState{SQESize: messages * sqeSize, RingSize: field(40+24) + 4*messages, Offsets: make([]uint32, offsets)}
	helper.Offsets[atSQTail], helper.Offsets[atCQHead], helper.Offsets[atCQHead+1] = field(40+4), field(80), field(80+4)
	m, err := mapRing(int(fd), helper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmap()) }()
	array := m.rings[field(40+24):]
	for i := range uint32(messages) {
		binary.NativeEndian.PutUint32(array[4*i:], i)
		sqe := m.sqes[sqeSize*i:]
		sqe[0] = opMsgRing
		binary.NativeEndian.PutUint32(sqe[sqeFD:], uint32(u.place))
	}
	return f(func(n uint32) error {
		m.store(atSQTail, m.load(atSQTail)+n)
		if err := enterRing(int(fd), n, 0); err != nil {
			return err
		}
		m.store(atCQHead, m.load(atCQHead+1))
		return nil
	})
}
