//go:build amd64

package cpuid

import "testing"

func TestAsk(t *testing.T) {
	if last, _, _, _ := Ask(0, 0); last == 0 {
		t.Error("the processor knows leaf 0 only")
	}
	if _, _, _, d := Ask(1, 0); d>>26&1 == 0 {
		t.Error("no SSE2, which every amd64 has")
	}
}
