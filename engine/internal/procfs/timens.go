package procfs

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// TimeOffsets are what a time namespace adds to the clocks of the machine, in ns (time_namespaces(7)).
type TimeOffsets struct {
	Monotonic, Boottime int64
}

// ParseTimeOffsets parses /proc/PID/timens_offsets: a line for each clock, with its name, seconds and nanoseconds.
func ParseTimeOffsets(b []byte) (TimeOffsets, error) {
	var o TimeOffsets
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return o, badFormat("an offset of a clock", []byte(line))
		}
		sec, err1 := strconv.ParseInt(f[1], 10, 64)
		ns, err2 := strconv.ParseInt(f[2], 10, 64)
		const most = 1<<63/1_000_000_000 - 1 // KTIME_SEC_MAX
		if err1 != nil || err2 != nil || sec < -most || sec > most || ns < 0 || ns >= 1e9 {
			return o, badFormat("an offset of a clock", []byte(line))
		}
		switch f[0] {
		case "monotonic":
			o.Monotonic = sec*1e9 + ns
		case "boottime":
			o.Boottime = sec*1e9 + ns
		}
	}
	return o, nil
}

// ReadTimeOffsets reads /proc/PID/timens_offsets, of the namespace that children of the task are born in; pid "self" is the caller.
// A kernel without time namespaces has no such file, and no offsets.
func ReadTimeOffsets(pid string) (TimeOffsets, error) {
	o, err := with("/proc/"+pid+"/timens_offsets", ParseTimeOffsets)
	if errors.Is(err, os.ErrNotExist) {
		return TimeOffsets{}, nil
	}
	return o, err
}

// Of returns the offset of a clock, in ns: the alarm clocks go with theirs (timens_offsets in include/linux/time_namespace.h).
func (o TimeOffsets) Of(clock int32) int64 {
	const (
		monotonic, monotonicRaw, monotonicCoarse = 1, 4, 6 // linux/time.h
		boottime, boottimeAlarm                  = 7, 9
	)
	switch clock {
	case monotonic, monotonicRaw, monotonicCoarse:
		return o.Monotonic
	case boottime, boottimeAlarm:
		return o.Boottime
	}
	return 0
}
