package kernelview

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
)

// keyctl(2) operations and the names of keyrings, linux/keyctl.h.
const (
	keyctlGetKeyringID = 0
	keyctlDescribe     = 6
	keyctlRead         = 11
	keyctlSetReqkey    = 14
	keyThread          = ^uint64(0)     // KEY_SPEC_THREAD_KEYRING, -1
	keyProcess         = ^uint64(0) - 1 // -2
	keySession         = ^uint64(0) - 2 // -3
	reqkeyNoChange     = ^uint64(0)
	keyringIDs         = ID(1) << 40 // beyond those that newID gives out; the serial number is added
)

// login fills in what audit(8) keeps of a login, and whether the thread can be in a Landlock domain: such a one is entered with
// no_new_privs set, or by who has CAP_SYS_ADMIN.
func (v *classicalView) login(t *Thread, st *procfs.Status) error {
	var r procfs.Reader
	for _, f := range []struct {
		name string
		to   *Maybe[uint32]
	}{{"loginuid", &t.LoginUID}, {"sessionid", &t.SessionID}} {
		b, err := r.Task(t.Tid, f.name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			*f.to = Is(^uint32(0)) // a kernel without audit
			continue
		}
		if err != nil {
			return err
		}
		if n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 32); err == nil {
			*f.to = Is(uint32(n))
		}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1) // LANDLOCK_CREATE_RULESET_VERSION
	if errno == unix.ENOSYS || errno == unix.EOPNOTSUPP || !st.NoNewPrivs {
		t.Landlock = Is(false)
	}
	return nil
}

// autogroupNice reads "/autogroup-N nice M", which is not there or is empty where there are none.
func autogroupNice(tid int) Maybe[int32] {
	b, err := os.ReadFile(procfs.Path(tid, "autogroup"))
	if err != nil || len(b) == 0 {
		return Is[int32](0)
	}
	_, nice, ok := strings.Cut(strings.TrimSpace(string(b)), " nice ")
	n, err := strconv.ParseInt(nice, 10, 32)
	if !ok || err != nil {
		return Maybe[int32]{}
	}
	return Is(int32(n))
}

// ownSession is the session keyring of this process.
func ownSession() Maybe[Keyrings] {
	id, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		return Maybe[Keyrings]{}
	}
	return Is(Keyrings{Session: Keyring{ID: keyringIDs + ID(id), Serial: int32(id)}})
}

// keyrings asks a thread for its keyrings. One of its own for the thread or the process counts as one with keys. To ask for the session
// keyring gives the thread the standard one of its user where it has none, which the kernel takes then anyway.
func (v *classicalView) keyrings(s RemoteVisit, t *Thread) error {
	nr := v.a.Sys.Keyctl
	if nr == arch.NoSyscall {
		return nil
	}
	var c threadCalls
	var got [4]RemoteCall
	for i, args := range [][]uint64{
		{keyctlGetKeyringID, keyThread, 0}, {keyctlGetKeyringID, keyProcess, 0}, {keyctlGetKeyringID, keySession, 0}, {keyctlSetReqkey, reqkeyNoChange},
	} {
		c.add(func(r *RemoteCall) error { got[i] = *r; return nil }, nr, args...)
	}
	if err := c.run(s); err != nil {
		return err
	}
	var k Keyrings
	if got[2].errno() == unix.ENOSYS {
		t.Keyrings = Is(k)
		return nil
	}
	for i, to := range []*Keyring{&k.Thread, &k.Process} {
		switch {
		case got[i].errno() == 0:
			*to = Keyring{ID: keyringIDs + ID(got[i].Result), Serial: int32(got[i].Result), Keys: 1}
		case got[i].errno() != unix.ENOKEY:
			return nil // unknown
		}
	}
	if got[2].errno() != 0 || got[3].errno() != 0 {
		return nil
	}
	k.Default = uint8(got[3].Result)
	serial := uint64(got[2].Result)
	const room = 1024
	at, err := s.Room(room)
	if err != nil {
		return err
	}
	var length, keys int64
	c = threadCalls{}
	c.add(func(r *RemoteCall) error { length = r.Result; return nil }, nr, keyctlDescribe, serial, uint64(at), room)
	c.add(func(r *RemoteCall) error { keys = r.Result; return nil }, nr, keyctlRead, serial, 0, 0)
	if err := c.run(s); err != nil {
		return err
	}
	k.Session = Keyring{ID: keyringIDs + ID(serial), Serial: int32(serial), Keys: 1}
	if keys >= 0 {
		k.Session.Keys = int(keys / 4) // a serial number each
	}
	if length <= 0 || length > room {
		return nil
	}
	b := make([]byte, length)
	if err := s.Read(at, b); err != nil {
		return err
	}
	// type;uid;gid;permissions;description
	f := strings.SplitN(strings.TrimRight(string(b), "\x00"), ";", 5)
	if len(f) != 5 {
		return nil
	}
	uid, err1 := strconv.ParseUint(f[1], 10, 32)
	gid, err2 := strconv.ParseUint(f[2], 10, 32)
	perm, err3 := strconv.ParseUint(f[3], 16, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return nil
	}
	k.Session.UID, k.Session.GID, k.Session.Perm, k.Session.Description = uint32(uid), uint32(gid), uint32(perm), f[4]
	t.Keyrings = Is(k)
	return nil
}
