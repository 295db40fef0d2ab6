//go:build amd64

package kernelview

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLandlock(t *testing.T) {
	v, c := view(t), newChild(t)
	same(t, "Landlock", oneThread(t, v, c.pid()).Landlock, false)
	attr := c.putWords(0, 1)
	ruleset, err := c.call(unix.SYS_LANDLOCK_CREATE_RULESET, attr, 8, 0)
	if err != nil {
		t.Skipf("no Landlock: %v", err)
	}
	prctlOf(c, unix.PR_SET_NO_NEW_PRIVS, 1)
	same(t, "Landlock", oneThread(t, v, c.pid()).Landlock, false)
	c.must(unix.SYS_LANDLOCK_RESTRICT_SELF, uint64(ruleset), 0)
	same(t, "Landlock", oneThread(t, v, c.pid()).Landlock, true)
}

func TestKeyrings(t *testing.T) {
	v, c := view(t), newChild(t)
	before, ok := oneThread(t, v, c.pid()).Keyrings.Get()
	if !ok {
		t.Fatal("keyrings unknown")
	}
	if before.Thread.ID != 0 || before.Process.ID != 0 || before.Authority {
		t.Errorf("keyrings of a new process: %+v", before)
	}
	serial, err := c.call(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	if err != nil {
		t.Skipf("no keyrings: %v", err)
	}
	k := oneThread(t, v, c.pid()).Keyrings.V
	if s := k.Session; s.Serial != int32(serial) || s.Description != "_ses" || s.Keys != 0 || s.UserLink || s.UID != 0 {
		t.Errorf("an anonymous session keyring: %+v, serial %d", s, serial)
	}
	c.must(unix.SYS_KEYCTL, unix.KEYCTL_LINK, ^uint64(3), ^uint64(2)) // the user's into the session's
	if s := oneThread(t, v, c.pid()).Keyrings.V.Session; s.Keys != 1 || !s.UserLink {
		t.Errorf("with a link to the user's: %+v", s)
	}
	name := c.put(0, append([]byte(strings.Repeat("n", 150)), 0))
	serial = c.must(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, name)
	user, desc := c.put(256, []byte("user\x00")), c.put(264, []byte("crpipe\x00"))
	c.must(unix.SYS_ADD_KEY, user, desc, desc, 3, ^uint64(2))
	thread := c.must(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uint64(0), 1)
	c.must(unix.SYS_KEYCTL, unix.KEYCTL_SET_REQKEY_KEYRING, 2)
	k = oneThread(t, v, c.pid()).Keyrings.V
	if s := k.Session; s.Serial != int32(serial) || s.Description != strings.Repeat("n", 150) || s.Keys != 1 || s.UserLink {
		t.Errorf("a named session keyring with a key: %+v, serial %d", s, serial)
	}
	if k.Thread.Serial != int32(thread) || k.Thread.Description != "_tid" || k.Thread.Keys != 0 || k.Default != 2 {
		t.Errorf("keyring of the thread: %+v, serial %d, default %d", k.Thread, thread, k.Default)
	}
}

func TestAudit(t *testing.T) {
	v, c := view(t), newChild(t)
	got := oneThread(t, v, c.pid())
	for name, m := range map[string]Maybe[uint32]{"loginuid": got.LoginUID, "sessionid": got.SessionID} {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid()) + "/" + name)
		if err != nil {
			text = []byte("4294967295")
		}
		want, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		same(t, name, m, uint32(want))
	}
}

func TestAutogroup(t *testing.T) {
	v, c := view(t), newChild(t)
	same(t, "nice value of the autogroup", oneProcess(t, v, c.pid()).AutogroupNice, 0)
	if err := os.WriteFile("/proc/"+strconv.Itoa(c.pid())+"/autogroup", []byte("7"), 0); err != nil {
		t.Skipf("no autogroups: %v", err)
	}
	same(t, "nice value of the autogroup", oneProcess(t, v, c.pid()).AutogroupNice, 7)
}

func TestFutexHash(t *testing.T) {
	v, c := view(t), newChild(t)
	const futexHash, setSlots = 78, 1
	same(t, "slots for futexes", oneProcess(t, v, c.pid()).MM.V.FutexSlots, -1)
	if _, err := c.call(unix.SYS_PRCTL, futexHash, setSlots, 32, 0); err != nil {
		t.Skipf("no hash of private futexes: %v", err)
	}
	same(t, "slots for futexes", oneProcess(t, v, c.pid()).MM.V.FutexSlots, 32)
	if _, err := c.call(unix.SYS_PRCTL, futexHash, setSlots, 0, 0); err == nil {
		same(t, "slots for futexes", oneProcess(t, v, c.pid()).MM.V.FutexSlots, 0)
	}
}

func TestTHPAdvised(t *testing.T) {
	v, c := view(t), newChild(t)
	same(t, "huge pages but where advised", oneProcess(t, v, c.pid()).MM.V.THPAdvised, false)
	if _, err := c.call(unix.SYS_PRCTL, unix.PR_SET_THP_DISABLE, 1, thpExceptAdvised, 0, 0); err != nil {
		t.Skipf("not in this kernel: %v", err)
	}
	m := oneProcess(t, v, c.pid()).MM.V
	same(t, "huge pages but where advised", m.THPAdvised, true)
	same(t, "no huge pages at all", m.THPDisable, false)
}
