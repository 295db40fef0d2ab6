package arch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// NT_X86_XSTATE is an xsave area in the standard, non-compacted form (Intel SDM volume 1, 13.4), of
// the processor's size. The kernel writes into its software-reserved bytes the mask of the features
// that it has enabled (struct xregs_state in asm/fpu/types.h).
const (
	xstateEnabled = 464 // xfeatures of the machine, in fxsave's sw_reserved
	xstateBV      = 512 // features that are not in their initial state
	xstateCompBV  = 520
	xstateLegacy  = 576 // legacy area and header; extended features follow

	xfeatureFP     = 1 << 0
	xfeatureSSE    = 1 << 1
	xfeatureLegacy = xfeatureFP | xfeatureSSE
)

// xfeatures are the extended features in the order of their bits: where Intel's processors keep
// each in the standard form, and its size. AMD's leave no gap for a feature that they lack, so that
// there only the sizes hold.
var xfeatures = []struct {
	bit    int
	name   string
	offset int
	size   int
}{
	{2, "AVX", 576, 256},
	{3, "MPX bounds", 960, 64},
	{4, "MPX configuration", 1024, 64},
	{5, "AVX-512 opmask", 1088, 64},
	{6, "AVX-512 ZMM high 256", 1152, 512},
	{7, "AVX-512 high 16 ZMM", 1664, 1024},
	{9, "PKRU", 2688, 8},
	{17, "AMX tile configuration", 2752, 64},
	{18, "AMX tile data", 2816, 8192},
	{19, "APX", 960, 128}, // takes the place of MPX
}

// X86XState is the reading of one NT_X86_XSTATE blob.
type X86XState struct {
	Enabled uint64 // features that the kernel of that machine has enabled
	InUse   uint64 // features whose registers hold something else than their initial state
	Size    int
}

// ParseX86XState reads the masks of a blob and checks it: at least a header, the standard form,
// nothing in use that was not enabled.
func ParseX86XState(blob []byte) (X86XState, error) {
	if len(blob) < xstateLegacy {
		return X86XState{}, fmt.Errorf("xsave area of %d bytes, at least %d are needed", len(blob), xstateLegacy)
	}
	le := binary.LittleEndian
	x := X86XState{Enabled: le.Uint64(blob[xstateEnabled:]), InUse: le.Uint64(blob[xstateBV:]), Size: len(blob)}
	if le.Uint64(blob[xstateCompBV:]) != 0 {
		return X86XState{}, errors.New("xsave area in the compacted form")
	}
	for _, b := range blob[xstateCompBV+8 : xstateLegacy] {
		if b != 0 {
			return X86XState{}, errors.New("reserved bytes of the xsave header are not zero")
		}
	}
	if extra := x.InUse &^ x.Enabled; extra != 0 {
		return X86XState{}, fmt.Errorf("xsave area uses %s, which its machine had not enabled", xfeatureNames(extra))
	}
	return x, nil
}

// FitX86XState turns a blob into one that PTRACE_SETREGSET accepts on this machine, of which native
// is a blob of any task: as long as that, each feature where this processor has it, what is absent
// zero; that may be blob itself. It is an error, naming the features, when the blob has in use what this machine lacks.
func FitX86XState(blob, native []byte) ([]byte, error) {
	from, err := ParseX86XState(blob)
	if err != nil {
		return nil, err
	}
	to, err := ParseX86XState(native)
	if err != nil {
		return nil, fmt.Errorf("this machine's own registers: %w", err)
	}
	if missing := from.InUse &^ to.Enabled; missing != 0 {
		return nil, fmt.Errorf("the task uses %s, which this machine lacks", xfeatureNames(missing))
	}
	if from.Size == to.Size && string(blob[xstateEnabled:xstateEnabled+48]) == string(native[xstateEnabled:xstateEnabled+48]) {
		return blob, nil
	}
	out := make([]byte, to.Size)
	copy(out[:xstateLegacy], blob)
	copy(out[xstateEnabled:xstateEnabled+48], native[xstateEnabled:])
	if from.Enabled == to.Enabled && from.Size == to.Size {
		copy(out[xstateLegacy:], blob[xstateLegacy:])
		return out, nil
	}
	known := uint64(xfeatureLegacy)
	for _, f := range xfeatures {
		known |= 1 << f.bit
	}
	if odd := from.InUse &^ known; odd != 0 {
		return nil, fmt.Errorf("moving %s between processors: %w", xfeatureNames(odd), ErrUnsupported)
	}
	src, errSrc := xstateLayout(from)
	dst, errDst := xstateLayout(to)
	for i, f := range xfeatures {
		if from.InUse&(1<<f.bit) == 0 {
			continue
		}
		if err := errors.Join(errSrc, errDst); err != nil {
			return nil, fmt.Errorf("moving %s between processors: %w", f.name, err)
		}
		copy(out[dst[i]:dst[i]+f.size], blob[src[i]:])
	}
	return out, nil
}

// xstateLayout returns the offset of each of xfeatures. Two rules exist, and which one a processor
// follows shows in the whole's size; a size that fits neither is an error.
func xstateLayout(x X86XState) ([]int, error) {
	fixed := make([]int, len(xfeatures))
	packed := make([]int, len(xfeatures))
	endFixed, endPacked := xstateLegacy, xstateLegacy
	for i, f := range xfeatures {
		if x.Enabled&(1<<f.bit) == 0 {
			continue
		}
		fixed[i] = f.offset
		endFixed = max(endFixed, f.offset+f.size)
		packed[i] = endPacked
		if f.size%64 == 0 {
			packed[i] = (endPacked + 63) &^ 63
		}
		endPacked = packed[i] + f.size
	}
	switch x.Size {
	case endFixed:
		return fixed, nil
	case endPacked:
		return packed, nil
	}
	return nil, fmt.Errorf("xsave area of %d bytes for features %#x has an unknown layout", x.Size, x.Enabled)
}

func xfeatureNames(mask uint64) string {
	var names []string
	for _, f := range xfeatures {
		if mask&(1<<f.bit) != 0 {
			names = append(names, f.name)
			mask &^= 1 << f.bit
		}
	}
	if mask != 0 {
		names = append(names, fmt.Sprintf("processor features %#x", mask))
	}
	return strings.Join(names, ", ")
}
