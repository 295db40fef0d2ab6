package tasks

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

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
	if c.Effective&^c.Permitted != 0 || c.Ambient&^(c.Permitted&c.Inheritable) != 0 {
		return object.BadImagef("capabilities %#x effective and %#x ambient of %#x permitted and %#x inheritable", c.Effective, c.Ambient, c.Permitted, c.Inheritable)
	}
	return nil
}

// capHeader is _LINUX_CAPABILITY_VERSION_3 (linux/capability.h).
const capHeader = 0x20080522

// Reach says whether a task that has the credentials have could take these: the kernel gives back neither a capability
// that is gone nor the right to gain any. It returns the capabilities of the bounding set that could not be there, which
// take nothing from the thread until it executes a program that would have had them.
func (c *Credentials) Reach(have *Credentials) (missing uint64, err error) {
	const do = "run cr-restore with at least the rights that the processes had"
	if have.NoNewPrivs && !c.NoNewPrivs {
		return 0, &object.Lacking{What: "cr-restore runs with no_new_privs (prctl(2)), which the new processes could not get rid of", Do: do}
	}
	if lacks := c.Permitted &^ have.Permitted; lacks != 0 {
		return 0, &object.Lacking{What: "cr-restore lacks capabilities that the processes had: " + CapNames(lacks), Do: do}
	}
	if lacks := c.Inheritable &^ (have.Inheritable | have.Permitted | have.Bounding); lacks != 0 {
		return 0, &object.Lacking{What: "cr-restore cannot pass on inheritable capabilities that the processes had: " + CapNames(lacks), Do: do}
	}
	return c.Bounding &^ have.Bounding, nil
}

// Calls adds the calls with which a thread takes its credentials. have is what the thread has now; what is equal is
// left alone, so that an ordinary user can restore his own processes. The order is that of least surprise: groups while
// there is still the right to; ids, with fixed-up capabilities switched off; inheritable capabilities while they are in
// the bounding set, which must hold one that is added (cap_capset in security/commoncap.c), then that set; securebits,
// which may lock all of this; and last the three sets, which end it.
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
	if ids {
		b.Call(n.Prctl, unix.PR_SET_SECUREBITS, uint64(have.Securebits|1<<4|1<<2)) // KEEP_CAPS | NO_SETUID_FIXUP
		b.Call(n.Setresgid, uint64(c.GID[0]), uint64(c.GID[1]), uint64(c.GID[2]))
		b.Call(n.Setfsgid, uint64(c.GID[3])) // returns the old id
		b.Call(n.Setresuid, uint64(c.UID[0]), uint64(c.UID[1]), uint64(c.UID[2]))
		b.Call(n.Setfsuid, uint64(c.UID[3]))
	}
	drop := have.Bounding &^ c.Bounding
	ambient := c.Ambient != have.Ambient
	caps := ids || ambient || c.Inheritable != have.Inheritable || c.Permitted != have.Permitted || c.Effective != have.Effective
	if caps {
		// An ambient capability must be permitted and inheritable; make it so before the sets shrink.
		b.Call(n.Capset, b.Data(capUser()), b.Data(capSets(have.Permitted, have.Permitted, c.Inheritable|c.Ambient))).Note("capset")
	}
	for _, capability := range bits(drop) {
		b.Call(n.Prctl, unix.PR_CAPBSET_DROP, capability).Note("dropping %s from the bounding set", CapNames(1<<capability))
	}
	if ambient {
		b.Call(n.Prctl, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
		for _, capability := range bits(c.Ambient) {
			b.Call(n.Prctl, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, capability, 0, 0).Note("raising ambient %s", CapNames(1<<capability))
		}
	}
	if ids || c.Securebits != have.Securebits {
		b.Call(n.Prctl, unix.PR_SET_SECUREBITS, uint64(c.Securebits)).Note("securebits %#x", c.Securebits)
	}
	if caps {
		b.Call(n.Capset, b.Data(capUser()), b.Data(capSets(c.Effective, c.Permitted, c.Inheritable))).Note("capset")
	}
	if c.NoNewPrivs && !have.NoNewPrivs {
		b.Call(n.Prctl, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
}

// bits lists the numbers of the bits in a set.
func bits(set uint64) []uint64 {
	var out []uint64
	for i := uint64(0); i < 64; i++ {
		if set&(1<<i) != 0 {
			out = append(out, i)
		}
	}
	return out
}

// CapNames names a set of capabilities as capabilities(7) does, those newer than this list by number.
func CapNames(set uint64) string {
	var out []string
	for _, n := range bits(set) {
		if n < uint64(len(capabilities)) {
			out = append(out, "cap_"+capabilities[n])
		} else {
			out = append(out, "capability "+strconv.FormatUint(n, 10))
		}
	}
	return strings.Join(out, ", ")
}

// capabilities are the names of linux/capability.h, by number.
var capabilities = [...]string{"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
	"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner", "sys_module", "sys_rawio",
	"sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
	"lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read",
	"perfmon", "bpf", "checkpoint_restore"}

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
