//go:build amd64

package kernelview

import (
	"testing"
	"time"

	"crpipe/arch"

	"golang.org/x/sys/unix"
)

func clockNow(t testing.TB, clock int32) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}

// initialNow is the time in the initial time namespace.
func initialNow(t testing.TB, clock int32) int64 {
	t.Helper()
	offsets := readClocks()
	switch clock {
	case unix.CLOCK_MONOTONIC:
		return clockNow(t, clock) - offsets.monotonic
	case unix.CLOCK_BOOTTIME:
		return clockNow(t, clock) - offsets.boottime
	}
	return clockNow(t, clock)
}

// TestRestart interrupts every kind of wait that leaves a restart block, by
// SIGSTOP and by a v2 freeze, and compares it with what was asked for.
func TestRestart(t *testing.T) {
	v := view(t)
	const length = 1000 * int64(time.Second)
	relative := func(c *child) uint64 { return c.putWords(0x40, uint64(length/1e9), 0) }
	for _, x := range []struct {
		name  string
		nr    int
		clock int32 // that the end is measured by
		abs   bool  // the call was given an absolute time
		args  func(c *child) []uint64
		want  func(c *child) Restart
	}{
		{
			"nanosleep", unix.SYS_NANOSLEEP, unix.CLOCK_MONOTONIC, false,
			func(c *child) []uint64 { return []uint64{relative(c), c.page + 0x80} },
			func(c *child) Restart {
				return Restart{Kind: RestartNanosleep, Remain: arch.Addr(c.page + 0x80)}
			},
		},
		{
			"nanosleep without remain", unix.SYS_NANOSLEEP, unix.CLOCK_MONOTONIC, false,
			func(c *child) []uint64 { return []uint64{relative(c), 0} },
			func(*child) Restart { return Restart{Kind: RestartNanosleep} },
		},
		{
			"clock_nanosleep boottime", unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_BOOTTIME, false,
			func(c *child) []uint64 { return []uint64{unix.CLOCK_BOOTTIME, 0, relative(c), c.page + 0x80} },
			func(c *child) Restart {
				return Restart{Kind: RestartNanosleep, Remain: arch.Addr(c.page + 0x80)}
			},
		},
		{
			// Relative to CLOCK_REALTIME is counted by CLOCK_MONOTONIC.
			"clock_nanosleep realtime", unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_MONOTONIC, false,
			func(c *child) []uint64 { return []uint64{unix.CLOCK_REALTIME, 0, relative(c), c.page + 0x80} },
			func(c *child) Restart {
				return Restart{Kind: RestartNanosleep, Remain: arch.Addr(c.page + 0x80)}
			},
		},
		{
			"poll", unix.SYS_POLL, unix.CLOCK_MONOTONIC, false,
			func(c *child) []uint64 { return []uint64{c.putWords(0x100, 0), 1, uint64(length / 1e6)} },
			func(c *child) Restart {
				return Restart{Kind: RestartPoll, Pollfds: arch.Addr(c.page + 0x100), NPollfds: 1}
			},
		},
		{
			"poll for ever", unix.SYS_POLL, 0, false,
			func(c *child) []uint64 { return []uint64{c.putWords(0x100, 0), 1, ^uint64(0)} },
			func(c *child) Restart {
				return Restart{Kind: RestartPoll, Pollfds: arch.Addr(c.page + 0x100), NPollfds: 1, Infinite: true}
			},
		},
		{
			"futex private", unix.SYS_FUTEX, unix.CLOCK_MONOTONIC, false,
			func(c *child) []uint64 { return []uint64{c.putWords(0x100, 5), 128, 5, relative(c)} },
			func(c *child) Restart {
				return Restart{Kind: RestartFutex, Uaddr: arch.Addr(c.page + 0x100), Val: 5, Bitset: 0xffffffff, Shared: Is(false)}
			},
		},
		{
			"futex shared", unix.SYS_FUTEX, unix.CLOCK_MONOTONIC, false,
			func(c *child) []uint64 { return []uint64{c.putWords(0x100, 5), 0, 5, relative(c)} },
			func(c *child) Restart {
				return Restart{Kind: RestartFutex, Uaddr: arch.Addr(c.page + 0x100), Val: 5, Bitset: 0xffffffff, Shared: Is(true)}
			},
		},
		{
			"futex realtime bitset", unix.SYS_FUTEX, unix.CLOCK_REALTIME, true,
			func(c *child) []uint64 {
				now := clockNow(c.t, unix.CLOCK_REALTIME) + length
				c.putWords(0x40, uint64(now/1e9), uint64(now%1e9))
				return []uint64{c.putWords(0x100, 9), 9 | 128 | 256, 9, c.page + 0x40, 0, 0x55}
			},
			func(c *child) Restart {
				return Restart{Kind: RestartFutex, Uaddr: arch.Addr(c.page + 0x100), Val: 9, Bitset: 0x55, Shared: Is(false)}
			},
		},
	} {
		for _, how := range []string{"SIGSTOP", "cgroup v2"} {
			t.Run(x.name+"/"+how, func(t *testing.T) {
				c := newChild(t)
				start := initialNow(t, x.clock)
				if err := c.send(uintptr(x.nr), x.args(c)...); err != nil {
					t.Fatal(err)
				}
				waitBlocked(t, c.pid(), x.nr)
				asleep := initialNow(t, x.clock)
				if how == "SIGSTOP" {
					if err := c.stop(); err != nil {
						t.Fatal(err)
					}
				} else {
					freezeV2(t, c.pid())
				}
				before := initialNow(t, x.clock)
				got := oneThread(t, v, c.pid()).Restart
				after := initialNow(t, x.clock)

				want := x.want(c)
				if !want.Infinite {
					// The end lies between start + length and asleep + length.
					if got.Expires < start+length || got.Expires > asleep+length {
						t.Errorf("ends at %d, want between %d and %d", got.Expires, start+length, asleep+length)
					}
					left := got.Left.V
					if !got.Left.Known || left > got.Expires-before || left < got.Expires-after {
						t.Errorf("left %v, want between %d and %d", got.Left, got.Expires-after, got.Expires-before)
					}
					want.Clock, want.Expires, want.Left = x.clock, got.Expires, got.Left
				}
				if got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		}
	}
}

// TestRestartCPUTime sleeps on the CPU time of a process that uses none while
// it sleeps.
func TestRestartCPUTime(t *testing.T) {
	v, c := view(t), newChild(t)
	const seconds = 100
	if err := c.send(unix.SYS_CLOCK_NANOSLEEP, unix.CLOCK_PROCESS_CPUTIME_ID, 0, c.putWords(0x40, seconds, 0), c.page+0x80); err != nil {
		t.Fatal(err)
	}
	waitBlocked(t, c.pid(), unix.SYS_CLOCK_NANOSLEEP)
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	got := oneThread(t, v, c.pid()).Restart
	if got.Kind != RestartNanosleep || got.Clock != -6 || got.Remain != arch.Addr(c.page+0x80) {
		t.Fatalf("got %+v", got)
	}
	// The other process's clock, as clock_getcpuclockid(3) makes it.
	used := clockNow(t, int32(^c.pid()<<3|2))
	if got.Left != Is(got.Expires-used) {
		t.Errorf("left %v of an end at %d with %d used", got.Left, got.Expires, used)
	}
	if got.Left.V > seconds*1e9 {
		t.Errorf("left %v of %d s", got.Left, seconds)
	}
}

func TestRestartNone(t *testing.T) {
	v, c := view(t), newChild(t)
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if got := oneThread(t, v, c.pid()).Restart; got != (Restart{Kind: RestartNone}) {
		t.Errorf("a read has the restart block %+v", got)
	}
}
