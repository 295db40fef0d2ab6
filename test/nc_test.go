package test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"crpipe/test/harness"
)

var netPairs atomic.Int64

// netPair makes two network namespaces joined by a veth pair, with addresses 10.213.N.1 and .2, and removes them when the test ends.
func netPair(t *testing.T) (src, dst, addr string) {
	t.Helper()
	for _, tool := range []string{"ip", "nc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (Debian: iproute2, netcat-openbsd): %v", tool, err)
		}
	}
	n := netPairs.Add(1)
	src, dst = fmt.Sprintf("crt%d.%da", os.Getpid(), n), fmt.Sprintf("crt%d.%db", os.Getpid(), n)
	addr = fmt.Sprintf("10.213.%d.2", n)
	run := func(line string) {
		t.Helper()
		f := strings.Fields(line)
		if out, err := exec.Command("ip", f...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	t.Cleanup(func() {
		for _, ns := range []string{src, dst} {
			if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
				t.Errorf("removing network namespace %s: %v: %s", ns, err, out)
			}
		}
	})
	run("netns add " + src)
	run("netns add " + dst)
	run(fmt.Sprintf("-n %s link add v0 type veth peer name v0 netns %s", src, dst))
	run(fmt.Sprintf("-n %s addr add 10.213.%d.1/24 dev v0", src, n))
	run(fmt.Sprintf("-n %s addr add %s/24 dev v0", dst, addr))
	run(fmt.Sprintf("-n %s link set v0 up", src))
	run(fmt.Sprintf("-n %s link set v0 up", dst))
	return src, dst, addr
}

// TestMigration moves a running tree through netcat from one network namespace to another. The receiver sits in a pid namespace of its own, as another
// machine would: cr-dump kills the tree only when the whole stream has been sent, when its pids are still taken here.
func TestMigration(t *testing.T) {
	harness.NeedRoot(t)
	for _, name := range []string{"tree", "threads", "memory", "shared", "counter", "pipes", "events", "fdtable", "deleted", "sleeps", "pending", "posixtimers"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dst, addr := netPair(t)
			j := harness.StartFixture(t, name, harness.Options{Args: special[name].args})
			env := []string{"SRC=" + src, "DST=" + dst, "ADDR=" + addr}
			j.Migrate(`
				ip netns exec $DST unshare -pf --mount-proc --kill-child bash -c 'set -o pipefail; nc -l $ADDR 9000 < /dev/null | tee image.cr | cr-restore --wait > restored.ticket; s=$?; echo $s > status; exit $s' &
				receiver=$!
				for i in $(seq 200); do ip netns exec $DST ss -ltn | grep -q ":9000 " && break; sleep 0.02; done
				cr-dump --kill $PID | ip netns exec $SRC nc -N $ADDR 9000
				touch sent
				wait $receiver`, env...)
			j.Check("image.cr")
		})
	}
}
