package tasks

import "testing"

func TestDebugHostile(t *testing.T) {
	for n, want := range map[int]bool{0: true, 1: false, 6: true, 7: false, 100: false} {
		if err := (&Thread{Debug: make([]uint64, n)}).checkDebug("amd64"); (err == nil) != want {
			t.Errorf("%d registers: %v", n, err)
		}
	}
	if err := (&Thread{Debug: make([]uint64, 6)}).checkDebug("s390x"); err == nil {
		t.Error("debug registers of x86 pass on s390x")
	}
}
