package kernelview

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// fillProcessor fills in what only x86 has: debug registers, I/O ports and segments of set_thread_area(2). Whether iopl(2) is in
// force nobody but the thread can find out, by trying.
func fillProcessor(t *Thread) {
	if runtime.GOARCH != "amd64" {
		return
	}
	const (
		debugRegs = 848 // offsetof(struct user, u_debugreg), sys/user.h
		enabled   = 0xff
		ntIOPerm  = 0x201 // NT_386_IOPERM
		firstTLS  = 12    // GDT_ENTRY_TLS_MIN
	)
	if dr7, err := sys.PtracePeekUser(t.Tid, debugRegs+7*8); err == nil {
		t.Breakpoints = Is(dr7&enabled != 0)
	}
	_, err := sys.PtraceGetRegset(t.Tid, ntIOPerm, make([]byte, 8192))
	switch {
	case err == nil:
		t.IOPermitted = Is(true)
	case errors.Is(err, unix.ENXIO):
		t.IOPermitted = Is(false)
	}
	var tls [3]uint64
	for i := range tls {
		d, err := sys.PtraceGetThreadArea(t.Tid, firstTLS+i)
		if err != nil {
			return
		}
		tls[i] = descriptor(&d)
	}
	t.TLS = Is(tls)
}

// descriptor is the entry of the GDT that a struct user_desc makes (fill_ldt in arch/x86/include/asm/desc.h); 0 for an empty one.
func descriptor(d *sys.UserDesc) uint64 {
	bit := func(i int) uint64 { return uint64(d.Bits>>i) & 1 }
	seg32, contents, readOnly, pages, absent, usable := bit(0), uint64(d.Bits>>1)&3, bit(3), bit(4), bit(5), bit(6)
	base, limit := uint64(d.Base), uint64(d.Limit)
	if base == 0 && limit == 0 && contents == 0 && readOnly == 1 && absent == 1 {
		return 0
	}
	kind := (readOnly^1)<<1 | contents<<2 | 1
	high := base>>16&0xff | kind<<8 | 1<<12 | 3<<13 | (absent^1)<<15 | limit&0xf0000 | usable<<20 | seg32<<22 | pages<<23 | base&0xff000000
	return limit&0xffff | base&0xffff<<16 | high<<32
}
