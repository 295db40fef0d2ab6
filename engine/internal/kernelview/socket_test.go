//go:build amd64

package kernelview

import (
	"bytes"
	"errors"
	"math/rand"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSocket compares what is read of sockets with what they were given: in the buffers' own memory, in pages, and more than one.
func TestSocket(t *testing.T) {
	v := view(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	id := func(fd int) ID { return fileOf(t, v, os.Getpid(), fd).ID }
	var want [][]byte
	for _, n := range []int{1, 100, 3000, 4096, 32768, 100000} {
		b := make([]byte, n)
		rand.New(rand.NewSource(int64(n))).Read(b)
		want = append(want, b)
		if got, err := unix.Write(pair[0], b); got != n || err != nil {
			t.Fatalf("wrote %d of %d: %v", got, n, err)
		}
	}
	s, err := v.Socket(id(pair[1]))
	if err != nil {
		t.Fatal(err)
	}
	if s.Family != unix.AF_UNIX || s.Type != unix.SOCK_STREAM || s.State != SocketEstablished || s.Shutdown != 0 || s.Err != 0 || s.File != id(pair[1]) {
		t.Errorf("%+v", s)
	}
	var all []byte
	for _, p := range s.Receive {
		all = append(all, p.Data...)
	}
	if !bytes.Equal(all, bytes.Join(want, nil)) {
		t.Errorf("%d bytes in %d buffers, want %d: other bytes", len(all), len(s.Receive), len(bytes.Join(want, nil)))
	}
	if len(s.Receive) < len(want) {
		t.Errorf("%d buffers", len(s.Receive))
	}
	other, err := v.Socket(id(pair[0]))
	if err != nil {
		t.Fatal(err)
	}
	if len(other.Receive) != 0 || s.Receive[0].Sock != other.ID || other.ID == s.ID || other.Net != s.Net {
		t.Errorf("the other end: %+v", other)
	}
	if err := unix.Shutdown(pair[1], unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	if s, err = v.Socket(id(pair[1])); err != nil || s.Shutdown != ShutRead {
		t.Errorf("shutdown: %+v, %v", s.Shutdown, err)
	}
	if _, err := v.Socket(0); !errors.Is(err, ErrKind) {
		t.Errorf("no socket: %v", err)
	}
}

// A packet that comes over the loopback device lies in one piece or in pages, as its sender made it.
func TestSocketUDP(t *testing.T) {
	v := view(t)
	var fds [2]int
	for i := range fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Skipf("needs the loopback device: %v", err)
		}
		fds[i] = fd
	}
	to, err := unix.Getsockname(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 20000)
	rand.New(rand.NewSource(1)).Read(b)
	if err := unix.Sendto(fds[0], b, 0, to); err != nil {
		t.Skipf("needs the loopback device: %v", err)
	}
	s, err := v.Socket(fileOf(t, v, os.Getpid(), fds[1]).ID)
	if err != nil {
		t.Fatal(err)
	}
	if s.Family != unix.AF_INET || s.Type != unix.SOCK_DGRAM || s.Protocol != unix.IPPROTO_UDP {
		t.Errorf("%+v", s)
	}
	if len(s.Receive) != 1 || !bytes.HasSuffix(s.Receive[0].Data, b) {
		t.Errorf("%d packets", len(s.Receive))
	}
}

// TestSocketAsync: who is told by a signal of what happens at a socket, and by what number.
func TestSocketAsync(t *testing.T) {
	v := view(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	id := fileOf(t, v, os.Getpid(), pair[0]).ID
	for _, want := range [][]Async{{}, {{File: id, FD: int32(pair[0])}}, {}} {
		flags := len(want) * unix.O_ASYNC
		if _, err := unix.FcntlInt(uintptr(pair[0]), unix.F_SETFL, flags); err != nil {
			t.Fatal(err)
		}
		if got, err := v.SocketAsync(id); err != nil || !got.Known || !slices.Equal(got.V, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	if _, err := v.SocketAsync(0); !errors.Is(err, ErrKind) {
		t.Errorf("no socket: %v", err)
	}
}
