package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// echoServer answers every datagram, slowly.
const echoServer = `import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 4 << 20) # SO_RCVBUFFORCE
s.bind(("127.0.0.1", 0))
open(sys.argv[1] + "/port", "w").write(str(s.getsockname()[1]))
open(sys.argv[1] + "/ready", "w").write("ready")
while True:
    data, who = s.recvfrom(65536)
    if data == b"end":
        break
    s.sendto(data, who)
with open(sys.argv[1] + "/.done", "w") as f:
    f.write("ok\n")
os.rename(sys.argv[1] + "/.done", sys.argv[1] + "/done")
`

// TestUDPServer: what clients have sent to a server before it was dumped and killed is answered after the restore: all of it, once, in order.
func TestUDPServer(t *testing.T) {
	harness.NeedRoot(t)
	python := "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		t.Skipf("needs python3: %v", err)
	}
	j := harness.Start(t, python, harness.Options{Name: "python3", Before: []string{"-c", echoServer}})
	j.WaitFile("ready", 30*time.Second)
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	var clients []net.Conn
	for range 3 {
		c, err := net.Dial("udp", "127.0.0.1:"+string(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	message := func(client, n int) string { return fmt.Sprintf("%d:%d:%s", client, n, strings.Repeat("x", n)) }
	const each = 60 // few enough for the queue of a client that does not read yet
	sent := 0
	send := func(to int) {
		t.Helper()
		for ; sent < to; sent++ {
			for i, c := range clients {
				if _, err := c.Write([]byte(message(i, sent))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	begin := harness.Monotonic()
	j.MustSh("cr-freeze $PID > job.ticket")
	send(each)
	j.MustSh("cr-dump < job.ticket > go-on.cr; cr-thaw < job.ticket")
	j.StoodStill(begin)
	j.MustSh("cr-freeze $PID > job.ticket")
	send(2 * each)
	j.DumpKill("cr-dump < job.ticket > image.cr; cr-thaw --kill < job.ticket")
	if list := j.MustSh("cr-filter list < image.cr"); !strings.Contains(list, "datagrams") {
		t.Errorf("the image holds no datagrams:\n%s", list)
	}
	j.RestoreSh("cr-restore < image.cr > restored.ticket")
	send(3 * each)
	for i, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(time.Duration(harness.Slow()) * 30 * time.Second))
		b := make([]byte, 65536)
		for n := range 3 * each {
			got, err := c.Read(b)
			if err != nil {
				t.Fatalf("client %d, answer %d: %v", i, n, err)
			}
			if string(b[:got]) != message(i, n) {
				t.Fatalf("client %d, answer %d: %.60q", i, n, b[:got])
			}
		}
	}
	if _, err := clients[0].Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	j.Verdict(30 * time.Second)
}

// TestSocketsInOwnNetwork: sockets of a network namespace of the tree's own come back there, and their datagrams too.
func TestSocketsInOwnNetwork(t *testing.T) {
	harness.NeedRoot(t)
	if out, err := exec.Command("/usr/bin/unshare", "-n", "/bin/sh", "-ec", "ip link set lo up").CombinedOutput(); err != nil {
		t.Skipf("needs unshare -n and ip: %v %s", err, out)
	}
	for _, name := range []string{"udp", "rawsock", "netlinks"} {
		t.Run(name, func(t *testing.T) {
			prog := harness.Prog(t, name)
			j := harness.Start(t, prog, harness.Options{Name: name, Shell: "exec unshare -n -- bash -c 'ip link set lo up; exec \"$0\" \"$1\"' " + prog + " \"$1\""})
			j.WaitFile("ready", 30*time.Second)
			j.DumpKill("cr-dump --kill $PID > image.cr")
			j.RestoreSh("cr-restore < image.cr > restored.ticket")
			j.Finish()
		})
	}
}
