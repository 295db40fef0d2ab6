package sockets

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// socketFile is a descriptor of this process as a dump meets it.
func socketFile(t *testing.T, fd int) *object.OpenFile {
	t.Helper()
	p := &object.Process{PID: os.Getpid(), Threads: []*object.Thread{{TID: os.Getpid()}}}
	f, err := object.Meet(p, fd, &kernelview.File{Kind: kernelview.KindSocket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func newSocket(t *testing.T, family, typ int) int {
	t.Helper()
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// A socket with other options than a new one is described, and another is made like it.
func TestCommon(t *testing.T) {
	root := os.Geteuid() == 0
	from := newSocket(t, unix.AF_UNIX, unix.SOCK_DGRAM)
	set := func(opt, value int) {
		t.Helper()
		if err := unix.SetsockoptInt(from, unix.SOL_SOCKET, opt, value); err != nil {
			t.Fatalf("option %d: %v", opt, err)
		}
	}
	set(unix.SO_RCVBUF, 20000)
	set(unix.SO_PASSCRED, 1)
	set(unix.SO_RCVLOWAT, 7)
	set(unix.SO_REUSEADDR, 1)
	set(unix.SO_BROADCAST, 1)
	set(unix.SO_TIMESTAMPNS, 1)
	set(unix.SO_PEEK_OFF, 3)
	if root {
		set(unix.SO_MARK, 77)
		set(unix.SO_PRIORITY, 9)
		set(unix.SO_SNDBUFFORCE, 1<<26)
	}
	if err := unix.SetsockoptLinger(from, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 13}); err != nil {
		t.Fatal(err)
	}
	wait := unix.NsecToTimeval(int64(2500 * time.Millisecond))
	if err := unix.SetsockoptTimeval(from, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	accept := []byte{6, 0, 0, 0, 0xff, 0xff, 0, 0} // BPF_RET|BPF_K 0xffff
	if err := attachFilter(from, accept); err != nil {
		t.Fatal(err)
	}
	set(unix.SO_LOCK_FILTER, 1)
	if err := unix.SetNonblock(from, true); err != nil {
		t.Fatal(err)
	}
	want, err := dumpCommon(socketFile(t, from), &kernelview.Socket{})
	if err != nil {
		t.Fatal(err)
	}
	if err := want.check(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want.Filter, accept) || !want.Locked || numberOf(find(want.Options, "SO_RCVBUF")) != 40000 || numberOf(find(want.Options, "SO_BUF_LOCK")) < 2 {
		t.Errorf("%+v", want)
	}
	to := newSocket(t, unix.AF_UNIX, unix.SOCK_DGRAM)
	if err := want.setEarly(to); err != nil {
		t.Fatal(err)
	}
	widen(to)
	if err := want.finish(to); err != nil {
		t.Fatal(err)
	}
	got, err := dumpCommon(socketFile(t, to), &kernelview.Socket{})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("made\n%+v\nfrom\n%+v", got, want)
	}
}

// A new socket has no options but its sizes, of every family that there is here.
func TestUsualOptions(t *testing.T) {
	for _, x := range []struct {
		name        string
		family, typ int
	}{
		{"unix stream", unix.AF_UNIX, unix.SOCK_STREAM}, {"unix datagrams", unix.AF_UNIX, unix.SOCK_DGRAM}, {"TCP", unix.AF_INET, unix.SOCK_STREAM},
		{"UDP", unix.AF_INET, unix.SOCK_DGRAM}, {"netlink", unix.AF_NETLINK, unix.SOCK_RAW},
	} {
		fd, err := unix.Socket(x.family, x.typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Logf("%s: %v", x.name, err)
			continue
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		all, err := readOptions(fd, socketOptions)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			// Before Linux 6.2 only sockets of IP were made with SO_TXREHASH.
			if before62 := o.Name == "SO_TXREHASH" && x.family != unix.AF_INET && !slices.Contains(o.Value, 1); before62 {
				continue
			}
			if o.Name != "SO_SNDBUF" && o.Name != "SO_RCVBUF" {
				t.Errorf("%s: %s is %x", x.name, o.Name, o.Value)
			}
		}
	}
}

func TestCommonHostile(t *testing.T) {
	good := Common{Flags: unix.O_RDWR}
	for name, change := range map[string]func(*Common){
		"flags":      func(c *Common) { c.Flags |= unix.O_CREAT },
		"read only":  func(c *Common) { c.Flags = unix.O_RDONLY },
		"mode":       func(c *Common) { c.Mode = 1 << 20 },
		"owner":      func(c *Common) { c.UID = ^uint32(0) },
		"filter":     func(c *Common) { c.Filter = make([]byte, 9) },
		"big filter": func(c *Common) { c.Filter = make([]byte, 8*5000) },
		"clock":      func(c *Common) { c.TxTime = make([]byte, 3) },
		"budget":     func(c *Common) { c.Budget = 1 << 16 },
		"no option":  func(c *Common) { c.Options = []Option{{"SO_ERROR", number(0)}} },
		"twice":      func(c *Common) { c.Options = []Option{{"SO_MARK", number(1)}, {"SO_MARK", number(1)}} },
		"order":      func(c *Common) { c.Options = []Option{{"SO_MARK", number(1)}, {"SO_DEBUG", number(1)}} },
		"short":      func(c *Common) { c.Options = []Option{{"SO_MARK", []byte{1}}} },
		"long":       func(c *Common) { c.Options = []Option{{"SO_BINDTODEVICE", make([]byte, 5000)}} },
		"buffer":     func(c *Common) { c.Options = []Option{{"SO_SNDBUF", []byte{1}}} },
	} {
		c := good
		change(&c)
		var bad *object.BadImage
		if err := c.check(); !errors.As(err, &bad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	fd := newSocket(t, unix.AF_UNIX, unix.SOCK_STREAM)
	bad := Common{Flags: unix.O_RDWR, Options: []Option{{"SO_SNDBUF", number(-5)}}}
	if err := bad.finish(fd); err == nil {
		t.Error("a buffer of -5 bytes was made")
	}
}
