package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// threads measures the dump of a process of many threads beside a bare seize, interrupt and wait of each.
func (b *bench) threads(n int) ([]figure, error) {
	t, err := b.start("threads", int64(n))
	if err != nil {
		return nil, err
	}
	defer t.end()
	return b.beside(t, figure{what: fmt.Sprintf("dump %d threads", n), limit: "<= 1.50"}, self("seize", strconv.Itoa(t.pid)))
}

// beside measures the dump of a target beside a bare command, which runs anew in each round.
func (b *bench) beside(t *target, f figure, bare *exec.Cmd) ([]figure, error) {
	for i := -1; i < b.rounds; i++ {
		raw, err := timed(once(bare), (*exec.Cmd).Run)
		if err != nil {
			return nil, err
		}
		took, peak, _, err := piped(b.command("cr-dump", strconv.Itoa(t.pid)), nil)
		if err != nil {
			return nil, fmt.Errorf("cr-dump: %w", err)
		}
		if i >= 0 {
			f.raw, f.ours, f.peak = append(f.raw, raw), append(f.ours, took), max(f.peak, peak)
		}
	}
	return []figure{f}, nil
}

// holdThreads is a target of n threads, each in a call that waits.
func holdThreads(n int) error {
	for range n - 1 {
		go func() {
			runtime.LockOSThread()
			for {
				_ = unix.Pause()
			}
		}()
	}
	for {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(b), "\nThreads:\t")
		line, _, _ := strings.Cut(rest, "\n")
		have, err := strconv.Atoi(line)
		if err != nil {
			return err
		}
		if have >= n {
			break
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("0")
	for {
		time.Sleep(time.Hour)
	}
}
