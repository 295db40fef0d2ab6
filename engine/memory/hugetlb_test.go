package memory

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// hugetlb writes to the second of two huge pages of hugetlbfs.
func hugetlb() error {
	const size, twoMB = 4 << 20, 21 << 26 // MAP_HUGE_2MB
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|twoMB)
	if err != nil {
		return err
	}
	copy(mem[size/2:], pattern(size/2, 5))
	return nil
}

// TestPlainPageMapHuge: pages of hugetlbfs count neither as Rss nor as Swap. A kernel without PAGEMAP_SCAN dumps them all the same.
func TestPlainPageMapHuge(t *testing.T) {
	needRoot(t)
	const pool = "/proc/sys/vm/nr_overcommit_hugepages"
	was, err := os.ReadFile(pool)
	if err != nil {
		t.Skip("this kernel has no hugetlbfs: ", err)
	}
	if err := os.WriteFile(pool, []byte("256"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(pool, bytes.TrimSpace(was), 0o644); err != nil {
			t.Error(err)
		}
	}()
	pid := start(t, "hugetlb")
	want := imageOfAll(t, pid)
	plainPageMap = true
	defer func() { plainPageMap = false }()
	got := imageOfAll(t, pid)
	if !bytes.Equal(got, want) {
		t.Errorf("an image of %d bytes, and with PAGEMAP_SCAN of %d", len(got), len(want))
	}
	if len(got) < 2<<20 || !bytes.Contains(got, pattern(2<<20, 5)[:4096]) {
		t.Errorf("an image of %d bytes is without the huge page", len(got))
	}
}
