package signals

import (
	"bytes"
	"testing"

	"crpipe/arch"
)

// TestCompatAction: an action of 32-bit code has the layout of struct compat_sigaction, without the flag that only the kernel sets.
func TestCompatAction(t *testing.T) {
	act := Action{Signal: 10, Handler: 0x8049000, Flags: saIA32ABI | 0x04000004, Restorer: 0x8049100, Mask: 0x8000000000000001}
	want := []byte{0, 0x90, 4, 8, 4, 0, 0, 4, 0, 0x91, 4, 8, 1, 0, 0, 0, 0, 0, 0, 0x80}
	if got := act.bytes(); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
	s := &Sighand{Actions: []Action{act}}
	if err := s.Check(); err != nil || !s.NeedsCompat() || s.TrapCompat() {
		t.Errorf("%v, %v, %v", err, s.NeedsCompat(), s.TrapCompat())
	}
	s.Actions[0].Handler = 1 << 32
	if err := s.Check(); err == nil {
		t.Error("a handler of 32-bit code beyond 4 GiB was accepted")
	}
	s.Actions[0].Flags = 0
	if err := s.Check(); err != nil || s.NeedsCompat() {
		t.Errorf("the same of 64-bit code: %v, %v", err, s.NeedsCompat())
	}
}

func TestCompatRestartCheck(t *testing.T) {
	a, err := arch.For("amd64")
	if err != nil {
		t.Fatal(err)
	}
	regs := make([]byte, a.PRStatusSize)
	a.Compat.SetCall(regs, 0x1000, a.Compat.Sys.Poll, [6]uint64{})
	regs[15*8], regs[15*8+1] = byte(a.Compat.Sys.Poll), 0 // orig_rax
	clear(regs[15*8+2 : 16*8])
	a.Compat.SetResult(regs, erestartRestartblock)
	for name, c := range map[string]struct {
		r  Restart
		ok bool
	}{
		"poll":                             {Restart{Kind: RestartPoll, Compat: true, Left: 1}, true},
		"nanosleep of 32 bits":             {Restart{Kind: RestartNanosleep, Compat: true, Time32: true}, true},
		"poll of 32 bits":                  {Restart{Kind: RestartPoll, Compat: true, Time32: true}, false},
		"a time of 32 bits in 64-bit code": {Restart{Kind: RestartNanosleep, Time32: true}, false},
	} {
		if err := c.r.Check(a, regs); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	arm64, err := arch.For("arm64")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Restart{Kind: RestartPoll, Compat: true}).Check(arm64, regs); err == nil {
		t.Error("a call of 32-bit code on arm64 was accepted")
	}
}
