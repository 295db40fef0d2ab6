package test

import (
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
