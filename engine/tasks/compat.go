package tasks

import (
	"fmt"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// What a thread has of 32-bit code beside registers: its entries in the global descriptor table, which only
// set_thread_area(2) and clone(2) of 32-bit code set, and a robust list of its own (get_robust_list(2) of 32-bit code
// shows it). The kernel view knows both; ptrace shows the entries too.

// TLSEntry is struct user_desc of set_thread_area(2).
type TLSEntry struct {
	Entry uint32 `msgpack:"entry"` // number in the global descriptor table
	Base  uint32 `msgpack:"base"`
	Limit uint32 `msgpack:"limit"`
	Flags uint32 `msgpack:"flags"` // the bit fields, first one lowest
}

// tlsEntries is how many entries of the global descriptor table are a thread's own.
const tlsEntries = 3

// compatRobustLen is the only size that set_robust_list(2) of 32-bit code takes: three words.
const compatRobustLen = 12

func dumpCompat(d *object.Dumper, t *object.Thread, s *Thread) {
	if d.Arch.Compat == nil {
		return
	}
	robust := t.View.CompatRobust
	if robust.Known || d.Arch.Mode(t.Regs) != d.Arch { // 64-bit code could have set one too, but does not
		s.CompatRobust = uint64(look(looker{d, t}, robust, "robust list of 32-bit code"))
	}
	raw, _ := t.View.TLS.Get() // unknown where no 32-bit code can be
	for i := range uint32(tlsEntries) {
		if raw[i] != 0 {
			s.TLS = append(s.TLS, TLSEntry(arch.X86UserDesc(arch.X86TLSMin+i, raw[i])))
		}
	}
}

func (s *Thread) checkCompat(a *arch.Arch) error {
	if s.CompatRobust != 0 && (a.Compat == nil || s.CompatRobust>>32 != 0) {
		return object.BadImagef("robust list of 32-bit code at %#x", s.CompatRobust)
	}
	for i, e := range s.TLS {
		if a.Compat == nil || e.Entry < arch.X86TLSMin || e.Entry >= arch.X86TLSMin+tlsEntries || i > 0 && e.Entry <= s.TLS[i-1].Entry {
			return object.BadImagef("TLS entry %d", e.Entry)
		}
	}
	return nil
}

// NeedsCompat says whether a restore of the thread makes calls of 32-bit code.
func (s *Thread) NeedsCompat() bool { return s.CompatRobust != 0 || s.Signals.Restart.Compat }

func (s *Thread) compatCalls(b *tracee.Batch) {
	if s.CompatRobust != 0 {
		b.CompatCall(b.Arch().Compat.Sys.SetRobustList, s.CompatRobust, compatRobustLen)
	}
}

// SetTLS sets the entries of a stopped task, before its registers: these refer to them. The kernel refuses what is no
// segment of user space (tls_desc_okay in arch/x86/kernel/tls.c). It runs on the tracer's thread.
func (s *Thread) SetTLS(tid int) error {
	for _, e := range s.TLS {
		if err := sys.PtraceSetThreadArea(tid, sys.UserDesc{Entry: e.Entry, Base: e.Base, Limit: e.Limit, Bits: e.Flags}); err != nil {
			return fmt.Errorf("setting TLS entry %d of thread %d: %w", e.Entry, s.TID, err)
		}
	}
	return nil
}
