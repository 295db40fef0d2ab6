package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crpipe/test/harness"
)

// TestPrograms compiles every program that the tests run, those of 32 bits where they can be linked: tools/vm takes them from the
// cache into a machine that has no compiler for them.
func TestPrograms(t *testing.T) {
	for _, dir := range []string{"prog", "prog32"} {
		for _, name := range sources(t, dir, ".c") {
			if dir == "prog" {
				harness.Prog(t, name)
			}
			if _, err := os.Stat("/usr/include/gnu/stubs-32.h"); err == nil && not32[name] == "" {
				harness.Prog32(t, name)
			}
		}
	}
	for _, name := range sources(t, "goprog", "") {
		harness.GoProg(t, name)
		harness.GoProg32(t, name)
	}
}

// sources are the names in a directory of test/testdata that end so, without that.
func sources(t *testing.T, dir, suffix string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(harness.Root(), "test", "testdata", dir))
	if err != nil || len(entries) == 0 {
		t.Fatalf("finding programs: %v", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), suffix); ok {
			names = append(names, name)
		}
	}
	return names
}
