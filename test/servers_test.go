package test

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crpipe/test/harness"
)

// A server is one that people run, with the load that it is under. Its tree is a script of test/testdata/real, the server, its processes and often a client; it
// looks at itself when it is told to (DIR/check). Other clients are outside of the tree: they see nothing of what is done to it but that it takes its time.
type server struct {
	name   string
	script string
	needs  []string                    // programs, or patterns of their paths
	user   int                         // who it runs as, root when 0
	args   func(t *testing.T) []string // what the script gets behind its directory and its port
	load   func(l *load, j *harness.Job, port string)
	// after looks at what the server has left behind, once it has ended.
	after func(t *testing.T, j *harness.Job, l *load)
}

// load is all clients of a server.
type load struct {
	t       *testing.T
	lock    sync.Mutex
	stop    chan struct{}
	ended   sync.WaitGroup
	clients []*client
	killed  bool // the server is killed and restored
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
		if err := work(c); err != nil {
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
	return []server{redisServer, postgresServer, nginxServer,
		webServer("go", func(t *testing.T) []string { return []string{harness.GoProg(t, "web")} }),
		webServer("node", func(*testing.T) []string { return []string{"/usr/bin/node", script("web.js")} }),
		webServer("asyncio", func(*testing.T) []string { return []string{"/usr/bin/python3", script("web.py")} }),
	}
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

// TestServers puts every server through the pipeline at random moments, under load. CRPIPE_ROUNDS is how many times.
func TestServers(t *testing.T) {
	harness.NeedRoot(t)
	rounds := number(t, "CRPIPE_ROUNDS", 2)
	for _, s := range servers() {
		for _, mode := range []string{"untouched", "frozen"} {
			t.Run(s.name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				needPrograms(t, s.needs)
				rnd := seeded(t)
				port := freePort(t)
				args := []string{port}
				if s.args != nil {
					args = append(args, s.args(t)...)
				}
				j := harness.Start(t, "/bin/bash", harness.Options{Name: s.name, User: s.user, Args: args, Shell: fmt.Sprintf(". %q", script(s.script))})
				j.WaitFile("ready", 60*time.Second)
				l := &load{t: t, stop: make(chan struct{}), killed: mode == "kill-restore"}
				s.load(l, j, port)
				l.all(0)
				for r := 0; r < rounds && !t.Failed(); r++ {
					time.Sleep(time.Duration(rnd.Int63n(int64(500 * time.Millisecond))))
					switch mode {
					case "untouched":
						r = rounds
					case "frozen":
						j.MustSh("cr-freeze $PID > job.ticket; cr-thaw < job.ticket")
					case "go-on":
						j.MustSh("cr-dump $PID > image.cr")
						j.Check("image.cr")
					case "kill-restore":
						j.DumpKill("cr-dump --kill $PID > image.cr")
						j.RestoreSh("cr-restore < image.cr > restored.ticket")
					}
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
