package stream

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// The checksum of records is crc32c. hash/crc32 computes it with the processor's instruction for it, at some 20 GB/s, which is a sixth of what
// moving a page from a process to a pipe costs; carry-less multiplication of 64 bytes at a time is several times faster where there is such
// an instruction (VPCLMULQDQ with AVX-512).

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	foldWidth = 256           // bytes that foldBlocks takes at a time
	foldFrom  = 4 * foldWidth // bytes from which on that is worth its set-up
)

// A checksum computes checksums. It is used by one goroutine.
type checksum struct {
	block [foldWidth]byte // here, because what hash/crc32 gets escapes to the heap
}

// update is crc32.Update for the polynomial of streams.
func (s *checksum) update(crc uint32, p []byte) uint32 {
	if len(p) < foldFrom || !canFold() {
		return crc32.Update(crc, castagnoli, p)
	}
	// What the bytes so far have left is added to the first ones, and the blocks are replaced by one of the same remainder.
	block := &s.block
	copy(block[:], p)
	binary.LittleEndian.PutUint32(block[:], binary.LittleEndian.Uint32(block[:])^^crc)
	n := len(p) &^ (foldWidth - 1)
	foldBlocks(block, p[foldWidth:n], &foldBy)
	crc = crc32.Update(^uint32(0), castagnoli, block[:]) // ^0: as if nothing came before
	return crc32.Update(crc, castagnoli, p[n:])
}

// foldBy are the factors by which a 128-bit piece is multiplied to be moved over foldWidth bytes, its lower and its upper half, four times over.
var foldBy = func() (k [8]uint64) {
	for i := 0; i < len(k); i += 2 {
		k[i], k[i+1] = foldFactor(8*foldWidth+32), foldFactor(8*foldWidth-32)
	}
	return k
}()

// foldFactor is x^n modulo the polynomial, in the bit order of the checksum and shifted by the one bit that a product of two such is short of.
func foldFactor(n int) uint64 {
	r := uint32(1)
	for range n {
		carry := r >> 31
		r = r<<1 ^ bits.Reverse32(crc32.Castagnoli)*carry
	}
	return uint64(bits.Reverse32(r)) << 1
}
