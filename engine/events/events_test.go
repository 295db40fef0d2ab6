package events_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crpipe/engine/events"
	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
	"crpipe/stream"
)

func TestMain(m *testing.M) {
	filestest.Main(m, map[string]func() error{"events": eventsProgram, "epoll": epollProgram, "timers": timersProgram, "pidfd": pidfdProgram,
		"inotify": inotifyProgram, "heldinotify": heldInotifyProgram, "fanotify": fanotifyProgram, "heldfanotify": heldFanotifyProgram})
}

type setup struct{ err error }

func (s *setup) fail(err error) {
	if s.err == nil && err != nil {
		s.err = err
	}
}

// put gives what a call returned the number to.
func (s *setup) put(to int) func(fd int, err error) {
	return func(fd int, err error) {
		if s.fail(err); err == nil {
			s.fail(filestest.Dup3To(fd, to))
		}
	}
}

func (s *setup) count(fd int, n uint64) {
	_, err := unix.Write(fd, binary.NativeEndian.AppendUint64(nil, n))
	s.fail(err)
}

func (s *setup) timer(fd, clock, flags int, value, interval time.Duration) {
	s.put(fd)(unix.TimerfdCreate(clock, 0))
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(value)), Interval: unix.NsecToTimespec(int64(interval))}
	s.fail(unix.TimerfdSettime(fd, flags, &spec, nil))
}

func eventsProgram() error {
	s := &setup{}
	s.put(20)(unix.Eventfd(5, unix.EFD_SEMAPHORE|unix.EFD_NONBLOCK))
	s.put(21)(unix.Eventfd(0, 0))
	s.count(21, math.MaxUint64-1)
	s.fail(unix.Dup3(21, 22, unix.O_CLOEXEC))
	s.put(23)(unix.Eventfd(0, 0))

	var set unix.Sigset_t
	word := 1024 / len(set.Val)
	for _, n := range []int{1, 33, 64} {
		set.Val[(n-1)/word] |= 1 << ((n - 1) % word)
	}
	s.put(24)(unix.Signalfd(-1, &set, unix.SFD_NONBLOCK))
	s.put(25)(unix.Signalfd(-1, new(unix.Sigset_t), 0))
	_, err := unix.FcntlInt(25, unix.F_SETFL, unix.O_APPEND)
	s.fail(err)
	return s.err
}

const tomorrow = 24 * time.Hour

func timersProgram() error {
	s := &setup{}
	s.timer(20, unix.CLOCK_MONOTONIC, 0, tomorrow, 0)
	s.timer(21, unix.CLOCK_BOOTTIME, 0, tomorrow, time.Minute)
	s.timer(22, unix.CLOCK_REALTIME, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, time.Duration(4e18), time.Hour)
	s.timer(23, unix.CLOCK_REALTIME, 0, tomorrow, 0)
	var now unix.Timespec
	s.fail(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	s.timer(24, unix.CLOCK_MONOTONIC, unix.TFD_TIMER_ABSTIME, time.Duration(now.Nano())+tomorrow, 0)
	s.timer(25, unix.CLOCK_MONOTONIC, 0, 1, 0)                // expired, not read
	s.timer(26, unix.CLOCK_MONOTONIC, 0, 1, tomorrow)         // expired once, goes on
	s.timer(27, unix.CLOCK_MONOTONIC, 0, 1, time.Hour)        // expired, read, goes on
	s.timer(28, unix.CLOCK_MONOTONIC, 0, 1, time.Millisecond) // expires all the time
	s.put(29)(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK))
	s.fail(waitFor(25, 26, 27, 28))
	_, err := unix.Read(27, make([]byte, 8))
	s.fail(err)
	return s.err
}

// waitFor waits until all can be read.
func waitFor(fds ...int) error {
	for _, fd := range fds {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	return nil
}

func (s *setup) watch(epfd, fd int, events uint32, data uint64) {
	ev := unix.EpollEvent{Events: events}
	ev.Fd, ev.Pad = int32(data), int32(data>>32)
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		s.fail(fmt.Errorf("watching %d: %w", fd, err))
	}
}

// fire takes n events out of an epoll instance, so that one-shots among them are disarmed.
func (s *setup) fire(epfd, n int) {
	got, err := unix.EpollWait(epfd, make([]unix.EpollEvent, n), 0)
	s.fail(err)
	if err == nil && got != n {
		s.fail(fmt.Errorf("%d events of %d", got, n))
	}
}

func epollProgram() error {
	s := &setup{}
	s.put(20)(unix.Eventfd(1, 0))
	s.put(21)(unix.Eventfd(0, 0))
	var p [2]int
	s.fail(unix.Pipe2(p[:], 0))
	s.put(22)(p[0], nil)
	s.put(23)(p[1], nil)
	s.put(24)(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, 0))
	var set unix.Sigset_t
	set.Val[0] = 1
	s.put(25)(unix.Signalfd(-1, &set, 0))

	// 30: items of every sort, none of them ready but the first two.
	s.put(30)(unix.EpollCreate1(0))
	s.watch(30, 20, unix.EPOLLIN, 0x1122334455667788)
	s.watch(30, 23, unix.EPOLLOUT|unix.EPOLLET, 23)
	s.watch(30, 21, unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP, math.MaxUint64)
	s.watch(30, 24, unix.EPOLLIN|unix.EPOLLONESHOT, 24) // armed
	s.watch(30, 25, 0, 25)
	s.fail(unix.Dup3(21, 40, 0)) // a number that is closed
	s.watch(30, 40, unix.EPOLLIN, 40)
	s.fail(unix.Close(40))
	s.fail(unix.Dup3(22, 41, 0)) // a number that leads elsewhere by now
	s.watch(30, 41, unix.EPOLLIN, 41)
	s.fail(unix.Dup3(21, 41, 0))

	// 31: one-shots that have fired.
	s.put(31)(unix.EpollCreate1(unix.EPOLL_CLOEXEC))
	s.count(21, 1)
	_, err := unix.Write(23, []byte("x"))
	s.fail(err)
	for _, fd := range []int{20, 21, 22, 23} {
		s.watch(31, fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLONESHOT, uint64(fd))
	}
	s.watch(31, 24, unix.EPOLLIN|unix.EPOLLONESHOT|unix.EPOLLET, 24)
	spec := unix.ItimerSpec{Value: unix.Timespec{Nsec: 1}}
	s.fail(unix.TimerfdSettime(24, 0, &spec, nil))
	s.fail(waitFor(24))
	s.fire(31, 5)
	// Nothing of what they fired for is left: their files are not ready any more.
	for _, fd := range []int{21, 22, 24} {
		_, err := unix.Read(fd, make([]byte, 8))
		s.fail(err)
	}
	s.watch(31, 25, unix.EPOLLIN, 25)

	// 32 watches 31, and 33 watches 32.
	s.put(32)(unix.EpollCreate1(0))
	s.watch(32, 31, unix.EPOLLIN, 31)
	s.put(33)(unix.EpollCreate1(0))
	s.watch(33, 32, unix.EPOLLIN|unix.EPOLLET, 32)
	s.put(34)(unix.EpollCreate1(0)) // watches nothing
	return s.err
}

// roundTrip dumps the program, restores it into a task, dumps that, and compares. It returns both images.
func roundTrip(t *testing.T, program string, drop func(stream.Type, string) bool) (first, second []byte) {
	t.Helper()
	view := filestest.View(t)
	c := filestest.Start(t, program)
	d := filestest.Dumper(t, view, c.PID)
	// What is outside of this test's interest.
	d.External = []string{"stdin", "stdout"}
	first = filestest.Dump(t, d)
	time.Sleep(20 * time.Millisecond) // the clock of files' times ticks slowly: a time that is not restored must be another one
	inherit := map[string]int{}
	for _, name := range []string{"stdin", "stdout"} {
		null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(null)
		inherit[name] = null
	}
	r, err := filestest.Restore(t, first, func(r *object.Restorer) { r.Inherit = inherit })
	if err != nil {
		t.Fatal(err)
	}
	second = filestest.Dump(t, restored(filestest.Dumper(t, view, r.Task(t))))
	both := func(typ stream.Type, field string) bool {
		return typ == "file.external" || drop != nil && drop(typ, field)
	}
	want, got := filestest.Describe(t, first, both), filestest.Describe(t, second, both)
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("restored state differs (-dumped +restored):\n%s", diff)
	}
	if testing.Verbose() {
		t.Log(want)
	}
	return first, second
}

func restored(d *object.Dumper) *object.Dumper {
	d.External = []string{"stdin", "stdout"}
	return d
}

func TestEventfdAndSignalfd(t *testing.T) {
	first, _ := roundTrip(t, "events", nil)
	text := filestest.Describe(t, first, nil)
	for _, want := range []string{
		"{fd=20 file=#", "file.eventfd {count=5 semaphore=true flags=2050}",
		fmt.Sprintf("file.eventfd {count=%d flags=2}", uint64(math.MaxUint64-1)),
		"file.eventfd {count=0 flags=2}",
		fmt.Sprintf("file.signalfd {mask=%d flags=2050}", uint64(1|1<<32|1<<63)),
		"file.signalfd {mask=0 flags=1026}",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

func TestEpoll(t *testing.T) {
	first, _ := roundTrip(t, "epoll", nil)
	text := filestest.Describe(t, first, nil)
	const disarmed = unix.EPOLLONESHOT
	for _, want := range []string{
		fmt.Sprintf("fd=24 events=%d data=24", unix.EPOLLIN|unix.EPOLLONESHOT|unix.EPOLLERR|unix.EPOLLHUP),
		fmt.Sprintf("fd=20 events=%d data=20", disarmed),
		fmt.Sprintf("fd=21 events=%d data=21", disarmed),
		fmt.Sprintf("fd=22 events=%d data=22", disarmed),
		fmt.Sprintf("fd=23 events=%d data=23", disarmed),
		fmt.Sprintf("fd=24 events=%d data=24", uint32(disarmed|unix.EPOLLET)),
		"fd=40 ", "fd=41 ", "fd=31 ", "fd=32 ",
		fmt.Sprintf("data=%d", uint64(0x1122334455667788)),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	if n := strings.Count(text, "link.epoll"); n < 4 {
		t.Errorf("%d link records", n)
	}
}

// timers reads the timerfds of an image by descriptor.
func timers(t *testing.T, image []byte) map[int]string {
	t.Helper()
	out := map[int]string{}
	for _, line := range strings.Split(filestest.Describe(t, image, nil), "\n") {
		var fd int
		if _, after, ok := strings.Cut(line, "file.timerfd "); ok {
			if _, err := fmt.Sscanf(strings.TrimSpace(line), "{fd=%d", &fd); err != nil {
				t.Fatal(err)
			}
			out[fd] = strings.TrimRight(after, "}]")[1:]
		}
	}
	return out
}

func field(t *testing.T, state, name string) int64 {
	t.Helper()
	for _, f := range strings.Fields(state) {
		var v int64
		if value, ok := strings.CutPrefix(f, name+"="); ok {
			if _, err := fmt.Sscan(value, &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

func TestTimerfd(t *testing.T) {
	first, second := roundTrip(t, "timers", func(typ stream.Type, field string) bool {
		return typ == "file.timerfd" && (field == "left" || field == "ticks")
	})
	was, is := timers(t, first), timers(t, second)
	if len(was) != 10 || len(is) != 10 {
		t.Fatalf("%d and %d timers, want 10\n%v", len(was), len(is), was)
	}
	for fd, state := range was {
		before, after := field(t, state, "left"), field(t, is[fd], "left")
		if fd == 28 { // may have any time left, but is armed and has expired before
			if before == 0 || after == 0 || field(t, state, "ticks") < 1 || field(t, is[fd], "ticks") < field(t, state, "ticks") {
				t.Errorf("28: %s before, %s after", state, is[fd])
			}
			continue
		}
		if after > before || before-after > int64(time.Hour)/2 {
			t.Errorf("%d: %d ns left before, %d after", fd, before, after)
		}
		if a, b := field(t, state, "ticks"), field(t, is[fd], "ticks"); a != b {
			t.Errorf("%d: %d unread expiries before, %d after", fd, a, b)
		}
	}
	for fd, want := range map[int]int64{20: int64(tomorrow), 21: int64(tomorrow), 23: int64(tomorrow), 24: int64(tomorrow), 26: int64(tomorrow), 27: int64(time.Hour), 22: 0, 25: 0, 29: 0} {
		if got := field(t, was[fd], "left"); got > want || want-got > int64(time.Hour)/2 {
			t.Errorf("%d: %d ns left, want nearly %d", fd, got, want)
		}
	}
	for fd, want := range map[int]int64{20: 0, 25: 1, 26: 1, 27: 0} {
		if got := field(t, was[fd], "ticks"); got != want {
			t.Errorf("%d: %d unread expiries, want %d", fd, got, want)
		}
	}
	if got := field(t, was[22], "until"); got != 4e18 {
		t.Errorf("22: until %d", got)
	}
}

// The time that a restore takes is not missing in the timers when they are started last.
func TestStartTimers(t *testing.T) {
	image := filestest.Write(t, func(w *stream.Writer) error {
		return w.Put("file.timerfd", 1, stream.Map{{Name: "clock", Value: unix.CLOCK_MONOTONIC},
			{Name: "left", Value: int64(tomorrow)}, {Name: "ticks", Value: 3}, {Name: "flags", Value: unix.O_RDWR}}, nil)
	})
	r, err := filestest.Restore(t, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := r.File(stream.Ref{ID: 1, Class: "file"})
	if err != nil {
		t.Fatal(err)
	}
	// As if a day had passed meanwhile.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(1)}
	if err := unix.TimerfdSettime(fd, 0, &spec, nil); err != nil {
		t.Fatal(err)
	}
	if err := events.StartTimers(r.Restorer); err != nil {
		t.Fatal(err)
	}
	var now unix.ItimerSpec
	if err := unix.TimerfdGettime(fd, &now); err != nil {
		t.Fatal(err)
	}
	if left := tomorrow - time.Duration(now.Value.Nano()); left < 0 || left > time.Minute {
		t.Errorf("%v are missing", left)
	}
	b := make([]byte, 8)
	if _, err := unix.Read(fd, b); err != nil || binary.NativeEndian.Uint64(b) != 3 {
		t.Errorf("read %d expiries, %v, want 3", binary.NativeEndian.Uint64(b), err)
	}
}
