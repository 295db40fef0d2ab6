package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// TestTCPTicketMigration moves one end of a connection as TestTCPMigration does, but by a ticket: the source decides when all has arrived.
// Cr-freeze and cr-thaw are in another network namespace than the tree.
func TestTCPTicketMigration(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	c.goesOn(t)
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
		cr-freeze $PID > ticket
		nsenter --net=$SRC cr-dump < ticket | nsenter --net=$SRC nc -N $ADDR 9000
		sleep 1 # the client sends again meanwhile, to the source still
		cr-thaw --kill < ticket
		$SWITCH
		touch sent
		wait $receiver`, "SRC="+w.src, "DST="+w.dst, "ADDR="+w.addrOfDst, "SWITCH="+w.toDst)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	t.Logf("%d bytes", c.n.Load())
	if names := w.held(w.src); len(names) != 1 {
		t.Errorf("the source holds %q", names)
	}
	if names := w.held(w.dst); len(names) != 0 {
		t.Errorf("the destination holds %q", names)
	}
}

// TestTCPTicketHere ends the tree by cr-thaw --kill and restores it at the same place, where the hold is lifted.
func TestTCPTicketHere(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	for range 3 {
		c.goesOn(t)
		j.MustSh("cr-freeze $PID | tee ticket | nsenter --net=$SRC cr-dump > image.cr; sleep 0.5; cr-thaw --kill < ticket", "SRC="+w.src)
		j.WaitGone()
		if names := w.held(w.src); len(names) != 1 {
			t.Errorf("%q is held", names)
		}
		if r := j.Sh("cr-thaw < ticket"); r.Status == 0 { // somebody has taken the wrong way out
			t.Error("a tree that has been ended goes on")
		}
		j.RestoreSh("nsenter --net=" + w.src + " cr-restore < image.cr > restored")
		if names := w.held(w.src); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
	}
	c.goesOn(t)
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}

// TestTCPTicketGoesOn dumps a frozen tree, more than once by the same ticket, and lets it go on: the connection has lost nothing, and nothing
// stays held. Commands are killed meanwhile.
func TestTCPTicketGoesOn(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	for i := range 4 {
		c.goesOn(t)
		j.MustSh("cr-freeze $PID > ticket")
		for range 2 {
			r := j.Sh("nsenter --net=$SRC cr-dump < ticket > image.cr", "SRC="+w.src)
			if r.Status != 0 || strings.Contains(r.Stderr, "TCP") {
				t.Fatalf("status %d: %s", r.Status, r.Stderr)
			}
		}
		if names := w.held(w.src); len(names) != 1 {
			t.Errorf("%q is held of a tree that stands still", names)
		}
		time.Sleep(300 * time.Millisecond) // the client sends again meanwhile
		if i%2 == 1 {
			j.Sh("cr-thaw < ticket & sleep 0.0$((RANDOM % 5)); kill -9 $!; wait")
			if !j.CommandsGone(30 * time.Second) {
				t.Fatal("the guard does not end")
			}
			j.Sh("cr-thaw < ticket") // it may be stale
		} else {
			j.MustSh("cr-thaw < ticket")
		}
		if names := w.held(w.src); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
	}
	c.goesOn(t)
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}

// TestTCPTicketEnded has the frozen tree ended by somebody else: cr-thaw lifts the hold all the same.
func TestTCPTicketEnded(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j, c := w.teller()
	c.goesOn(t)
	j.MustSh("cr-freeze $PID > ticket; nsenter --net=$SRC cr-dump < ticket > image.cr; kill -9 $PID", "SRC="+w.src)
	j.WaitGone()
	if names := w.held(w.src); len(names) != 1 {
		t.Errorf("%q is held", names)
	}
	if r := j.Sh("nsenter --net=$SRC cr-thaw < ticket", "SRC="+w.src); r.Status != 1 {
		t.Errorf("status %d: %s", r.Status, r.Stderr)
	}
	if names := w.held(w.src); len(names) != 0 {
		t.Errorf("%q is held", names)
	}
	if err := <-c.done; err == nil { // it hears of it now
		t.Error("the client has not heard of the end")
	}
}

// TestTCPPortHeld: between the end of a server and its restore nobody hears that the port is closed.
func TestTCPPortHeld(t *testing.T) {
	harness.NeedRoot(t)
	w := newNetwork(t)
	j := harness.Start(t, "/usr/bin/nsenter", harness.Options{Name: "teller", Before: []string{"--net=" + w.src, harness.Prog(t, "teller")}, Args: []string{w.service}})
	j.WaitFile("ready", 30*time.Second)
	port, err := os.ReadFile(filepath.Join(j.Dir, "port"))
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort(w.service, strings.TrimSpace(string(port)))
	for _, script := range []string{
		"nsenter --net=%s cr-dump --kill $PID > image.cr",
		"cr-freeze $PID > ticket; nsenter --net=%s cr-dump < ticket > image.cr; cr-thaw --kill < ticket",
	} {
		j.MustSh(fmt.Sprintf(script, w.src))
		j.WaitGone()
		if names := w.held(w.src); len(names) != 1 {
			t.Errorf("%q is held", names)
		}
		if err := inNetwork(w.client, func() error {
			conn, err := net.DialTimeout("tcp4", addr, 500*time.Millisecond)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}); err == nil || !os.IsTimeout(err) {
			t.Errorf("whoever connects meanwhile hears %v", err)
		}
		j.RestoreSh("nsenter --net=" + w.src + " cr-restore < image.cr > restored")
		if names := w.held(w.src); len(names) != 0 {
			t.Errorf("%q is held", names)
		}
	}
	c := count(w.dial(addr))
	c.goesOn(t)
	close(c.stop)
	if err := <-c.done; err != nil {
		t.Error(err)
	}
	j.Verdict(30 * time.Second)
}
