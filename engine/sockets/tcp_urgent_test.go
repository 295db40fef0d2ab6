package sockets

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
)

// TestTCPUrgent makes connections with urgent data each way, in every place that it can have, and looks whether it is there, and whether
// the program sees the rest of the stream around it.
func TestTCPUrgent(t *testing.T) {
	tcpNetwork(t)
	d := tcpDumper(t, true)
	port := 3000
	for _, ends := range [][2]string{{"127.0.0.1", "127.0.0.2"}, {"[::1]", "[::1]"}} {
		for _, c := range []struct {
			state                uint8
			unread, sent, unsent uint32
			urgent               Urgent
		}{
			{1, 1, 0, 0, Urgent{At: 1}},
			{1, 10, 0, 0, Urgent{At: 1}},
			{1, 10, 0, 0, Urgent{At: 10}},
			{1, 10, 0, 0, Urgent{At: 5, Read: true}},
			{1, 100000, 0, 0, Urgent{At: 90000}}, // more than the window of a new connection
			{1, 10, 0, 0, Urgent{At: 11}},
			{1, 0, 0, 0, Urgent{At: 40000}},
			{1, 0, 10, 0, Urgent{Send: 4}},
			{1, 0, 10, 10, Urgent{Send: 10}},
			{1, 0, 0, 10, Urgent{Send: 1}},
			{1, 0, 10, 10, Urgent{Send: 20}},
			{1, 20, 10, 10, Urgent{At: 7, Send: 15}},
			{kernelview.SocketCloseWait, 20, 0, 10, Urgent{At: 7, Send: 3}},
			{kernelview.SocketFinWait1, 20, 5, 10, Urgent{At: 20, Read: true, Send: 15}},
			{kernelview.SocketFinWait2, 20, 0, 0, Urgent{At: 2}},
			{kernelview.SocketClosing, 20, 0, 10, Urgent{At: 2, Send: 1}},
		} {
			name := fmt.Sprintf("%s: %+v", ends[0], c)
			port++
			want := exampleTCP(fmt.Sprintf("%s:%d", ends[0], port), ends[1]+":80")
			want.State, want.Unread, want.Sent, want.Unsent, want.Urgent = c.state, c.unread, c.sent, c.unsent, c.urgent
			content := make([]byte, c.unread+c.sent+c.unsent)
			for i := range content {
				content[i] = byte(i*7>>3) | 1
			}
			func() { // not a subtest, which would be on another thread
				m, err := remake(t, []*tcpState{want}, [][]byte{content})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				defer func() { m.close(); UndoneTCP(m.r) }()
				v, err := d.View.TCP(tcpFile(t, d, m.fds[0]).View.ID)
				if err != nil {
					t.Fatal(err)
				}
				got, err := urgentOf(&v)
				if err != nil || got != c.urgent {
					t.Errorf("%s: %+v, %v", name, got, err)
				}
				if v.RcvNxt != want.RcvNxt || v.RcvWnd != want.RcvWnd || v.RcvWup != want.RcvWup || v.SndWl1 != want.SndWl1 || v.State != c.state {
					t.Errorf("%s: state %d, expects %d, window %d of %d, %d, not\n%+v", name, v.State, v.RcvNxt, v.RcvWnd, v.RcvWup, v.SndWl1, want)
				}
				if !bytes.Equal(append(v.Unread, v.Send...), content) {
					t.Errorf("%s: %d unread and %d not acknowledged bytes: not those", name, len(v.Unread), len(v.Send))
				}
				checkReading(t, name, m.fds[0], c.urgent, content[:c.unread])
			}()
		}
	}
}

// checkReading reads a stream with an urgent byte.
func checkReading(t *testing.T, name string, fd int, u Urgent, unread []byte) {
	t.Helper()
	b := make([]byte, 1)
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_OOB|unix.MSG_DONTWAIT)
	waits := u.At > 0 && int(u.At) <= len(unread)
	switch {
	case waits && !u.Read:
		if err != nil || n != 1 || b[0] != unread[u.At-1] {
			t.Errorf("%s: the urgent byte is %x, %v", name, b[:n], err)
		}
	case u.At > 0 && !waits:
		if err != unix.EAGAIN {
			t.Errorf("%s: an urgent byte that has not come: %v", name, err)
		}
	case err != unix.EINVAL:
		t.Errorf("%s: no urgent byte: %v", name, err)
	}
	var all []byte
	want := unread
	if waits {
		want = append(append([]byte(nil), unread[:u.At-1]...), unread[u.At:]...)
	}
	for part := make([]byte, 1<<16); len(all) < len(want); {
		n, _, err := unix.Recvfrom(fd, part, unix.MSG_DONTWAIT)
		if n <= 0 || err != nil {
			t.Errorf("%s: after %d bytes: %d, %v", name, len(all), n, err)
			return
		}
		all = append(all, part[:n]...)
	}
	if !bytes.Equal(all, want) {
		t.Errorf("%s: it reads other bytes", name)
	}
}
