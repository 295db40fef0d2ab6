package kernelview

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// clocks reads the kernel's clocks as the kernel counts them: its structures
// hold times of the initial time namespace, and clock_gettime answers in the
// caller's.
type clocks struct {
	monotonic, boottime int64 // ns that the caller's time namespace adds
	fixed               *sys.Instant
}

// read is clock_gettime(2), or what it was at the fixed moment.
func (c clocks) read(clock int32) Maybe[int64] {
	if c.fixed != nil {
		t, ok := c.fixed.Clock(clock)
		return Maybe[int64]{V: t, Known: ok}
	}
	var ts unix.Timespec
	if unix.ClockGettime(clock, &ts) != nil {
		return Maybe[int64]{}
	}
	return Is(ts.Nano())
}

// readClocks learns the caller's offsets.
func readClocks() clocks {
	o, _ := procfs.ReadTimeOffsets("self") // unreadable, it is as if there were none
	return clocks{monotonic: o.Monotonic, boottime: o.Boottime}
}

// now is the time of a clock that is not a CPU clock, in the initial time
// namespace.
func (c clocks) now(clock int32) Maybe[int64] {
	switch clock {
	case unix.CLOCK_REALTIME_ALARM:
		clock = unix.CLOCK_REALTIME
	case unix.CLOCK_BOOTTIME_ALARM:
		clock = unix.CLOCK_BOOTTIME
	}
	if clock < 0 {
		return Maybe[int64]{}
	}
	m := c.read(clock)
	if !m.Known {
		return m
	}
	t := m.V
	switch clock {
	case unix.CLOCK_MONOTONIC:
		t -= c.monotonic
	case unix.CLOCK_BOOTTIME:
		t -= c.boottime
	}
	return Is(t)
}

// until is the time left to a moment of that clock.
func (c clocks) until(clock int32, expires int64) Maybe[int64] {
	now := c.now(clock)
	if !now.Known {
		return now
	}
	return Is(expires - now.V)
}

// forward moves a time left that is over on by whole intervals, to the next
// expiry in the future, as hrtimer_forward does.
func forward(left, interval int64) int64 {
	if left > 0 || interval <= 0 {
		return left
	}
	return left + (-left/interval+1)*interval
}
