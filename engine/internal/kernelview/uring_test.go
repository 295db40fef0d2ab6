//go:build amd64

package kernelview

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestIOUring has an instance take requests that complete and one that waits, and compares what the kernel has counted.
func TestIOUring(t *testing.T) {
	v, c := view(t), newChild(t)
	const params = 0x100 // 120 bytes, zero
	fd, err := c.call(unix.SYS_IO_URING_SETUP, 4, c.page+params)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		off, _ := os.ReadFile("/proc/sys/kernel/io_uring_disabled")
		t.Skipf("needs io_uring: %v (io_uring_disabled %q)", err, off)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventfd := c.must(unix.SYS_EVENTFD2, 0, 0)
	look := func() IOUring {
		t.Helper()
		u, err := v.IOUring(fileOf(t, v, c.pid(), int(fd)).ID, []int{c.pid()})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	p := c.bytes(c.page+params, 120)
	field := func(at int) uint32 { return binary.NativeEndian.Uint32(p[at:]) }
	u := look()
	if u.SQEntries != 4 || u.CQEntries != 8 || u.Setup != 0 || u.SQHead != 0 || u.CQTail != 0 || u.InFlight != 0 || u.Submitter != 0 || u.HasEventfd ||
		len(u.Files) != 0 || len(u.Registered) != 0 || len(u.Odd) != 0 || u.NoDrain {
		t.Errorf("a new instance is %+v", u)
	}
	if want := []uint32{field(40), field(44), field(48), field(52), field(56), field(60), field(80), field(84), field(88), field(92), field(96), field(104)}; !slices.Equal(u.Counters[:], want) {
		t.Errorf("counters at %v, want %v", u.Counters, want)
	}
	if u.CQEs != field(100) || u.Array != field(64) {
		t.Errorf("completions at %d and the array at %d, want %d and %d", u.CQEs, u.Array, field(100), field(64))
	}
	rings := uint64(c.must(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, uint64(fd), 0))
	sqes := uint64(c.must(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, uint64(fd), 0x10000000))
	tail := uint32(0)
	submit := func(n uint32) {
		t.Helper()
		tail += n
		if err := c.write(rings+uint64(field(44)), binary.NativeEndian.AppendUint32(nil, tail)); err != nil {
			t.Fatal(err)
		}
		if got := c.must(unix.SYS_IO_URING_ENTER, uint64(fd), uint64(n), 0, 0, 0, 0); got != int64(n) {
			t.Fatalf("%d requests of %d were taken", got, n)
		}
	}
	submit(3)
	if u = look(); u.SQHead != 3 || u.CQTail != 3 || u.InFlight != 0 {
		t.Errorf("after three requests: %d taken, %d complete, %d in flight", u.SQHead, u.CQTail, u.InFlight)
	}
	if got := c.bytes(rings, 4096); !slices.Equal(got, u.Rings) {
		t.Error("the rings are not those that the process sees")
	}
	const pollAdd = 6
	if err := c.write(sqes, append(binary.NativeEndian.AppendUint32([]byte{pollAdd, 0, 0, 0}, uint32(eventfd)), make([]byte, 24)...)); err != nil {
		t.Fatal(err)
	}
	if err := c.write(sqes+28, binary.NativeEndian.AppendUint32(nil, unix.POLLIN)); err != nil {
		t.Fatal(err)
	}
	submit(1)
	if u = look(); u.SQHead != 4 || u.CQTail != 3 || u.InFlight != 1 {
		t.Errorf("with a poll that waits: %d taken, %d complete, %d in flight", u.SQHead, u.CQTail, u.InFlight)
	}
	if !v.l.has(fReqOp) || !v.l.has(fURingHash) {
		t.Log("this kernel does not tell of requests")
	} else if len(u.Requests) != 1 || u.Unkept != "" {
		t.Errorf("requests %+v, %s", u.Requests, u.Unkept)
	} else if r := u.Requests[0]; r.Op != pollAdd || r.Tid != c.pid() || r.File != fileOf(t, v, c.pid(), int(eventfd)).ID || r.Slot != -1 || r.Flags&0xffff&^(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL|unix.POLLRDHUP) != unix.POLLIN || r.Len != 0 || r.Skip {
		t.Errorf("the request is %+v", r)
	}
	if got := c.bytes(sqes, 4096); !slices.Equal(got, u.SQEs) {
		t.Error("the entries are not those that the process sees")
	}
	if places, err := v.perCPU(); err == nil && places != nil { // as before Linux 6.16
		_, ctx, err := v.content(fileOf(t, v, c.pid(), int(fd)).ID, KindIOUring, "io_ring_ctx")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := v.uringTasksInFlight(ctx); err != nil || n != 1 {
			t.Errorf("the requests of its tasks in flight: %d, %v, want 1", n, err)
		}
	}
	const registerEventfd, registerFiles, registerRing = 4, 2, 20
	at := c.put(0x200, binary.NativeEndian.AppendUint32(nil, uint32(eventfd)))
	c.must(unix.SYS_IO_URING_REGISTER, uint64(fd), registerEventfd, at, 1)
	at = c.put(0x210, append([]byte{255, 255, 255, 255}, binary.NativeEndian.AppendUint32(nil, uint32(eventfd))...))
	c.must(unix.SYS_IO_URING_REGISTER, uint64(fd), registerFiles, at, 2)
	at = c.putWords(0x220, 5, uint64(fd))
	c.must(unix.SYS_IO_URING_REGISTER, uint64(fd), registerRing, at, 1)
	told := fileOf(t, v, c.pid(), int(eventfd)).ID
	if u = look(); !u.HasEventfd || u.Eventfd != told || u.EventfdAsync || !slices.Equal(u.Files, []ID{0, told}) || !slices.Equal(u.Registered, []IOUringPlace{{c.pid(), 5}}) {
		t.Errorf("eventfd %d %v, files %v, want %d; registered %v", u.Eventfd, u.HasEventfd, u.Files, told, u.Registered)
	}
	at = c.put(0x300, make([]byte, 16)) // struct iovec
	if err := c.write(at, binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, c.page), 4096)); err != nil {
		t.Fatal(err)
	}
	c.must(unix.SYS_IO_URING_REGISTER, uint64(fd), 0, at, 1)
	if u = look(); len(u.Odd) != 1 {
		t.Errorf("with a registered buffer: %v", u.Odd)
	}
}
