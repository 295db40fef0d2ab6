package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A target's heart beats into a file that it and we map: counters of 64 bits.
const (
	heartBeats = iota
	heartGap   // nanoseconds, the longest since the last order
	heartOrder // changed by us: begin anew
	heartWords
)

const heartInterval = 50 * time.Microsecond

// openHeart maps the file.
func openHeart(path string) ([]atomic.Uint64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(8 * heartWords); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 8*heartWords, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return words(mem), nil
}

// beat is the target: one thread that sleeps for a moment, looks at the clock, and notes how long it has not done so.
func beat(path string) error {
	heart, err := openHeart(path)
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	fmt.Println("0")
	short := unix.NsecToTimespec(int64(heartInterval))
	now := func() uint64 {
		var t unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // cannot fail
		return uint64(t.Nano())
	}
	last, order := now(), heart[heartOrder].Load()
	for {
		_ = unix.Nanosleep(&short, nil)
		t := now()
		if o := heart[heartOrder].Load(); o != order {
			order = o
			heart[heartGap].Store(0)
		} else if gap := t - last; gap > heart[heartGap].Load() {
			heart[heartGap].Store(gap)
		}
		last = t
		heart[heartBeats].Add(1)
	}
}

// longest is the longest gap that a target's heartbeat saw while act ran.
func longest(heart []atomic.Uint64, act func() error) (time.Duration, error) {
	beats := func(n uint64) error {
		first := heart[heartBeats].Load()
		for end := time.Now().Add(time.Minute); heart[heartBeats].Load() < first+n; time.Sleep(heartInterval) {
			if time.Now().After(end) {
				return errors.New("the target's heart does not beat")
			}
		}
		return nil
	}
	heart[heartOrder].Add(1)
	if err := beats(3); err != nil {
		return 0, err
	}
	if err := act(); err != nil {
		return 0, err
	}
	err := beats(3)
	return time.Duration(heart[heartGap].Load()), err
}

// gap measures for how long a small process stands still when it is dumped, beside a bare freeze and thaw of the cgroup that it is in.
func (b *bench) gap() (figure, error) {
	f := figure{what: "longest gap in a small process", limit: "<= 5.00"}
	path := filepath.Join(b.work, "heart")
	heart, err := openHeart(path)
	if err != nil {
		return f, err
	}
	t, err := b.startTarget(self("beat", path))
	if err != nil {
		return f, err
	}
	defer t.end()
	group, leave, err := ownCgroup(t.pid)
	if err != nil {
		return f, err
	}
	defer leave()
	for i := -1; i < b.rounds; i++ {
		raw, err := longest(heart, func() error { return freezeAndThaw(group) })
		if err != nil {
			return f, fmt.Errorf("a bare freeze: %w", err)
		}
		ours, err := longest(heart, func() error {
			_, _, _, err := piped(b.command("cr-dump", strconv.Itoa(t.pid)), nil)
			return err
		})
		if err != nil {
			return f, fmt.Errorf("cr-dump: %w", err)
		}
		if i >= 0 {
			f.raw, f.ours = append(f.raw, raw), append(f.ours, ours)
		}
	}
	return f, nil
}

// ownCgroup brings a process into a cgroup of version 2 made for it; leave brings it back.
func ownCgroup(pid int) (dir string, leave func(), err error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", nil, err
	}
	mount := ""
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" && mount == "" {
			mount = f[1]
		}
	}
	if mount == "" {
		return "", nil, errors.New("no cgroup v2 is mounted")
	}
	former, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", nil, err
	}
	home := mount
	for _, line := range strings.Split(string(former), "\n") {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			home = filepath.Join(mount, rest)
		}
	}
	dir = filepath.Join(home, fmt.Sprintf("crbench-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, err
	}
	leave = func() {
		_ = write(filepath.Join(home, "cgroup.procs"), strconv.Itoa(pid)) // it may have ended
		_ = os.Remove(dir)
	}
	if err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
		leave()
		return "", nil, err
	}
	return dir, leave, nil
}

func write(path, text string) error { return os.WriteFile(path, []byte(text), 0) }

func freezeAndThaw(dir string) error {
	if err := write(filepath.Join(dir, "cgroup.freeze"), "1"); err != nil {
		return err
	}
	for {
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil {
			return err
		}
		if strings.Contains(string(events), "frozen 1") {
			return write(filepath.Join(dir, "cgroup.freeze"), "0")
		}
	}
}
