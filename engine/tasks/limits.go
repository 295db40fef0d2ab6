package tasks

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Limits are the pairs of prlimit(2), soft then hard, in the order of the RLIMIT_* numbers. A process without one is
// a zombie.
type Limits []uint64

// DumpLimits reads all limits from the kernel view: prlimit(2) on a process of another user needs CAP_SYS_RESOURCE,
// and /proc/PID/limits does not tell RLIM_INFINITY from a number of the same text, but both know no more than this.
func DumpLimits(p *object.Process) (Limits, error) {
	limits, ok := p.View.Rlimits.Get()
	if !ok {
		return nil, p.Error("", &object.Lacking{What: "the kernel view does not know its resource limits"})
	}
	out := make(Limits, 0, 2*len(limits))
	for _, l := range limits {
		out = append(out, l.Cur, l.Max)
	}
	return out, nil
}

// rlimNLimits is RLIM_NLIMITS (asm-generic/resource.h).
const rlimNLimits = 16

// Check refuses what no kernel would show of a live process.
func (l Limits) Check() error {
	if len(l) != 2*rlimNLimits {
		return object.BadImagef("%d values of resource limits, want %d", len(l), 2*rlimNLimits)
	}
	for i := 0; i < len(l); i += 2 {
		if l[i] > l[i+1] {
			return object.BadImagef("resource limit %d: soft %d above hard %d", i/2, l[i], l[i+1])
		}
	}
	return nil
}

// SetLimits gives process pid its limits from outside. Raising a hard limit above the caller's own needs
// CAP_SYS_RESOURCE, so only what differs is set. A limit of pending signals that becomes lower is left to Late.
func SetLimits(pid int, l Limits) error {
	for i := 0; i < len(l)/2; i++ {
		want := unix.Rlimit{Cur: l[2*i], Max: l[2*i+1]}
		var have unix.Rlimit
		if err := unix.Prlimit(pid, i, nil, &have); err != nil {
			return fmt.Errorf("reading resource limit %d: %w", i, err)
		}
		if have == want || i == unix.RLIMIT_SIGPENDING && want.Cur <= have.Cur && want.Max <= have.Max {
			continue
		}
		if err := unix.Prlimit(pid, i, &want, nil); err != nil {
			return &object.Lacking{What: fmt.Sprintf("setting resource limit %d to %d:%d", i, want.Cur, want.Max), Err: err,
				Do: "raising a hard limit needs CAP_SYS_RESOURCE; run cr-restore with hard limits at least as high"}
		}
	}
	return nil
}

// LateCalls adds the call by which a process itself takes a limit under which its pending signals and timers, each of
// which counts, could not be made again: they are older than the limit. Lowering needs no privilege.
func (l Limits) LateCalls(b *tracee.Batch, have unix.Rlimit) {
	if have.Cur == l[2*unix.RLIMIT_SIGPENDING] && have.Max == l[2*unix.RLIMIT_SIGPENDING+1] {
		return
	}
	pair := binary.NativeEndian.AppendUint64(nil, l[2*unix.RLIMIT_SIGPENDING])
	pair = binary.NativeEndian.AppendUint64(pair, l[2*unix.RLIMIT_SIGPENDING+1])
	b.Call(b.Sys().Prlimit64, 0, unix.RLIMIT_SIGPENDING, pair, 0).Note("RLIMIT_SIGPENDING")
}

// DumpOOMScore reads /proc/PID/oom_score_adj.
func DumpOOMScore(p *object.Process) (int32, error) {
	if v, ok := p.View.OOMScoreAdj.Get(); ok {
		return int32(v), nil
	}
	return 0, p.Error("", &object.Lacking{What: "the kernel view does not know its oom_score_adj"})
}

// SetOOMScore writes /proc/PID/oom_score_adj where it differs: lowering it needs CAP_SYS_RESOURCE.
func SetOOMScore(pid int, v int32) error {
	path := "/proc/" + strconv.Itoa(pid) + "/oom_score_adj"
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	want := strconv.Itoa(int(v)) + "\n"
	if string(have) == want {
		return nil
	}
	if err := os.WriteFile(path, []byte(want), 0); err != nil {
		return &object.Lacking{What: "setting oom_score_adj to " + strconv.Itoa(int(v)), Err: err,
			Do: "lowering it needs CAP_SYS_RESOURCE"}
	}
	return nil
}
