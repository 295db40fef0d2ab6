package kernelview

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// content reads what is behind an open file of that kind.
func (v *bpfView) content(file ID, kind Kind, structure string) ([]byte, uint64, error) {
	if file >= ID(len(v.files)) || v.files[file].kind != kind {
		return nil, 0, fmt.Errorf("reading %s content: %w", kind, ErrKind)
	}
	f := &v.files[file]
	b, err := v.mem.peek(f.private, v.l.span[structure])
	if err != nil {
		return nil, 0, fmt.Errorf("reading %s content: %w", kind, err)
	}
	return b, f.private, nil
}

// missingField says that this kernel's BTF lacks a part of a kind's content.
func missingField(kind Kind) error {
	return &MissingError{What: fmt.Sprintf("a kernel whose structures are known (that of %s is not in its BTF)", kind)}
}

// Eventfd is documented with View.
func (v *bpfView) Eventfd(file ID) (Eventfd, error) {
	b, _, err := v.content(file, KindEventfd, "eventfd_ctx")
	if err != nil {
		return Eventfd{}, err
	}
	const efdSemaphore = 1 // EFD_SEMAPHORE, kept as it was given
	count, ok1 := v.l.uint(b, fEvCount)
	flags, ok2 := v.l.uint(b, fEvFlags)
	if !ok1 || !ok2 {
		return Eventfd{}, missingField(KindEventfd)
	}
	return Eventfd{Count: count, Semaphore: flags&efdSemaphore != 0}, nil
}

// Signalfd is documented with View.
func (v *bpfView) Signalfd(file ID) (Signalfd, error) {
	b, _, err := v.content(file, KindSignalfd, "signalfd_ctx")
	if err != nil {
		return Signalfd{}, err
	}
	mask, ok := v.l.uint(b, fSigMask)
	if !ok {
		return Signalfd{}, missingField(KindSignalfd)
	}
	return Signalfd{Mask: ^mask}, nil // stored as the signals that it does not take
}

// maxEpollItems bounds the walk; fs.epoll.max_user_watches is of this order.
const maxEpollItems = 1 << 24

// Epoll is documented with View. The tree is read level by level: as many
// gathers as it is high.
func (v *bpfView) Epoll(file ID) (Epoll, error) {
	l := v.l
	b, _, err := v.content(file, KindEpoll, "eventpoll")
	if err != nil {
		return Epoll{}, err
	}
	for _, f := range []field{fEpRoot, fRbLeft, fRbRight, fItemRbn, fItemRdl, fItemFFD, fItemFD, fItemEv, fItemDat} {
		if !l.has(f) {
			return Epoll{}, missingField(KindEpoll)
		}
	}
	root, _ := l.uint(b, fEpRoot)
	var level []uint64
	if root != 0 {
		level = []uint64{root - l.off(fItemRbn)}
	}
	var items []EpollItem
	fault := false
	for seen := 0; len(level) > 0; {
		if seen += len(level); seen > maxEpollItems {
			return Epoll{}, fmt.Errorf("reading epoll content: %w", errFault)
		}
		var below []uint64
		err := v.mem.gather(level, l.span["epitem"], func(i int, b []byte) {
			if b == nil {
				fault = true
				return
			}
			node, _ := l.bytes(b, fItemRbn)
			for _, f := range []field{fRbLeft, fRbRight} {
				if child, ok := l.uint(node, f); ok && child != 0 {
					below = append(below, child-l.off(fItemRbn))
				}
			}
			if dying, ok := l.uint(b, fItemDie); ok && dying != 0 {
				return
			}
			items = append(items, v.epollItem(level[i], b))
		})
		if err != nil {
			return Epoll{}, err
		}
		if fault {
			return Epoll{}, fmt.Errorf("reading epoll content: %w", errFault)
		}
		level = below
	}
	slices.SortFunc(items, func(a, b EpollItem) int {
		return cmp.Or(cmp.Compare(a.FD, b.FD), cmp.Compare(a.File, b.File))
	})
	return Epoll{Items: items}, nil
}

func (v *bpfView) epollItem(addr uint64, b []byte) EpollItem {
	l := v.l
	watched, _ := l.uint(b, fItemFFD)
	fd, _ := l.uint(b, fItemFD)
	events, _ := l.uint(b, fItemEv)
	data, _ := l.uint(b, fItemDat)
	ready, _ := l.bytes(b, fItemRdl)
	return EpollItem{
		FD: int(int32(fd)), File: v.id(watched), Events: uint32(events), Data: data,
		Ready: len(ready) >= 8 && binary.NativeEndian.Uint64(ready) != addr+l.off(fItemRdl),
	}
}

// Timerfd is documented with View.
func (v *bpfView) Timerfd(file ID) (Timerfd, error) {
	l := v.l
	b, _, err := v.content(file, KindTimerfd, "timerfd_ctx")
	if err != nil {
		return Timerfd{}, err
	}
	clock := num[int32](l, b, fTfClock)
	interval := num[int64](l, b, fTfInterval)
	ticks := num[uint64](l, b, fTfTicks)
	expired := flag(l, b, fTfExpired)
	flags := num[uint32](l, b, fTfFlags)
	alarm := clock.V == unix.CLOCK_REALTIME_ALARM || clock.V == unix.CLOCK_BOOTTIME_ALARM
	fState, fExpires := fTfState, fTfExpires
	if alarm {
		fState, fExpires = fTfAState, fTfAExpires
	}
	state, ok1 := l.uint(b, fState)
	expires, ok2 := l.uint(b, fExpires)
	if !clock.Known || !interval.Known || !ticks.Known || !expired.Known || !flags.Known || !ok1 || !ok2 {
		return Timerfd{}, missingField(KindTimerfd)
	}
	t := Timerfd{
		Clock: clock.V, Flags: flags.V, Interval: interval.V, Ticks: ticks.V,
		Expired: expired.V, Expires: int64(expires), Left: Is(int64(0)),
	}
	queued := state&hrtimerQueued != 0
	t.Armed = queued || (t.Expired && t.Interval != 0)
	if alarm {
		t.ExpiresOn = Is(t.Clock)
	} else {
		base, _ := l.uint(b, fTfBase)
		if t.ExpiresOn, err = v.baseClock(base); err != nil {
			return Timerfd{}, fmt.Errorf("reading timerfd content: %w", err)
		}
	}
	if t.Armed {
		t.Left = Maybe[int64]{}
		if t.ExpiresOn.Known {
			t.Left = v.clocks.until(t.ExpiresOn.V, t.Expires)
		}
		if t.Left.Known && !queued {
			t.Left.V = forward(t.Left.V, t.Interval)
		}
	}
	may := flag(l, b, fTfMayCancel)
	moffs := num[int64](l, b, fTfMoffs)
	if may.Known && moffs.Known {
		t.Canceled = Is(may.V && moffs.V == math.MaxInt64) // KTIME_MAX
	}
	return t, nil
}

// Pipe is documented with View.
func (v *bpfView) Pipe(file ID) (Pipe, error) {
	l := v.l
	b, addr, err := v.content(file, KindPipe, "pipe_inode_info")
	if err != nil {
		return Pipe{}, err
	}
	head := num[uint32](l, b, fPipeHead)
	tail := num[uint32](l, b, fPipeTail)
	ring := num[uint32](l, b, fPipeRing)
	readers := num[uint32](l, b, fPipeReaders)
	writers := num[uint32](l, b, fPipeWriters)
	files := num[uint32](l, b, fPipeFiles)
	bufs, ok := l.uint(b, fPipeBufs)
	size := uint32(l.fields[fBufSize].size)
	if !head.Known || !tail.Known || !ring.Known || !readers.Known || !writers.Known || !files.Known ||
		!ok || size == 0 || !l.has(fBufLen) || !l.has(fBufFlags) || !l.facts[factPacket].known {
		return Pipe{}, missingField(KindPipe)
	}
	if l.fields[fPipeHead].size == 2 { // on 32-bit machines since 6.15
		head.V, tail.V = head.V&0xffff, tail.V&0xffff
	}
	const most = 1 << 24 // F_SETPIPE_SZ takes 2 GiB at most
	used := head.V - tail.V
	if ring.V == 0 || ring.V&(ring.V-1) != 0 || ring.V > most || used > ring.V {
		return Pipe{}, fmt.Errorf("reading pipe content: %w", errFault)
	}
	p := Pipe{ID: v.id(addr), Slots: ring.V, Readers: readers.V, Writers: writers.V, Files: files.V}
	if queue, ok := l.uint(b, fPipeWatch); ok && queue != 0 {
		p.Notifications = true
	}
	if p.Async, err = v.asyncOf(b, fPipeAsyncR, fPipeAsyncW); err != nil {
		return Pipe{}, fmt.Errorf("reading pipe content: %w", err)
	}
	if used == 0 {
		return p, nil
	}
	all, err := v.mem.peek(bufs, int(ring.V*size))
	if err != nil {
		return Pipe{}, fmt.Errorf("reading pipe content: %w", err)
	}
	for i := tail.V; i != head.V; i++ {
		at := i & (ring.V - 1) * size
		one := all[at : at+size]
		n, _ := l.uint(one, fBufLen)
		flags, _ := l.uint(one, fBufFlags)
		p.Buffers = append(p.Buffers, PipeBuffer{
			Len: uint32(n), Packet: flags&l.facts[factPacket].value != 0,
		})
	}
	return p, nil
}
