package sockets

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// An image cannot have a socket made that none can be, or a message sent that none can have sent.
func TestUnixHostile(t *testing.T) {
	for name, s := range map[string]*unixState{
		"type":            {Type: 99},
		"long":            {Type: unix.SOCK_STREAM, Address: make([]byte, 200), Bound: true},
		"no name":         {Type: unix.SOCK_STREAM, Bound: true},
		"unterminated":    {Type: unix.SOCK_STREAM, Address: []byte("/x"), Bound: true},
		"two parts":       {Type: unix.SOCK_STREAM, Address: []byte("/x\x00/y\x00"), Bound: true},
		"root":            {Type: unix.SOCK_STREAM, Address: []byte("/\x00"), Bound: true},
		"upwards":         {Type: unix.SOCK_STREAM, Address: []byte("a/..\x00"), Bound: true},
		"shutdown":        {Type: unix.SOCK_STREAM, Shutdown: 4},
		"listening":       {Type: unix.SOCK_STREAM, Listening: true},
		"datagrams":       {Type: unix.SOCK_DGRAM, Address: []byte("\x00x"), Bound: true, Listening: true},
		"backlog":         {Type: unix.SOCK_STREAM, Backlog: 1 << 31},
		"remote":          {Type: unix.SOCK_STREAM, Remote: []byte("/dev/log\x00")},
		"file":            {Type: unix.SOCK_STREAM, Address: []byte("\x00x"), Bound: true, File: &unixPath{Path: "/x"}},
		"relative file":   {Type: unix.SOCK_STREAM, Address: []byte("x\x00"), Bound: true, File: &unixPath{Path: "x"}},
		"file upwards":    {Type: unix.SOCK_STREAM, Address: []byte("x\x00"), Bound: true, File: &unixPath{Path: "/a/../x"}},
		"mode":            {Type: unix.SOCK_STREAM, Address: []byte("x\x00"), Bound: true, File: &unixPath{Path: "/x", Mode: 1 << 20}},
		"pid":             {Type: unix.SOCK_STREAM, Cred: &unixCred{PID: -1}},
		"user":            {Type: unix.SOCK_STREAM, Cred: &unixCred{UID: ^uint32(0)}},
		"too many groups": {Type: unix.SOCK_STREAM, Cred: &unixCred{Groups: make([]uint32, 70000)}},
	} {
		var bad *object.BadImage
		if err := s.check(); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stream1 := func(change func(*madeUnix)) *madeUnix {
		m := &madeUnix{unixState: &unixState{Type: unix.SOCK_STREAM}, n: -1, ref: stream.Ref{ID: 1, Class: "socket"}}
		change(m)
		return m
	}
	for name, m := range map[string]*madeUnix{
		"listens without credentials": stream1(func(m *madeUnix) { m.Listening, m.Bound, m.Address = true, true, []byte("\x00x") }),
		"connected to nobody":         stream1(func(m *madeUnix) { m.Cred = &unixCred{PID: 1} }),
		"messages from nobody":        stream1(func(m *madeUnix) { m.messages = []*unixWaiting{{}} }),
		"one way":                     stream1(func(m *madeUnix) { m.peer, m.Cred = stream1(func(*madeUnix) {}), &unixCred{} }),
		"accepted by both": stream1(func(m *madeUnix) {
			m.Address, m.Cred = []byte("\x00x"), &unixCred{}
			m.peer = stream1(func(p *madeUnix) { p.peer, p.Address, p.Cred = m, []byte("\x00y"), &unixCred{} })
		}),
		"two makers": stream1(func(m *madeUnix) {
			m.Cred = &unixCred{PID: 5}
			m.peer = stream1(func(p *madeUnix) { p.peer, p.Cred = m, &unixCred{PID: 6} })
		}),
	} {
		w := &unixWorld{r: &object.Restorer{}}
		var bad *object.BadImage
		if err := w.checkPeer(m); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := stream1(func(*madeUnix) {})
	r := &object.Restorer{Ended: func(int32) int { return 0 }}
	r.Remember(m.ref, m)
	queue := func(c unixSender) error {
		return restoreUnixQueue(r, stream.Ref{}, &unixQueueState{Socket: m.ref, Messages: []unixMessage{{Length: 1, Cred: &c}}})
	}
	other := stream1(func(o *madeUnix) { o.n = 0 })
	m.peer = other
	unknown := m.sendOne(r, &unixWaiting{unixMessage: unixMessage{Cred: &unixSender{PID: 77}}})
	m.peer = nil
	for name, err := range map[string]error{
		"bytes of no message": m.content(r, &object.Data{}, []byte("x")),
		"a gap":               m.content(r, &object.Data{Offset: 7}, []byte("x")),
		"from nobody":         m.sendOne(r, &unixWaiting{data: []byte("x")}),
		"of nobody asked for": unknown,
		"of less than nobody": queue(unixSender{PID: -1}),
		"of no user":          queue(unixSender{PID: 1, UID: ^uint32(0)}),
		"long out of band":    restoreUnixQueue(r, stream.Ref{}, &unixQueueState{Socket: m.ref, Messages: []unixMessage{{Length: 2, OOB: true}}}),
		"no bytes":            restoreUnixQueue(r, stream.Ref{}, &unixQueueState{Socket: m.ref, Messages: []unixMessage{{}}}),
	} {
		var bad *object.BadImage
		if !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whether a socket is in use shows without connecting to it, and only one that is not is replaced.
func TestUnixPlace(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "s")
	fd := newSocket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		t.Fatal(err)
	}
	aim := func() error {
		b := &namedFile{state: &unixPath{Path: at}}
		err := b.aim()
		if b.target != nil {
			_ = b.target.Close()
		}
		return err
	}
	var lacking *object.Lacking
	if err := aim(); !errors.As(err, &lacking) {
		t.Errorf("a socket that is bound: %v", err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	if err := aim(); !errors.As(err, &lacking) {
		t.Errorf("a socket that listens: %v", err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
		t.Errorf("who listens has heard of it: %d, %v", n, err)
	}
	if err := unix.Dup3(newSocket(t, unix.AF_UNIX, unix.SOCK_STREAM), fd, unix.O_CLOEXEC); err != nil { // closes it
		t.Fatal(err)
	}
	if err := aim(); err != nil {
		t.Errorf("a socket that nobody has: %v", err)
	}
	for _, typ := range []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(newSocket(t, unix.AF_UNIX, typ), &unix.SockaddrUnix{Name: at}); err != nil {
			t.Fatal(err)
		}
		if err := aim(); !errors.As(err, &lacking) {
			t.Errorf("type %d: %v", typ, err)
		}
	}
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	if err := aim(); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := aim(); err == nil {
		t.Error("a regular file would have been replaced")
	}
}

// A client that was bound to a path is no pair; one of socketpair(2) is, and cannot be made again.
func TestNamedPair(t *testing.T) {
	named := func(typ uint16) *kernelview.Unix {
		return &kernelview.Unix{Socket: kernelview.Socket{ID: 1, Type: typ}, Address: []byte("/x\x00"), Bound: true}
	}
	other := func(change func(*kernelview.Unix)) *kernelview.Unix {
		u := &kernelview.Unix{Socket: kernelview.Socket{ID: 2, Type: unix.SOCK_STREAM}}
		change(u)
		return u
	}
	datagram := named(unix.SOCK_DGRAM)
	datagram.PeerCred = &kernelview.PeerCred{}
	tree := &unixTree{waiting: map[kernelview.ID]kernelview.ID{2: 3}}
	none := &unixTree{}
	for name, c := range map[string]struct {
		t       *unixTree
		u, peer *kernelview.Unix
		want    bool
	}{
		"alone":             {none, named(unix.SOCK_STREAM), nil, false},
		"pair":              {none, named(unix.SOCK_STREAM), other(func(*kernelview.Unix) {}), true},
		"pair of two names": {none, named(unix.SOCK_STREAM), other(func(u *kernelview.Unix) { u.Address, u.Bound = []byte("/y\x00"), true }), true},
		"accepted":          {none, named(unix.SOCK_STREAM), other(func(u *kernelview.Unix) { u.Address = []byte("/y\x00") }), false},
		"not accepted yet":  {tree, named(unix.SOCK_STREAM), other(func(*kernelview.Unix) {}), false},
		"datagrams":         {none, named(unix.SOCK_DGRAM), nil, false},
		"pair of datagrams": {none, datagram, nil, true},
	} {
		if got := c.t.namedPair(c.u, c.peer); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
