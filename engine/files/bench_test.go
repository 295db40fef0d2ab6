package files_test

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/files/filestest"
)

// manyProgram holds 2000 regular files, 1000 pipes and 1000 duplicates.
func manyProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	a.fail(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 10000, Max: 10000}))
	for i := range 2000 {
		a.open(1000+i, a.path(fmt.Sprint(i)), unix.O_RDWR|unix.O_CREAT)
	}
	for i := range 1000 {
		a.pipe(3000+2*i, 3001+2*i, 0)
		a.dup(1000+i, 5000+i, unix.O_CLOEXEC)
	}
	return a.err
}

// BenchmarkTable dumps and restores a table of 5000 descriptors; "bare" is what the system calls alone cost.
func BenchmarkTable(b *testing.B) {
	view := filestest.View(b)
	dir := b.TempDir()
	c := filestest.Start(b, "many", "DIR="+dir)
	b.Run("dump", func(b *testing.B) {
		for range b.N {
			filestest.Dump(b, filestest.Dumper(b, view, c.PID))
		}
	})
	b.Run("dump-bare", func(b *testing.B) {
		pidfd, err := unix.PidfdOpen(c.PID, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer unix.Close(pidfd)
		for range b.N {
			for fd := 1000; fd < 6000; fd++ {
				n, err := unix.PidfdGetfd(pidfd, fd, 0)
				if err != nil {
					b.Fatal(err)
				}
				var st unix.Stat_t
				if err := unix.Fstat(n, &st); err != nil {
					b.Fatal(err)
				}
				if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", c.PID, fd)); err != nil {
					b.Fatal(err)
				}
				if err := unix.Close(n); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	image := filestest.Dump(b, filestest.Dumper(b, view, c.PID))
	b.Run("restore", func(b *testing.B) {
		for range b.N {
			r, err := filestest.Restore(b, image, nil)
			if err != nil {
				b.Fatal(err)
			}
			r.Close()
		}
	})
	b.Run("restore-bare", func(b *testing.B) {
		for range b.N {
			var fds []int
			for i := range 2000 {
				fd, err := unix.Open(fmt.Sprintf("%s/%d", dir, i), unix.O_RDWR, 0)
				if err != nil {
					b.Fatal(err)
				}
				fds = append(fds, fd)
			}
			for range 1000 {
				var p [2]int
				if err := unix.Pipe2(p[:], 0); err != nil {
					b.Fatal(err)
				}
				fds = append(fds, p[0], p[1])
			}
			for _, fd := range fds {
				if err := unix.Close(fd); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
