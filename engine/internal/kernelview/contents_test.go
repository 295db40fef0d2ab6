//go:build amd64

package kernelview

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fileOf shows the descriptor of a task and returns its open file.
func fileOf(t *testing.T, v *bpfView, tid, fd int) *File {
	t.Helper()
	tables, err := v.Files([]int{tid})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tables[0].FDs {
		if d.FD == fd {
			return d.File
		}
	}
	t.Fatalf("task %d has no descriptor %d", tid, fd)
	return nil
}

func fdinfo(t *testing.T, pid, fd int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		m[key] = strings.TrimSpace(value)
	}
	return m
}

func TestEventfd(t *testing.T) {
	v, c := view(t), newChild(t)
	for _, x := range []struct {
		count uint64
		flags uint64
	}{{0, 0}, {7, unix.EFD_SEMAPHORE}, {0xfffffffffffffffe, unix.EFD_NONBLOCK}} {
		fd := int(c.must(unix.SYS_EVENTFD2, 0, x.flags))
		if x.count != 0 {
			c.must(unix.SYS_WRITE, uint64(fd), c.putWords(0, x.count), 8)
		}
		got, err := v.Eventfd(fileOf(t, v, c.pid(), fd).ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.Count != x.count || got.Semaphore != (x.flags&unix.EFD_SEMAPHORE != 0) {
			t.Errorf("got %+v, want %+v", got, x)
		}
		if own := fdinfo(t, c.pid(), fd)["eventfd-count"]; own != fmt.Sprintf("%x", got.Count) {
			t.Errorf("count %x, fdinfo says %s", got.Count, own)
		}
	}
}

func TestSignalfd(t *testing.T) {
	v, c := view(t), newChild(t)
	for _, mask := range []uint64{0, 1<<(unix.SIGUSR1-1) | 1<<63, ^uint64(0)} {
		fd := int(c.must(unix.SYS_SIGNALFD4, ^uint64(0), c.putWords(0, mask), 8, 0))
		got, err := v.Signalfd(fileOf(t, v, c.pid(), fd).ID)
		if err != nil {
			t.Fatal(err)
		}
		if own := fdinfo(t, c.pid(), fd)["sigmask"]; own != fmt.Sprintf("%016x", got.Mask) {
			t.Errorf("mask %x, fdinfo says %s", got.Mask, own)
		}
	}
}

func TestEpoll(t *testing.T) {
	v, c := view(t), newChild(t)
	epoll := uint64(c.must(unix.SYS_EPOLL_CREATE1, 0))
	outer := uint64(c.must(unix.SYS_EPOLL_CREATE1, 0))
	idle := uint64(c.must(unix.SYS_EVENTFD2, 0, 0))
	ready := uint64(c.must(unix.SYS_EVENTFD2, 5, 0))
	gone := uint64(c.must(unix.SYS_EVENTFD2, 0, 0))
	kept := uint64(c.must(unix.SYS_DUP3, gone, 60, 0))
	add := func(ep, fd uint64, events uint32, data uint64) {
		t.Helper()
		c.put(0, []byte{byte(events), byte(events >> 8), byte(events >> 16), byte(events >> 24)})
		c.putWords(4, data)
		c.must(unix.SYS_EPOLL_CTL, ep, unix.EPOLL_CTL_ADD, fd, c.page)
	}
	add(epoll, idle, unix.EPOLLIN, 0x1122334455667788)
	add(epoll, ready, unix.EPOLLIN|unix.EPOLLET|unix.EPOLLONESHOT, 2)
	add(epoll, gone, unix.EPOLLOUT|unix.EPOLLRDHUP, 3)
	add(epoll, kept, unix.EPOLLIN, 4)
	add(outer, epoll, unix.EPOLLIN, 5)
	gonefile := fileOf(t, v, c.pid(), int(gone)).ID
	c.must(unix.SYS_CLOSE, gone)

	check := func(fd uint64, want []EpollItem) {
		t.Helper()
		got, err := v.Epoll(fileOf(t, v, c.pid(), int(fd)).ID)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Items) != len(want) {
			t.Fatalf("got %+v, want %+v", got.Items, want)
		}
		for i := range want {
			if got.Items[i] != want[i] {
				t.Errorf("item %d: got %+v, want %+v", i, got.Items[i], want[i])
			}
		}
	}
	id := func(fd uint64) ID { return fileOf(t, v, c.pid(), int(fd)).ID }
	const always = unix.EPOLLERR | unix.EPOLLHUP // the kernel adds them
	want := []EpollItem{
		{FD: int(idle), File: id(idle), Events: unix.EPOLLIN | always, Data: 0x1122334455667788},
		{FD: int(ready), File: id(ready), Events: unix.EPOLLIN | unix.EPOLLET&0xffffffff | unix.EPOLLONESHOT | always, Data: 2, Ready: true},
		{FD: int(gone), File: gonefile, Events: unix.EPOLLOUT | unix.EPOLLRDHUP | always, Data: 3, Ready: true},
		{FD: int(kept), File: id(kept), Events: unix.EPOLLIN | always, Data: 4},
	}
	check(epoll, want)
	check(outer, []EpollItem{{FD: int(epoll), File: id(epoll), Events: unix.EPOLLIN | always, Data: 5, Ready: true}})

	// A one-shot that has fired keeps only its flags; the level-triggered one stays
	// on the ready list.
	if n := c.must(unix.SYS_EPOLL_PWAIT, epoll, c.page+0x100, 10, 0, 0, 0); n != 2 {
		t.Fatalf("%d events", n)
	}
	want[1].Events = unix.EPOLLET&0xffffffff | unix.EPOLLONESHOT
	want[1].Ready = false
	check(epoll, want)
	if own := len(fdinfoTargets(t, c.pid(), int(epoll))); own != len(want) {
		t.Errorf("fdinfo lists %d", own)
	}
}

func fdinfoTargets(t *testing.T, pid, fd int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "tfd:") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestLargeEpoll(t *testing.T) {
	v := view(t)
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(epoll)
	want := make(map[int]int32)
	for i := range 700 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		want[fd] = int32(i)
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := v.Epoll(fileOf(t, v, os.Getpid(), epoll).ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Items) != len(want) {
		t.Errorf("%d items, want %d", len(got.Items), len(want))
	}
	for _, item := range got.Items {
		if i, ok := want[item.FD]; !ok || int32(item.Data) != i {
			t.Errorf("item %+v, want data %d", item, i)
		}
		delete(want, item.FD)
	}
}

func TestTimerfd(t *testing.T) {
	const second = int64(1e9)
	const abstime, cancel = 1, 2
	v, c := view(t), newChild(t)
	for _, x := range []struct {
		name            string
		clock           int32
		flags           uint64
		value, interval int64
		expire          bool
		on              int32
	}{
		{"never set", unix.CLOCK_MONOTONIC, 0, 0, 0, false, unix.CLOCK_MONOTONIC},
		{"one shot", unix.CLOCK_MONOTONIC, 0, 900 * second, 0, false, unix.CLOCK_MONOTONIC},
		{"periodic", unix.CLOCK_BOOTTIME, 0, 900*second + 3, 4*second + 9, false, unix.CLOCK_BOOTTIME},
		{"real time absolute", unix.CLOCK_REALTIME, abstime | cancel, 900 * second, 0, false, unix.CLOCK_REALTIME},
		{"real time relative", unix.CLOCK_REALTIME, 0, 900 * second, 0, false, unix.CLOCK_MONOTONIC},
		{"expired", unix.CLOCK_MONOTONIC, 0, 1, 0, true, unix.CLOCK_MONOTONIC},
		{"expired periodic", unix.CLOCK_MONOTONIC, 0, 1, 800 * second, true, unix.CLOCK_MONOTONIC},
		{"alarm", unix.CLOCK_BOOTTIME_ALARM, 0, 900 * second, 0, false, unix.CLOCK_BOOTTIME_ALARM},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.t = t
			r, err := c.call(unix.SYS_TIMERFD_CREATE, uint64(x.clock), 0)
			if err != nil {
				t.Skipf("needs a timer on clock %d: %v", x.clock, err)
			}
			fd := uint64(r)
			value := x.value
			if x.flags&abstime != 0 {
				value += clockNow(t, x.clock)
			}
			if x.value != 0 {
				c.must(unix.SYS_TIMERFD_SETTIME, fd, x.flags,
					c.putWords(0x200, uint64(x.interval/second), uint64(x.interval%second), uint64(value/second), uint64(value%second)), 0)
			}
			if x.expire {
				// struct pollfd {fd, POLLIN}
				c.must(unix.SYS_POLL, c.putWords(0x300, fd|1<<32), 1, ^uint64(0))
			}
			id := fileOf(t, v, c.pid(), int(fd)).ID
			got, err := v.Timerfd(id)
			if err != nil {
				t.Fatal(err)
			}
			info := fdinfo(t, c.pid(), int(fd))
			if fmt.Sprint(got.Clock) != info["clockid"] || fmt.Sprint(got.Ticks) != info["ticks"] || fmt.Sprintf("0%o", got.Flags) != info["settime flags"] {
				t.Errorf("got %+v, fdinfo says %v", got, info)
			}
			if got.Expired != x.expire || (got.Ticks > 0) != x.expire {
				t.Errorf("expired: %+v", got)
			}
			same(t, "clock of the end", got.ExpiresOn, x.on)
			same(t, "canceled", got.Canceled, false)
			// Asking the timer itself makes an expired one count on, so it comes after.
			var again Timerfd
			before, after, interval := gettime(c, 1, unix.SYS_TIMERFD_GETTIME, fd, func() {
				if again, err = v.Timerfd(id); err != nil {
					t.Fatal(err)
				}
			})
			if got.Interval != interval || interval != x.interval {
				t.Errorf("interval %d, its own timerfd_gettime says %d", got.Interval, interval)
			}
			if got.Armed != (before != 0) || !got.Left.Known || got.Left.V < before {
				t.Errorf("left %+v, its own timerfd_gettime then says %d", got, before)
			}
			if again.Left.V > before || again.Left.V < after {
				t.Errorf("left %+v, its own timerfd_gettime says %d, then %d", again, before, after)
			}
			if x.value > second && (got.Left.V > x.value || got.Left.V < x.value-100*second) {
				t.Errorf("left %d of %d", got.Left.V, x.value)
			}
		})
	}
}

func TestPipe(t *testing.T) {
	v, c := view(t), newChild(t)
	newPipe := func(flags uint64) (r, w uint64) {
		t.Helper()
		c.must(unix.SYS_PIPE2, c.page, flags)
		both := c.get(0, 1)[0]
		return both & 0xffffffff, both >> 32
	}
	state := func(fd uint64) Pipe {
		t.Helper()
		p, err := v.Pipe(fileOf(t, v, c.pid(), int(fd)).ID)
		if err != nil {
			t.Fatal(err)
		}
		var held uint32
		for _, b := range p.Buffers {
			held += b.Len
		}
		c.must(unix.SYS_IOCTL, fd, unix.TIOCINQ, c.page+0x700)
		if own := uint32(c.get(0x700, 1)[0]); held != own {
			t.Errorf("%d bytes, FIONREAD says %d", held, own)
		}
		if own := c.must(unix.SYS_FCNTL, fd, unix.F_GETPIPE_SZ); int64(p.Slots)*int64(os.Getpagesize()) != own {
			t.Errorf("%d slots, F_GETPIPE_SZ says %d bytes", p.Slots, own)
		}
		return p
	}

	r, w := newPipe(0)
	if p := state(r); len(p.Buffers) != 0 || p.Readers != 1 || p.Writers != 1 || p.Files != 2 {
		t.Errorf("empty pipe: %+v", p)
	}
	c.must(unix.SYS_WRITE, w, c.page, 9000)
	c.must(unix.SYS_READ, r, c.page, 100)
	p := state(w)
	if len(p.Buffers) != 3 || p.Buffers[0].Packet || p.Buffers[0].Len != 4096-100 {
		t.Errorf("stream: %+v", p)
	}
	if p.ID != state(r).ID {
		t.Error("the two ends are two pipes")
	}
	c.must(unix.SYS_FCNTL, w, unix.F_SETPIPE_SZ, 1<<20)
	if got := state(w); len(got.Buffers) != 3 || got.Slots != 256 {
		t.Errorf("after growing: %+v", got)
	}
	// The ring turns round.
	for range 600 {
		c.must(unix.SYS_WRITE, w, c.page, 4096)
		c.must(unix.SYS_READ, r, c.page, 4096)
	}
	if got := state(w); got.ID != p.ID {
		t.Errorf("after turning: %+v", got)
	}
	c.must(unix.SYS_CLOSE, r)
	if got := state(w); got.Readers != 0 || got.Writers != 1 || got.Files != 1 {
		t.Errorf("without a reader: %+v", got)
	}

	r, w = newPipe(unix.O_DIRECT)
	for _, n := range []uint64{10, 20, 1} {
		c.must(unix.SYS_WRITE, w, c.page, n)
	}
	got := state(r)
	if len(got.Buffers) != 3 || got.Buffers[0] != (PipeBuffer{10, true}) || got.Buffers[1] != (PipeBuffer{20, true}) || got.Buffers[2] != (PipeBuffer{1, true}) {
		t.Errorf("packets: %+v", got)
	}
	if got.ID == p.ID {
		t.Error("two pipes are one")
	}
}

func TestWrongKind(t *testing.T) {
	v, c := view(t), newChild(t)
	fd := c.must(unix.SYS_EVENTFD2, 0, 0)
	id := fileOf(t, v, c.pid(), int(fd)).ID
	for _, id := range []ID{id, 0, 1 << 60} {
		for _, err := range []error{
			second(v.Epoll(id)), second(v.Signalfd(id)), second(v.Timerfd(id)), second(v.Pipe(id)),
		} {
			if !errors.Is(err, ErrKind) {
				t.Errorf("file %d: %v", id, err)
			}
		}
	}
	if _, err := v.Eventfd(id + 1<<60); !errors.Is(err, ErrKind) {
		t.Errorf("an unknown file: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestMoreKinds has the kinds that need memory to be made, so a child makes
// them.
func TestMoreKinds(t *testing.T) {
	v, c := view(t), newChild(t)
	kinds := make(map[int]Kind)
	try := func(kind Kind, nr uintptr, args ...uint64) {
		t.Helper()
		fd, err := c.call(nr, args...)
		if err != nil {
			t.Logf("without %s: %v", kind, err)
			return
		}
		kinds[int(fd)] = kind
	}
	name := fmt.Sprintf("crpipe-kernelview-%d", c.pid())
	c.put(0, append([]byte(name), 0))
	try(KindMqueue, unix.SYS_MQ_OPEN, c.page, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600, 0)
	if _, err := c.call(unix.SYS_MQ_UNLINK, c.page); err != nil {
		t.Logf("unlinking a message queue: %v", err)
	}
	try(KindIOUring, unix.SYS_IO_URING_SETUP, 4, c.page+0x100)
	// struct perf_event_attr {software, size 64, CPU clock}
	try(KindPerf, unix.SYS_PERF_EVENT_OPEN, c.putWords(0x300, 1|64<<32, 0), 0, ^uint64(0), ^uint64(0), 0)
	c.put(0x400, []byte("/dev/ptmx\x00/dev/pts/"))
	if master, err := c.call(unix.SYS_OPEN, c.page+0x400, unix.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		kinds[int(master)] = KindTTY
		c.must(unix.SYS_IOCTL, uint64(master), unix.TIOCSPTLCK, c.putWords(0x500, 0))
		try(KindTTY, unix.SYS_IOCTL, uint64(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	}
	if len(kinds) == 0 {
		t.Skip("needs any of message queues, io_uring, perf events, terminals")
	}
	tables, err := v.Files([]int{c.pid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range tables[0].FDs {
		if want, ok := kinds[fd.FD]; ok && fd.File.Kind != want {
			t.Errorf("descriptor %d: kind %q, want %q", fd.FD, fd.File.Kind, want)
		}
	}
}
