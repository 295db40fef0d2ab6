package stream

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// TestChecksum compares with hash/crc32, at every length around the places where the ways change, every alignment, and in pieces.
func TestChecksum(t *testing.T) {
	if !canFold() {
		t.Log("this processor has no VPCLMULQDQ: hash/crc32 is compared with itself")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 300<<10)
	for i := range data {
		data[i] = byte(rnd.Uint32())
	}
	var s checksum
	check := func(crc uint32, p []byte) {
		t.Helper()
		if got, want := s.update(crc, p), crc32.Update(crc, castagnoli, p); got != want {
			t.Fatalf("of %d bytes after %#x it is %#x, want %#x", len(p), crc, got, want)
		}
	}
	for n := range 3 * foldFrom {
		check(rnd.Uint32(), data[n%67:n%67+n])
	}
	for range 2000 {
		from := rnd.IntN(len(data))
		check(rnd.Uint32(), data[from:from+rnd.IntN(len(data)-from+1)])
	}
	for _, p := range [][]byte{make([]byte, 5000), data} { // zeros too
		check(0, p)
		check(^uint32(0), p)
	}
	// bytes behind the slice do not count
	p := data[:4*foldWidth+100]
	before := s.update(7, p)
	data[len(p)]++
	if s.update(7, p) != before {
		t.Error("a byte behind the end counts")
	}
}

// TestFoldFactor compares with the factors for folding by 64 bytes that are published for the polynomial of Ethernet's little brother iSCSI.
func TestFoldFactor(t *testing.T) {
	for n, want := range map[int]uint64{512 + 32: 0x740eef02, 512 - 32: 0x9e4addf8, 128 + 32: 0xf20c0dfe, 128 - 32: 0x14cd00bd6} {
		if got := foldFactor(n); got != want {
			t.Errorf("x^%d is %#x, want %#x", n, got, want)
		}
	}
}

func BenchmarkChecksum(b *testing.B) {
	p := make([]byte, 256<<10)
	b.SetBytes(int64(len(p)))
	var s checksum
	for b.Loop() {
		s.update(0, p)
	}
}
