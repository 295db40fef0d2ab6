// Gophers runs hundreds of goroutines that pass numbers through channels, sleep, allocate, lock, run timers, a child process and the garbage
// collector, and says in DIR/done whether all came out right.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	dir    = os.Args[1]
	lock   sync.Mutex
	report []string
)

func fail(format string, args ...any) {
	lock.Lock()
	defer lock.Unlock()
	report = append(report, fmt.Sprintf(format, args...))
}

// ring passes a token round n goroutines, many times.
func ring(n, rounds int) {
	first := make(chan int)
	in := first
	for range n - 1 {
		out := make(chan int)
		go func(in <-chan int, out chan<- int) {
			for v := range in {
				out <- v + 1
			}
			close(out)
		}(in, out)
		in = out
	}
	go func() {
		for r := range rounds {
			first <- r * 1000
			time.Sleep(time.Millisecond)
		}
		close(first)
	}()
	r := 0
	for v := range in {
		if v != r*1000+n-1 {
			fail("ring: %d in round %d", v, r)
		}
		r++
	}
	if r != rounds {
		fail("ring: %d rounds", r)
	}
}

// hasher keeps live data that the collector must not lose.
func hasher(id int, live *atomic.Int64) {
	type node struct {
		sum  [32]byte
		next *node
	}
	var head *node
	sum := sha256.Sum256([]byte{byte(id)})
	for i := range 2000 {
		sum = sha256.Sum256(sum[:])
		head = &node{sum, head}
		if i%200 == 0 {
			time.Sleep(time.Duration(id%7) * time.Millisecond)
		}
	}
	n := 0
	for p := head; p != nil; p = p.next {
		if p.next != nil && sha256.Sum256(p.next.sum[:]) != p.sum {
			fail("hasher %d: node %d is wrong", id, n)
			return
		}
		n++
	}
	live.Add(int64(n))
}

func child(i int) {
	cmd := exec.Command("/bin/sh", "-c", "cat; exit 3")
	cmd.Stdin = strings.NewReader(strings.Repeat("x", 1000+i))
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 3 || out.Len() != 1000+i {
		fail("child %d: %v, status %d, %d bytes", i, err, code, out.Len())
	}
}

func main() {
	var wg sync.WaitGroup
	var live, ticks atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGUSR1)
	run := func(f func()) { wg.Add(1); go func() { defer wg.Done(); f() }() }
	run(func() { ring(200, 1500) })
	for i := range 100 {
		run(func() { hasher(i, &live) })
	}
	// A child makes os/exec hold a pidfd, which is a kind of its own.
	run(func() {
		for i := range 30 {
			if len(os.Args) < 3 || os.Args[2] != "children" {
				time.Sleep(30 * time.Millisecond)
				continue
			}
			child(i)
			time.Sleep(40 * time.Millisecond)
		}
	})
	go func() {
		t := time.NewTicker(5 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				ticks.Add(1)
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		for ctx.Err() == nil {
			runtime.GC()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	wg.Wait()
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		fail("kill: %v", err)
	}
	select {
	case <-sig:
	case <-time.After(10 * time.Second):
		fail("SIGUSR1 did not come")
	}
	cancel()
	if n := live.Load(); n != 100*2000 {
		fail("%d nodes live", n)
	}
	if ticks.Load() < 50 {
		fail("%d ticks", ticks.Load())
	}
	verdict := "ok\n"
	if len(report) > 0 {
		verdict = "bad\n"
		_ = os.WriteFile(filepath.Join(dir, "report"), []byte(strings.Join(report, "\n")), 0o644)
	}
	_ = os.WriteFile(filepath.Join(dir, "done.new"), []byte(verdict), 0o644)
	_ = os.Rename(filepath.Join(dir, "done.new"), filepath.Join(dir, "done"))
}
