package test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// TestNamespacesKept: a tree has namespaces of its own as they were.
func TestNamespacesKept(t *testing.T) {
	harness.NeedRoot(t)
	if err := exec.Command("/usr/bin/unshare", "-u", "-n", "/bin/true").Run(); err != nil {
		t.Skipf("unshare -u -n does not work here: %v", err)
	}
	prog := harness.Prog(t, "counter")
	for _, c := range []struct {
		name  string
		how   string
		pidns bool
		look  string // what is compared, run inside
		want  string // what must be in it
	}{
		{"uts", "unshare -u -- bash -c 'hostname nowhere.example; echo far.example > /proc/sys/kernel/domainname; exec \"$0\" \"$1\"'", false,
			"uname -a; cat /proc/sys/kernel/domainname", "nowhere.example"},
		{"lo down", "unshare -n --", false, "cat /proc/thread-self/net/dev | cut -d: -f1; cat /sys/class/net/lo/flags; cat /proc/thread-self/net/fib_trie", "lo"},
		{"lo up", "unshare -n -- bash -c 'python3 -c \"\nimport socket,fcntl,struct\ns=socket.socket()\nfcntl.ioctl(s,0x8914,struct.pack(\\\"16sH14x\\\",b\\\"lo\\\",0x49))\"; exec \"$0\" \"$1\"'", false,
			"cat /proc/thread-self/net/fib_trie", "127.0.0.1"},
		{"all with a pid namespace", "unshare -u -n -- bash -c 'hostname inside; exec \"$0\" \"$1\"'", true, "hostname", "inside"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			j := harness.Start(t, prog, harness.Options{Name: "counter", PidNS: c.pidns, Shell: "exec " + c.how + " " + prog + " \"$1\""})
			j.WaitFile("ready", 30*time.Second)
			look := func() string { return j.MustSh("nsenter -t $PID -u -n bash -c '" + c.look + "'") }
			before := look()
			if !strings.Contains(before, c.want) {
				t.Errorf("%q is not in %q", c.want, before)
			}
			name, _ := os.Hostname()
			j.DumpKill("cr-dump --kill $PID > image.cr")
			j.RestoreSh("cr-restore < image.cr > restored.ticket")
			if after := look(); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
			if now, _ := os.Hostname(); now != name {
				t.Errorf("the name of this host has become %s", now)
			}
			j.Finish()
		})
	}
}

// TestNetworkRefused: what a network namespace has beyond lo is named.
func TestNetworkRefused(t *testing.T) {
	harness.NeedRoot(t)
	prog := harness.Prog(t, "counter")
	for _, c := range []struct{ name, how, want string }{
		{"setting", "echo 1 > /proc/sys/net/ipv4/ip_forward", "differs from a fresh one in /proc/sys/net/ipv4/"},
		{"interface", "ip link add tree0 type veth", "with the interface "},
		{"rule", "ip rule add from 10.0.0.1 table 7", "rules of routing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, err := exec.Command("/usr/bin/unshare", "-n", "/bin/sh", "-ec", c.how).CombinedOutput(); err != nil {
				t.Skipf("not to be made here: %s: %v %s", c.how, err, out)
			}
			j := harness.Start(t, prog, harness.Options{Name: "counter", Shell: "exec unshare -n -- bash -ec '" + c.how + "; exec \"$0\" \"$1\"' " + prog + " \"$1\""})
			j.WaitFile("ready", 30*time.Second)
			r := j.Sh("cr-dump $PID > image.cr")
			if r.Status != 3 || !strings.Contains(r.Stderr, c.want) {
				t.Errorf("status %d: %s", r.Status, r.Stderr)
			}
			j.Finish()
		})
	}
}

// TestTimeNamespace: a tree in a time namespace of its own waits and is woken as any other, and its clocks go on; on another machine from
// where they were.
func TestTimeNamespace(t *testing.T) {
	harness.NeedRoot(t)
	// unshare(1) would be the parent of whoever is in it: here the program itself is.
	const enter = `exec python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
newtime = 0x80
if libc.unshare(newtime): raise OSError(ctypes.get_errno(), "unshare")
open("/proc/self/timens_offsets", "w").write("monotonic 1000000 5\nboottime 2000000 7\n")
fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY)
if libc.setns(fd, newtime): raise OSError(ctypes.get_errno(), "setns")
os.close(fd)
os.execv(sys.argv[1], sys.argv[1:])' `
	if out, err := exec.Command("/bin/bash", "-c", enter+"/bin/true").CombinedOutput(); err != nil {
		t.Skipf("a time namespace cannot be made here: %v %s", err, out)
	}
	for _, name := range []string{"counter", "posixtimers", "itimers", "events", "waits"} {
		for _, elsewhere := range []bool{false, true} {
			how := name
			if elsewhere {
				how += "-elsewhere"
			}
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				prog := "/usr/bin/python3 -c '" + waitInTime + "'"
				if name != "waits" {
					prog = harness.Prog(t, name)
				}
				j := harness.Start(t, "/usr/bin/python3", harness.Options{Name: name, Shell: enter + prog + ` "$1"`})
				j.WaitFile("ready", 30*time.Second)
				clocks := func() (monotonic, boottime float64) {
					t.Helper()
					out := j.MustSh("nsenter -t $PID -T python3 -c 'import time; print(time.clock_gettime(1), time.clock_gettime(7))'")
					if _, err := fmt.Sscan(out, &monotonic, &boottime); err != nil {
						t.Fatalf("%q: %v", out, err)
					}
					return monotonic, boottime
				}
				mono, boot := clocks()
				began := time.Now()
				j.DumpKill("cr-dump --kill $PID > image.cr")
				if elsewhere {
					j.MustSh(`cr-filter json < image.cr | sed 's/"boot":"[^"]*"/"boot":"of another machine"/' | cr-filter unjson > other.cr && mv other.cr image.cr`)
				}
				j.RestoreSh("cr-restore < image.cr > restored.ticket")
				laterMono, laterBoot := clocks()
				most := time.Since(began).Seconds() + 1
				if laterMono < mono || laterMono > mono+most || laterBoot < boot || laterBoot > boot+most {
					t.Errorf("the clocks were at %f and %f, and within %f s are at %f and %f", mono, boot, most, laterMono, laterBoot)
				}
				j.Finish()
			})
		}
	}
}

// waitInTime waits until moments of CLOCK_MONOTONIC (FUTEX_WAIT_BITSET, clock_nanosleep) and for a while, and says whether it has slept as long
// as it was to.
const waitInTime = `
import os, sys, threading, time
dir, bad = sys.argv[1], []
def wait(name, call):
    begin = time.monotonic()
    call()
    took = time.monotonic() - begin
    if took < 11.999 or took > 300:
        bad.append("%s took %f s" % (name, took))
held = threading.Lock()
held.acquire()
all = [threading.Thread(target=wait, args=a) for a in [
    ("a lock", lambda: held.acquire(timeout=12)),
    ("a sleep", lambda: time.sleep(12)),
    ("an event", lambda: threading.Event().wait(12))]]
for t in all: t.start()
open(dir + "/ready", "w").close()
for t in all: t.join()
while not os.path.exists(dir + "/check"): time.sleep(0.01)
open(dir + "/report", "w").write("\n".join(bad))
open(dir + "/done", "w").write("bad" if bad else "ok")
sys.exit(1 if bad else 0)
`

// TestCgroupNamespace: the root of a cgroup namespace of the tree's own is where it was, whatever cgroup cr-restore is in.
func TestCgroupNamespace(t *testing.T) {
	harness.NeedRoot(t)
	if harness.V2() == "" {
		t.Skip("cgroup version 2 is not mounted here")
	}
	prog := harness.Prog(t, "counter")
	for _, c := range []struct{ name, below string }{{"at the root", ""}, {"below it", "/inner"}} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			enter := "exec unshare -C -- " + prog + ` "$1"`
			if c.below != "" {
				enter = `at=$(grep ^0:: /proc/self/cgroup); at=` + harness.V2() + `${at#0::}
mkdir $at/inner; exec unshare -C -- /bin/bash -c 'echo $$ > '$at'/inner/cgroup.procs; exec "$0" "$1"' ` + prog + ` "$1"`
			}
			j := harness.Start(t, prog, harness.Options{Name: "counter", Cgroup: true, Shell: enter})
			j.WaitFile("ready", 30*time.Second)
			t.Cleanup(func() { _ = os.Remove(j.Cgroup(harness.V2()) + "/inner") })
			look := func() string {
				return j.MustSh("grep ^0:: /proc/$PID/cgroup; nsenter -t $PID -C grep ^0:: /proc/$PID/cgroup")
			}
			before := look()
			if !strings.Contains(before, "0::/"+strings.TrimPrefix(c.below, "/")+"\n") {
				t.Errorf("inside it is in\n%s", before)
			}
			j.DumpKill("cr-dump --kill $PID > image.cr")
			j.RestoreSh("cr-restore < image.cr > restored.ticket")
			if after := look(); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
			j.DumpKill("cr-dump --kill $PID > image.cr")
			j.MustSh(`cr-filter json < image.cr | sed 's/"path":"[^"]*crtest[^"]*"/"path":"\/crtest-no-such"/g' | cr-filter unjson > other.cr`)
			if r := j.Sh("cr-restore < other.cr"); r.Status != 5 || !strings.Contains(r.Stderr, "root of the tree's cgroup namespace, is not here") {
				t.Errorf("without that cgroup: status %d: %s", r.Status, r.Stderr)
			}
			j.RestoreSh("cr-restore < image.cr > restored.ticket")
			j.Finish()
		})
	}
}
