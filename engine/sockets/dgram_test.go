package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// testKinds are those of this file.
var testKinds = []object.FileKind{UDPKind, RawKind, NetlinkKind, PacketKind}

// image dumps descriptors of the calling thread, each an open file of its own.
func image(t *testing.T, v kernelview.View, fds ...int) ([]byte, error) {
	t.Helper()
	p := &object.Process{PID: os.Getpid(), Threads: []*object.Thread{{TID: leader()}}}
	d := &object.Dumper{View: v, Kinds: testKinds, Root: p, Processes: []*object.Process{p}}
	defer d.Close()
	for _, fd := range fds {
		tables, err := v.Files([]int{unix.Gettid()})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range tables[0].FDs {
			if e.FD != fd {
				continue
			}
			f, err := object.Meet(p, fd, e.File)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.File(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Refusals(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096, Kernel: "6.18.0", Producer: "test"})
	if err == nil {
		err = errors.Join(d.WriteRecords(w), d.WriteBulk(w), w.End())
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), nil
}

// made restores an image and returns the descriptors, in the pool, of its open files.
func made(t *testing.T, image []byte) ([]int, error) {
	t.Helper()
	kinds := []object.Kind{QueueObject}
	for i := range testKinds {
		kinds = append(kinds, testKinds[i].AsKind())
	}
	reader, err := stream.NewReader(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	plan, rec, err := object.ReadPlan(reader, kinds)
	if err != nil {
		return nil, err
	}
	r := &object.Restorer{Plan: plan, PoolBase: 300}
	t.Cleanup(r.Close)
	if err := r.MakeObjects(); err != nil {
		return nil, err
	}
	for rec != nil {
		if rec.Type == object.TypeData {
			var meta object.Data
			if err := rec.Decode(&meta); err != nil {
				return nil, err
			}
			data, err := rec.Data()
			if err != nil {
				return nil, err
			}
			if err := r.Content(&meta, data); err != nil {
				return nil, err
			}
		}
		if rec, err = reader.Next(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	var fds []int
	for i := range plan.Objects {
		if fd, err := r.File(plan.Objects[i].Ref); err == nil {
			fds = append(fds, fd)
		}
	}
	return fds, nil
}

// again dumps sockets, closes them, restores them, and says how the restored ones differ from what was dumped.
func again(t *testing.T, v kernelview.View, fds ...int) []int {
	t.Helper()
	first, err := image(t, v, fds...)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	now, err := made(t, first)
	if err != nil {
		t.Fatal(err)
	}
	second, err := image(t, v, now...)
	if err != nil {
		t.Fatal(err)
	}
	a, b := strings.Split(text(t, first), "\n"), strings.Split(text(t, second), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("dumped:\n%.2000s\nrestored:\n%.2000s", a[i], b[i])
			break
		}
	}
	return now
}

func text(t *testing.T, image []byte) string {
	t.Helper()
	var out bytes.Buffer
	if err := stream.ToJSON(bytes.NewReader(image), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func refusedWith(t *testing.T, v kernelview.View, fd int, want string) {
	t.Helper()
	_, err := image(t, v, fd)
	var un *object.Unsupported
	if !errors.As(err, &un) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want a refusal with %q", err, want)
	}
}

func bound(t *testing.T, fd int, sa unix.Sockaddr) unix.Sockaddr {
	t.Helper()
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

var loopback = [4]byte{127, 0, 0, 1}

// UDP sockets in every state of being bound and connected, with the locks that bind(2) leaves.
func TestUDPStates(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	peer := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	to := bound(t, peer, &unix.SockaddrInet4{Addr: loopback, Port: 700})
	peer6 := inetSocket(t, unix.AF_INET6, unix.SOCK_DGRAM, 0)
	to6 := bound(t, peer6, &unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: 701})
	type state struct {
		name   string
		family int
		make   func(fd int) error
	}
	connect := func(to unix.Sockaddr) func(fd int) error { return func(fd int) error { return unix.Connect(fd, to) } }
	bind := func(sa unix.Sockaddr, then func(fd int) error) func(fd int) error {
		return func(fd int) error {
			if err := unix.Bind(fd, sa); err != nil || then == nil {
				return err
			}
			return then(fd)
		}
	}
	states := []state{
		{"new", unix.AF_INET, func(int) error { return nil }},
		{"bound", unix.AF_INET, bind(&unix.SockaddrInet4{Addr: loopback, Port: 800}, nil)},
		{"bound to any address", unix.AF_INET, bind(&unix.SockaddrInet4{Port: 800}, nil)},
		{"bound to any port", unix.AF_INET, bind(&unix.SockaddrInet4{Addr: loopback}, nil)},
		{"bound to anything", unix.AF_INET, bind(&unix.SockaddrInet4{}, nil)},
		{"connected", unix.AF_INET, connect(to)},
		{"bound and connected", unix.AF_INET, bind(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 9}, Port: 801}, connect(to))},
		{"bound to a port and connected", unix.AF_INET, bind(&unix.SockaddrInet4{Port: 801}, connect(to))},
		{"bound to an address and connected", unix.AF_INET, bind(&unix.SockaddrInet4{Addr: loopback}, connect(to))},
		{"bound without a port", unix.AF_INET, func(fd int) error {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback}))
		}},
		{"bound without a port and connected", unix.AF_INET, func(fd int) error {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: loopback}), unix.Connect(fd, to))
		}},
		{"shut for reading", unix.AF_INET, func(fd int) error { return errors.Join(unix.Connect(fd, to), unix.Shutdown(fd, unix.SHUT_RD)) }},
		{"shut", unix.AF_INET, func(fd int) error { return errors.Join(unix.Connect(fd, to), unix.Shutdown(fd, unix.SHUT_RDWR)) }},
		{"bound to the device", unix.AF_INET, func(fd int) error {
			return errors.Join(unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"), unix.Bind(fd, &unix.SockaddrInet4{Port: 802}))
		}},
		{"bound to what is not there", unix.AF_INET, func(fd int) error {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1), unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: 802}))
		}},
		{"bound to a group", unix.AF_INET, bind(&unix.SockaddrInet4{Addr: [4]byte{239, 1, 1, 1}, Port: 803}, nil)},
		{"new, IPv6", unix.AF_INET6, func(int) error { return nil }},
		{"bound, IPv6", unix.AF_INET6, bind(&unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: 800}, nil)},
		{"bound to any address, IPv6", unix.AF_INET6, bind(&unix.SockaddrInet6{Port: 800}, nil)},
		{"connected, IPv6", unix.AF_INET6, connect(to6)},
		{"connected to IPv4", unix.AF_INET6, connect(&unix.SockaddrInet6{Addr: [16]byte(mapped(loopback[:])), Port: 700})},
		{"bound to IPv4, IPv6", unix.AF_INET6, bind(&unix.SockaddrInet6{Addr: [16]byte(mapped(loopback[:])), Port: 804}, nil)},
	}
	for _, s := range states {
		t.Run(s.name, func(t *testing.T) {
			fd := inetSocket(t, s.family, unix.SOCK_DGRAM, 0)
			if err := s.make(fd); err != nil {
				t.Fatal(err)
			}
			again(t, v, fd)
		})
	}
	t.Run("UDP-Lite", func(t *testing.T) {
		fd := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
		if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_UDPLITE, udpliteSendCscov, 20), unix.Bind(fd, &unix.SockaddrInet4{Port: 800})); err != nil {
			t.Fatal(err)
		}
		again(t, v, fd)
	})
}

// Datagrams that wait come back in order, to the right one of those that share a port, and a connection or a chosen port outlives it.
func TestDatagramsBack(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	run(t, "ip", "link", "add", "crv0", "type", "veth", "peer", "name", "crv1")
	run(t, "ip", "link", "set", "crv0", "up")
	run(t, "ip", "addr", "add", "10.99.0.1/24", "dev", "crv0")
	var senders []int
	for i := range 3 {
		fd := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
		bound(t, fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(i + 1)}, Port: 900 + i})
		senders = append(senders, fd)
	}
	send := func(to unix.Sockaddr, n int) {
		t.Helper()
		for i := range n {
			if err := unix.Sendto(senders[i%3], []byte(fmt.Sprintf("datagram %d%s", i, strings.Repeat("x", i*100))), 0, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	var fds []int
	add := func(sa unix.Sockaddr, options ...int) unix.Sockaddr {
		t.Helper()
		fd := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
		for _, o := range options {
			setInt(t, fd, unix.SOL_SOCKET, o, 1)
		}
		fds = append(fds, fd)
		return bound(t, fd, sa)
	}
	send(add(&unix.SockaddrInet4{Addr: loopback, Port: 5000}), 50)
	chosen := add(&unix.SockaddrInet4{}).(*unix.SockaddrInet4).Port
	send(&unix.SockaddrInet4{Addr: loopback, Port: chosen}, 4)
	for range 4 { // the kernel spreads what comes over these
		add(&unix.SockaddrInet4{Addr: loopback, Port: 5001}, unix.SO_REUSEPORT)
	}
	send(&unix.SockaddrInet4{Addr: loopback, Port: 5001}, 9)
	for range 3 {
		add(&unix.SockaddrInet4{Port: 5002}, unix.SO_REUSEADDR)
	}
	send(&unix.SockaddrInet4{Addr: loopback, Port: 5002}, 5)
	add(&unix.SockaddrInet4{Port: 5003})
	own := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	bound(t, own, &unix.SockaddrInet4{Addr: [4]byte{10, 99, 0, 1}})
	setInt(t, own, unix.IPPROTO_IP, unix.IP_TOS, 0x28)
	setInt(t, fds[len(fds)-1], unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	for range 3 {
		if err := unix.Sendto(own, []byte("own"), 0, &unix.SockaddrInet4{Addr: [4]byte{10, 99, 0, 1}, Port: 5003}); err != nil {
			t.Fatal(err)
		}
	}
	add(&unix.SockaddrInet4{Port: 5004})
	send(&unix.SockaddrInet4{Addr: loopback, Port: 5004}, 3)
	if err := unix.Connect(fds[len(fds)-1], &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, 2}, Port: 901}); err != nil {
		t.Fatal(err)
	}
	// Sent to another address of the machine than a connection to the sender would have.
	add(&unix.SockaddrInet4{Port: 5005}, unix.SO_REUSEADDR)
	send(&unix.SockaddrInet4{Addr: [4]byte{127, 5, 5, 5}, Port: 5005}, 4)
	again(t, v, fds...)
}

// setInt sets an option.
func setInt(t *testing.T, fd, level, name, value int) {
	t.Helper()
	if err := unix.SetsockoptInt(fd, level, name, value); err != nil {
		t.Fatal(level, name, err)
	}
}

// What cannot be kept of a UDP socket is refused by name.
func TestUDPRefused(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	from := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	bound(t, from, &unix.SockaddrInet4{Addr: loopback, Port: 900})
	fresh := func(port int) (int, unix.Sockaddr) {
		fd := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
		return fd, bound(t, fd, &unix.SockaddrInet4{Port: port})
	}
	send := func(to unix.Sockaddr) {
		t.Helper()
		if err := unix.Sendto(from, []byte("x"), 0, to); err != nil {
			t.Fatal(err)
		}
	}
	local := func(port int) unix.Sockaddr { return &unix.SockaddrInet4{Addr: loopback, Port: port} }

	fd, _ := fresh(1000)
	setInt(t, fd, unix.IPPROTO_UDP, unix.UDP_CORK, 1)
	if err := unix.Sendto(fd, []byte("begun"), 0, local(900)); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, v, fd, "UDP_CORK")

	fd, _ = fresh(1001)
	setInt(t, fd, unix.IPPROTO_UDP, udpEncap, 2)
	refusedWith(t, v, fd, "UDP_ENCAP")

	fd, _ = fresh(1002)
	setInt(t, fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1)
	again(t, v, fd)
	fd, _ = fresh(1003)
	setInt(t, fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1)
	send(local(1003))
	refusedWith(t, v, fd, "1 unread datagrams wait in it, and it asks with SO_TIMESTAMP")

	fd, _ = fresh(1004)
	if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: [4]byte{239, 1, 2, 3}, Ifindex: 1}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptIPMreqn(from, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: 1}); err != nil {
		t.Fatal(err)
	}
	send(&unix.SockaddrInet4{Addr: [4]byte{239, 1, 2, 3}, Port: 1004})
	refusedWith(t, v, fd, "multicast")

	fd = inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err := unix.Connect(fd, local(9)); err != nil { // nobody is there
		t.Fatal(err)
	}
	_, _ = unix.Write(fd, []byte("x"))
	refusedWith(t, v, fd, "connection refused")

	fd, _ = fresh(1005)
	setInt(t, fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	_ = unix.Sendto(fd, []byte("x"), 0, local(9))
	refusedWith(t, v, fd, "error") // the error itself, or its message

	fd, _ = fresh(1006)
	dup, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dup)
	if _, err := image(t, v, fd); err != nil {
		t.Errorf("two descriptors of one process: %v", err)
	}
}

// A sender at port 0, an address that is missing, a port that is taken, and packets that are not for the socket.
func TestUDPHostile(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	from := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	bound(t, from, &unix.SockaddrInet4{Addr: loopback, Port: 900})
	fd := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	bound(t, fd, &unix.SockaddrInet4{Addr: loopback, Port: 1000})
	if err := unix.Sendto(from, []byte("hello"), 0, &unix.SockaddrInet4{Addr: loopback, Port: 1000}); err != nil {
		t.Fatal(err)
	}
	good, err := image(t, v, fd)
	if err != nil {
		t.Fatal(err)
	}
	var lacking *object.Lacking
	if _, err := made(t, good); !errors.As(err, &lacking) || !strings.Contains(err.Error(), "127.0.0.1:1000") {
		t.Errorf("a port that is taken: %v", err)
	}
	_ = unix.Close(fd)
	if _, err := made(t, good); err != nil {
		t.Fatal(err)
	}
	// Whatever a byte of the packet is turned into, nothing is sent to anybody but the socket, and nothing panics. The datagram is the last
	// record but one.
	watch := inetSocket(t, unix.AF_INET, unix.SOCK_DGRAM, 0)
	bound(t, watch, &unix.SockaddrInet4{Addr: loopback, Port: 1001})
	m := &madeQueue{state: &queueState{Count: 1, Runs: []queueRun{{Count: 1}}}, socket: &udpState{Inet: Inet{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, Port: 1000}}}
	packet := packetOf(&kernelview.Datagram{Data: []byte("hello"), Protocol: unix.ETH_P_IP, Source: 900, Dest: 1000,
		Network: []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1}})
	if _, err := m.parse(packet); err != nil {
		t.Fatal(err)
	}
	for i, b := range map[int]byte{0: 0x46, 2: 9, 6: 0x20, 9: 6, 16: 224, 22: 9, 23: 1, 24: 1, 26: 1} {
		bad := append([]byte(nil), packet...)
		bad[i] = b
		var image *object.BadImage
		if _, err := m.parse(bad); !errors.As(err, &image) {
			t.Errorf("byte %d turned into %#x: %v", i, b, err)
		}
	}
	for n := range packet {
		if _, err := m.parse(packet[:n]); err == nil {
			t.Errorf("%d bytes are a datagram", n)
		}
	}
	// An address that is not the machine's: nothing leaves it.
	sends, err := newSender(true)
	if err != nil {
		t.Fatal(err)
	}
	defer sends.close()
	if local, err := sends.isLocal([]byte{192, 0, 2, 1}, 0); err != nil || local {
		t.Errorf("192.0.2.1 is local: %v, %v", local, err)
	}
	if local, err := sends.isLocal([]byte{127, 0, 0, 1}, 0); err != nil || !local {
		t.Errorf("127.0.0.1 is not local: %v", err)
	}
	if local, err := sends.isLocal(append(make([]byte, 15), 1), 0); err != nil || !local {
		t.Errorf("::1 is not local: %v", err)
	}
	for i, s := range []queueState{{}, {Count: 1}, {Count: 2, Runs: []queueRun{{Count: 1}}}, {Count: 1, Runs: []queueRun{{Count: 1}, {}}}} {
		if err := restoreQueue(&object.Restorer{}, stream.Ref{ID: 1}, &s); err == nil {
			t.Errorf("queue %d is taken", i)
		}
	}
	for i, s := range []Inet{{}, {Family: unix.AF_INET}, {Family: unix.AF_INET, Addr: make([]byte, 16)}, {Family: unix.AF_INET6, Addr: make([]byte, 4)},
		{Family: unix.AF_INET, Addr: make([]byte, 4), Port: 1 << 16}, {Family: unix.AF_INET, Addr: make([]byte, 4), Peer: make([]byte, 3)},
		{Family: unix.AF_INET, Addr: make([]byte, 4), Shutdown: 4}, {Family: unix.AF_INET, Addr: make([]byte, 4), Protocol: 1 << 20}} {
		if err := s.check(); err == nil {
			t.Errorf("addresses %d are taken", i)
		}
	}
}
