package arch

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// xstateBlob is an xsave area of a machine; each feature in use is filled with its bit number.
func xstateBlob(enabled, inUse uint64, size int, offsets map[int]int) []byte {
	b := make([]byte, size)
	for i := range 400 {
		b[i] = byte(i)
	}
	binary.LittleEndian.PutUint64(b[xstateEnabled:], enabled)
	binary.LittleEndian.PutUint64(b[xstateBV:], inUse)
	for _, f := range xfeatures {
		if off := offsets[f.bit]; off != 0 && inUse&(1<<f.bit) != 0 {
			copy(b[off:], bytes.Repeat([]byte{byte(f.bit)}, f.size))
		}
	}
	return b
}

var (
	// Sizes and offsets as those processors' CPUID leaf 0xd tells.
	haswell = map[int]int{2: 576}
	skylake = map[int]int{2: 576, 3: 960, 4: 1024, 5: 1088, 6: 1152, 7: 1664, 9: 2688}
	zen3    = map[int]int{2: 576, 9: 832}
	zen4    = map[int]int{2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432}
)

func TestFitX86XState(t *testing.T) {
	tests := []struct {
		name string
		from []byte
		to   []byte
		want map[int]int // where the features in use end up
		err  string
	}{
		{"same machine", xstateBlob(7, 7, 832, haswell), xstateBlob(7, 3, 832, haswell), haswell, ""},
		{"to more features", xstateBlob(7, 7, 832, haswell), xstateBlob(0x2e7, 3, 2696, skylake), skylake, ""},
		{"to fewer, not in use", xstateBlob(0x2e7, 7, 2696, skylake), xstateBlob(7, 3, 832, haswell), haswell, ""},
		{"to fewer, in use", xstateBlob(0x2e7, 0x67, 2696, skylake), xstateBlob(7, 3, 832, haswell), nil, "AVX-512 opmask, AVX-512 ZMM high 256, which this machine lacks"},
		{"Zen 3 to Skylake", xstateBlob(0x207, 0x207, 840, zen3), xstateBlob(0x2ff, 3, 2696, skylake), skylake, ""},
		{"Skylake to Zen 4", xstateBlob(0x2ff, 0x2e7, 2696, skylake), xstateBlob(0x2e7, 3, 2440, zen4), zen4, ""},
		{"Zen 4 to Zen 3", xstateBlob(0x2e7, 0x207, 2440, zen4), xstateBlob(0x207, 3, 840, zen3), zen3, ""},
		{"unknown layout", xstateBlob(0x207, 0x207, 1000, zen3), xstateBlob(0x207, 3, 840, zen3), nil, "unknown layout"},
		{"unknown feature", xstateBlob(1<<40|7, 1<<40|7, 832, haswell), xstateBlob(1<<40|7, 3, 1832, haswell), nil, "processor features 0x10000000000"},
		{"in use, not enabled", xstateBlob(7, 0x207, 832, haswell), xstateBlob(7, 3, 832, haswell), nil, "PKRU, which its machine had not enabled"},
		{"too short", make([]byte, 512), xstateBlob(7, 3, 832, haswell), nil, "at least 576"},
	}
	for _, tt := range tests {
		got, err := FitX86XState(tt.from, tt.to)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		inUse := binary.LittleEndian.Uint64(tt.from[xstateBV:])
		want := xstateBlob(binary.LittleEndian.Uint64(tt.to[xstateEnabled:]), inUse, len(tt.to), tt.want)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the areas differ", tt.name)
		}
	}
	compacted := xstateBlob(7, 7, 832, haswell)
	compacted[xstateCompBV+7] = 0x80
	if _, err := ParseX86XState(compacted); err == nil {
		t.Error("the compacted form is accepted")
	}
	reserved := xstateBlob(7, 7, 832, haswell)
	reserved[xstateCompBV+20] = 1
	if _, err := ParseX86XState(reserved); err == nil {
		t.Error("reserved bytes are accepted")
	}
}

func TestSigFrameLayout(t *testing.T) {
	regs := make([]byte, amd64PRStatusSize)
	xs := xstateBlob(7, 7, 832, haswell)
	for _, at := range []Addr{0x1000, 0x1001, 0x103f} {
		f, err := amd64SigFrame(at, SigContext{PRStatus: regs, XState: xs})
		if err != nil {
			t.Fatal(err)
		}
		frame := f.Bytes[f.SP-8-at:]
		if len(frame) != amd64FrameSize {
			t.Errorf("at %v: %d bytes from the frame on, want %d", at, len(frame), amd64FrameSize)
		}
		fp := Addr(binary.LittleEndian.Uint64(frame[amd64ContextFPPtr:]))
		if fp%64 != 0 || fp < at {
			t.Errorf("at %v: floating point area at %v", at, fp)
		}
	}
	if _, err := amd64SigFrame(0x1000, SigContext{PRStatus: regs[8:]}); err == nil {
		t.Error("short registers are accepted")
	}
	if _, err := amd64SigFrame(0x1000, SigContext{PRStatus: regs, XState: xs[:500]}); err == nil {
		t.Error("a short xsave area is accepted")
	}
}
