package test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// TestTCPWaiting has a server that has accepted none of its clients, who send all the while: it is ended and restored, by cr-dump --kill and by
// a ticket, here and, at last, elsewhere, and only then accepts them.
func TestTCPWaiting(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j := harness.Start(t, "/usr/bin/nsenter", harness.Options{Name: "waiting", Before: []string{"--net=" + w.src, harness.Prog(t, "waiting")}, Args: []string{w.service, "6"}})
	j.WaitFile("ready", 30*time.Second)
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	var clients []*counting
	dial := func() {
		clients = append(clients, count(w.dial(net.JoinHostPort(w.service, strings.TrimSpace(string(port))))))
	}
	for i, script := range []string{
		"nsenter --net=$SRC cr-dump --kill $PID > image.cr",
		"cr-freeze $PID > ticket; nsenter --net=$SRC cr-dump < ticket > image.cr; sleep 0.5; cr-thaw --kill < ticket",
		"nsenter --net=$SRC cr-dump --kill $PID > image.cr",
	} {
		dial()
		dial()
		time.Sleep(300 * time.Millisecond)
		r := j.Sh(script, "SRC="+w.src)
		if r.Status != 0 || r.Stderr != "" {
			t.Fatalf("status %d: %s", r.Status, r.Stderr)
		}
		j.WaitGone()
		ns := w.src
		if i == 2 {
			ns = w.dst
		}
		j.RestoreSh("nsenter --net=" + ns + " cr-restore < image.cr > restored")
		if i == 2 {
			j.MustSh(w.toDst)
		}
		if names := w.held(ns); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
	}
	for _, c := range clients {
		close(c.stop)
	}
	j.Finish()
	for i, c := range clients {
		if err := <-c.done; err != nil {
			t.Errorf("client %d: %v", i, err)
		}
	}
}
