//go:build amd64

package kernelview

import (
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// measure runs fn and reports the CPU time it takes too, which other programs
// on the machine do not change much.
func measure(b *testing.B, fn func()) {
	b.Helper()
	used := func() float64 {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return float64(r.Utime.Nano() + r.Stime.Nano())
	}
	start := used()
	for b.Loop() {
		fn()
	}
	b.ReportMetric((used()-start)/float64(b.N), "cpu-ns/op")
}

func BenchmarkThreads1000(b *testing.B) {
	v, c := view(b), newChild(b)
	const flags = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_FILES | unix.CLONE_FS
	stacks := uint64(c.must(unix.SYS_MMAP, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0))
	tids := []int{c.pid()}
	for i := range uint64(999) {
		tids = append(tids, c.clone(flags, stacks-c.page+0x400+i*0x200))
	}
	if err := c.stop(); err != nil {
		b.Fatal(err)
	}
	measure(b, func() {
		if _, err := v.Threads(tids); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkFiles6000(b *testing.B) {
	v, c := view(b), newChild(b)
	c.must(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, c.putWords(0, 10000, 10000), 0)
	for range 5998 {
		c.must(unix.SYS_EVENTFD2, 0, 0)
	}
	measure(b, func() {
		if _, err := v.Files([]int{c.pid()}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkAreas2000(b *testing.B) {
	v, c := view(b), newChild(b)
	for i := range uint64(2000) { // with alternating permissions, so that they do not merge
		c.must(unix.SYS_MMAP, 0, 1<<14, i%2, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE, ^uint64(0), 0)
	}
	measure(b, func() {
		if _, err := v.Areas(c.pid()); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkProcess(b *testing.B) {
	v, c := view(b), newChild(b)
	measure(b, func() {
		if _, err := v.Processes([]int{c.pid()}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkOpenWarm(b *testing.B) {
	view(b)
	dir := filepath.Join(b.TempDir(), "cache")
	measure(b, func() {
		v, err := openBPF(Options{CacheDir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := v.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkOpenCold(b *testing.B) {
	view(b)
	measure(b, func() {
		v, err := openBPF(Options{NoCache: true})
		if err != nil {
			b.Fatal(err)
		}
		if err := v.Close(); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPeek(b *testing.B) {
	v := view(b)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	addr, err := v.mem.current()
	if err != nil {
		b.Fatal(err)
	}
	measure(b, func() {
		if _, err := v.mem.peek(addr, 256); err != nil {
			b.Fatal(err)
		}
	})
}
