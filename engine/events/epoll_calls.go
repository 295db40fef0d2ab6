package events

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// privateBits are what the kernel leaves of the events of an item that fired once (EP_PRIVATE_BITS of fs/eventpoll.c).
// An armed item always has EPOLLERR and EPOLLHUP as well.
const privateBits = unix.EPOLLWAKEUP | unix.EPOLLONESHOT | unix.EPOLLET | unix.EPOLLEXCLUSIVE

func (i *watchItem) disarmed() bool {
	return i.Events&unix.EPOLLONESHOT != 0 && i.Events&^privateBits == 0
}

// A wakener has a file report EPOLLIN or EPOLLOUT for a moment.
type wakener struct {
	before, after func(b *tracee.Batch) // may be nil
}

// wakenerOf returns how the file o, fd in the pool, is made ready at a time when pipes are still empty; nil when
// there is no way.
func wakenerOf(r *object.Restorer, o *object.Object, fd int) *wakener {
	switch s := o.State.(type) {
	case interface {
		Writable(r *object.Restorer) bool
	}:
		if s.Writable(r) {
			return &wakener{}
		}
		return nil
	case *eventfdState:
		return &wakener{} // can be read or written, whatever its count
	case *timerfdState:
		if s.Ticks > 0 {
			return &wakener{}
		}
		return &wakener{
			before: func(b *tracee.Batch) {
				b.Call(b.Sys().Ioctl, fd, uint32(setTicksRequest), binary.NativeEndian.AppendUint64(nil, 1)).Note("waking a timerfd")
			},
			after: func(b *tracee.Batch) {
				b.Call(b.Sys().Read, fd, b.Space(8), 8).Note("calming a timerfd")
			},
		}
	}
	read, write, ok := files.PipeEnds(r, o)
	if !ok {
		return nil
	}
	return &wakener{
		before: func(b *tracee.Batch) { b.Call(b.Sys().Write, write, []byte{0}, 1).Note("waking a pipe") },
		after: func(b *tracee.Batch) {
			b.Call(b.Sys().Read, read, b.Space(1), 1).Note("calming a pipe")
			files.PipeTimes(b, r, o)
		},
	}
}

// rootCalls returns what adds the items in the root task: first, while the instance is still empty, those that must
// fire once, then all others.
func rootCalls(epfd int, watches []watch) func(*tracee.Batch) error {
	return func(b *tracee.Batch) error {
		n := b.Sys()
		for i := range watches {
			w := &watches[i]
			if w.wake == nil {
				continue
			}
			if w.wake.before != nil {
				w.wake.before(b)
			}
			w.add(b, epfd, w.Events|unix.EPOLLIN|unix.EPOLLOUT)
			b.Call(n.EpollPwait, epfd, b.Space(eventSize), 1, 0, 0, 8).Expect(1).Note("disarming the item with descriptor %d", w.FD)
			if w.wake.after != nil {
				w.wake.after(b)
			}
		}
		for i := range watches {
			if w := &watches[i]; w.wake == nil {
				w.add(b, epfd, w.Events)
			}
		}
		return nil
	}
}

// add appends the calls that add one item under its number.
func (w *watch) add(b *tracee.Batch, epfd int, events uint32) {
	n := b.Sys()
	b.Call(n.Dup3, w.fd, w.FD, unix.O_CLOEXEC).Note("epoll item with descriptor %d", w.FD)
	b.Call(n.EpollCtl, epfd, unix.EPOLL_CTL_ADD, w.FD, epollEvent(events, w.Data)).Note("epoll item with descriptor %d", w.FD)
	b.Call(n.Close, w.FD)
}

// eventSize is the size of struct epoll_event: packed on x86-64 and, by its alignment, on 32-bit x86.
var eventSize = binary.Size(unix.EpollEvent{})

func epollEvent(events uint32, data uint64) []byte {
	b := make([]byte, eventSize)
	binary.NativeEndian.PutUint32(b, events)
	binary.NativeEndian.PutUint64(b[eventSize-8:], data)
	return b
}
