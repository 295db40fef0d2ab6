//go:build amd64

package kernelview

import (
	"testing"

	"golang.org/x/sys/unix"
)

// testAIO has a context, whose number is at 0x100 of the child's page, take requests that complete at once and one that waits.
func testAIO(t *testing.T, c *child, look func() AIOContext) {
	t.Helper()
	ctx := c.get(0x100, 1)[0]
	got := look()
	if uint64(got.Ring) != ctx || got.MaxReq != 8 || got.Tail != 0 || got.Index != 0 || got.Slots == 0 || got.Polls {
		t.Errorf("a new context is %+v", got)
	}
	same(t, "requests in flight of a new context", got.InFlight, 0)
	null := c.must(unix.SYS_EVENTFD2, 0, 0)
	const (
		pread = 0
		poll  = 5
	)
	submit := func(at, op, fd, buf, size uint64) {
		c.putWords(at, 0, 0, op, 0, 0, 0, 0, 0) // struct iocb
		c.putWords(at+16, op|0<<16|fd<<32, buf, size, 0, 0, 0)
		c.putWords(0x110, c.page+at)
		if n := c.must(unix.SYS_IO_SUBMIT, ctx, 1, c.page+0x110); n != 1 {
			t.Fatalf("%d requests submitted", n)
		}
	}
	file := uint64(c.must(unix.SYS_MEMFD_CREATE, c.putWords(0x118, 'x'), 0))
	for range 3 {
		submit(0x140, pread, file, c.page+0x300, 8)
	}
	got = look()
	same(t, "requests in flight", got.InFlight, 0)
	if got.Tail != 3 {
		t.Errorf("tail %d after three requests", got.Tail)
	}
	submit(0x180, poll, uint64(null), unix.POLLIN, 0)
	got = look()
	same(t, "requests in flight", got.InFlight, 1)
	if !got.Polls {
		t.Error("a poll that waits is not seen")
	}
}
