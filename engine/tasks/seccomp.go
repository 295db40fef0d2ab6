package tasks

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Filter is one program of seccomp(2): an object, because threads share the ones that they have inherited, which
// SECCOMP_FILTER_FLAG_TSYNC depends on (it fails where a thread has another than an ancestor's). The kernel keeps the
// program as it was given (orig_prog in kernel/seccomp.c), and only its own memory tells who shares it.
type Filter struct {
	Code         []byte `msgpack:"code"`          // struct sock_filter each
	Log          bool   `msgpack:"log,omitempty"` // SECCOMP_FILTER_FLAG_LOG
	WaitKillable bool   `msgpack:"wait_killable,omitempty"`
}

// FilterKind is the kind of record "seccomp".
var FilterKind = object.NewKind[Filter]("seccomp", nil)

type filterKey struct{ id any }

// Bounds of kernel/seccomp.c and linux/bpf_common.h.
const (
	sizeofSockFilter = 8
	maxInstructions  = 4096  // BPF_MAXINSNS
	maxFilterPath    = 32768 // MAX_INSNS_PER_PATH, a filter counts for four more than it has
)

// DumpSeccomp fills in the mode of a thread.
func DumpSeccomp(d *object.Dumper, t *object.Thread, s *Thread) error {
	switch t.Status.Seccomp {
	case unix.SECCOMP_MODE_DISABLED:
		return nil
	case unix.SECCOMP_MODE_STRICT:
		s.SeccompStrict = true
		return nil
	case unix.SECCOMP_MODE_FILTER:
	default:
		return t.Process.Error("", object.Unsupportedf("thread %d is being killed by seccomp (mode %d)", t.TID, t.Status.Seccomp))
	}
	filters := look(looker{d, t}, t.View.Seccomp, "seccomp filters")
	if !t.View.Seccomp.Known {
		return nil // refused just now
	}
	if len(filters) == 0 {
		return t.Process.Error("", fmt.Errorf("internal error: thread %d has seccomp mode 2 without a filter", t.TID))
	}
	for i := range filters {
		f := &filters[i]
		ref, err := d.Once(filterKey{f.ID}, func() (stream.Ref, error) {
			if f.Listener {
				d.Refuse(t.Process.Error("", object.Unsupportedf("thread %d has a seccomp filter whose notifications a listener answers (SECCOMP_FILTER_FLAG_NEW_LISTENER)", t.TID)))
			}
			return d.Add(FilterKind.Type, &Filter{Code: f.Code, Log: f.Log, WaitKillable: f.WaitKillable}), nil
		})
		if err != nil {
			return err
		}
		s.Seccomp = append(s.Seccomp, ref)
	}
	return nil
}

// Filters returns the filters of a thread, oldest first, having checked them.
func Filters(plan *object.Plan, refs []stream.Ref) ([]*Filter, error) {
	var chain []*Filter
	cost := 0
	for _, ref := range refs {
		f, err := object.State[Filter](plan, ref)
		if err != nil {
			return nil, err
		}
		n := len(f.Code) / sizeofSockFilter
		if n == 0 || n > maxInstructions || len(f.Code)%sizeofSockFilter != 0 {
			return nil, object.BadImagef("a seccomp filter of %d bytes", len(f.Code))
		}
		if cost += n + 4; cost > maxFilterPath {
			return nil, object.BadImagef("seccomp filters of more than %d instructions", maxFilterPath)
		}
		chain = append(chain, f)
	}
	return chain, nil
}

// Calls adds the call by which a thread takes the filter. What the processor's speculation is to do is set by itself
// (SPEC_ALLOW).
func (f *Filter) Calls(b *tracee.Batch) {
	const logFlag, specAllow, waitKillable = 2, 4, 32 // linux/seccomp.h
	flags := uint64(specAllow)
	if f.Log {
		flags |= logFlag
	}
	if f.WaitKillable {
		flags |= waitKillable
	}
	program := make([]byte, 16) // struct sock_fprog: length, padding, pointer
	binary.NativeEndian.PutUint16(program, uint16(len(f.Code)/sizeofSockFilter))
	const setModeFilter = 1
	b.Call(b.Sys().Seccomp, setModeFilter, flags, b.Data(program).Pointer(8, b.Data(f.Code))).Note("seccomp filter of %d instructions", len(f.Code)/sizeofSockFilter)
}

// StrictCalls adds the call that enters strict mode.
func StrictCalls(b *tracee.Batch, a *arch.Arch) {
	b.Call(a.Sys.Prctl, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_STRICT)
}
