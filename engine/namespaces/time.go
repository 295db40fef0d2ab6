package namespaces

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Time is the record of a time namespace of the tree's own (time_namespaces(7)). On the machine that it was dumped on, until that is
// booted again, its clocks go on with the machine's, as those of any other tree do; elsewhere they go on from where they were.
type Time struct {
	Monotonic int64 `msgpack:"monotonic,omitempty"` // ns that it adds to CLOCK_MONOTONIC
	Boottime  int64 `msgpack:"boottime,omitempty"`  // ns that it adds to CLOCK_BOOTTIME

	MonotonicAt int64  `msgpack:"monotonic_at"` // ns, CLOCK_MONOTONIC inside when the tree stood still
	BoottimeAt  int64  `msgpack:"boottime_at"`  // ns, CLOCK_BOOTTIME
	Boot        string `msgpack:"boot"`         // which machine, and its boot: /proc/sys/kernel/random/boot_id
}

// TimeKind is the kind of record "ns.time".
var TimeKind = object.NewKind[Time]("ns.time", nil)

// DumpTime learns what the tree's clocks add to the machine's, and adds the record where the root is in another time namespace than the
// caller.
func DumpTime(d *object.Dumper) error {
	o, err := procfs.ReadTimeOffsets(strconv.Itoa(d.Root.PID))
	if err != nil {
		return err
	}
	d.Offsets = o
	own, err := ownNamespace(d, "time")
	if err != nil || !own {
		return err
	}
	mine, err := procfs.ReadTimeOffsets("self")
	if err != nil {
		return err
	}
	s := &Time{Monotonic: o.Monotonic, Boottime: o.Boottime,
		MonotonicAt: d.At.Monotonic - mine.Monotonic + o.Monotonic, BoottimeAt: d.At.Boottime - mine.Boottime + o.Boottime}
	if s.Boot, err = procfs.BootID(); err != nil {
		return err
	}
	d.AddPlain(TimeKind.Type, s)
	return nil
}

// Offsets says what the namespace is to add to the clocks of this machine.
func (s *Time) Offsets() (procfs.TimeOffsets, error) {
	const most = 1 << 62 // ns, 146 years: half of what the kernel can count
	for _, ns := range []int64{s.Monotonic, s.Boottime, s.MonotonicAt, s.BoottimeAt} {
		if ns < -most || ns > most {
			return procfs.TimeOffsets{}, object.BadImagef("a time namespace with a clock at %d ns", ns)
		}
	}
	if s.MonotonicAt < 0 || s.BoottimeAt < 0 {
		return procfs.TimeOffsets{}, object.BadImagef("a time namespace with a clock below 0")
	}
	boot, err := procfs.BootID()
	if err != nil {
		return procfs.TimeOffsets{}, err
	}
	if boot == s.Boot {
		return procfs.TimeOffsets{Monotonic: s.Monotonic, Boottime: s.Boottime}, nil
	}
	mine, err := procfs.ReadTimeOffsets("self")
	if err != nil {
		return mine, err
	}
	now, err := sys.Now()
	return procfs.TimeOffsets{Monotonic: s.MonotonicAt - (now.Monotonic - mine.Monotonic), Boottime: s.BoottimeAt - (now.Boottime - mine.Boottime)}, err
}

// SetTimeOffsets gives them to the time namespace that the next child of a task will be born in, which must be new.
func SetTimeOffsets(pid int, o procfs.TimeOffsets) error {
	line := func(name string, ns int64) string {
		sec, rest := ns/1e9, ns%1e9
		if rest < 0 {
			sec, rest = sec-1, rest+1e9
		}
		return fmt.Sprintf("%s %d %d\n", name, sec, rest)
	}
	// The offsets are relative to the initial namespace, whatever that of the writer.
	text := line("monotonic", o.Monotonic) + line("boottime", o.Boottime)
	f, err := sys.Open("/proc/"+strconv.Itoa(pid)+"/timens_offsets", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if os.IsNotExist(err) {
		return &object.Lacking{What: "this kernel has no time namespaces (CONFIG_TIME_NS), and the tree has one"}
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // written by the call
	if _, err := unix.Write(f.Int(), []byte(text)); err != nil {
		return fmt.Errorf("setting the clocks of the time namespace: %w", err)
	}
	return nil
}
