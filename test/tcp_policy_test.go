package test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/test/harness"
)

// TestTCPListenOnly: a tree with a connection is refused, and goes on; one that only listens is not.
func TestTCPListenOnly(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	c.goesOn(t)
	for _, kill := range []string{"", "--kill "} {
		r := j.Sh("nsenter --net=$SRC cr-dump --tcp listen-only "+kill+"-o image.cr $PID", "SRC="+w.src)
		if r.Status != 3 || !strings.Contains(r.Stderr, "--tcp listen-only keeps none") || !strings.Contains(r.Stderr, w.service) {
			t.Errorf("status %d: %s", r.Status, r.Stderr)
		}
		if _, err := os.Stat(j.Image("image.cr")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there is an image: %v", err)
		}
		if names := w.held(w.src); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
		c.goesOn(t)
	}
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)

	j = w.listening()
	j.MustSh("nsenter --net=$SRC cr-dump --tcp listen-only --kill $PID > image.cr", "SRC="+w.src)
	j.WaitGone()
	j.RestoreSh("nsenter --net=" + w.src + " cr-restore < image.cr > restored")
	c = count(w.dial(w.addrOf(j)))
	c.goesOn(t)
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}

// TestTCPRestoreDrop gives the connections of an image up at the restore: both ends hear that, and nothing stays held.
func TestTCPRestoreDrop(t *testing.T) {
	harness.NeedRoot(t)
	for _, script := range []string{
		"nsenter --net=$SRC cr-dump --kill $PID > image.cr",
		"cr-freeze $PID > ticket; nsenter --net=$SRC cr-dump < ticket > image.cr; cr-thaw --kill < ticket",
	} {
		w := newNetwork(t)
		j, c := w.teller()
		c.goesOn(t)
		j.MustSh(script, "SRC="+w.src)
		j.WaitGone()
		if names := w.held(w.src); len(names) != 1 {
			t.Errorf("%q is held", names)
		}
		j.RestoreSh("nsenter --net=" + w.src + " cr-restore --tcp drop < image.cr > restored")
		if names := w.held(w.src); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
		if err := <-c.done; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("the client hears %v", err)
		}
		j.WaitFile("done", 60*time.Second)
		report, err := os.ReadFile(filepath.Join(j.Dir, "report"))
		if err != nil || !strings.Contains(string(report), "Connection reset by peer") {
			t.Errorf("the server hears %q (%v)", report, err)
		}
	}
}

// listening starts the server in the source's namespace, without a client.
func (w *network) listening() *harness.Job {
	w.t.Helper()
	j := harness.Start(w.t, "/usr/bin/nsenter", harness.Options{Name: "teller", Before: []string{"--net=" + w.src, harness.Prog(w.t, "teller")}, Args: []string{w.service}})
	j.WaitFile("ready", 30*time.Second)
	return j
}

// addrOf is where a server of listening can be reached.
func (w *network) addrOf(j *harness.Job) string {
	w.t.Helper()
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		w.t.Fatal(err)
	}
	return net.JoinHostPort(w.service, strings.TrimSpace(string(port)))
}
