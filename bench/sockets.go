package main

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pending is what waits in each socket of the targets, in bytes.
const pending = 1024

// sockets measures dump and restore of a process with n connections whose ends it both holds, with data on their way in both directions:
// beside the bare cost of making them. kind is "unix" or "tcp".
func (b *bench) sockets(kind, what string) func(n int) ([]figure, error) {
	return func(n int) ([]figure, error) {
		t, err := b.startTarget(self("hold-"+kind, strconv.Itoa(n)))
		if err != nil {
			return nil, err
		}
		defer t.end()
		bare := self("make-"+kind, strconv.Itoa(n))
		dump, err := b.beside(t, figure{what: fmt.Sprintf("dump %d %s / making them", n, what)}, bare)
		if err != nil {
			return nil, err
		}
		restore, err := b.again(t, "hold-"+kind, bare, figure{what: fmt.Sprintf("restore %d %s / making them", n, what)}, false)
		return append(dump, restore...), err
	}
}

// makeUnix makes n connected pairs of unix sockets.
func makeUnix(n int) error {
	data := make([]byte, pending)
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := fill(pair[0], pair[1], data); err != nil {
			return err
		}
	}
	return nil
}

// makeTCP makes n connections over the loopback interface.
func makeTCP(n int) error {
	data := make([]byte, pending)
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}); err != nil {
		return err
	}
	if err := unix.Listen(listener, n); err != nil {
		return err
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	for range n {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(client, address); err != nil {
			return err
		}
		server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		if err := fill(client, server, data); err != nil {
			return err
		}
	}
	return unix.Close(listener)
}

// fill has data wait at both ends of a connection.
func fill(a, b int, data []byte) error {
	for _, end := range [2]int{a, b} {
		if n, err := unix.Write(end, data); err != nil || n != len(data) {
			return fmt.Errorf("filling a socket: %d of %d bytes, %w", n, len(data), err)
		}
	}
	return nil
}

// holdSockets is a target.
func holdSockets(make func(int) error, n int) error {
	if err := make(n); err != nil {
		return err
	}
	fmt.Println("0")
	for {
		time.Sleep(time.Hour)
	}
}
