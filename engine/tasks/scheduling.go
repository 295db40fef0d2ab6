package tasks

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Scheduling is a thread's policy and where it may run (sched(7), ioprio_set(2)).
type Scheduling struct {
	Policy uint32 `msgpack:"policy,omitempty"`
	Flags  uint64 `msgpack:"flags,omitempty"` // SCHED_FLAG_*
	Nice   int32  `msgpack:"nice,omitempty"`
	// IdleNice is what SCHED_IDLE was set with, less Nice: the kernel shows it as the priority in /proc/PID/stat only.
	IdleNice int32  `msgpack:"idle_nice,omitempty"`
	Priority uint32 `msgpack:"priority,omitempty"`
	Runtime  uint64 `msgpack:"runtime,omitempty"` // ns; of SCHED_DEADLINE, else a custom slice
	Deadline uint64 `msgpack:"deadline,omitempty"`
	Period   uint64 `msgpack:"period,omitempty"`
	UtilMin  uint32 `msgpack:"util_min,omitempty"`
	UtilMax  uint32 `msgpack:"util_max,omitempty"`
	Affinity []byte `msgpack:"affinity,omitempty"` // cpu mask, bit 0 of byte 0 is cpu 0; empty: all the cpus that there are
	Ioprio   uint32 `msgpack:"ioprio,omitempty"`
}

// DumpScheduling asks the kernel about thread t from outside. online is the mask of all processors that there are.
func DumpScheduling(t *object.Thread, online []byte) (Scheduling, error) {
	s, err := ReadScheduling(t.TID, online)
	if err != nil {
		return s, t.Process.Error("", fmt.Errorf("thread %d: %w", t.TID, err))
	}
	if custom, known := t.View.CustomSlice.Get(); s.Policy != unix.SCHED_DEADLINE && !(known && custom) {
		s.Runtime = 0 // the slice that everybody has
	}
	if s.Policy == unix.SCHED_IDLE {
		st, err := procfs.ReadThreadStat(t.Process.PID, t.TID)
		if err != nil {
			return s, err
		}
		if nice := st.Priority - 20; nice >= -20 && nice <= 19 { // else it has the priority of somebody who waits for it
			s.IdleNice = int32(nice) - s.Nice
		}
	}
	// ioprio_get(2) makes a priority up from the nice value where none is set, so only the kernel view knows.
	raw, known := t.View.Ioprio.Get()
	if !known {
		return s, t.Process.Error("", &object.Lacking{What: fmt.Sprintf("the kernel view does not know the I/O priority of thread %d", t.TID)})
	}
	s.Ioprio = uint32(raw)
	return s, nil
}

// ReadScheduling reads policy and affinity of any thread.
func ReadScheduling(tid int, online []byte) (Scheduling, error) {
	a, err := sys.SchedGetattr(tid)
	if err != nil {
		return Scheduling{}, fmt.Errorf("reading scheduling: %w", err)
	}
	s := Scheduling{Policy: a.Policy, Flags: a.Flags, Nice: a.Nice, Priority: a.Priority, Runtime: a.Runtime}
	// sched_getattr(2) tells no nice value of a real-time task, which keeps one for later all the same.
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		return Scheduling{}, fmt.Errorf("reading nice value: %w", err)
	}
	s.Nice = int32(20 - raw)
	if a.Policy == unix.SCHED_DEADLINE {
		s.Deadline, s.Period = a.Deadline, a.Period
	}
	if a.Flags&(unix.SCHED_FLAG_UTIL_CLAMP_MIN|unix.SCHED_FLAG_UTIL_CLAMP_MAX) != 0 {
		s.UtilMin, s.UtilMax = a.Util_min, a.Util_max
	}
	mask, err := sys.SchedGetaffinity(tid)
	if err != nil {
		return Scheduling{}, fmt.Errorf("reading affinity: %w", err)
	}
	if mask = trim(mask); string(mask) != string(trim(online)) {
		s.Affinity = mask
	}
	return s, nil
}

// Check refuses what no kernel would show.
func (s *Scheduling) Check() error {
	if s.IdleNice != 0 && (s.Policy != unix.SCHED_IDLE || s.Nice+s.IdleNice < -20 || s.Nice+s.IdleNice > 19 || s.IdleNice > 39 || s.IdleNice < -39) {
		return object.BadImagef("nice value %d for SCHED_IDLE", s.IdleNice)
	}
	if s.Nice < -20 || s.Nice > 19 || s.Priority > 99 || len(s.Affinity) > maxAffinity || s.Ioprio > 0xffff {
		return object.BadImagef("nice value %d, priority %d, I/O priority %#x, %d bytes of affinity", s.Nice, s.Priority, s.Ioprio, len(s.Affinity))
	}
	return nil
}

// maxAffinity is the largest cpu mask in bytes, far above NR_CPUS of any kernel.
const maxAffinity = 8192

// Online is the mask of all processors that are there: what sched_getaffinity(2) says of a task that may run on any.
func Online() ([]byte, error) {
	const path = "/sys/devices/system/cpu/online"
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	mask, err := parseCPUList(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return mask, nil
}

// parseCPUList turns a list such as "0-3,8" (cpuset(7), List format) into a mask.
func parseCPUList(list string) ([]byte, error) {
	var mask []byte
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, err
		}
		b, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil, err
		}
		for cpu := a; cpu <= b; cpu++ {
			for uint64(len(mask)) <= cpu/8 {
				mask = append(mask, 0)
			}
			mask[cpu/8] |= 1 << (cpu % 8)
		}
	}
	return mask, nil
}

func trim(mask []byte) []byte {
	for len(mask) > 0 && mask[len(mask)-1] == 0 {
		mask = mask[:len(mask)-1]
	}
	return mask
}

// Differs says whether Apply has anything to do.
func (s *Scheduling) Differs(have *Scheduling) bool {
	return s.Policy != have.Policy || s.Flags != have.Flags || s.Nice != have.Nice || s.Priority != have.Priority ||
		s.IdleNice != have.IdleNice || s.Runtime != have.Runtime || s.Deadline != have.Deadline || s.Period != have.Period || s.UtilMin != have.UtilMin ||
		s.UtilMax != have.UtilMax || string(s.Affinity) != string(have.Affinity)
}

// Apply gives thread tid its scheduling from outside. have is what all tasks of the restore start with.
func (s *Scheduling) Apply(tid int, have *Scheduling) error {
	if s.Nice != have.Nice {
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, int(s.Nice)); err != nil {
			return &object.Lacking{What: fmt.Sprintf("setting nice value %d", s.Nice), Err: err, Do: "a lower nice value needs CAP_SYS_NICE"}
		}
	}
	if s.Policy != have.Policy || s.Flags != have.Flags || s.Nice != have.Nice || s.IdleNice != have.IdleNice || s.Priority != have.Priority ||
		s.Runtime != have.Runtime || s.Deadline != have.Deadline || s.Period != have.Period || s.UtilMin != have.UtilMin || s.UtilMax != have.UtilMax {
		a := sys.SchedAttr{Policy: s.Policy, Flags: s.Flags, Nice: s.Nice + s.IdleNice, Priority: s.Priority,
			Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period, Util_min: s.UtilMin, Util_max: s.UtilMax}
		if err := sys.SchedSetattr(tid, a); err != nil {
			return &object.Lacking{What: fmt.Sprintf("setting scheduling policy %d, nice %d, priority %d", s.Policy, s.Nice, s.Priority), Err: err,
				Do: "a real-time policy or a lower nice value needs CAP_SYS_NICE"}
		}
	}
	if string(s.Affinity) != string(have.Affinity) {
		mask := s.Affinity
		if len(mask) == 0 {
			var err error
			if mask, err = Online(); err != nil {
				return err
			}
		}
		if err := sys.SchedSetaffinity(tid, mask); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return &object.Lacking{What: "none of the processors that it was bound to is here", Err: err}
			}
			return fmt.Errorf("setting affinity: %w", err)
		}
	}
	return nil
}
