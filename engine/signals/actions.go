package signals

import (
	"encoding/binary"

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
		if act := &s.Actions[i]; act.Signal != uint32(unix.SIGTRAP) {
			b.Call(a.Sys.RtSigaction, uint64(act.Signal), b.Data(act.bytes()), 0, 8).Note("rt_sigaction of signal %d", act.Signal)
		}
	}
}

// Trap returns the bytes of struct kernel_sigaction for SIGTRAP, nil when it is the default.
func (s *Sighand) Trap() []byte {
	for i := range s.Actions {
		if s.Actions[i].Signal == uint32(unix.SIGTRAP) {
			return s.Actions[i].bytes()
		}
	}
	return nil
}

// bytes lays out struct kernel_sigaction of 64-bit x86 (arch/x86/include/uapi/asm/signal.h), which is that of
// include/linux/signal_types.h for every architecture with SA_RESTORER.
func (act *Action) bytes() []byte {
	var out []byte
	for _, w := range []uint64{act.Handler, act.Flags, act.Restorer, act.Mask} {
		out = binary.NativeEndian.AppendUint64(out, w)
	}
	return out
}
