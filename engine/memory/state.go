package memory

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
)

// state returns the record of an address space as far as the kernel view knows it.
func (m *mmDump) state(as *kernelview.AddressSpace) (*MM, error) {
	mm := &MM{Compat: m.arch != m.d.Arch}
	var err error
	mm.Dumpable = must(m, &err, "dumpable", as.Dumpable)
	mm.CoreFilter = must(m, &err, "coredump_filter", as.CoreFilter)
	mm.THPDisable = must(m, &err, "PR_SET_THP_DISABLE", as.THPDisable)
	mm.THPAdvised = must(m, &err, "PR_THP_DISABLE_EXCEPT_ADVISED", as.THPAdvised)
	if slots := must(m, &err, "size of the futex hash", as.FutexSlots); slots >= 0 {
		mm.FutexHash, mm.FutexSlots = true, uint32(slots)
	}
	mm.KSMMerge = must(m, &err, "PR_SET_MEMORY_MERGE", as.KSMMerge)
	if must(m, &err, "PR_SET_MDWE", as.MDWE) {
		mm.MDWE |= unix.PR_MDWE_REFUSE_EXEC_GAIN
	}
	if must(m, &err, "PR_MDWE_NO_INHERIT", as.MDWENoInherit) {
		mm.MDWE |= unix.PR_MDWE_NO_INHERIT
	}
	mm.LockFuture = must(m, &err, "mlockall", as.LockFuture)
	mm.LockOnFault = must(m, &err, "mlockall", as.LockOnFault)
	mm.Membarrier = must(m, &err, "membarrier registrations", as.Membarrier)
	mm.Auxv = must(m, &err, "the auxiliary vector", as.Auxv)
	l := must(m, &err, "the limits of heap, stack and arguments", as.Layout)
	mm.StartCode, mm.EndCode = uint64(l.StartCode), uint64(l.EndCode)
	mm.StartData, mm.EndData = uint64(l.StartData), uint64(l.EndData)
	mm.StartBrk, mm.Brk, mm.StartStack = uint64(l.StartBrk), uint64(l.Brk), uint64(l.StartStack)
	mm.ArgStart, mm.ArgEnd = uint64(l.ArgStart), uint64(l.ArgEnd)
	mm.EnvStart, mm.EnvEnd = uint64(l.EnvStart), uint64(l.EnvEnd)
	if err == nil {
		mm.AIO, err = m.aio(as)
	}
	if ldt, ok := as.LDT.Get(); ok && !allZero(ldt) {
		mm.LDT = ldt
	}
	return mm, err
}

// must returns a value that the kernel view knows. An unknown one is an error, kept in err: the first.
func must[T any](m *mmDump, err *error, what string, v kernelview.Maybe[T]) T {
	value, ok := v.Get()
	if !ok && *err == nil {
		*err = m.unknown(what)
	}
	return value
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
