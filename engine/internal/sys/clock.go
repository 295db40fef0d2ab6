package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Instant is one moment on several clocks, in ns, as clock_gettime(2) gives them to the caller.
type Instant struct {
	Realtime, Monotonic, Boottime, TAI int64
}

// Now returns this moment.
func Now() (Instant, error) {
	var i Instant
	for _, c := range []struct {
		clock int32
		to    *int64
	}{{unix.CLOCK_REALTIME, &i.Realtime}, {unix.CLOCK_MONOTONIC, &i.Monotonic}, {unix.CLOCK_BOOTTIME, &i.Boottime}, {unix.CLOCK_TAI, &i.TAI}} {
		var ts unix.Timespec
		if err := unix.ClockGettime(c.clock, &ts); err != nil {
			return i, fmt.Errorf("reading clock %d: %w", c.clock, err)
		}
		*c.to = ts.Nano()
	}
	return i, nil
}

// Clock returns the time of one of the clocks, false for one that is not among them.
func (i *Instant) Clock(clock int32) (int64, bool) {
	switch clock {
	case unix.CLOCK_REALTIME:
		return i.Realtime, true
	case unix.CLOCK_MONOTONIC:
		return i.Monotonic, true
	case unix.CLOCK_BOOTTIME:
		return i.Boottime, true
	case unix.CLOCK_TAI:
		return i.TAI, true
	}
	return 0, false
}

// Clock is clock_gettime(2), in ns.
func Clock(clock int32) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("reading clock %d: %w", clock, err)
	}
	return ts.Nano(), nil
}

// Yield lets others use the processor first, as sched_yield(2) does.
func Yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
