package kernelview

import "encoding/binary"

// maxThreads bounds the walk over a process's threads: PID_MAX_LIMIT.
const maxThreads = 4 << 20

// cpuTimes is CPU time in ns, as CPU clocks count it.
type cpuTimes struct{ utime, stime, runtime uint64 }

func (v *bpfView) timesOf(b []byte, utime, stime, runtime field) Maybe[cpuTimes] {
	u, ok1 := v.l.uint(b, utime)
	s, ok2 := v.l.uint(b, stime)
	r, ok3 := v.l.uint(b, runtime)
	if !ok1 || !ok2 || !ok3 {
		return Maybe[cpuTimes]{}
	}
	return Is(cpuTimes{u, s, r})
}

// processTimes adds up the CPU time of a process's dead and live threads, as
// thread_group_cputime does (kernel/sched/cputime.c).
func (v *bpfView) processTimes(signal uint64) (Maybe[cpuTimes], error) {
	none := Maybe[cpuTimes]{}
	if !v.l.has(fSThreadHead) || !v.l.has(fTThreadNode) {
		return none, nil
	}
	b, err := v.mem.peek(signal, v.l.span["signal_struct"])
	if err != nil {
		return none, err
	}
	total := v.timesOf(b, fSUtime, fSStime, fSRuntime)
	if !total.Known {
		return none, nil
	}
	head := signal + v.l.off(fSThreadHead)
	list, _ := v.l.bytes(b, fSThreadHead)
	next := binary.NativeEndian.Uint64(list)
	for n := 0; next != head; n++ {
		if n == maxThreads {
			return none, errFault
		}
		t, err := v.mem.peek(next-v.l.off(fTThreadNode), v.l.span["task_struct"])
		if err != nil {
			return none, err
		}
		times := v.timesOf(t, fTUtime, fTStime, fTExecRuntime)
		if !times.Known {
			return none, nil
		}
		total.V.utime += times.V.utime
		total.V.stime += times.V.stime
		total.V.runtime += times.V.runtime
		node, _ := v.l.bytes(t, fTThreadNode)
		next = binary.NativeEndian.Uint64(node)
	}
	return total, nil
}

// runningTimes is the sample that the kernel keeps while a CPU timer of the
// process is armed; unknown when none is.
func (v *bpfView) runningTimes(signal []byte) Maybe[cpuTimes] {
	if active, ok := v.l.uint(signal, fSCPUActive); !ok || active == 0 {
		return Maybe[cpuTimes]{}
	}
	return v.timesOf(signal, fSCPUUtime, fSCPUStime, fSCPURuntime)
}
