package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// tcpNetwork puts the rest of the test, on a thread that ends with it, into a network namespace with a loopback device.
func tcpNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs root: a network namespace: %v", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("needs ip (Debian: iproute2): %v: %s", err, out)
	}
}

// tcpDumper is a dump of this very process.
func tcpDumper(t *testing.T, kill bool) *object.Dumper {
	t.Helper()
	v, err := kernelview.Open(kernelview.Options{NoCache: true, Source: kernelview.SourceBPF})
	if err != nil {
		t.Skipf("needs the BPF source: %v", err)
	}
	t.Cleanup(func() { _ = v.Close() })
	p := &object.Process{PID: os.Getpid()}
	p.Threads = []*object.Thread{{TID: os.Getpid(), Process: p}}
	return &object.Dumper{View: v, Root: p, Processes: []*object.Process{p}, Kill: kill, TCP: PolicyKeep, Warn: t.Logf}
}

// tcpFile is a descriptor of this process as a dump meets it.
func tcpFile(t *testing.T, d *object.Dumper, fd int) *object.OpenFile {
	t.Helper()
	tables, err := d.View.Files([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tables[0].FDs {
		if x.FD == fd {
			f, err := object.Meet(d.Root, fd, x.File)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(f.Close)
			return f
		}
	}
	t.Fatalf("no descriptor %d", fd)
	return nil
}

// madeTCP is what is restored from states.
type madeTCP struct {
	r   *object.Restorer
	fds []int
}

func (m *madeTCP) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.r.Close()
}

// remake writes states into an image and restores that, up to the moment before packets pass.
func remake(t *testing.T, states []*tcpState, contents [][]byte, holds ...*lastingHold) (*madeTCP, error) {
	t.Helper()
	var b bytes.Buffer
	w, err := stream.NewWriter(&b, stream.Header{Content: stream.ContentImage})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range states {
		if err := w.Put(tcpType, uint32(i+1), s, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range holds {
		if err := w.Put(holdType, 0, h, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range contents {
		if len(c) > 0 {
			if err := w.Put(object.TypeData, 0, &object.Data{Of: stream.Ref{ID: uint32(i + 1), Class: "file"}}, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	reader, err := stream.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	plan, rec, err := object.ReadPlan(reader, []object.Kind{TCPKind.AsKind(), HoldObject})
	if err != nil {
		return nil, err
	}
	m := &madeTCP{r: &object.Restorer{Plan: plan, PoolBase: 200, Warn: t.Logf}}
	fail := func(err error) (*madeTCP, error) {
		m.r.Close()
		UndoneTCP(m.r)
		return nil, err
	}
	if err := m.r.MakeObjects(); err != nil {
		return fail(err)
	}
	for ; rec != nil && !errors.Is(err, io.EOF); rec, err = reader.Next() {
		var d object.Data
		if err := rec.Decode(&d); err != nil {
			t.Fatal(err)
		}
		data, err := rec.Data()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.r.Content(&d, data); err != nil {
			return fail(err)
		}
	}
	if err := errors.Join(ConnectTCP(m.r)); err != nil {
		return fail(err)
	}
	if err := ReleaseTCP(m.r); err != nil {
		return fail(err)
	}
	for i := range states {
		fd, err := m.r.File(stream.Ref{ID: uint32(i + 1), Class: "file"})
		if err != nil {
			t.Fatal(err)
		}
		m.fds = append(m.fds, fd)
	}
	return m, nil
}

// example is a connection as a dump tells it, with plausible numbers.
func exampleTCP(local, remote string) *tcpState {
	s := &tcpState{Common: Common{Flags: unix.O_RDWR, Mode: 0o777, Access: 1, Modify: 1,
		Options: []Option{{"SO_SNDBUF", number(87040)}, {"SO_RCVBUF", number(131072)}}}, Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP,
		State: kernelview.SocketEstablished, Local: local, Remote: remote, Kept: true, RcvNxt: 0xfffffff0, SndUna: 0x7ffffff0,
		MSS: 1400, Stamps: true, Stamp: 123456, SACK: true, Scaling: true, SndScale: 7, RcvScale: 9,
		SndWl1: 0xfffffff0, SndWnd: 65536, MaxWindow: 65536, RcvWnd: 65536, RcvWup: 0xfffffff0}
	if netip.MustParseAddrPort(local).Addr().Is6() {
		s.Family = unix.AF_INET6
	}
	return s
}

// TestTCPStates makes a connection in every state, with both queues, and looks whether it is in that state.
func TestTCPStates(t *testing.T) {
	tcpNetwork(t)
	if out, err := exec.Command("ip", "route", "add", "203.0.113.0/24", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	port := 1000
	for _, ends := range [][2]string{{"127.0.0.1", "203.0.113.5"}, {"::1", "::1"}, {"::ffff:127.0.0.1", "::ffff:203.0.113.5"}} {
		for state, shutdown := range map[uint8]uint8{
			kernelview.SocketEstablished: 0, kernelview.SocketCloseWait: 1, kernelview.SocketFinWait1: 2, kernelview.SocketFinWait2: 2,
			kernelview.SocketClosing: 3, kernelview.SocketLastAck: 3,
		} {
			for _, queues := range [][3]int{{0, 0, 0}, {100000, 50000, 200000}, {1, 1, 0}, {0, 0, 1}} {
				if state == kernelview.SocketFinWait2 {
					queues[1], queues[2] = 0, 0 // all has been acknowledged
				}
				port++
				want := exampleTCP(netip.AddrPortFrom(netip.MustParseAddr(ends[0]), uint16(port)).String(), netip.AddrPortFrom(netip.MustParseAddr(ends[1]), 80).String())
				want.State, want.Shutdown = state, shutdown
				want.Unread, want.Sent, want.Unsent = uint32(queues[0]), uint32(queues[1]), uint32(queues[2])
				content := make([]byte, queues[0]+queues[1]+queues[2])
				for i := range content {
					content[i] = byte(i * 7 >> 3)
				}
				name := fmt.Sprintf("%s, state %d, %v", ends[0], state, queues)
				func() { // not a subtest, which would be on another thread
					m, err := remake(t, []*tcpState{want}, [][]byte{content})
					if err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
					defer func() { m.close(); UndoneTCP(m.r) }()
					d := tcpDumper(t, true)
					v, err := d.View.TCP(tcpFile(t, d, m.fds[0]).View.ID)
					if err != nil {
						t.Fatal(err)
					}
					got := &tcpState{State: v.State, Shutdown: v.Shutdown, Local: v.Ends.Local.String(), Remote: v.Ends.Remote.String(), Unread: uint32(len(v.Unread))}
					if err := got.fromView(&v, m.fds[0]); err != nil {
						t.Fatal(err)
					}
					if int32(got.Stamp-want.Stamp) < 0 || got.Stamp-want.Stamp > 60000 {
						t.Errorf("time stamp %d, was %d", got.Stamp, want.Stamp)
					}
					expect := *want
					got.Stamp, got.Common, got.Family, got.Protocol, got.Kept = want.Stamp, want.Common, want.Family, want.Protocol, true
					if finSent(state) { // see repair
						expect.Sent, expect.Unsent = expect.Sent+expect.Unsent, 0
					}
					if !reflect.DeepEqual(got, &expect) {
						t.Errorf("%s: it is\n%+v, not\n%+v", name, got, &expect)
					}
					if !bytes.Equal(append(v.Unread, v.Send...), content) {
						t.Errorf("%s: %d unread and %d not acknowledged bytes: not those", name, len(v.Unread), len(v.Send))
					}
				}()
			}
		}
	}
}

// TestTCPSilence: what is restored and undone says nothing to its peer, and neither does what a dump has ended.
func TestTCPSilence(t *testing.T) {
	tcpNetwork(t)
	l := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 1)); err != nil {
		t.Fatal(err)
	}
	addr, err := unix.Getsockname(l)
	if err != nil {
		t.Fatal(err)
	}
	c := newSocket(t, unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Connect(c, addr); err != nil {
		t.Fatal(err)
	}
	s, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	d := tcpDumper(t, true)
	if err := HoldTCP(d); err != nil {
		t.Fatal(err)
	}
	f := tcpFile(t, d, c)
	state, err := dumpTCP(d, f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if !state.Kept {
		t.Fatal("it is not kept")
	}
	// As when the process dies, whose descriptor goes; nobody closes it twice.
	if err := unix.Dup2(l, c); err != nil {
		t.Fatal(err)
	}
	if err := EndTCP(d); err != nil {
		t.Fatal(err)
	}
	if err := Unhold(d); err != nil {
		t.Fatal(err)
	}
	now := func() uint8 {
		n, err := stateOf(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := now(); n != kernelview.SocketEstablished {
		t.Fatalf("the other end is in state %d after the end", n)
	}
	for range 2 {
		m, err := remake(t, []*tcpState{state}, nil)
		if err != nil {
			t.Fatal(err)
		}
		m.close() // before packets pass
		UndoneTCP(m.r)
		clearRemains(nil)
		if n := now(); n != kernelview.SocketEstablished {
			t.Fatalf("the other end is in state %d after a restore that was undone", n)
		}
	}
	m, err := remake(t, []*tcpState{state}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if err := ReleasedTCP(m.r); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	for _, way := range [][2]int{{m.fds[0], s}, {s, m.fds[0]}} {
		if _, err := unix.Write(way[0], []byte("word")); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(way[1], buf); n != 4 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
}

// TestTCPHostile has states that no socket has: each is refused, and none is made.
func TestTCPHostile(t *testing.T) {
	tcpNetwork(t)
	good := func() *tcpState { return exampleTCP("127.0.0.1:77", "127.0.0.1:78") }
	for name, spoil := range map[string]func(*tcpState){
		"state 0":             func(s *tcpState) { s.State = 0 },
		"state 3":             func(s *tcpState) { s.State = 3 },
		"state 12":            func(s *tcpState) { s.State = 12 },
		"state 255":           func(s *tcpState) { s.State = 255 },
		"family":              func(s *tcpState) { s.Family = unix.AF_UNIX },
		"protocol":            func(s *tcpState) { s.Protocol = unix.IPPROTO_UDP },
		"mptcp":               func(s *tcpState) { s.Protocol = mptcp },
		"shutdown":            func(s *tcpState) { s.Shutdown = 4 },
		"scale":               func(s *tcpState) { s.SndScale = 15 },
		"errno":               func(s *tcpState) { s.Err = 5 },
		"errno of closed":     func(s *tcpState) { s.State, s.Ended, s.Kept, s.Err = 7, true, false, 5 },
		"errno without end":   func(s *tcpState) { s.State, s.Kept, s.Err = 7, false, int32(unix.EPIPE) },
		"no address":          func(s *tcpState) { s.Local = "" },
		"no peer":             func(s *tcpState) { s.Remote = "" },
		"no port":             func(s *tcpState) { s.Local = "127.0.0.1:0" },
		"nonsense":            func(s *tcpState) { s.Local = strings.Repeat("x", 100000) },
		"a name":              func(s *tcpState) { s.Remote = "localhost:80" },
		"another family":      func(s *tcpState) { s.Remote = "[::1]:80" },
		"a zone":              func(s *tcpState) { s.Family, s.Local, s.Remote = unix.AF_INET6, "[fe80::1%lo]:1", "[fe80::2%lo]:1" },
		"sizes":               func(s *tcpState) { s.Unread = 1 << 31 },
		"missing contents":    func(s *tcpState) { s.Unread = 5 },
		"window":              func(s *tcpState) { s.RcvWup = s.RcvNxt + 1 },
		"window of the peer":  func(s *tcpState) { s.SndWl1 = s.RcvNxt + s.RcvWnd + 1 },
		"urgent far ahead":    func(s *tcpState) { s.Urgent.At = 1 << 17 },
		"urgent everywhere":   func(s *tcpState) { s.Urgent.At = ^uint32(0) },
		"urgent and read":     func(s *tcpState) { s.Urgent.Read = true },
		"urgent, read before": func(s *tcpState) { s.Urgent.At, s.Urgent.Read = 1, true },
		"urgent of nothing":   func(s *tcpState) { s.Urgent.Send = 1 },
		"urgent at the end":   func(s *tcpState) { s.State, s.Ended, s.Kept, s.Urgent.At = 7, true, false, 1 },
		"an option":           func(s *tcpState) { s.TCP = []Option{{"TCP_REPAIR", number(1)}} },
		"a long option":       func(s *tcpState) { s.TCP = []Option{{"TCP_NODELAY", make([]byte, 8)}} },
		"an option of others": func(s *tcpState) { s.IP.Options = []Option{{"TCP_NODELAY", number(1)}} },
	} {
		s := good()
		spoil(s)
		m, err := remake(t, []*tcpState{s}, nil)
		var bad *object.BadImage
		if err == nil {
			m.close()
		}
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is right, but not here.
	for name, spoil := range map[string]func(*tcpState){
		"address of another machine": func(s *tcpState) { s.Local = "192.0.2.1:77" },
		"no route":                   func(s *tcpState) { s.Remote = "192.0.2.1:78" },
	} {
		s := good()
		spoil(s)
		if m, err := remake(t, []*tcpState{s}, nil); err == nil {
			m.close()
			t.Errorf("%s: it is made", name)
		} else {
			t.Log(err)
		}
	}
	if m, err := remake(t, []*tcpState{good()}, [][]byte{[]byte("too much")}); err == nil {
		m.close()
		t.Error("contents that nothing asks for are taken")
	}
	if err := DropHeld("filter"); err == nil {
		t.Error("the table of somebody else would be removed")
	}
}
