package tasks

import (
	"fmt"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Debug registers of x86, as a debugger sets them through PTRACE_POKEUSER: hardware breakpoints, which stay when it has detached
// (ptrace_set_debugreg in arch/x86/kernel/ptrace.c). No other task inherits them, and exec clears them. They are written when a thread
// has all else, for each could be hit.

// debugRegs are the numbers that are kept, in the order in which they are set: the control register last.
var debugRegs = []int{0, 1, 2, 3, 6, 7}

const debugBase = 848 // offsetof(struct user, u_debugreg) on amd64, sys/user.h

// dumpDebug reads them; the thread is in a ptrace stop.
func dumpDebug(d *object.Dumper, t *object.Thread) ([]uint64, error) {
	if on, known := t.View.Breakpoints.Get(); !known || !on {
		return nil, nil
	}
	if d.Arch.Name != "amd64" || t.Kernel != nil {
		return nil, t.Process.Error("", object.Unsupportedf("thread %d has hardware breakpoints set", t.TID))
	}
	out := make([]uint64, len(debugRegs))
	for i, n := range debugRegs {
		v, err := sys.PtracePeekUser(t.TID, debugBase+8*uintptr(n))
		if err != nil {
			return nil, t.Process.Error("", fmt.Errorf("reading debug register %d of thread %d: %w", n, t.TID, err))
		}
		out[i] = uint64(v)
	}
	return out, nil
}

// checkDebug refuses what is no such list.
func (s *Thread) checkDebug(archName string) error {
	if len(s.Debug) > 0 && (len(s.Debug) != len(debugRegs) || archName != "amd64") {
		return object.BadImagef("%d debug registers", len(s.Debug))
	}
	return nil
}

// SetDebug sets them in a stopped thread, on the thread of its tracer. The kernel refuses addresses that are not the program's.
func (s *Thread) SetDebug(tid int) error {
	for i, v := range s.Debug {
		if v == 0 {
			continue
		}
		if err := sys.PtracePokeUser(tid, debugBase+8*uintptr(debugRegs[i]), uintptr(v)); err != nil {
			return fmt.Errorf("setting debug register %d: %w", debugRegs[i], err)
		}
	}
	return nil
}
