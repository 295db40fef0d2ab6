package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"crpipe/test/harness"
)

// redisServer is redis-server with an append-only file and a snapshot every second, for which it forks.
var redisServer = server{name: "redis", script: "redis.sh", needs: []string{"redis-server", "redis-cli"}, load: redisLoad, after: redisAfter}

// redisConn is one connection, which is never made again: what is lost is lost.
type redisConn struct {
	net.Conn
	r *bufio.Reader
}

func redisDial(network, addr string) (*redisConn, error) {
	conn, err := net.DialTimeout(network, addr, 60*time.Second*harness.Slow())
	if err != nil {
		return nil, err
	}
	return &redisConn{conn, bufio.NewReader(conn)}, conn.SetDeadline(deadline())
}

// send writes one command of the RESP protocol.
func (c *redisConn) send(args ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	_, err := io.WriteString(c, b.String())
	return err
}

// receive reads one answer; of a list the elements, with a blank between them.
func (c *redisConn) receive() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("reading an answer: %w", err)
	}
	line = strings.TrimSuffix(line, "\r\n")
	switch rest := line[1:]; line[0] {
	case '+', ':':
		return rest, nil
	case '-':
		return "", errors.New("redis says " + rest)
	case '$', '*':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 {
			return "", err
		}
		if line[0] == '$' {
			b := make([]byte, n+2)
			_, err := io.ReadFull(c.r, b)
			return string(b[:n]), err
		}
		all := make([]string, n)
		for i := range all {
			if all[i], err = c.receive(); err != nil {
				return "", err
			}
		}
		return strings.Join(all, " "), nil
	}
	return "", fmt.Errorf("no answer of redis: %q", line)
}

// do expects that answer to a command.
func (c *redisConn) do(want string, args ...string) error {
	if err := c.send(args...); err != nil {
		return err
	}
	return c.expect(want, args[0])
}

func (c *redisConn) expect(want, what string) error {
	got, err := c.receive()
	if err == nil && got != want {
		err = fmt.Errorf("%s: %.200q, want %.200q", what, got, want)
	}
	return err
}

func redisLoad(l *load, dir, port string) {
	on := func(network, name string, work func(c *client, conn *redisConn, key string) error) {
		l.start(l.name(name, network), func(c *client) error {
			conn, err := redisDial(network, address(network, dir, port))
			if err != nil {
				return err
			}
			defer conn.Close()
			return work(c, conn, c.name)
		})
	}
	for _, network := range l.networks() {
		on(network, "counter", redisCounter)
		on(network, "pipeline", redisPipeline)
		on(network, "big", redisBig)
		heard, popped := make(chan struct{}), make(chan struct{})
		on(network, "subscriber", func(c *client, conn *redisConn, key string) error {
			defer close(heard)
			return redisSubscriber(c, conn, key)
		})
		on(network, "publisher", redisFeeder("PUBLISH", time.Millisecond, heard))
		on(network, "blocked", func(c *client, conn *redisConn, key string) error {
			defer close(popped)
			return redisBlocked(c, conn, key)
		})
		on(network, "pusher", redisFeeder("RPUSH", 20*time.Millisecond, popped))
	}
}

// redisCounter counts: a write that was lost, or came twice, shows at once.
func redisCounter(c *client, conn *redisConn, key string) error {
	for n := 1; !c.stopped(); n++ {
		if err := conn.do(strconv.Itoa(n), "INCR", key); err != nil {
			return err
		}
		c.answered()
	}
	return nil
}

// redisPipeline sends transactions before it reads their answers.
func redisPipeline(c *client, conn *redisConn, key string) error {
	for n := 0; c.pause(2 * time.Millisecond); n += 20 {
		for i := range 20 {
			for _, args := range [][]string{{"MULTI"}, {"RPUSH", key, strconv.Itoa(n + i)}, {"LINDEX", key, "-1"}, {"EXEC"}} {
				if err := conn.send(args...); err != nil {
					return err
				}
			}
		}
		for i := range 20 {
			for _, want := range []string{"OK", "QUEUED", "QUEUED", fmt.Sprintf("%d %d", n+i+1, n+i)} {
				if err := conn.expect(want, "a transaction"); err != nil {
					return err
				}
			}
		}
		c.answered()
	}
	return nil
}

// redisBig writes and reads what no queue of a socket holds.
func redisBig(c *client, conn *redisConn, key string) error {
	rnd := rand.New(rand.NewSource(1))
	b := make([]byte, 3<<20)
	for c.pause(10 * time.Millisecond) {
		_, _ = rnd.Read(b) // cannot fail
		b := b[:rnd.Intn(len(b))]
		if err := conn.do("OK", "SET", key, string(b)); err != nil {
			return err
		}
		if err := conn.do(string(b), "GET", key); err != nil {
			return err
		}
		c.answered()
	}
	return nil
}

// redisSubscriber gets every message once, and those of a publisher in their order.
func redisSubscriber(c *client, conn *redisConn, key string) error {
	channel := strings.Replace(key, "subscriber", "publisher", 1)
	if err := conn.do("subscribe "+channel+" 1", "SUBSCRIBE", channel); err != nil {
		return err
	}
	for n := -1; !c.stopped(); {
		got, err := conn.receive()
		if err != nil {
			return err
		}
		if n < 0 { // the publisher has begun before
			_, _ = fmt.Sscanf(got, "message "+channel+" %d", &n)
		}
		if want := fmt.Sprintf("message %s %d", channel, n); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		n++
		c.answered()
	}
	return nil
}

// redisFeeder sends a number under its own name now and then, as long as the one that waits for them does.
func redisFeeder(command string, every time.Duration, ended <-chan struct{}) func(c *client, conn *redisConn, key string) error {
	return func(c *client, conn *redisConn, key string) error {
		for n := 0; ; n++ {
			if err := conn.send(command, key, strconv.Itoa(n)); err != nil {
				return err
			}
			if _, err := conn.receive(); err != nil {
				return err
			}
			c.answered()
			select {
			case <-ended:
				return nil
			case <-time.After(every):
			}
		}
	}
}

// redisBlocked waits in the server for what another one pushes now and then.
func redisBlocked(c *client, conn *redisConn, key string) error {
	list := strings.Replace(key, "blocked", "pusher", 1)
	for n := 0; !c.stopped(); n++ {
		if err := conn.do(fmt.Sprintf("%s %d", list, n), "BLPOP", list, "0"); err != nil {
			return err
		}
		c.answered()
	}
	return nil
}

// redisAfter starts a server on what the first has left on the disk, and asks for all that was acknowledged.
func redisAfter(t *testing.T, j *harness.Job, l *load) {
	sock := filepath.Join(j.Dir, "again")
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", sock, "--dir", j.Dir, "--appendonly", "yes", "--save", "")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill() // it has ended, unless a test failed
		_ = cmd.Wait()
	}()
	var conn *redisConn
	for end := deadline(); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if conn, err = redisDial("unix", sock); err == nil {
			if err = conn.do("PONG", "PING"); err == nil { // it has read its files
				break
			}
			_ = conn.Close()
		}
		if time.Now().After(end) {
			t.Fatalf("redis-server does not start on what it has left: %v", err)
		}
	}
	defer conn.Close()
	acknowledged := l.clients
	data, err := os.ReadFile(filepath.Join(j.Dir, "inside"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		c := &client{}
		if _, err := fmt.Sscan(line, &c.name, &c.n); err != nil {
			t.Fatalf("what clients inside have left: %v in %q", err, line)
		}
		acknowledged = append(acknowledged, c)
	}
	for _, c := range acknowledged {
		var err error
		switch {
		case strings.HasPrefix(c.name, "counter"):
			err = conn.do(strconv.FormatInt(c.n, 10), "GET", c.name)
		case strings.HasPrefix(c.name, "pipeline"):
			err = conn.do(strconv.FormatInt(20*c.n, 10), "LLEN", c.name)
		default:
			continue
		}
		if err != nil {
			t.Errorf("%s, of a server started again: %v", c.name, err)
		}
	}
	if err := conn.send("SHUTDOWN", "NOSAVE"); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("redis-server: %v", err)
	}
}
