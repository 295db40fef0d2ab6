//go:build amd64

package kernelview

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUnix(t *testing.T) {
	v := view(t)
	id := func(fd int) ID { return fileOf(t, v, os.Getpid(), fd).ID }
	look := func(fd int) Unix {
		t.Helper()
		u, err := v.Unix(id(fd))
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	socket := func(typ int) int {
		t.Helper()
		fd, err := unix.Socket(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	name := fmt.Sprintf("@crpipe-view-%d", os.Getpid())
	listener, client := socket(unix.SOCK_STREAM), socket(unix.SOCK_STREAM)
	if err := unix.Bind(listener, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 7); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrUnix{Name: name}); err != nil {
		t.Fatal(err)
	}
	rights := unix.UnixRights(listener, 0)
	if err := unix.Sendmsg(client, []byte("before"), rights, nil, 0); err != nil {
		t.Fatal(err)
	}
	u := look(listener)
	want := append([]byte{0}, name[1:]...)
	if !bytes.Equal(u.Address, want) || !u.Bound || u.State != SocketListening || u.MaxBacklog != 7 || len(u.Pending) != 1 || u.PeerCred == nil ||
		u.PeerCred.PID != os.Getpid() || u.PeerCred.UID != uint32(os.Geteuid()) {
		t.Fatalf("listening: %+v", u)
	}
	p := &u.Pending[0]
	if !bytes.Equal(p.Address, want) || p.Bound || p.Peer != look(client).ID || p.File != 0 || len(p.Messages) != 1 {
		t.Fatalf("waiting: %+v", p)
	}
	m := &p.Messages[0]
	if string(m.Data) != "before" || len(m.Files) != 2 || m.Files[0] != id(listener) || m.Files[1] != id(0) || m.Sender != p.Peer {
		t.Errorf("message %+v", m)
	}
	open, err := v.OpenFiles(m.Files)
	if err != nil || open[0].Kind != KindSocket || open[0].Refs.V != 2 {
		t.Errorf("in flight: %+v, %v", open, err)
	}
	if c := look(client); c.Address != nil || c.Bound || c.Peer != p.ID || c.PeerCred == nil || c.PeerCred.PID != os.Getpid() {
		t.Errorf("client: %+v", c)
	}
	server, _, err := unix.Accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	if err := unix.SetsockoptInt(server, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(client, []byte("with credentials")); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(server, make([]byte, 3)); err != nil { // takes the descriptors, too
		t.Fatal(err)
	}
	s := look(server)
	if len(s.Messages) != 2 || string(s.Messages[0].Data) != "ore" || !s.Messages[0].Credentials || !s.Messages[1].Credentials || s.Messages[1].PID != os.Getpid() {
		t.Errorf("%+v", s.Messages)
	}

	// A datagram keeps its sender, who may be gone.
	path := t.TempDir() + "/s"
	to, from := socket(unix.SOCK_DGRAM), socket(unix.SOCK_DGRAM)
	if err := unix.Bind(to, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(from, &unix.SockaddrUnix{Name: name + "x"}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(from, nil, 0, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(from); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	d := look(to)
	if string(d.Address) != path+"\x00" || !d.Bound || d.Ino != st.Ino || d.Dev != st.Dev || d.Links != 1 || d.Mount == 0 || !strings.HasSuffix(path, d.Name) || d.Name == "" || len(d.Messages) != 1 || d.PeerCred != nil {
		t.Fatalf("%+v", d)
	}
	gone, err := v.UnixOf(d.Messages[0].Sender)
	if err != nil || !gone.Dead || string(gone.Address) != "\x00"+name[1:]+"x" {
		t.Errorf("the sender: %+v, %v", gone, err)
	}
	if err := unix.Unlink(path); err != nil {
		t.Fatal(err)
	}
	if d := look(to); d.Links != 0 || !d.Bound || d.Mount != 0 {
		t.Errorf("unlinked: %+v", d)
	}
}
