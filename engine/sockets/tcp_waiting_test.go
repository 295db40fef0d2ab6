package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/nethold"
	"crpipe/engine/object"
)

// TestTCPWaiting dumps a listening socket whose program has accepted nothing, ends it, and restores it: the connections come out of the
// queue in their order, with what their clients have sent, and go on.
func TestTCPWaiting(t *testing.T) {
	tcpNetwork(t)
	v4, v6 := unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, unix.SockaddrInet6{Addr: [16]byte{15: 1}}
	for name, test := range map[string]struct {
		family        int
		bind, connect unix.Sockaddr
		set           func(fd int)
	}{
		"IPv4":         {unix.AF_INET, &v4, &v4, func(int) {}},
		"IPv6":         {unix.AF_INET6, &v6, &v6, func(int) {}},
		"mapped":       {unix.AF_INET6, &unix.SockaddrInet6{}, &v4, func(int) {}},
		"any address":  {unix.AF_INET, &unix.SockaddrInet4{}, &unix.SockaddrInet4{Addr: [4]byte{127, 9, 8, 7}}, func(int) {}},
		"small buffer": {unix.AF_INET, &v4, &v4, func(fd int) { must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)) }},
		"options": {unix.AF_INET, &v4, &v4, func(fd int) {
			must(t, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
			must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1))
			must(t, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 1))
		}},
	} {
		v4.Port, v6.Port = 0, 0
		l := newSocket(t, test.family, unix.SOCK_STREAM)
		test.set(l)
		must(t, unix.Bind(l, test.bind))
		must(t, unix.Listen(l, 10))
		addr, err := unix.Getsockname(l)
		if err != nil {
			t.Fatal(err)
		}
		port := addrPortOf(addr).Port()
		var clients []int
		var sent [][]byte
		for i, size := range []int{0, 1, 1000, 100000, 5, 7, 300000} {
			if name == "options" && size == 0 {
				size = 3 // without data it is not in the queue
			}
			c := unix.AF_INET
			if _, is6 := test.connect.(*unix.SockaddrInet6); is6 {
				c = unix.AF_INET6
			}
			fd := newSocket(t, c, unix.SOCK_STREAM)
			switch a := test.connect.(type) {
			case *unix.SockaddrInet4:
				a.Port = int(port)
			case *unix.SockaddrInet6:
				a.Port = int(port)
			}
			must(t, unix.Connect(fd, test.connect))
			data := make([]byte, size)
			for j := range data {
				data[j] = byte(j*j>>5 + i)
			}
			must(t, unix.SetNonblock(fd, true))
			n, err := 0, error(nil)
			if size > 0 {
				if n, err = unix.Write(fd, data); err != nil {
					t.Fatal(err)
				}
			}
			clients, sent = append(clients, fd), append(sent, data[:n])
		}
		const closed, reset = 4, 5
		must(t, unix.Shutdown(clients[closed], unix.SHUT_WR))
		must(t, unix.SetsockoptLinger(clients[reset], unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
		must(t, unix.Close(clients[reset]))
		clients[reset] = -1
		time.Sleep(50 * time.Millisecond)

		d := tcpDumper(t, true)
		must(t, HoldTCP(d))
		f := tcpFile(t, d, l)
		state, err := dumpTCP(d, f)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		content := append([]byte(nil), holdOf(d).contents[state]...)
		if len(state.Waiting) != len(clients) {
			t.Fatalf("%s: %d connections wait", name, len(state.Waiting))
		}
		f.Close()
		must(t, unix.Close(l)) // which resets them, behind the hold
		// The clients are of this process too: else the dump would leave this.
		hold := &lastingHold{Name: HoldName([]byte(name))}
		var held nethold.Packets
		for i := range state.Waiting {
			held.Conns = append(held.Conns, state.Waiting[i].conn(state.Family))
		}
		must(t, nethold.Leave(hold.Name, held, nethold.Lasting{Mark: markOf(hold.Name), Conns: time.Minute}))
		must(t, Unhold(d))
		m, err := remake(t, []*tcpState{state}, [][]byte{content}, hold)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		must(t, ReleasedTCP(m.r))
		must(t, unix.SetNonblock(m.fds[0], true))
		for i, client := range clients {
			s, from, err := unix.Accept4(m.fds[0], unix.SOCK_CLOEXEC)
			if err != nil {
				t.Fatalf("%s, client %d: %v", name, i, err)
			}
			if client >= 0 {
				want, err := unix.Getsockname(client)
				if err != nil || plain(addrPortOf(from)) != plain(addrPortOf(want)) {
					t.Errorf("%s, client %d: it comes from %v, not %v (%v)", name, i, from, want, err)
				}
			}
			if name == "options" {
				for _, o := range [][2]int{{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.SOL_SOCKET, unix.SO_KEEPALIVE}} {
					if n, err := unix.GetsockoptInt(s, o[0], o[1]); n != 1 || err != nil {
						t.Errorf("option %v is %d, %v", o, n, err)
					}
				}
			}
			if mark, err := unix.GetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK); mark != 0 || err != nil {
				t.Errorf("%s: mark %#x, %v", name, mark, err)
			}
			goesOn(t, fmt.Sprintf("%s, client %d", name, i), s, client, sent[i], i == closed)
			_ = unix.Close(s)
			if client >= 0 {
				_ = unix.Close(client)
			}
		}
		if _, _, err := unix.Accept4(m.fds[0], 0); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%s: one too many: %v", name, err)
		}
		m.close()
	}
}

// goesOn reads what a client has sent, and has both talk. client -1: it has reset the connection.
func goesOn(t *testing.T, name string, s, client int, sent []byte, closed bool) {
	t.Helper()
	must(t, unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	got := make([]byte, 0, len(sent)+10)
	for len(got) < len(sent) {
		n, err := unix.Read(s, got[len(got):cap(got)])
		if errors.Is(err, unix.ECONNRESET) && client < 0 {
			return // told before what there is to read
		}
		if n <= 0 || err != nil {
			t.Fatalf("%s: after %d of %d bytes: %d, %v", name, len(got), len(sent), n, err)
		}
		got = got[:len(got)+n]
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("%s: %d bytes come, not the %d that were sent", name, len(got), len(sent))
	}
	if client < 0 {
		if _, err := unix.Read(s, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v, not reset", name, err)
		}
		return
	}
	b := make([]byte, 10)
	if closed {
		if n, err := unix.Read(s, b); n != 0 || err != nil {
			t.Errorf("%s: %d, %v instead of the end", name, n, err)
		}
	} else {
		must(t, second(unix.Write(client, []byte("more"))))
		if n, err := unix.Read(s, b); n != 4 || err != nil {
			t.Fatalf("%s: %d, %v", name, n, err)
		}
	}
	must(t, second(unix.Write(s, []byte("answer"))))
	must(t, unix.SetNonblock(client, false))
	must(t, unix.SetsockoptTimeval(client, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	if n, err := unix.Read(client, b); n != 6 || err != nil {
		t.Fatalf("%s: the client hears %d, %v", name, n, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func second(_ int, err error) error { return err }

// TestTCPWaitingHostile has connections in a queue that cannot be there.
func TestTCPWaitingHostile(t *testing.T) {
	tcpNetwork(t)
	good := func() *tcpState {
		s := exampleTCP("127.0.0.1:77", "127.0.0.1:78")
		*s = tcpState{Common: s.Common, Family: s.Family, Protocol: s.Protocol, State: kernelview.SocketListening, Local: "127.0.0.1:77", Backlog: 1,
			Waiting: []waitingState{{Local: "127.0.0.1:77", Remote: "127.0.0.1:78", State: kernelview.SocketEstablished, MSS: 1000, RcvNxt: 5, SndUna: 6}}}
		return s
	}
	m, err := remake(t, []*tcpState{good()}, nil)
	if err != nil {
		t.Fatalf("what is right: %v", err)
	}
	m.close()
	UndoneTCP(m.r)
	w := func(f func(*waitingState)) func(*tcpState) { return func(s *tcpState) { f(&s.Waiting[0]) } }
	for name, spoil := range map[string]func(*tcpState){
		"not listening":    func(s *tcpState) { s.State = kernelview.SocketClosed },
		"MPTCP":            func(s *tcpState) { s.Protocol = mptcp },
		"too many":         func(s *tcpState) { s.Backlog, s.Waiting = 0, append(s.Waiting, s.Waiting[0]) },
		"no address":       w(func(s *waitingState) { s.Local = "" }),
		"no port":          w(func(s *waitingState) { s.Remote = "127.0.0.1:0" }),
		"any address":      w(func(s *waitingState) { s.Local = "0.0.0.0:77" }),
		"many addresses":   w(func(s *waitingState) { s.Local = "224.0.0.1:77" }),
		"another family":   w(func(s *waitingState) { s.Remote = "[::1]:78" }),
		"nonsense":         w(func(s *waitingState) { s.Remote = "x" }),
		"state 0":          w(func(s *waitingState) { s.State = 0 }),
		"half open":        w(func(s *waitingState) { s.State = kernelview.SocketSynReceived }),
		"scale":            w(func(s *waitingState) { s.SndScale = 15 }),
		"missing contents": w(func(s *waitingState) { s.Unread = 5 }),
		"contents of none": func(s *tcpState) { s.Unread = 5 },
		"other contents":   func(s *tcpState) { s.Unread, s.Waiting[0].Unread = 5, 6 },
	} {
		s := good()
		spoil(s)
		m, err := remake(t, []*tcpState{s}, nil)
		var bad *object.BadImage
		if err == nil {
			m.close()
			UndoneTCP(m.r)
		}
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is right, but not here.
	for name, spoil := range map[string]func(*tcpState){
		"address of another machine": w(func(s *waitingState) { s.Local = "192.0.2.1:77" }),
		"a port of nobody":           w(func(s *waitingState) { s.Local = "127.0.0.1:79" }),
		"small segments":             w(func(s *waitingState) { s.MSS = 100 }),
	} {
		s := good()
		spoil(s)
		if m, err := remake(t, []*tcpState{s}, nil); err == nil {
			m.close()
			UndoneTCP(m.r)
			t.Errorf("%s: it is made", name)
		} else {
			t.Log(err)
		}
	}
}
