package memory

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
)

// noCode is what VmFlags of smaps shows for a flag that the kernel has no code for (fs/proc/task_mmu.c, show_smap_vma_flags).
const noCode = "??"

// onFaultHasNoCode says whether this kernel (before Linux 6.18) shows mlock2(2)'s MLOCK_ONFAULT as such a flag. Memory that is
// locked and has just one flag without a code is then that: the other flags without codes are those of MAP_DROPPABLE, which is
// never locked, and of devices.
var onFaultHasNoCode = sync.OnceValue(func() bool {
	size := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return false
	}
	defer unix.Munmap(mem) //nolint:errcheck // of our own
	at := arch.Addr(address(mem))
	const onFault = 1 // MLOCK_ONFAULT
	if _, _, e := unix.RawSyscall(unix.SYS_MLOCK2, uintptr(at), uintptr(size), onFault); e != 0 {
		return false
	}
	list, err := procfs.ReadSmaps(os.Getpid())
	if err != nil {
		return false
	}
	for i := range list {
		if v := &list[i]; v.Start <= at && at < v.End {
			return v.Flags.Has("lo") && !v.Flags.Has("lf") && v.Flags.Has(noCode)
		}
	}
	return false
})
