package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// content takes a piece of what waits in a socket.
func (m *madeUnix) content(r *object.Restorer, meta *object.Data, data []byte) error {
	if meta.Offset != m.fill || meta.Extend != 0 || len(meta.Packets) != 0 {
		return object.BadImagef("contents of a unix socket at byte %d do not follow byte %d", meta.Offset, m.fill)
	}
	m.fill += uint64(len(data))
	for len(data) > 0 {
		if err := m.send(r); err != nil {
			return err
		}
		if m.next == len(m.messages) {
			return object.BadImagef("unix socket %s: %d bytes belong to no message", m.ref, len(data))
		}
		x := m.messages[m.next]
		n := min(len(data), int(x.Length)-len(x.data))
		x.data = append(x.data, data[:n]...)
		data = data[n:]
	}
	return m.send(r)
}

// send sends the messages of which all bytes are there.
func (m *madeUnix) send(r *object.Restorer) error {
	for ; m.next < len(m.messages); m.next++ {
		x := m.messages[m.next]
		if len(x.data) < int(x.Length) {
			return nil
		}
		if err := m.sendOne(r, x); err != nil {
			return err
		}
		x.data = nil
	}
	return nil
}

// sendOne has the sender of a message send it again.
func (m *madeUnix) sendOne(r *object.Restorer, x *unixWaiting) error {
	from := m.peer
	if !x.Sender.IsZero() {
		var err error
		if from, err = object.Recall[madeUnix](r, x.Sender); err != nil {
			return err
		}
	}
	if from == nil || from.n < 0 || from.Type != m.Type || m.Type != unix.SOCK_DGRAM && from != m.peer {
		return object.BadImagef("a message in unix socket %s has a sender that cannot have sent it", m.ref)
	}
	var to unix.Sockaddr
	if m.Type == unix.SOCK_DGRAM && from.paired != m {
		if !m.Bound {
			return object.BadImagef("a message in unix socket %s, which has no name", m.ref)
		}
		name := string(m.Address)
		if m.place != nil {
			name = m.place.reach()
		}
		to = &unix.SockaddrUnix{Name: name}
	}
	var control []byte
	if len(x.Files) > 0 {
		fds := make([]int, len(x.Files))
		for i, ref := range x.Files {
			var err error
			if fds[i], err = r.File(ref); err != nil {
				return err
			}
		}
		control = unix.UnixRights(fds...)
	}
	if c := x.Cred; c != nil {
		pid := 0
		if r.Number != nil && c.PID != 0 {
			pid = r.Number(c.PID)
		}
		if pid <= 0 && r.Ended != nil {
			pid = r.Ended(c.PID)
		}
		if pid <= 0 {
			return object.BadImagef("a message of process %d, which the restore has not heard of before", c.PID)
		}
		control = append(control, unix.UnixCredentials(&unix.Ucred{Pid: int32(pid), Uid: c.UID, Gid: c.GID})...)
	}
	for _, end := range []*madeUnix{from, m} {
		if end.n >= 0 {
			widen(end.n)
			quiet(end.n)
		}
	}
	if x.OOB {
		return m.sendOOB(from, x, control)
	}
	n, err := unix.SendmsgN(from.n, x.data, control, to, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err != nil {
		return fmt.Errorf("putting a message of %d bytes into a unix socket: %w", len(x.data), err)
	}
	if n != len(x.data) {
		return &object.Lacking{What: fmt.Sprintf("of a message of %d bytes %d fit into a unix socket", len(x.data), n),
			Do: "raise net.core.wmem_max, or give cr-restore CAP_NET_ADMIN"}
	}
	return nil
}

// sendOOB sends a byte with MSG_OOB, and has one of which only the place is left read.
func (m *madeUnix) sendOOB(from *madeUnix, x *unixWaiting, control []byte) error {
	data := x.data
	if x.Length == 0 {
		data = []byte{0} // nobody will see it
	}
	err := unix.Sendmsg(from.n, data, control, nil, unix.MSG_OOB|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return &object.Lacking{What: "this kernel has no MSG_OOB of unix sockets", Err: err}
	}
	if err != nil {
		return fmt.Errorf("putting a byte into a unix socket with MSG_OOB: %w", err)
	}
	if x.Length > 0 {
		return nil
	}
	if m.n < 0 {
		return object.BadImagef("unix socket %s has read something before it was accepted", m.ref)
	}
	if _, _, err := unix.Recvfrom(m.n, data, unix.MSG_OOB|unix.MSG_DONTWAIT); err != nil {
		return fmt.Errorf("reading a byte from a unix socket with MSG_OOB: %w", err)
	}
	return nil
}

// quiet has nothing be noted with what is sent to or from a socket that is not said with it.
func quiet(fd int) {
	for _, opt := range []int{unix.SO_PASSCRED, unix.SO_PASSPIDFD, unix.SO_PASSSEC} {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err == nil && on != 0 {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 0) // never fails for one that is on
		}
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS); err == nil && on == 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1)
	}
}
