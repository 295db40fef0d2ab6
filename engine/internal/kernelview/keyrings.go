package kernelview

import (
	"bytes"
	"encoding/binary"
)

// Keyrings are those of a thread's credentials, session-keyring(7) and its
// like. Keyring 0: it has none.
type Keyrings struct {
	Session, Process, Thread Keyring
	Default                  uint8 // KEYCTL_SET_REQKEY_KEYRING
	Authority                bool  // is making a key for somebody (request_key_auth)
}

// Keyring is one keyring.
type Keyring struct {
	ID          ID
	Serial      int32
	Description string
	Keys        int
	// UserLink says that the only key is the keyring of a user (_uid.UID), as
	// pam_keyinit(8) leaves it.
	UserLink bool
	UID, GID uint32
	Perm     uint32
}

var (
	fCredSession   = want("cred.session_keyring")
	fCredProcess   = want("cred.process_keyring")
	fCredThread    = want("cred.thread_keyring")
	fCredAuthority = want("cred.request_key_auth")
	fCredDefault   = want("cred.jit_keyring")
	fKeySerial     = want("key.serial")
	fKeyUID        = want("key.uid")
	fKeyGID        = want("key.gid")
	fKeyPerm       = want("key.perm")
	fKeyName       = want("key.description")
	fKeyRoot       = want("key.keys.root")
	fKeyLeaves     = want("key.keys.nr_leaves_on_tree")
	fAssocSlots    = want("assoc_array_node.slots")
)

// maxKeyName is KEY_MAX_DESC_SIZE (security/keys/internal.h), a page at most.
const maxKeyName = 4096

// keyrings reads the keyrings of credentials, by the address of those.
func (v *bpfView) keyrings(creds map[uint64][]byte) (map[uint64]Maybe[Keyrings], error) {
	l := v.l
	for _, f := range []field{
		fCredSession, fCredProcess, fCredThread, fCredAuthority, fCredDefault, fKeySerial, fKeyUID, fKeyGID, fKeyPerm, fKeyName, fKeyRoot, fKeyLeaves,
	} {
		if !l.has(f) {
			return nil, nil
		}
	}
	var addrs []uint64
	for _, b := range creds {
		for _, f := range []field{fCredSession, fCredProcess, fCredThread} {
			a, _ := l.uint(b, f)
			addrs = append(addrs, a)
		}
	}
	blocks, err := v.gatherMap(addrs, l.span["key"])
	if err != nil {
		return nil, err
	}
	known := map[uint64]*Keyring{0: {}}
	for a, b := range blocks {
		k, err := v.keyring(a, b)
		if err != nil {
			return nil, err
		}
		known[a] = k
	}
	out := make(map[uint64]Maybe[Keyrings], len(creds))
	for a, b := range creds {
		get := func(f field) *Keyring { p, _ := l.uint(b, f); return known[p] }
		session, process, thread := get(fCredSession), get(fCredProcess), get(fCredThread)
		if session == nil || process == nil || thread == nil {
			continue
		}
		authority, _ := l.uint(b, fCredAuthority)
		standard, _ := l.uint(b, fCredDefault)
		out[a] = Is(Keyrings{Session: *session, Process: *process, Thread: *thread, Default: uint8(standard), Authority: authority != 0})
	}
	return out, nil
}

// keyring reads one keyring; nil where that is not possible.
func (v *bpfView) keyring(addr uint64, b []byte) (*Keyring, error) {
	l := v.l
	serial, ok1 := l.uint(b, fKeySerial)
	uid, ok2 := l.uint(b, fKeyUID)
	gid, ok3 := l.uint(b, fKeyGID)
	perm, ok4 := l.uint(b, fKeyPerm)
	name, ok5 := l.uint(b, fKeyName)
	keys, ok6 := l.uint(b, fKeyLeaves)
	root, ok7 := l.uint(b, fKeyRoot)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || !ok7 {
		return nil, nil
	}
	k := &Keyring{ID: v.id(addr), Serial: int32(serial), Keys: int(keys), UID: uint32(uid), GID: uint32(gid), Perm: uint32(perm)}
	var ok bool
	if k.Description, ok = v.keyName(name); !ok {
		return nil, nil
	}
	if keys != 1 || !l.has(fAssocSlots) {
		return k, nil
	}
	// With one key the root is a node, and the key in one of its slots; the lower
	// bits of a pointer say what it leads to (linux/assoc_array_priv.h).
	node, err := v.mem.peek(root&^3, l.span["assoc_array_node"])
	if err != nil {
		return k, nil
	}
	slots, _ := l.bytes(node, fAssocSlots)
	for ; len(slots) >= 8; slots = slots[8:] {
		p := binary.NativeEndian.Uint64(slots)
		if p == 0 || p&1 != 0 {
			continue
		}
		key, err := v.mem.peek(p&^3, l.span["key"])
		if err != nil {
			return k, nil
		}
		at, _ := l.uint(key, fKeyName)
		if name, ok := v.keyName(at); ok && len(name) > 5 && name[:5] == "_uid." {
			k.UserLink = true
		}
	}
	return k, nil
}

// keyName reads a description, which ends with a zero byte and may lie at the
// end of what can be read.
func (v *bpfView) keyName(addr uint64) (string, bool) {
	const step = 64
	var name []byte
	for len(name) < maxKeyName {
		b, err := v.mem.peek(addr+uint64(len(name)), step)
		if err != nil {
			return "", false
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(name, b[:i]...)), true
		}
		name = append(name, b...)
	}
	return "", false
}
