package sockets

import (
	"errors"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
)

// ownNetwork puts the thread of a test into a network namespace of its own, in which only the loopback device is up.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs a network namespace: %v", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		t.Fatal(err)
	}
}

// leader is the thread by which a dump would know this process: the calling one, whose network namespace /proc then shows, if it has a
// pidfd. Before Linux 6.9 only the first has.
func leader() int {
	fd, err := unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
	if err != nil {
		return os.Getpid()
	}
	_ = unix.Close(fd)
	return unix.Gettid()
}

// run runs a command in the network namespace of the test.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Skipf("needs %s %v: %v %s", name, args, err, out)
	}
}

func rootView(t *testing.T) kernelview.View {
	t.Helper()
	v, err := kernelview.Open(kernelview.Options{Source: kernelview.SourceBPF})
	var missing *kernelview.MissingError
	if errors.As(err, &missing) {
		t.Skipf("needs the kernel's memory: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// met is a descriptor of this process as a dump meets it.
func met(t *testing.T, v kernelview.View, fd int) *object.OpenFile {
	t.Helper()
	tid := unix.Gettid()
	tables, err := v.Files([]int{tid})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tables[0].FDs {
		if d.FD != fd {
			continue
		}
		p := &object.Process{PID: os.Getpid(), Threads: []*object.Thread{{TID: leader()}}}
		f, err := object.Meet(p, fd, d.File)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Close)
		return f
	}
	t.Fatalf("no descriptor %d", fd)
	return nil
}

func inetSocket(t *testing.T, family, kind, protocol int) int {
	t.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Skipf("needs a socket of family %d, type %d, protocol %d: %v", family, kind, protocol, err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// odd sets an option to another value than it has, and says whether it has it now.
func odd(t *testing.T, fd int, o *option) bool {
	t.Helper()
	now, err := o.value(fd)
	if err != nil {
		t.Fatal(err)
	}
	if o.usual != nil && len(o.usual) == 0 {
		values := map[string][]byte{
			"IP_OPTIONS":        {7, 7, 4, 0, 0, 0, 0, 0},                                    // record route
			"IPV6_HOPOPTS":      {0, 0, 1, 4, 0, 0, 0, 0},                                    // padding
			"IPV6_DSTOPTS":      {0, 0, 1, 4, 0, 0, 0, 0},                                    //
			"IPV6_RTHDRDSTOPTS": {0, 0, 1, 4, 0, 0, 0, 0},                                    //
			"IPV6_RTHDR":        append([]byte{0, 2, 4, 0, 0, 0, 0, 0}, make([]byte, 16)...), // one segment
		}
		return o.apply(fd, values[o.name]) == nil
	}
	for _, n := range []int32{1, 0, 2, 3, 17, 1400, 0x100 | 0x400 ^ 0x302} {
		want := number(n)
		if n == 0 && now == nil || string(want) == string(now) || o.apply(fd, want) != nil {
			continue
		}
		have, err := o.value(fd)
		return err == nil && (have == nil || string(have) != string(now))
	}
	return false
}

// Every option of the table is set by itself in every sort of socket that takes it, and is the same in a socket made like it.
func TestIPOptions(t *testing.T) {
	ownNetwork(t)
	v := rootView(t)
	ever := map[string]bool{}
	for _, k := range []struct{ family, kind, protocol int }{
		{unix.AF_INET, unix.SOCK_DGRAM, 0}, {unix.AF_INET, unix.SOCK_STREAM, 0}, {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{unix.AF_INET6, unix.SOCK_DGRAM, 0}, {unix.AF_INET6, unix.SOCK_STREAM, 0}, {unix.AF_INET6, unix.SOCK_RAW, 89},
	} {
		for i := range ipOptions {
			o := &ipOptions[i]
			from, to := inetSocket(t, k.family, k.kind, k.protocol), inetSocket(t, k.family, k.kind, k.protocol)
			if !odd(t, from, o) {
				continue
			}
			ever[o.name] = true
			d := &object.Dumper{View: v}
			s, _, err := dumpIP(d, met(t, v, from))
			if err != nil {
				t.Fatalf("%s: %v", o.name, err)
			}
			if err := s.check(); err != nil {
				t.Fatal(o.name, err)
			}
			if find(s.Options, o.name) == nil {
				t.Errorf("%v: %s is not in %v", k, o.name, s.Options)
			}
			if err := s.set(to); err != nil {
				t.Fatalf("%v: %s: %v", k, o.name, err)
			}
			again, _, err := dumpIP(d, met(t, v, to))
			if err != nil {
				t.Fatal(o.name, err)
			}
			if !reflect.DeepEqual(s, again) {
				t.Errorf("%v, %s: %+v became %+v", k, o.name, s, again)
			}
			_, _ = unix.Close(from), unix.Close(to)
		}
	}
	for i := range ipOptions {
		if !ever[ipOptions[i].name] {
			t.Errorf("%s was never set", ipOptions[i].name)
		}
	}
}

func TestIPInterfaces(t *testing.T) {
	ownNetwork(t)
	if leader() != unix.Gettid() {
		t.Skip("needs a pidfd of the thread whose network namespace it is (PIDFD_THREAD, Linux 6.9)")
	}
	v := rootView(t)
	run(t, "ip", "link", "add", "crv0", "type", "veth", "peer", "name", "crv1")
	run(t, "ip", "link", "set", "crv0", "up")
	run(t, "ip", "addr", "add", "10.99.0.1/24", "dev", "crv0")
	from, to := inetSocket(t, unix.AF_INET6, unix.SOCK_DGRAM, 0), inetSocket(t, unix.AF_INET6, unix.SOCK_DGRAM, 0)
	want := &ipState{UnicastIf: "crv0", UnicastIf6: "crv0", MulticastIf: "crv0", MulticastAddr: []byte{10, 99, 0, 1}, MulticastIf6: "crv0",
		PktinfoIf: "crv0", Groups: []ipGroup{
			{Group: []byte{224, 9, 9, 9}, Interface: "crv0", Include: true, Sources: []byte{10, 99, 0, 7, 10, 99, 0, 8}},
			{Group: []byte{224, 9, 9, 8}, Interface: "crv0", Sources: []byte{10, 99, 0, 9}},
			{Group: []byte{224, 9, 9, 7}, Interface: "lo"},
			{Group: append([]byte{0xff, 2}, append(make([]byte, 13), 0x77)...), Interface: "crv0", Include: true, Sources: append([]byte{0xfe, 0x80}, make([]byte, 14)...)},
			{Group: append([]byte{0xff, 1}, append(make([]byte, 13), 0x78)...), Interface: "lo"},
		}}
	if err := want.check(); err != nil {
		t.Fatal(err)
	}
	if err := want.set(from); err != nil {
		t.Fatal(err)
	}
	d := &object.Dumper{View: v}
	dump := func(fd int) *ipState {
		t.Helper()
		s, _, err := dumpIP(d, met(t, v, fd))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	got := dump(from)
	if len(got.Groups) != len(want.Groups) || got.MulticastIf != "crv0" || got.PktinfoIf != "crv0" || got.UnicastIf != "crv0" ||
		got.UnicastIf6 != "crv0" || got.MulticastIf6 != "crv0" || string(got.MulticastAddr) != string(want.MulticastAddr) {
		t.Errorf("%+v", got)
	}
	for _, w := range want.Groups {
		found := false
		for _, g := range got.Groups {
			found = found || reflect.DeepEqual(g, w)
		}
		if !found {
			t.Errorf("%+v is not in %+v", w, got.Groups)
		}
	}
	if err := got.set(to); err != nil {
		t.Fatal(err)
	}
	if again := dump(to); !reflect.DeepEqual(got, again) {
		t.Errorf("%+v became %+v", got, again)
	}
	missing := &ipState{UnicastIf: "crv9"}
	var lacking *object.Lacking
	if err := missing.set(to); !errors.As(err, &lacking) {
		t.Errorf("an interface that is missing: %v", err)
	}
}

// What an image claims is refused before it is used.
func TestIPHostile(t *testing.T) {
	for i, s := range []ipState{
		{Options: []Option{{"SO_DEBUG", number(1)}}},
		{Options: []Option{{"IP_TOS", nil}}},
		{Options: []Option{{"IP_TTL", number(1)}, {"IP_TOS", number(1)}}},
		{MulticastAddr: []byte{1}},
		{PktinfoAddr: []byte{1}},
		{Groups: []ipGroup{{}}},
		{Groups: []ipGroup{{Group: make([]byte, 4), Interface: "lo", Sources: make([]byte, 5)}}},
		{Groups: []ipGroup{{Group: make([]byte, 4), Interface: "lo", Include: true}}},
	} {
		var bad *object.BadImage
		if err := s.check(); !errors.As(err, &bad) {
			t.Errorf("%d: %v", i, err)
		}
	}
	fd := newSocket(t, unix.AF_INET, unix.SOCK_DGRAM)
	for _, name := range []string{"", "a/b", "an interface with a long name", "a\x00b"} {
		if _, err := interfaceIndex(fd, name); err == nil {
			t.Errorf("%q is an interface", name)
		}
	}
}
