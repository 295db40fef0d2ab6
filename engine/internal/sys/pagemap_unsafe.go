package sys

import (
	"runtime"
	"unsafe"

	"crpipe/arch"

	"golang.org/x/sys/unix"
)

type pmScanArg struct {
	size, flags                             uint64
	start, end, walkEnd                     uint64
	vec, vecLen                             uint64
	maxPages                                uint64
	inverted, mask, anyOf, returnCategories uint64
}

// PagemapScan is the PAGEMAP_SCAN ioctl on an open /proc/PID/pagemap (Linux
// 6.7, fs/proc/task_mmu.c). It fills out and returns how many regions it
// wrote and where the walk ended: go on from there until that is args.End.
// ENOTTY: the kernel is older.
func PagemapScan(pagemap *FD, args PagemapScanArgs, out []PageRegion) (n int, walkEnd arch.Addr, err error) {
	a := pmScanArg{
		size:             sizeofPMScanArg,
		flags:            uint64(args.Flags),
		start:            uint64(args.Start),
		end:              uint64(args.End),
		vecLen:           uint64(len(out)),
		maxPages:         args.MaxPages,
		inverted:         uint64(args.Inverted),
		mask:             uint64(args.Mask),
		anyOf:            uint64(args.AnyOf),
		returnCategories: uint64(args.Return),
	}
	if len(out) > 0 {
		a.vec = uint64(uintptr(unsafe.Pointer(&out[0])))
	}
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pagemap.Int()), pagemapScanRequest, uintptr(unsafe.Pointer(&a)))
		runtime.KeepAlive(out)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, 0, errno
		}
		return int(r), arch.Addr(a.walkEnd), nil
	}
}
