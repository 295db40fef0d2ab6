package tasks

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Keyring is a session keyring of the tree's own, session-keyring(7): one that keyctl(2) has made for it, alone or with a
// name. It is an object, because whoever is made by a process with one shares it, and there is no other way to share one
// without a name. What the keys in it say no call tells, so that one with keys is kept only while it lives on.
//
// The session keyring of cr-dump itself is that of a login, like its terminal: it is outside, and a restore gives the
// one of cr-restore in its place. No call takes a session keyring away.
type Keyring struct {
	Serial   int32  `msgpack:"serial"`
	Name     string `msgpack:"name,omitempty"` // empty: an anonymous one
	Keys     bool   `msgpack:"keys,omitempty"`
	UserLink bool   `msgpack:"user_link,omitempty"` // it links to the user's own keyring, and to nothing else
	UID      uint32 `msgpack:"uid,omitempty"`
	GID      uint32 `msgpack:"gid,omitempty"`
	Perm     uint32 `msgpack:"perm,omitempty"` // KEYCTL_SETPERM
}

// KeyringKind is the kind of record "keyring".
var KeyringKind = object.NewKind[Keyring]("keyring", nil)

// OwnKeys is what a thread has besides: keyrings that nothing is in yet.
type OwnKeys struct {
	Thread  bool  `msgpack:"thread,omitempty"`  // a thread-keyring(7)
	Process bool  `msgpack:"process,omitempty"` // a process-keyring(7)
	Default uint8 `msgpack:"default,omitempty"` // KEYCTL_SET_REQKEY_KEYRING
}

type keyringKey struct{ id kernelview.ID }

const anonymousSession = "_ses" // join_session_keyring in security/keys/process_keys.c

// DumpKeyrings looks at the keyrings of all threads, and sets Session of the processes.
func DumpKeyrings(d *object.Dumper) error {
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); errors.Is(err, unix.ENOSYS) {
		return nil // a kernel without keyrings
	}
	own, err := d.View.Threads([]int{unix.Gettid()})
	if err != nil {
		return err
	}
	mine, _ := own[0].Keyrings.Get()
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			k := look(looker{d, t}, t.View.Keyrings, "keyrings")
			lead, _ := p.Leader().View.Keyrings.Get()
			l := looker{d, t}
			l.refuse(k.Session.ID != lead.Session.ID, "has a session keyring of its own")
			l.refuse(k.Thread.Keys != 0, "has keys in its thread keyring (thread-keyring(7))")
			l.refuse(k.Process.Keys != 0, "has keys in its process keyring (process-keyring(7))")
			l.refuse(k.Process.ID != 0 && len(p.Threads) > 1, "shares a process keyring with other threads (process-keyring(7))")
			l.refuse(k.Authority, "is making a key for another process (request_key(2))")
		}
		if p.Zombie {
			continue
		}
		if err := dumpSession(d, p, mine.Session.ID); err != nil {
			d.Refuse(err)
		}
	}
	return nil
}

func dumpSession(d *object.Dumper, p *object.Process, mine kernelview.ID) error {
	t := p.Leader()
	all, _ := t.View.Keyrings.Get()
	s := all.Session
	if s.ID == 0 || s.ID == mine {
		return nil
	}
	if uid, is := strings.CutPrefix(s.Description, "_uid_ses."); is {
		// What the kernel takes where there is none.
		if uid != strconv.Itoa(int(t.Status.UID[0])) {
			return p.Error("", object.Unsupportedf("its session keyring is the standard one of another user, %s", uid))
		}
		return nil
	}
	k := &Keyring{Serial: s.Serial, Name: s.Description, Keys: s.Keys != 0, UID: s.UID, GID: s.GID, Perm: s.Perm}
	if s.Description == anonymousSession {
		k.Name = ""
		if s.UserLink {
			k.UserLink, k.Keys = true, false
		}
		if k.Keys {
			return p.Error("", &object.Unsupported{What: fmt.Sprintf("its session keyring %d has keys (keyrings(7)), which cannot be read", s.Serial),
				Do: "run cr-dump with the same session keyring, which then counts as one that is outside of the tree"})
		}
	}
	var err error
	p.Session, err = d.Once(keyringKey{s.ID}, func() (stream.Ref, error) { return d.Add(KeyringKind.Type, k), nil })
	return err
}

// DumpOwnKeys returns what DumpKeyrings has left of one thread.
func DumpOwnKeys(t *object.Thread) OwnKeys {
	k, _ := t.View.Keyrings.Get()
	return OwnKeys{Thread: k.Thread.ID != 0, Process: k.Process.ID != 0, Default: k.Default}
}

// Check refuses what no kernel would show.
func (k *Keyring) Check() error {
	if len(k.Name) > 4095 || strings.ContainsRune(k.Name, 0) || strings.HasPrefix(k.Name, ".") || k.UserLink && (k.Keys || k.Name != "") || k.Name == "" && k.Keys {
		return object.BadImagef("a session keyring %.40q that cannot be", k.Name)
	}
	return nil
}

// Lives says whether the caller sees this very keyring.
func (k *Keyring) Lives() bool {
	text, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(k.Serial)) // type;uid;gid;perm;description
	if err != nil {
		return false
	}
	f := strings.SplitN(text, ";", 5)
	return len(f) == 5 && f[0] == "keyring" && (f[4] == k.Name || k.Name == "" && f[4] == anonymousSession)
}

// JoinCalls adds the calls by which a process gets it: the one that there is, by its name, or a new one.
func (k *Keyring) JoinCalls(b *tracee.Batch) {
	n := b.Sys().Keyctl
	switch {
	case k.Name == "":
		b.Call(n, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	default:
		c := b.Call(n, unix.KEYCTL_JOIN_SESSION_KEYRING, k.Name).Note("session keyring %.40q, which had keys: whoever owns it can let others join (keyctl setperm)", k.Name)
		if k.Keys {
			c.Expect(uint64(k.Serial))
			return
		}
	}
	const all = 0x3f // of one class
	b.Call(n, unix.KEYCTL_CHOWN, keySession, k.UID, k.GID).Allow(unix.EACCES)
	b.Call(n, unix.KEYCTL_SETPERM, keySession, k.Perm|all<<24).Allow(unix.EACCES)
}

// Serials that stand for keyrings of the caller, as arguments.
const (
	keyThread  = ^uint64(0) // KEY_SPEC_THREAD_KEYRING
	keyProcess = ^uint64(1)
	keySession = ^uint64(2)
	keyUser    = ^uint64(3)
)

// LinkCalls adds the link to the user's keyring, when the process has its final user.
func (k *Keyring) LinkCalls(b *tracee.Batch) {
	if k.UserLink {
		b.Call(b.Sys().Keyctl, unix.KEYCTL_LINK, keyUser, keySession).Note("linking the user's keyring")
	}
}

// Calls adds the calls for what is the thread's own, when it has its final user.
func (o *OwnKeys) Calls(b *tracee.Batch, a *arch.Arch) {
	n := a.Sys.Keyctl
	if o.Thread {
		b.Call(n, unix.KEYCTL_GET_KEYRING_ID, keyThread, 1)
	}
	if o.Process {
		b.Call(n, unix.KEYCTL_GET_KEYRING_ID, keyProcess, 1)
	}
	if o.Default != 0 {
		b.Call(n, unix.KEYCTL_SET_REQKEY_KEYRING, o.Default)
	}
}

// OwnKeyring is the serial of the caller's session keyring, 0 on a kernel without keyrings.
func OwnKeyring() int32 {
	serial, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		return 0
	}
	return int32(serial)
}

// checkKeyrings says whether every session keyring can be shared by whoever has it: by birth. No call takes one away, so
// that who has none of its own cannot be made by somebody who has.
func (f *Forest) checkKeyrings() error {
	origin := map[stream.Ref]int32{}
	for _, b := range f.All {
		if b.Ghost() || b.Thread || b.Process.Zombie {
			continue
		}
		var inherited stream.Ref
		if c := b.Creator; c != nil && !c.Ghost() && !c.Process.Zombie {
			inherited = c.Process.Keyring
		}
		ring := b.Process.Keyring
		if ring == inherited {
			continue
		}
		if ring.IsZero() {
			return object.BadImagef("process %d has no session keyring of its own, but its parent %d has", b.PID, b.Creator.Process.PID)
		}
		if other, ok := origin[ring]; ok {
			return object.BadImagef("processes %d and %d share a session keyring, but neither can be made by the other", other, b.PID)
		}
		origin[ring] = b.PID
	}
	return nil
}
