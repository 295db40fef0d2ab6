//go:build amd64

package kernelview

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRestless looks at a process that is not stopped and changes all the
// time. Nothing it answers can be relied on, but it answers: with an error of
// the kind that says so, or with something, and without end it is not.
func TestRestless(t *testing.T) {
	v := view(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Add(3)
	go func() { // mappings that come, go, split and merge
		defer busy.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			b, err := unix.Mmap(-1, 0, 64<<12, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			if err != nil {
				continue
			}
			for i := 0; i < 64; i += 2 {
				_ = unix.Mprotect(b[i<<12:(i+1)<<12], unix.PROT_READ)
			}
			_ = unix.Munmap(b)
		}
	}()
	go func() { // descriptors that come and go, and a table that grows
		defer busy.Done()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			if err != nil {
				continue
			}
			high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 100+n%800)
			if err == nil {
				_ = unix.Close(high)
			}
			_ = unix.Close(fd)
		}
	}()
	go func() { // an epoll tree that grows and shrinks
		defer busy.Done()
		epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			return
		}
		defer unix.Close(epoll)
		for {
			select {
			case <-stop:
				return
			default:
			}
			var fds []int
			for range 20 {
				if fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil {
					_ = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN})
					fds = append(fds, fd)
				}
			}
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}()
	defer busy.Wait()
	defer close(stop)
	me := []int{os.Getpid()}
	for range 300 {
		if _, err := v.Threads(me); err != nil {
			t.Fatalf("threads: %v", err)
		}
		if _, err := v.Processes(me); err != nil && !errors.Is(err, errFault) {
			t.Fatalf("processes: %v", err)
		}
		if _, err := v.Areas(me[0]); err != nil && !errors.Is(err, errFault) {
			t.Fatalf("areas: %v", err)
		}
		tables, err := v.Files(me)
		if err != nil {
			if !errors.Is(err, errFault) {
				t.Fatalf("files: %v", err)
			}
			continue
		}
		for _, fd := range tables[0].FDs {
			if fd.File.Kind == KindEpoll {
				if _, err := v.Epoll(fd.File.ID); err != nil && !errors.Is(err, errFault) && !errors.Is(err, ErrKind) {
					t.Fatalf("epoll: %v", err)
				}
			}
		}
	}
}
