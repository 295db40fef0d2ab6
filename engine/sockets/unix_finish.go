package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// finish sets up what is left when all messages are in their queues.
func (w *unixWorld) finish() error {
	for _, m := range w.all {
		if err := m.send(w.r); err != nil {
			return err
		}
		if m.next != len(m.messages) {
			return object.BadImagef("unix socket %s: %d messages are missing", m.ref, len(m.messages)-m.next)
		}
	}
	if err := w.connectDatagrams(); err != nil {
		return err
	}
	for _, m := range w.all {
		if err := w.finishOne(m); err != nil {
			return err
		}
	}
	for _, m := range w.all {
		if m.common == nil {
			continue
		}
		if m.Inq {
			if err := unix.SetsockoptInt(m.n, unix.SOL_SOCKET, unix.SO_INQ, 1); err != nil {
				return fmt.Errorf("setting SO_INQ of a unix socket: %w", err)
			}
		}
		if err := m.common.finish(m.n); err != nil {
			return err
		}
	}
	return nil
}

func (w *unixWorld) finishOne(m *madeUnix) error {
	if m.paired != nil && m.Bound && !m.Closed {
		if err := w.bind(m, m.n, nil); err != nil {
			return err
		}
	}
	if m.place != nil {
		if err := m.place.settle(w.r); err != nil {
			return err
		}
	}
	if m.n < 0 || m.Closed {
		return nil
	}
	if m.Reset {
		if m.peer == nil || !m.peer.Closed {
			return object.BadImagef("unix socket %s was reset by nobody", m.ref)
		}
		// Who is closed with something unread resets the connection.
		if _, err := unix.Write(m.n, []byte{0}); err != nil {
			return fmt.Errorf("writing what resets a connection: %w", err)
		}
	}
	if m.Shutdown == 0 || m.peer != nil && m.peer.Closed && m.Type != unix.SOCK_DGRAM {
		return nil
	}
	err := unix.Shutdown(m.n, int(m.Shutdown)-1) // SHUT_RD, SHUT_WR, SHUT_RDWR
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		return fmt.Errorf("shutting down a unix socket: %w", err)
	}
	return nil
}

// connectDatagrams connects datagram sockets. Nobody may connect to one that is connected to a third, so those come first to whom
// nobody is going to be.
func (w *unixWorld) connectDatagrams() error {
	awaited := map[*madeUnix]int{} // those who have still to connect to it
	var todo []*madeUnix
	for _, m := range w.all {
		if m.Type != unix.SOCK_DGRAM || m.Closed {
			continue
		}
		if len(m.Remote) > 0 && len(m.messages) > 0 {
			if w.r.Elsewhere {
				return object.BadImagef("unix socket %s is connected to the outside, with messages from others", m.ref)
			}
			if err := m.connectRemote(); err != nil {
				return err
			}
		}
		if m.peer == nil && m.paired != nil && len(m.Remote) == 0 {
			none := make([]byte, 16) // AF_UNSPEC
			if err := sys.Connect(m.n, none); err != nil {
				return fmt.Errorf("disconnecting a unix socket: %w", err)
			}
		}
		if m.peer == nil || m.paired == m.peer {
			continue
		}
		todo = append(todo, m)
		if m.peer.peer != m {
			awaited[m.peer]++
		}
	}
	for len(todo) > 0 {
		var left []*madeUnix
		for _, m := range todo {
			if awaited[m] > 0 {
				left = append(left, m)
				continue
			}
			if err := m.connectTo(m.peer); err != nil {
				return err
			}
			if m.peer.peer != m {
				awaited[m.peer]--
			}
		}
		if len(left) == len(todo) {
			return object.BadImagef("datagram sockets are connected in a circle")
		}
		todo = left
	}
	return nil
}

func (m *madeUnix) connectTo(p *madeUnix) error {
	if !p.Bound {
		return object.BadImagef("unix socket %s is connected to one without a name", m.ref)
	}
	address := unixSockaddr(p.Address)
	if p.place != nil {
		address = unixSockaddr(append([]byte(p.place.reach()), 0))
	}
	if err := connectNow(m.n, address); err != nil {
		return fmt.Errorf("connecting a unix socket to %s: %w", addressText(p.Address), err)
	}
	return nil
}
