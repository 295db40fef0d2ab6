package test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crpipe/test/harness"
)

// A server is one that people run, with the load that it is under. Its tree is a script of test/testdata/real, the server, its processes, and clients by unix
// sockets and TCP; it looks at itself when it is told to (DIR/check). Other clients are outside of the tree, by TCP: they see nothing of what is done to it but
// that it takes its time.
type server struct {
	name   string
	script string
	needs  []string                    // programs, or patterns of their paths
	user   int                         // who it runs as, root when 0
	args   func(t *testing.T) []string // what the script gets behind its directory and its port
	load   func(l *load, dir, port string)
	// after looks at what the server has left behind, once it has ended.
	after func(t *testing.T, j *harness.Job, l *load)
}

// load is all clients of a server.
type load struct {
	t       reporter
	inside  bool // of the tree
	lock    sync.Mutex
	stop    chan struct{}
	ended   sync.WaitGroup
	clients []*client
	over    atomic.Bool // the test has ended: what clients see then says nothing
}

// reporter is what a load needs of a testing.T.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Log(args ...any)
	Logf(format string, args ...any)
	Failed() bool
}

// networks are those by which the clients come.
func (l *load) networks() []string {
	if l.inside {
		return []string{"tcp", "unix"}
	}
	return []string{"tcp"} // a connection by a unix socket cannot be kept when one end is outside
}

// name is a client's: no two of a server have the same.
func (l *load) name(what, network string) string {
	if l.inside {
		return what + "." + network + ".inside"
	}
	return what + "." + network
}

// address is where a server listens.
func address(network, dir, port string) string {
	if network == "unix" {
		return filepath.Join(dir, "sock")
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// client is one of them: it works until stopped says so.
type client struct {
	load *load
	name string
	last atomic.Int64 // when it was answered last, in nanoseconds of CLOCK_MONOTONIC
	gap  int64        // the longest time between two answers
	n    int64        // how many
	err  error
}

// start runs a client: work returns when it was told to stop, or what is wrong.
func (l *load) start(name string, work func(c *client) error) {
	c := &client{load: l, name: name}
	l.clients = append(l.clients, c)
	l.ended.Add(1)
	go func() {
		defer l.ended.Done()
		c.last.Store(harness.Monotonic())
		if err := work(c); err != nil && !l.over.Load() {
			l.lock.Lock()
			c.err = err
			l.lock.Unlock()
			l.t.Errorf("%s: after %d answers: %v", name, c.n, err)
		}
	}()
}

// stopped says whether the client is to end.
func (c *client) stopped() bool {
	select {
	case <-c.load.stop:
		return true
	default:
		return false
	}
}

// pause waits for that time; false: the client is to end.
func (c *client) pause(d time.Duration) bool {
	select {
	case <-c.load.stop:
		return false
	case <-time.After(d):
		return true
	}
}

// answered notes that the server has answered.
func (c *client) answered() {
	now := harness.Monotonic()
	c.gap = max(c.gap, now-c.last.Swap(now))
	c.n++
}

// all waits until each client has been answered after that moment, or has failed.
func (l *load) all(since int64) {
	l.t.Helper()
	for end := time.Now().Add(60 * time.Second * harness.Slow()); ; time.Sleep(5 * time.Millisecond) {
		var waits *client
		l.lock.Lock()
		for _, c := range l.clients {
			if c.err == nil && c.last.Load() <= since {
				waits = c
			}
		}
		l.lock.Unlock()
		if waits == nil || l.t.Failed() {
			return
		}
		if time.Now().After(end) {
			l.t.Errorf("%s is not answered any more, after %d answers", waits.name, waits.n)
			return
		}
	}
}

// end tells the clients to end and waits for them.
func (l *load) end() {
	close(l.stop)
	l.ended.Wait()
	said := "answers, and the longest time between two:"
	for _, c := range l.clients {
		said += fmt.Sprintf(" %s %d %v;", c.name, c.n, time.Duration(c.gap).Round(time.Millisecond))
	}
	l.t.Log(said)
}

// countBySQL has a client of a database execute a statement again and again, the n-th of which returns n, and leaves in a file how far it came.
func countBySQL(c *client, cmd *exec.Cmd, statement func(n int) string, counted string) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	hung := time.AfterFunc(time.Until(deadline()), func() { _ = cmd.Process.Kill() })
	defer hung.Stop()
	lines, n := bufio.NewReader(out), 0
	for ; c.pause(5 * time.Millisecond); n++ {
		line := ""
		if _, err = fmt.Fprintln(in, statement(n+1)); err == nil {
			line, err = lines.ReadString('\n')
		}
		if err == nil && line != fmt.Sprintln(n+1) {
			err = fmt.Errorf("%q, want %d", line, n+1)
		}
		if err != nil {
			break
		}
		c.answered()
	}
	if err := errors.Join(err, in.Close(), cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, said.String())
	}
	return os.WriteFile(counted, fmt.Appendf(nil, "%d\n", n), 0o644)
}

// deadline is far in the future: a client that waits longer has lost its connection.
func deadline() time.Time { return time.Now().Add(90 * time.Second * harness.Slow()) }

// freePort is a port of 127.0.0.1 that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func servers() []server {
	return []server{redisServer, postgresServer, mariadbServer, nginxServer, haproxyServer,
		webServer("go", func(t *testing.T) []string { return []string{harness.GoProg(t, "web")} }),
		webServer("node", func(*testing.T) []string { return []string{"/usr/bin/node", script("web.js")} }),
		webServer("asyncio", func(*testing.T) []string { return []string{"/usr/bin/python3", script("web.py")} }),
	}
}

// insider reports for clients inside of the tree, to standard error.
type insider struct{ failed atomic.Bool }

func (i *insider) Helper() {}

func (i *insider) Errorf(format string, args ...any) {
	i.failed.Store(true)
	i.Logf(format, args...)
}

func (i *insider) Log(args ...any) { fmt.Fprintln(os.Stderr, args...) }

func (i *insider) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (i *insider) Failed() bool { return i.failed.Load() }

// clientsMain is this program as a script of a server starts it: with DIR and PORT, until SIGTERM. It makes DIR/clients when they have
// begun, and leaves in DIR/inside how often each was answered.
func clientsMain(name string) int {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	report := &insider{}
	l := &load{t: report, inside: true, stop: make(chan struct{})}
	for _, s := range servers() {
		if s.name == name {
			s.load(l, os.Args[1], os.Args[2])
		}
	}
	if err := os.WriteFile(filepath.Join(os.Args[1], "clients"), nil, 0o644); err != nil {
		report.Errorf("%v", err)
	}
	<-ended
	l.end()
	var b []byte
	for _, c := range l.clients {
		b = fmt.Appendf(b, "%s %d\n", c.name, c.n)
	}
	if err := os.WriteFile(filepath.Join(os.Args[1], "inside"), b, 0o644); err != nil {
		report.Errorf("%v", err)
	}
	if report.Failed() || len(l.clients) == 0 {
		return 1
	}
	return 0
}

func needPrograms(t *testing.T, needs []string) {
	t.Helper()
	for _, n := range needs {
		if !strings.HasPrefix(n, "/") {
			need(t, n)
		} else if found, err := filepath.Glob(n); err != nil || len(found) == 0 {
			t.Skipf("needs %s: %v", n, err)
		}
	}
}

// dumpPatiently is a shell function that does as its user has to: with --kill a connection that waits for accept(2) is refused by name, and a
// moment later there is none.
const dumpPatiently = `dump() {
	local i status
	for ((i = 0; i < 50; i++)); do
		status=0
		cr-dump "$@" > image.cr 2> dump.err || status=$?
		[ $status = 3 ] && grep -q 'wait for accept(2)' dump.err || break
		sleep "0.0$((RANDOM % 90 + 10))"
	done
	cat dump.err >&2
	return $status
}
`

// TestServers puts every server through the pipeline at random moments, under load. CRPIPE_ROUNDS is how many times.
func TestServers(t *testing.T) {
	harness.NeedRoot(t)
	rounds := number(t, "CRPIPE_ROUNDS", 2)
	for _, s := range servers() {
		for _, mode := range []string{"untouched", "frozen", "go-on", "kill-restore"} {
			t.Run(s.name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				needPrograms(t, s.needs)
				rnd := seeded(t)
				port := freePort(t)
				args := []string{port}
				if s.args != nil {
					args = append(args, s.args(t)...)
				}
				j := harness.Start(t, "/bin/bash", harness.Options{Name: s.name, User: s.user, Args: args,
					Env: []string{"CR_TEST_CLIENTS=" + s.name, "CLIENTS=" + os.Args[0]}, Shell: fmt.Sprintf(". %q", script(s.script))})
				j.WaitFile("ready", 60*time.Second)
				l := &load{t: t, stop: make(chan struct{})}
				t.Cleanup(func() { l.over.Store(true) })
				s.load(l, j.Dir, port)
				l.all(0)
				for r := 0; r < rounds && !t.Failed(); r++ {
					time.Sleep(time.Duration(rnd.Int63n(int64(500 * time.Millisecond))))
					begin := harness.Monotonic()
					switch mode {
					case "untouched":
						r = rounds
					case "frozen":
						j.MustSh("cr-freeze $PID > job.ticket; cr-thaw < job.ticket")
					case "go-on":
						j.MustSh("cr-dump $PID > image.cr")
						j.Check("image.cr")
					case "kill-restore":
						j.DumpKill(dumpPatiently + "dump --kill $PID")
						j.RestoreSh("cr-restore < image.cr > restored.ticket")
					}
					t.Logf("round %d: the commands took %v", r, time.Duration(harness.Monotonic()-begin).Round(time.Millisecond))
					l.all(harness.Monotonic())
				}
				l.end()
				j.Finish()
				if s.after != nil && !t.Failed() {
					s.after(t, j, l)
				}
			})
		}
	}
}
