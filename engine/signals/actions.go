package signals

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Sighand is the record of a table of signal actions. No file shows handlers or flags; the kernel view reads
// sighand_struct.
type Sighand struct {
	Actions []Action `msgpack:"actions,omitempty"` // those that are not SIG_DFL without flags, ascending
}

// Action is what rt_sigaction(2) of the kernel takes.
type Action struct {
	Signal   uint32 `msgpack:"signal"`
	Handler  uint64 `msgpack:"handler"`
	Flags    uint64 `msgpack:"flags,omitempty"`
	Restorer uint64 `msgpack:"restorer,omitempty"`
	Mask     uint64 `msgpack:"mask,omitempty"`
}

// SighandKind is the kind of record "sighand".
var SighandKind = object.NewKind[Sighand]("sighand", nil)

type sighandKey struct{ id any }

// DumpActions sets p.Sighand.
func DumpActions(d *object.Dumper, p *object.Process) error {
	actions, ok := p.View.Actions.Get()
	id, ok2 := p.View.Sighand.Get()
	if !ok || !ok2 {
		return p.Error("", &object.Lacking{What: "the kernel view does not know its signal actions"})
	}
	ref, err := d.Once(sighandKey{id}, func() (stream.Ref, error) {
		s := &Sighand{}
		for i, a := range actions {
			if a.Handler == 0 && a.Flags == 0 && a.Mask == 0 {
				continue
			}
			if a.Flags&saX32ABI != 0 && d.Arch.Compat != nil {
				d.Refuse(p.Error("", object.Unsupportedf("the action of signal %d is one of x32 code", i+1)))
			}
			s.Actions = append(s.Actions, Action{Signal: uint32(i + 1), Handler: uint64(a.Handler), Flags: a.Flags,
				Restorer: uint64(a.Restorer), Mask: a.Mask})
		}
		return d.Add(SighandKind.Type, s), nil
	})
	p.Sighand = ref
	return err
}

// Check refuses what is no table of actions.
func (s *Sighand) Check() error {
	for i, a := range s.Actions {
		if a.Signal < 1 || a.Signal > 64 || a.Signal == uint32(unix.SIGKILL) || a.Signal == uint32(unix.SIGSTOP) {
			return object.BadImagef("action for signal %d", a.Signal)
		}
		if (a.Handler|a.Restorer)>>32 != 0 && a.Compat() {
			return object.BadImagef("an action of 32-bit code for signal %d, with addresses that it has not", a.Signal)
		}
		if i > 0 && a.Signal <= s.Actions[i-1].Signal {
			return object.BadImagef("two actions for signal %d", a.Signal)
		}
	}
	return nil
}

// Calls adds the calls that set all actions but that of SIGTRAP, which the tracer needs until the end: a breakpoint
// under an ignored SIGTRAP makes the kernel reset its action (force_sig_fault in kernel/signal.c). Trap returns that one.
func (s *Sighand) Calls(b *tracee.Batch, a *arch.Arch) {
	for i := range s.Actions {
		switch act := &s.Actions[i]; {
		case act.Signal == uint32(unix.SIGTRAP):
		case act.Compat():
			b.CompatCall(a.Compat.Sys.RtSigaction, uint64(act.Signal), b.Data(act.bytes()), 0, 8).Note("rt_sigaction of signal %d", act.Signal)
		default:
			b.Call(a.Sys.RtSigaction, uint64(act.Signal), b.Data(act.bytes()), 0, 8).Note("rt_sigaction of signal %d", act.Signal)
		}
	}
}

// Trap returns the bytes of struct kernel_sigaction for SIGTRAP, nil when it is the default.
func (s *Sighand) Trap() []byte {
	if act := s.trap(); act != nil {
		return act.bytes()
	}
	return nil
}

// TrapCompat says whether that action is one of 32-bit code.
func (s *Sighand) TrapCompat() bool {
	act := s.trap()
	return act != nil && act.Compat()
}

func (s *Sighand) trap() *Action {
	for i := range s.Actions {
		if s.Actions[i].Signal == uint32(unix.SIGTRAP) {
			return &s.Actions[i]
		}
	}
	return nil
}

// Flags with which the kernel remembers, of an action with a handler, whose frame it expects (sigaction_compat_abi in
// arch/x86/kernel/signal_64.c). They are of the call that set the action, and cannot be set otherwise.
const (
	saX32ABI  = 0x01000000
	saIA32ABI = 0x02000000
)

// Compat says whether the action was set by 32-bit code.
func (act *Action) Compat() bool { return act.Flags&saIA32ABI != 0 }

// NeedsCompat says whether a restore of the table makes calls of 32-bit code.
func (s *Sighand) NeedsCompat() bool {
	return slices.ContainsFunc(s.Actions, func(a Action) bool { return a.Compat() })
}

// bytes lays out struct kernel_sigaction of 64-bit x86 (arch/x86/include/uapi/asm/signal.h), which is that of
// include/linux/signal_types.h for every architecture with SA_RESTORER.
func (act *Action) bytes() []byte {
	var out []byte
	if act.Compat() {
		// struct compat_sigaction of include/linux/compat.h
		for _, w := range []uint64{act.Handler, act.Flags &^ saIA32ABI, act.Restorer, act.Mask, act.Mask >> 32} {
			out = binary.NativeEndian.AppendUint32(out, uint32(w))
		}
		return out
	}
	for _, w := range []uint64{act.Handler, act.Flags, act.Restorer, act.Mask} {
		out = binary.NativeEndian.AppendUint64(out, w)
	}
	return out
}
