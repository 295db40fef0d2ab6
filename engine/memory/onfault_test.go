package memory

import (
	"testing"

	"crpipe/engine/internal/procfs"
)

// TestFlagWithoutCode: kernels before 6.18 show MLOCK_ONFAULT as "??". Nothing else that they show so is taken for it.
func TestFlagWithoutCode(t *testing.T) {
	was := onFaultHasNoCode
	defer func() { onFaultHasNoCode = was }()
	for _, c := range []struct {
		flags  procfs.VMFlags
		noCode bool
		want   string // empty: refused
	}{
		{"rd wr mr mw me lo ?? ac", true, "ac lo lf"},
		{"rd wr mr mw me lo ac", true, "ac lo"},
		{"rd wr mr mw me ?? ac", true, ""},       // not locked
		{"rd wr mr mw me lo ?? ac ??", true, ""}, // and something else
		{"rd wr mr mw me lo ?? ac", false, ""},   // a kernel that has a code for it
	} {
		onFaultHasNoCode = func() bool { return c.noCode }
		v := procfs.SmapsVMA{VMA: procfs.VMA{Start: 0x10000, End: 0x20000, Prot: procfs.ProtRead | procfs.ProtWrite}, Flags: c.flags}
		a, err := areaOf(native(t), &v)
		if (err == nil) != (c.want != "") || err == nil && a.Flags != c.want {
			t.Errorf("%q: flags %q, %v; want %q", c.flags, a.Flags, err, c.want)
		}
	}
}
