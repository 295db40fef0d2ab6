//go:build amd64

package stream

import (
	"sync"

	"crpipe/internal/cpuid"
)

// foldBlocks adds the blocks of p, a multiple of foldWidth bytes, to acc.
//
//go:noescape
func foldBlocks(acc *[foldWidth]byte, p []byte, by *[8]uint64)

func xgetbv() (eax uint32)

// canFold: the processor has VPCLMULQDQ and AVX-512F, and the kernel keeps their registers (Intel SDM volume 1, 15.2). Asked once, when first needed: in
// a virtual machine each question costs tens of microseconds.
var canFold = sync.OnceValue(func() bool {
	const (
		osxsave    = 1 << 27 // leaf 1, ECX
		avx512f    = 1 << 16 // leaf 7, EBX
		vpclmulqdq = 1 << 10 // leaf 7, ECX
		states     = 0xe6    // SSE, AVX, and the three of AVX-512
	)
	if last, _, _, _ := cpuid.Ask(0, 0); last < 7 {
		return false
	}
	if _, _, c, _ := cpuid.Ask(1, 0); c&osxsave == 0 || xgetbv()&states != states {
		return false
	}
	_, b, c, _ := cpuid.Ask(7, 0)
	return b&avx512f != 0 && c&vpclmulqdq != 0
})
