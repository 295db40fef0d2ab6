package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// TestRefusedSockets: every kind of socket that is not kept is refused by name, with status 3, and who has it goes on.
func TestRefusedSockets(t *testing.T) {
	harness.NeedRoot(t)
	for what, want := range map[string]string{
		"vsock": "AF_VSOCK", "xdp": "AF_XDP", "alg": "AF_ALG", "can": "AF_CAN", "tipc": "AF_TIPC", "rds": "AF_RDS", "smc": "AF_SMC", "bluetooth": "AF_BLUETOOTH",
		"sctp": "SCTP", "ktls": "kTLS", "md5": "TCP_MD5SIG", "ao": "TCP_AO_ADD_KEY",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			j := harness.StartFixture(t, "refusedsock", harness.Options{Args: []string{what}})
			if _, err := os.Stat(filepath.Join(j.Dir, "absent")); err == nil {
				j.Finish()
				t.Skipf("this kernel has no %s", what)
			}
			before := j.Footprint()
			r := j.Sh("cr-dump $PID > got")
			if r.Status != 3 || !strings.Contains(r.Stderr, want) || !strings.Contains(r.Stderr, "(refusedsock)") {
				t.Errorf("status %d, want 3 and %q: %s", r.Status, want, r.Stderr)
			}
			j.CheckUnharmed(before)
			j.Finish()
		})
	}
}
