package arch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
)

// ownVDSO reads this process's vdso.
func ownVDSO(t *testing.T) []byte {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(maps)) {
		var lo, hi int64
		if !strings.Contains(line, "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &lo, &hi); err != nil {
			t.Fatal(err)
		}
		mem, err := os.Open("/proc/self/mem")
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		b := make([]byte, hi-lo)
		if _, err := mem.ReadAt(b, lo); err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Skip("this process has no vdso")
	return nil
}

func TestVDSO(t *testing.T) {
	own := ownVDSO(t)
	if !VDSOEqual(own, bytes.Clone(own)) {
		t.Error("a vdso differs from its copy")
	}
	if VDSOEqual(own, append(bytes.Clone(own), make([]byte, 4096)...)) {
		t.Error("equal to a longer one")
	}
	syms, err := vdsoSymbols(own)
	if err != nil || len(syms) < 2 {
		t.Fatalf("%d symbols, %v", len(syms), err)
	}
	// A byte of code may differ; the place of a function may not.
	code := bytes.Clone(own)
	var name string
	var at vdsoSymbol
	for n, s := range syms {
		if s.size > 0 && s.value > 0 {
			name, at = n, s
		}
	}
	code[at.value] ^= 0xff
	if !VDSOEqual(own, code) {
		t.Error("another byte of code makes it unequal")
	}
	moved := bytes.Clone(own)
	entry := binary.NativeEndian.AppendUint64(nil, uint64(at.value))
	n := 0
	for i := 0; i+8 <= len(moved); i += 8 {
		if bytes.Equal(moved[i:i+8], entry) {
			moved[i] += 16
			n++
		}
	}
	if n == 0 {
		t.Fatalf("the symbol table's entry for %s was not found", name)
	}
	if VDSOEqual(own, moved) {
		t.Errorf("equal although %s has moved", name)
	}
	if off, err := VDSOSymbol(own, name); err != nil || off != at.value {
		t.Errorf("%s at %v, %v", name, off, err)
	}
	if _, err := VDSOSymbol(own, "no_such_symbol"); err == nil {
		t.Error("found a symbol that is not there")
	}
	if VDSOEqual(make([]byte, 8192), append(make([]byte, 8191), 1)) {
		t.Error("bytes that are no vdso are equal")
	}
}
