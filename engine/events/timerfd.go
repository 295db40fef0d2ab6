package events

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A timerfd (timerfd_create(2)): the time left, the interval, and the expiries that nobody has read. A timer that was
// set to an absolute time of day keeps that, any other one the time that was left; time does not pass between dump and
// restore. The kernel shows all of it in fdinfo and in struct timerfd_ctx.
//
// Refused: one whose clock was set (TFD_TIMER_CANCEL_ON_SET) and whose reader has not been told yet.
type timerfdState struct {
	Clock    int32  `msgpack:"clock"`             // CLOCK_*
	Settime  uint32 `msgpack:"settime,omitempty"` // TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
	Left     int64  `msgpack:"left,omitempty"`    // ns, at least 1; 0: not armed
	Expires  int64  `msgpack:"until,omitempty"`   // ns of CLOCK_REALTIME, in place of Left
	Interval int64  `msgpack:"interval,omitempty"`
	Ticks    uint64 `msgpack:"ticks,omitempty"` // expiries to be read
	Flags    uint32 `msgpack:"flags"`           // as F_GETFL
}

func dumpTimerfd(d *object.Dumper, f *object.OpenFile) (*timerfdState, error) {
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	v, err := d.View.Timerfd(f.View.ID)
	if err != nil {
		return nil, fmt.Errorf("looking at the timerfd: %w", err)
	}
	if canceled, ok := v.Canceled.Get(); canceled || !ok && v.Flags&unix.TFD_TIMER_CANCEL_ON_SET != 0 {
		return nil, object.Unsupportedf("its clock was set, or may have been, and it was not told yet (TFD_TIMER_CANCEL_ON_SET), which cannot be checkpointed")
	}
	s := &timerfdState{Clock: v.Clock, Settime: v.Flags, Interval: v.Interval, Ticks: v.Ticks, Flags: flags}
	if !v.Armed {
		return s, nil
	}
	on, onKnown := v.ExpiresOn.Get()
	left, ok := v.Left.Get()
	switch {
	case onKnown && on == unix.CLOCK_REALTIME && v.Flags&unix.TFD_TIMER_ABSTIME != 0 && !v.Expired:
		s.Expires = v.Expires
	case ok:
		s.Left = max(left, 1)
	default:
		return nil, &object.Lacking{What: "the kernel view does not know the time that is left"}
	}
	if v.Expired && v.Interval > 0 {
		if !onKnown {
			return nil, &object.Lacking{What: "the kernel view does not know the clock of the timer"}
		}
		more, err := missed(d, &v, on, left)
		if err != nil {
			return nil, err
		}
		s.Ticks += more
	}
	return s, nil
}

// missed returns how many times a periodic timer has expired since the expiry at which it stopped: the kernel counts
// these when the timer is read (timerfd_read_iter in fs/timerfd.c). The next expiry, now + left, is Expires and a whole
// number of intervals; the first of these leads to the first one that was missed.
func missed(d *object.Dumper, v *kernelview.Timerfd, clock int32, left int64) (uint64, error) {
	now, ok := d.View.Now(clock).Get()
	if !ok {
		return 0, &object.Lacking{What: fmt.Sprintf("the kernel view does not know the time of clock %d", clock)}
	}
	intervals := (now + left - v.Expires + v.Interval/2) / v.Interval
	return uint64(max(intervals-1, 0)), nil
}

func clockNow(clock int32) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("reading clock %d: %w", clock, err)
	}
	return ts.Nano(), nil
}

func (s *timerfdState) check() error {
	switch s.Clock {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_REALTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM:
	default:
		return object.BadImagef("clock %d of a timerfd is impossible", s.Clock)
	}
	if s.Left < 0 || s.Expires < 0 || s.Interval < 0 || s.Left != 0 && s.Expires != 0 ||
		s.Settime&^(unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET) != 0 {
		return object.BadImagef("a timerfd with %d ns left, until %d, every %d ns, set with flags %#x is impossible", s.Left, s.Expires, s.Interval, s.Settime)
	}
	if s.Expires != 0 && (s.Settime&unix.TFD_TIMER_ABSTIME == 0 || s.Clock != unix.CLOCK_REALTIME && s.Clock != unix.CLOCK_REALTIME_ALARM) {
		return object.BadImagef("a timerfd on clock %d has a time of day", s.Clock)
	}
	return nil
}

func restoreTimerfd(_ *object.Restorer, _ stream.Ref, s *timerfdState) (int, error) {
	if err := s.check(); err != nil {
		return -1, err
	}
	fd, err := unix.TimerfdCreate(int(s.Clock), unix.TFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("making a timerfd on clock %d: %w", s.Clock, err)
	}
	if err := s.set(fd); err != nil {
		_ = unix.Close(fd) // new, nothing is lost
		return -1, err
	}
	return finish(fd, s.Flags)
}

// set arms the timer and gives it its unread expiries.
func (s *timerfdState) set(fd int) error {
	if s.Left != 0 || s.Expires != 0 || s.Interval != 0 || s.Settime != 0 {
		value := s.Left
		if s.Expires != 0 {
			value = s.Expires
		} else if s.Left != 0 && s.Settime&unix.TFD_TIMER_ABSTIME != 0 {
			clock := s.Clock
			switch clock { // the alarm clocks tell the same time and may not be there to be read
			case unix.CLOCK_REALTIME_ALARM:
				clock = unix.CLOCK_REALTIME
			case unix.CLOCK_BOOTTIME_ALARM:
				clock = unix.CLOCK_BOOTTIME
			}
			now, err := clockNow(clock)
			if err != nil {
				return err
			}
			value += now
		}
		spec := unix.ItimerSpec{Interval: unix.NsecToTimespec(s.Interval), Value: unix.NsecToTimespec(value)}
		if err := unix.TimerfdSettime(fd, int(s.Settime), &spec, nil); err != nil {
			return fmt.Errorf("setting a timerfd: %w", err)
		}
	}
	if s.Ticks == 0 {
		return nil
	}
	err := setTicks(fd, s.Ticks)
	if errors.Is(err, unix.ENOTTY) {
		return &object.Lacking{What: "giving a timerfd its unread expiries", Err: err, Do: "use a kernel with CONFIG_CHECKPOINT_RESTORE"}
	}
	if err != nil {
		return fmt.Errorf("setting the unread expiries of a timerfd: %w", err)
	}
	return nil
}

// StartTimers sets all timerfds of the image once more, so that the time that the restore took is not missing in them.
// It is called right before the tasks go on, while the pool is open.
func StartTimers(r *object.Restorer) error {
	for _, t := range object.All[timerfdState](r.Plan) {
		fd, err := r.File(t.Ref)
		if err != nil {
			return err
		}
		if err := t.State.set(fd); err != nil {
			return err
		}
	}
	return nil
}

// TimerfdKind is the kind of timerfds.
var TimerfdKind = object.NewFileKind("file.timerfd", claims(kernelview.KindTimerfd, "anon_inode:[timerfd]"), dumpTimerfd, restoreTimerfd).Late()
