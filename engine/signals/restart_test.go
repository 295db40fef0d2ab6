package signals

import (
	"math"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// base is where the arena lies in the tasks of these tests.
const base = 0x200000000

// spawn starts a task that executes batches.
func spawn(t *testing.T) (*tracee.Tracer, *tracee.Arena, *tracee.Task, *arch.Arch) {
	t.Helper()
	a, err := arch.Native()
	if err != nil {
		t.Skip(err)
	}
	tr := tracee.NewTracer()
	t.Cleanup(tr.Close)
	arena, err := tracee.NewArena(a, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = arena.Close() }) // memory of the test's own
	k, err := tr.Spawn(arena, base)
	if err != nil {
		t.Skipf("tracing: %v", err)
	}
	t.Cleanup(func() {
		if err := tr.KillAll(); err != nil {
			t.Error(err)
		}
	})
	return tr, arena, k, a
}

func monotonic(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}

func result(t *testing.T, tr *tracee.Tracer, k *tracee.Task, a *arch.Arch) int64 {
	t.Helper()
	regs := make([]byte, a.PRStatusSize)
	if err := tr.Do(func() error { _, err := sys.PtraceGetRegset(k.Tid, arch.NTPRStatus, regs); return err }); err != nil {
		t.Fatal(err)
	}
	return a.Result(regs)
}

// Each interrupted sleep, put back to sleep, is for the kernel the same interrupted sleep with the time that was left.
func TestRestartRoundTrip(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel view needs root")
	}
	view, err := kernelview.Open(kernelview.Options{})
	if err != nil {
		t.Skipf("no kernel view: %v", err)
	}
	defer view.Close()
	tr, arena, k, a := spawn(t)
	b := arena.NewBatch()
	page := b.Call(b.Sys().Mmap, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1, 0)
	if err := tr.RunOne(k, b); err != nil {
		t.Fatal(err)
	}
	word := uint64(page.Result())
	hour := int64(time.Hour)
	for name, want := range map[string]Restart{
		"nanosleep":             {Kind: RestartNanosleep, Clock: unix.CLOCK_MONOTONIC, Left: hour, Remain: word + 64},
		"nanosleep of the boot": {Kind: RestartNanosleep, Clock: unix.CLOCK_BOOTTIME, Left: 3 * hour},
		"poll":                  {Kind: RestartPoll, Left: hour},
		"poll without end":      {Kind: RestartPoll, Endless: true},
		"futex":                 {Kind: RestartFutex, Addr: word, Left: hour, Bitset: math.MaxUint32},
		"shared futex, one bit": {Kind: RestartFutex, Addr: word, Left: 2 * hour, Bitset: 4, Shared: true},
		"futex until a moment":  {Kind: RestartFutex, Addr: word, Clock: unix.CLOCK_MONOTONIC, Left: hour, Expires: monotonic(t) + hour*3/4, Bitset: math.MaxUint32},
		"futex until a moment of another boot": {Kind: RestartFutex, Addr: word, Clock: unix.CLOCK_MONOTONIC, Left: hour, Expires: monotonic(t) + 1000*hour,
			Bitset: math.MaxUint32},
		"futex until a time of day": {Kind: RestartFutex, Addr: word, Clock: unix.CLOCK_REALTIME, Left: hour, Expires: time.Now().UnixNano() + hour,
			Bitset: math.MaxUint32},
	} {
		b := arena.NewBatch()
		want.Issue(b, monotonic(t))
		classes, err := tr.Block([]*tracee.Task{k}, []*tracee.Batch{b}, 20*time.Second)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if classes[0] != arch.RestartBlock {
			t.Errorf("%s: it is interrupted as %v, not to be restarted by a block (result %d)", name, classes[0], result(t, tr, k, a))
			continue
		}
		seen, err := view.Threads([]int{k.Tid})
		if err != nil {
			t.Fatal(err)
		}
		status, err := procfs.ReadStatus(k.Tid)
		if err != nil {
			t.Fatal(err)
		}
		th := &object.Thread{Process: &object.Process{PID: k.Pid}, TID: k.Tid, Status: status, View: &seen[0], Regs: make([]byte, a.PRStatusSize), ABI: a}
		if err := tr.Do(func() error { _, err := sys.PtraceGetRegset(k.Tid, arch.NTPRStatus, th.Regs); return err }); err != nil {
			t.Fatal(err)
		}
		have, err := dumpRestart(th, a, procfs.TimeOffsets{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := have.Check(a, th.Regs); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The time passes while this runs; how fast says nothing.
		if have.Left > want.Left+int64(time.Millisecond) || want.Left-have.Left > hour/2 {
			t.Errorf("%s: %v left of %v", name, time.Duration(have.Left), time.Duration(want.Left))
		}
		have.Left = want.Left
		if want.Kind == RestartFutex && (want.Clock != unix.CLOCK_REALTIME || want.Expires == 0) {
			// The registers here are those of the call that Issue made, which always waits until a moment.
			end := monotonic(t) + want.Left
			if want.Expires != 0 {
				end = min(end, want.Expires)
			}
			if have.Clock != unix.CLOCK_MONOTONIC || have.Expires > end || have.Expires < end-hour/4 {
				t.Errorf("%s: until %v of clock %d, want %v", name, time.Duration(have.Expires), have.Clock, time.Duration(end))
			}
			have.Clock, have.Expires = want.Clock, want.Expires
		}
		if have != want {
			t.Errorf("%s:\n%+v, want\n%+v", name, have, want)
		}
	}
}

func TestRestartCheck(t *testing.T) {
	a, err := arch.For("amd64")
	if err != nil {
		t.Fatal(err)
	}
	running, sleeping := make([]byte, a.PRStatusSize), make([]byte, a.PRStatusSize)
	a.ClearSyscall(running)
	a.SetCall(sleeping, 0x1000, a.Sys.Poll, [6]uint64{})
	for i := range 8 { // orig_rax says that it is in the call, rax how it was interrupted
		sleeping[8*15+i] = 0
	}
	sleeping[8*15] = byte(a.Sys.Poll)
	a.SetResult(sleeping, erestartRestartblock)
	for name, c := range map[string]struct {
		r    Restart
		regs []byte
		ok   bool
	}{
		"none":              {Restart{}, running, true},
		"none of a sleeper": {Restart{}, sleeping, true},
		"poll":              {Restart{Kind: RestartPoll, Left: 5}, sleeping, true},
		"poll of a runner":  {Restart{Kind: RestartPoll, Left: 5}, running, false},
		"unknown kind":      {Restart{Kind: RestartFutex + 1}, sleeping, false},
		"negative time":     {Restart{Kind: RestartFutex, Left: -1}, sleeping, false},
		"negative end":      {Restart{Kind: RestartFutex, Expires: -1}, sleeping, false},
	} {
		if err := c.r.Check(a, c.regs); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Hostile times overflow into calls that the kernel refuses; nothing hangs or panics.
func TestRestartOverflow(t *testing.T) {
	tr, arena, k, _ := spawn(t)
	for name, r := range map[string]Restart{
		"futex for ever and longer": {Kind: RestartFutex, Addr: base, Left: math.MaxInt64, Bitset: 1},
		"futex of no bit":           {Kind: RestartFutex, Addr: base, Left: 1},
		"futex nowhere":             {Kind: RestartFutex, Addr: 1 << 62, Left: 1, Bitset: 1},
		"nanosleep of no clock":     {Kind: RestartNanosleep, Clock: 99, Left: 1},
		"poll of all the world":     {Kind: RestartPoll, Addr: 8, Count: math.MaxUint32, Left: 1},
	} {
		b := arena.NewBatch()
		r.Issue(b, monotonic(t))
		classes, err := tr.Block([]*tracee.Task{k}, []*tracee.Batch{b}, 20*time.Second)
		if err == nil && classes[0] == arch.RestartBlock {
			t.Errorf("%s: it sleeps", name)
		}
	}
}
