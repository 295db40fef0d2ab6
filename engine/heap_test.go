package engine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestUseHugePages: what is allocated after the call lies in a mapping that asks for huge pages. In a process of its own, as in a
// command: the memory that a test has used already is not where it looks.
func TestUseHugePages(t *testing.T) {
	const role = "CRPIPE_TEST_HEAP"
	if os.Getenv(role) == "" {
		mode, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
		if err != nil || bytes.Contains(mode, []byte("[never]")) {
			t.Skip("this kernel gives no huge pages to who asks for them")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUseHugePages$", "-test.v")
		cmd.Env = append(os.Environ(), role+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	UseHugePages()
	var have [][]byte
	for range 64 {
		have = append(have, make([]byte, 128<<10))
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, b := range have {
		var at uint64
		if _, err := fmt.Sscanf(fmt.Sprintf("%p", b), "0x%x", &at); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(flagsOf(t, string(smaps), at), " hg") {
			asked++
		}
	}
	if asked < len(have)/2 {
		t.Errorf("%d of %d allocations are where huge pages were asked for", asked, len(have))
	}
}

// flagsOf returns the line VmFlags of the mapping at an address.
func flagsOf(t *testing.T, smaps string, at uint64) string {
	inside := false
	for line := range strings.Lines(smaps) {
		var start, end uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &start, &end); n == 2 {
			inside = start <= at && at < end
		}
		if inside && strings.HasPrefix(line, "VmFlags:") {
			return line
		}
	}
	t.Fatalf("no mapping at %#x", at)
	return ""
}
