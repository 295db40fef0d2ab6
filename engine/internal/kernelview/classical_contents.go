package kernelview

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// Eventfd implements View.
func (v *classicalView) Eventfd(id ID) (Eventfd, error) {
	f, err := v.held(id, KindEventfd)
	if err != nil {
		return Eventfd{}, err
	}
	info, err := f.info()
	if err != nil {
		return Eventfd{}, err
	}
	if info.Eventfd == nil {
		return Eventfd{}, ErrKind
	}
	if info.Eventfd.Semaphore < 0 {
		return Eventfd{}, &MissingError{What: "fdinfo that says whether an eventfd is a semaphore (Linux 6.5)"}
	}
	return Eventfd{Count: info.Eventfd.Count, Semaphore: info.Eventfd.Semaphore != 0}, nil
}

// Signalfd implements View.
func (v *classicalView) Signalfd(id ID) (Signalfd, error) {
	f, err := v.held(id, KindSignalfd)
	if err != nil {
		return Signalfd{}, err
	}
	info, err := f.info()
	if err != nil {
		return Signalfd{}, err
	}
	if info.Signalfd == nil {
		return Signalfd{}, ErrKind
	}
	return Signalfd{Mask: *info.Signalfd}, nil
}

// Timerfd implements View. A periodic one that has expired and was not read stands still; timerfd_gettime(2), unlike fdinfo,
// sets it going again first, with its expiries counted, as a read would.
func (v *classicalView) Timerfd(id ID) (Timerfd, error) {
	f, err := v.held(id, KindTimerfd)
	if err != nil {
		return Timerfd{}, err
	}
	fd, err := f.duplicate()
	if err != nil {
		return Timerfd{}, err
	}
	defer fd.Close()
	var spec unix.ItimerSpec
	if err := unix.TimerfdGettime(fd.Int(), &spec); err != nil {
		return Timerfd{}, fmt.Errorf("asking for the time left: %w", err)
	}
	passed := v.sinceFixed()
	info, err := f.info()
	if err != nil {
		return Timerfd{}, err
	}
	if info.Timerfd == nil {
		return Timerfd{}, ErrKind
	}
	t := Timerfd{
		Clock: int32(info.Timerfd.ClockID), Flags: info.Timerfd.SettimeFlags, Interval: spec.Interval.Nano(),
		Ticks: info.Timerfd.Ticks, Armed: spec.Value.Nano() != 0,
	}
	if !t.Armed {
		return t, nil
	}
	left := spec.Value.Nano()
	t.Left = Is(left + passed)
	if t.Clock == unix.CLOCK_REALTIME && t.Flags&unix.TFD_TIMER_ABSTIME != 0 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return Timerfd{}, fmt.Errorf("reading the time of day: %w", err)
		}
		t.Expires, t.ExpiresOn = now.Nano()+left, Is[int32](unix.CLOCK_REALTIME)
	}
	return t, nil
}

// Epoll implements View.
func (v *classicalView) Epoll(id ID) (Epoll, error) {
	f, err := v.held(id, KindEpoll)
	if err != nil {
		return Epoll{}, err
	}
	info, err := f.info()
	if err != nil {
		return Epoll{}, err
	}
	var e Epoll
	nth := map[int]int{} // items met with a number
	for _, target := range info.Epoll {
		item := EpollItem{FD: target.FD, Events: target.Events, Data: target.Data}
		if item.File, err = v.watched(f, &target, nth[target.FD]); err != nil {
			return Epoll{}, err
		}
		nth[target.FD]++
		e.Items = append(e.Items, item)
	}
	slices.SortStableFunc(e.Items, func(a, b EpollItem) int {
		return cmp.Or(cmp.Compare(a.FD, b.FD), cmp.Compare(a.File, b.File))
	})
	return e, nil
}

// watched returns which of the files that were shown an item watches, 0 for none.
func (v *classicalView) watched(ep *heldFile, target *procfs.EpollTarget, nth int) (ID, error) {
	same := func(f *heldFile) (bool, error) {
		order, err := sys.KcmpEpoll(f.tid, f.fd, ep.tid, ep.fd, target.FD, nth)
		if err != nil {
			return false, fmt.Errorf("comparing descriptor %d of pid %d with what epoll watches by kcmp: %w", f.fd, f.tid, err)
		}
		return order == sys.Same, nil
	}
	// Nearly always it is what the number still leads to.
	for _, fd := range v.files.tables[v.tableOf(ep.tid)] {
		if fd.FD != target.FD {
			continue
		}
		f := v.files.byID[fd.File.ID]
		if ok, err := same(f); err != nil || ok {
			return f.ID, err
		}
	}
	for _, list := range v.files.byKey {
		for _, f := range list {
			if f.key.ino != target.Ino {
				continue
			}
			if ok, err := same(f); err != nil || ok {
				return f.ID, err
			}
		}
	}
	return 0, nil
}

// tableOf returns the identity of the descriptor table of a thread that Files was asked for.
func (v *classicalView) tableOf(tid int) ID {
	id, err := v.identify(sys.KcmpFiles, tid)
	if err != nil {
		return 0
	}
	return id.V
}

// SocketAsync implements View: nobody outside of the kernel can know.
func (v *classicalView) SocketAsync(id ID) (Maybe[[]Async], error) {
	_, err := v.held(id, KindSocket)
	return Maybe[[]Async]{}, err
}
