package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// network is three network namespaces: a client's, and two between which a service moves. The client is their router.
type network struct {
	t                *testing.T
	src, dst, client string // files of namespaces
	service          string // an address that both others have; the client's route says which of them is meant
	toDst, addrOfDst string // how to switch that over, and an address of the destination
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	for _, tool := range []string{"ip", "nc", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian: iproute2, netcat-openbsd, util-linux): %v", tool, err)
		}
	}
	n := netPairs.Add(1)
	name := func(c string) string { return fmt.Sprintf("crt%d.%d%s", os.Getpid(), n, c) }
	a, b, c := name("a"), name("b"), name("c")
	w := &network{t: t, src: "/run/netns/" + a, dst: "/run/netns/" + b, client: "/run/netns/" + c,
		service: fmt.Sprintf("10.215.%d.1", n), addrOfDst: fmt.Sprintf("10.214.%d.6", n)}
	w.toDst = fmt.Sprintf("ip -n %s route replace %s via %s", c, w.service, w.addrOfDst)
	t.Cleanup(func() {
		for _, ns := range []string{a, b, c} {
			if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
				t.Errorf("removing network namespace %s: %v: %s", ns, err, out)
			}
		}
	})
	for _, line := range strings.Split(fmt.Sprintf(`netns add %[1]s
netns add %[2]s
netns add %[3]s
-n %[1]s link set lo up
-n %[2]s link set lo up
-n %[3]s link set lo up
-n %[3]s link add va type veth peer name v0 netns %[1]s
-n %[3]s link add vb type veth peer name v0 netns %[2]s
-n %[3]s addr add 10.214.%[4]d.1/30 dev va
-n %[3]s addr add 10.214.%[4]d.5/30 dev vb
-n %[1]s addr add 10.214.%[4]d.2/30 dev v0
-n %[2]s addr add 10.214.%[4]d.6/30 dev v0
-n %[3]s link set va up
-n %[3]s link set vb up
-n %[1]s link set v0 up
-n %[2]s link set v0 up
-n %[1]s route add default via 10.214.%[4]d.1
-n %[2]s route add default via 10.214.%[4]d.5
-n %[1]s addr add 10.215.%[4]d.1/32 dev lo
-n %[2]s addr add 10.215.%[4]d.1/32 dev lo
-n %[3]s route add 10.215.%[4]d.1 via 10.214.%[4]d.2
netns exec %[3]s sysctl -qw net.ipv4.ip_forward=1`, a, b, c, n), "\n") {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	return w
}

// in runs f in a network namespace, on a thread of its own.
func inNetwork(ns string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and it ends with the goroutine
		done <- func() error {
			fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// dial connects from the client's namespace. A socket stays in the namespace in which it was made.
func (w *network) dial(addr string) *net.TCPConn {
	w.t.Helper()
	var c net.Conn
	if err := inNetwork(w.client, func() (err error) {
		c, err = net.Dial("tcp4", addr)
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// teller starts the server in the source's namespace and connects a client to it, which counts.
func (w *network) teller() (*harness.Job, *counting) {
	w.t.Helper()
	j := harness.Start(w.t, "/usr/bin/nsenter", harness.Options{Name: "teller", Before: []string{"--net=" + w.src, harness.Prog(w.t, "teller")}, Args: []string{w.service}})
	j.WaitFile("ready", 30*time.Second)
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		w.t.Fatal(err)
	}
	return j, count(w.dial(net.JoinHostPort(w.service, strings.TrimSpace(string(port)))))
}

func count(conn *net.TCPConn) *counting {
	c := &counting{conn: conn, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { c.done <- c.run() }()
	return c
}

// goesOn waits until more has come back.
func (c *counting) goesOn(t *testing.T) {
	t.Helper()
	n := c.n.Load()
	for end := time.Now().Add(60 * time.Second * harness.Slow()); c.n.Load() == n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing comes back any more, after byte %d", n)
		}
	}
}

// counting is a client that sends a running counter and gets it back.
type counting struct {
	conn *net.TCPConn
	stop chan struct{}
	done chan error
	n    atomic.Uint64 // bytes that came back
}

// at is the byte at a place of the stream, as the server knows it.
func at(n uint64) byte {
	x := n/8 + 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return byte((x ^ x>>31) >> (n % 8 * 8))
}

func (c *counting) run() error {
	written := make(chan error, 1)
	var sent uint64
	go func() {
		written <- func() error {
			b := make([]byte, 10000)
			for {
				select {
				case <-c.stop:
					return c.conn.CloseWrite()
				default:
				}
				for i := range b {
					b[i] = at(sent + uint64(i))
				}
				n, err := c.conn.Write(b)
				sent += uint64(n)
				if err != nil {
					return fmt.Errorf("sending byte %d: %w", sent, err)
				}
			}
		}()
	}()
	b := make([]byte, 30000)
	for {
		n, err := c.conn.Read(b)
		for i := range b[:n] {
			if b[i] != at(c.n.Load()+uint64(i)) {
				return fmt.Errorf("byte %d came back as another one", c.n.Load()+uint64(i))
			}
		}
		c.n.Add(uint64(n))
		if errors.Is(err, io.EOF) {
			if err := <-written; err != nil {
				return err
			}
			if c.n.Load() != sent {
				return fmt.Errorf("%d bytes came back of %d", c.n.Load(), sent)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading byte %d: %w", c.n.Load(), err)
		}
	}
}

// TestTCPMigration moves one end of a connection, under full load, through netcat to another network namespace, and the other end
// sees every byte once.
func TestTCPMigration(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	time.Sleep(200 * time.Millisecond)
	go func() { // a second after it has been restored it is over
		for {
			if _, err := os.Stat(filepath.Join(j.Dir, "check")); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		close(c.stop)
	}()
	j.Migrate(`
		nsenter --net=$DST unshare -pf --mount-proc --kill-child bash -c 'set -o pipefail; nc -l $ADDR 9000 < /dev/null | tee image.cr | cr-restore --wait > restored.ticket; s=$?; echo $s > status; exit $s' &
		receiver=$!
		for i in $(seq 200); do nsenter --net=$DST ss -ltn | grep -q ":9000 " && break; sleep 0.02; done
		nsenter --net=$SRC cr-dump --kill $PID | nsenter --net=$SRC nc -N $ADDR 9000
		$SWITCH
		touch sent
		wait $receiver`, "SRC="+w.src, "DST="+w.dst, "ADDR="+w.addrOfDst, "SWITCH="+w.toDst)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	t.Logf("%d bytes", c.n.Load())
	j.Check("image.cr")
	// The packets that still come to the source are held there, until a time that cr-dump(1) tells.
	if names := w.held(w.src); len(names) != 1 {
		t.Errorf("the source holds %q", names)
	}
	if names := w.held(w.dst); len(names) != 0 {
		t.Errorf("the destination holds %q", names)
	}
}

// held lists the tables of nf_tables that are ours in a network namespace, by their names in the kernel's answer.
func (w *network) held(ns string) []string {
	w.t.Helper()
	var names []string
	if err := inNetwork(ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// struct nlmsghdr of NFT_MSG_GETTABLE with NLM_F_REQUEST|NLM_F_DUMP, and struct nfgenmsg
		request := []byte{20, 0, 0, 0, unix.NFT_MSG_GETTABLE, unix.NFNL_SUBSYS_NFTABLES, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		b := make([]byte, 64<<10)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return err
			}
			for _, part := range bytes.Split(b[:n], []byte("crpipe-"))[1:] {
				name, _, _ := bytes.Cut(part, []byte{0})
				names = append(names, "crpipe-"+string(name))
			}
			if bytes.Contains(b[:n], []byte{unix.NLMSG_DONE, 0, 2, 0}) {
				return nil
			}
		}
	}); err != nil {
		w.t.Fatal(err)
	}
	return names
}

// TestTCPGoesOn dumps the server again and again while it works; nobody notices, and nothing stays held.
func TestTCPGoesOn(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	for range 5 {
		time.Sleep(100 * time.Millisecond)
		r := j.Sh("nsenter --net=$SRC cr-dump $PID > image.cr", "SRC="+w.src)
		if r.Status != 0 || !strings.Contains(r.Stderr, "end outside") {
			t.Fatalf("status %d: %s", r.Status, r.Stderr)
		}
		if names := w.held(w.src); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
	}
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}

// TestTCPDumpKilled kills cr-dump at random moments: nothing stays held, and the connection goes on.
func TestTCPDumpKilled(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	rnd := seeded(t)
	for range 25 {
		cmd := j.Command("cr-dump", strings.Fields(fmt.Sprintf("%d", j.Pid))...)
		cmd.Path, cmd.Args = "/usr/bin/nsenter", append([]string{"nsenter", "--net=" + w.src}, append([]string{cmd.Path}, cmd.Args[1:]...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rnd.Int63n(int64(60 * time.Millisecond))))
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if !j.CommandsGone(30 * time.Second) {
			t.Fatal("the guard does not end")
		}
		if names := w.held(w.src); len(names) != 0 {
			t.Fatalf("%q is held", names)
		}
	}
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}
