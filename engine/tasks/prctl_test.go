package tasks

import (
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
)

// Forced and until-exec imply disabled; the strongest word is the one that brings all of it back. The machine that this runs on may have
// nothing to control, so that fixture taskstate has nothing to set.
func TestSpeculation(t *testing.T) {
	for _, c := range []struct {
		s      kernelview.Speculation
		sb, ib uint32
	}{
		{kernelview.Speculation{}, 0, 0},
		{kernelview.Speculation{SSBDisable: true}, unix.PR_SPEC_DISABLE, 0},
		{kernelview.Speculation{SSBDisable: true, SSBNoexec: true}, unix.PR_SPEC_DISABLE_NOEXEC, 0},
		{kernelview.Speculation{SSBDisable: true, SSBForceDisable: true, IBDisable: true}, unix.PR_SPEC_FORCE_DISABLE, unix.PR_SPEC_DISABLE},
		{kernelview.Speculation{IBDisable: true, IBForceDisable: true}, 0, unix.PR_SPEC_FORCE_DISABLE},
	} {
		if sb, ib := speculation(c.s); sb != c.sb || ib != c.ib {
			t.Errorf("%+v: %d and %d, want %d and %d", c.s, sb, ib, c.sb, c.ib)
		}
	}
}
