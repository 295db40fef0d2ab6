package tasks

import (
	"crpipe/arch"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/stream"
)

// Thread is the record of a live task.
type Thread struct {
	Process stream.Ref     `msgpack:"process"`
	TID     int32          `msgpack:"tid"`
	Comm    string         `msgpack:"comm"`
	Regs    []Regset       `msgpack:"regs"`
	Signals signals.Thread `msgpack:"signals"`

	// What the thread has instead of its process's descriptor table and directories (unshare(2)).
	Files stream.Ref `msgpack:"files,omitempty"`
	FS    stream.Ref `msgpack:"fs,omitempty"`
	// Threads with the same number here share an I/O context (CLONE_IO) or a list of semaphore adjustments (CLONE_SYSVSEM):
	// that of the first of them; 0: nobody else has it.
	IOContext uint32 `msgpack:"io_context,omitempty"`
	SysVSem   uint32 `msgpack:"sysvsem,omitempty"`

	// Vfork is the child for which it waits in vfork(2); 0: none.
	Vfork int32 `msgpack:"vfork,omitempty"`

	ClearTID   uint64 `msgpack:"clear_tid,omitempty"`   // set_tid_address(2)
	RobustList uint64 `msgpack:"robust_list,omitempty"` // set_robust_list(2)
	RobustLen  uint64 `msgpack:"robust_len,omitempty"`
	// CompatRobust is the list that 32-bit code has set.
	CompatRobust uint64 `msgpack:"compat_robust,omitempty"`
	Rseq         uint64 `msgpack:"rseq,omitempty"` // rseq(2): address, length in bytes, signature
	RseqLen      uint32 `msgpack:"rseq_len,omitempty"`
	RseqSig      uint32 `msgpack:"rseq_sig,omitempty"`

	Debug []uint64 `msgpack:"debug,omitempty"` // DR0 to DR3, DR6 and DR7, where breakpoints are set

	TLS []TLSEntry `msgpack:"tls,omitempty"` // set_thread_area(2): the entries that are in use, ascending

	Seccomp       []stream.Ref `msgpack:"seccomp,omitempty"`        // its filters, oldest first
	SeccompStrict bool         `msgpack:"seccomp_strict,omitempty"` // SECCOMP_MODE_STRICT

	Dispatch Dispatch `msgpack:"dispatch"`
	Keys     OwnKeys  `msgpack:"keys"`

	Creds  Credentials `msgpack:"creds"`
	Sched  Scheduling  `msgpack:"sched"`
	Prctls Prctls      `msgpack:"prctl"`
}

// ThreadKind is the kind of record "thread".
var ThreadKind = object.NewKind[Thread]("thread", nil)

// Regset is one register set as PTRACE_GETREGSET gives it, an opaque blob of the architecture in the header.
type Regset struct {
	Note uint32 `msgpack:"note"`
	Data []byte `msgpack:"data"`
}

// maxRegset bounds a register set whose size depends on the machine, in bytes: the xsave area with AMX tiles has 11 KiB.
const maxRegset = 32 << 10

// Check refuses what is no thread of architecture a.
func (s *Thread) Check(a *arch.Arch) error {
	if s.SeccompStrict && len(s.Seccomp) > 0 {
		return object.BadImagef("seccomp filters in strict mode")
	}
	if len(s.Comm) > commLen {
		return object.BadImagef("a name of %d bytes", len(s.Comm))
	}
	if err := s.checkRegsets(a); err != nil {
		return err
	}
	if err := s.checkCompat(a); err != nil {
		return err
	}
	if err := s.checkDebug(a.Name); err != nil {
		return err
	}
	if err := s.Creds.Check(); err != nil {
		return err
	}
	if err := s.Sched.Check(); err != nil {
		return err
	}
	if s.Prctls.PdeathSignal < 0 || s.Prctls.PdeathSignal > 64 {
		return object.BadImagef("parent-death signal %d", s.Prctls.PdeathSignal)
	}
	if p := &s.Prctls; p.Mempolicy != 0 || p.MempolicyFlags != 0 || len(p.MempolicyNodes) > 0 {
		if err := object.CheckMempolicy(p.Mempolicy, p.MempolicyFlags, p.MempolicyNodes); err != nil {
			return object.BadImagef("%w", err)
		}
	}
	if err := s.Signals.Check(); err != nil {
		return err
	}
	for _, r := range s.Regs {
		if r.Note != arch.NTPRStatus {
			continue
		}
		if err := s.Signals.Restart.Check(a, r.Data); err != nil {
			return err
		}
	}
	return nil
}

// checkRegsets makes sure that a thread has all of its registers, each once: one without would go on with those of the
// restore's own code.
func (s *Thread) checkRegsets(a *arch.Arch) error {
	have := map[uint32]int{}
	for _, r := range s.Regs {
		if _, twice := have[r.Note]; twice {
			return object.BadImagef("register set %#x twice", r.Note)
		}
		have[r.Note] = len(r.Data)
		if r.Note == arch.NTX86XState && a.FitXState != nil {
			if _, err := arch.ParseX86XState(r.Data); err != nil {
				return &object.BadImage{Err: err}
			}
		}
	}
	for _, want := range a.Regsets {
		n, ok := have[want.Note]
		switch {
		case !ok && want.Optional:
			continue
		case !ok:
			return object.BadImagef("no register set %s", want.Name)
		case want.Size != 0 && n != want.Size, n == 0, n > maxRegset:
			return object.BadImagef("register set %s of %d bytes", want.Name, n)
		}
		delete(have, want.Note)
	}
	for note := range have {
		return object.BadImagef("register set %#x, which this architecture does not have", note)
	}
	return nil
}
