package tasks

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// Credentials are those of one thread (credentials(7), capabilities(7)); ids are those of the user namespace that the
// dump runs in.
type Credentials struct {
	UID         []uint32 `msgpack:"uid"` // real, effective, saved, file system
	GID         []uint32 `msgpack:"gid"`
	Groups      []uint32 `msgpack:"groups,omitempty"`
	Inheritable uint64   `msgpack:"inheritable,omitempty"`
	Permitted   uint64   `msgpack:"permitted,omitempty"`
	Effective   uint64   `msgpack:"effective,omitempty"`
	Bounding    uint64   `msgpack:"bounding,omitempty"`
	Ambient     uint64   `msgpack:"ambient,omitempty"`
	Securebits  uint32   `msgpack:"securebits,omitempty"`
	NoNewPrivs  bool     `msgpack:"no_new_privs,omitempty"`
}

// DumpCredentials reads what /proc/PID/status tells, and the securebits, which only the kernel view knows.
func DumpCredentials(t *object.Thread) (Credentials, error) {
	st := t.Status
	secure, ok := t.View.Securebits.Get()
	if !ok {
		return Credentials{}, t.Process.Error("", &object.Lacking{What: fmt.Sprintf("the kernel view does not know the securebits of thread %d", t.TID)})
	}
	return Credentials{
		UID: append([]uint32(nil), st.UID[:]...), GID: append([]uint32(nil), st.GID[:]...), Groups: st.Groups,
		Inheritable: st.CapInh, Permitted: st.CapPrm, Effective: st.CapEff, Bounding: st.CapBnd, Ambient: st.CapAmb,
		Securebits: secure, NoNewPrivs: st.NoNewPrivs,
	}, nil
}

// Check refuses credentials that no kernel would show.
func (c *Credentials) Check() error {
	if len(c.UID) != 4 || len(c.GID) != 4 {
		return object.BadImagef("%d user and %d group ids in credentials, want 4 of each", len(c.UID), len(c.GID))
	}
	if len(c.Groups) > 65536 { // NGROUPS_MAX
		return object.BadImagef("%d supplementary groups", len(c.Groups))
	}
	return nil
}

// capHeader is _LINUX_CAPABILITY_VERSION_3 (linux/capability.h).
const capHeader = 0x20080522

// Calls adds the calls with which a thread takes its credentials. have is what the thread has now; what is equal is
// left alone, so that an ordinary user can restore his own processes. The order is that of least surprise: groups while
// there is still the right to, ids with keepcaps, so that the capabilities survive them, the bounding set, then
// securebits, which may lock all of this, and last the three sets, which end it.
func (c *Credentials) Calls(b *tracee.Batch, a *arch.Arch, have *Credentials) {
	n := &a.Sys
	ids := !equal(c.UID, have.UID) || !equal(c.GID, have.GID)
	if !equal(c.Groups, have.Groups) {
		var list []byte
		for _, g := range c.Groups {
			list = binary.NativeEndian.AppendUint32(list, g)
		}
		b.Call(n.Setgroups, uint64(len(c.Groups)), b.Data(list))
	}
	caps := c.Inheritable != have.Inheritable || c.Permitted != have.Permitted || c.Effective != have.Effective
	if ids {
		caps = true
		b.Call(n.Prctl, unix.PR_SET_SECUREBITS, 1<<4|1<<2) // KEEP_CAPS | NO_SETUID_FIXUP
		b.Call(n.Setresgid, uint64(c.GID[0]), uint64(c.GID[1]), uint64(c.GID[2]))
		b.Call(n.Setfsgid, uint64(c.GID[3])) // returns the old id
		b.Call(n.Setresuid, uint64(c.UID[0]), uint64(c.UID[1]), uint64(c.UID[2]))
		b.Call(n.Setfsuid, uint64(c.UID[3]))
	}
	for capability := uint64(0); capability < 64; capability++ {
		if bit := uint64(1) << capability; have.Bounding&bit != 0 && c.Bounding&bit == 0 {
			b.Call(n.Prctl, unix.PR_CAPBSET_DROP, capability)
		}
	}
	if caps || c.Ambient != have.Ambient {
		if c.Ambient != 0 || have.Ambient != 0 {
			// An ambient capability must be permitted and inheritable; make it so before the sets shrink.
			b.Call(n.Capset, b.Data(capUser()), b.Data(capSets(have.Permitted, have.Permitted, c.Inheritable|c.Ambient)))
			b.Call(n.Prctl, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
			for capability := uint64(0); capability < 64; capability++ {
				if c.Ambient&(1<<capability) != 0 {
					b.Call(n.Prctl, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, capability, 0, 0)
				}
			}
		}
	}
	if ids || c.Securebits != have.Securebits {
		b.Call(n.Prctl, unix.PR_SET_SECUREBITS, uint64(c.Securebits))
	}
	if caps {
		b.Call(n.Capset, b.Data(capUser()), b.Data(capSets(c.Effective, c.Permitted, c.Inheritable)))
	}
	if c.NoNewPrivs && !have.NoNewPrivs {
		b.Call(n.Prctl, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
}

func capUser() []byte {
	return binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, capHeader), 0)
}

// capSets builds struct __user_cap_data_struct[2]: the low words of all three sets, then the high ones.
func capSets(effective, permitted, inheritable uint64) []byte {
	var out []byte
	for _, shift := range []uint{0, 32} {
		for _, set := range []uint64{effective, permitted, inheritable} {
			out = binary.NativeEndian.AppendUint32(out, uint32(set>>shift))
		}
	}
	return out
}

func equal(a, b []uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
