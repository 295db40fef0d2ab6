package test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"crpipe/test/harness"
)

// webServer is one of the three servers that know the paths of goprog/web.
func webServer(name string, command func(t *testing.T) []string) server {
	return server{name: name, script: "web.sh", args: command, load: webLoad}
}

// nginxServer is nginx with files of its own and goprog/web behind it.
var nginxServer = server{name: "nginx", script: "nginx.sh", needs: []string{"nginx"}, args: func(t *testing.T) []string {
	return []string{freePort(t), harness.GoProg(t, "web")}
}, load: func(l *load, dir, port string) {
	webLoad(l, dir, port)
	for _, network := range l.networks() {
		l.web(dir, port, network, "files", webFiles)
	}
}}

// haproxyServer is haproxy, which has threads with timers on their own CPU clocks, with goprog/web behind it.
var haproxyServer = server{name: "haproxy", script: "haproxy.sh", needs: []string{"haproxy"}, args: func(t *testing.T) []string {
	return []string{freePort(t), harness.GoProg(t, "web")}
}, load: webLoad}

// webConn is one connection. It is never made again, as net/http's client would do without a word.
type webConn struct {
	net.Conn
	r *bufio.Reader
}

func webDial(network, addr string) (*webConn, error) {
	conn, err := net.DialTimeout(network, addr, 60*time.Second*harness.Slow())
	if err != nil {
		return nil, err
	}
	return &webConn{conn, bufio.NewReader(conn)}, conn.SetDeadline(deadline())
}

// ask makes a request and returns its answer's body, to be read.
func (c *webConn) ask(method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequest(method, "http://localhost"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	written := make(chan error, 1)
	go func() { written <- req.Write(c) }() // a server may answer before it has read everything
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		_ = c.SetDeadline(time.Now()) // the writer ends too
		return nil, fmt.Errorf("%s %s: %w (writing: %v)", method, path, err, <-written)
	}
	if err := <-written; err != nil {
		return nil, fmt.Errorf("writing %s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return resp, nil
}

// expect makes a request and compares the answer.
func (c *webConn) expect(want []byte, method, path string, body []byte) error {
	resp, err := c.ask(method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("the answer to %s %s: %w", method, path, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s %s: %d bytes, %.60q, want %d, %.60q", method, path, len(got), got, len(want), want)
	}
	return nil
}

// web starts a client on a connection of its own.
func (l *load) web(dir, port, network, name string, work func(c *client, conn *webConn) error) {
	l.start(l.name(name, network), func(c *client) error {
		for !c.stopped() {
			conn, err := webDial(network, address(network, dir, port))
			if err != nil {
				return err
			}
			err = work(c, conn)
			_ = conn.Close() // all was read
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func webLoad(l *load, dir, port string) {
	for _, network := range l.networks() {
		l.web(dir, port, network, "adder", webAdder)
		l.web(dir, port, network, "echo", webEcho)
		l.web(dir, port, network, "cat", webCat)
		l.web(dir, port, network, "ticks", webTicks)
		n := 0
		l.web(dir, port, network, "short", func(c *client, conn *webConn) error { // a connection for each request
			n++
			if err := conn.expect([]byte(strconv.Itoa(n)+"\n"), "GET", "/add?n=1&key="+c.name, nil); err != nil {
				return err
			}
			c.answered()
			c.pause(5 * time.Millisecond)
			return nil
		})
	}
}

func webAdder(c *client, conn *webConn) error {
	for n := 1; !c.stopped(); n++ {
		if err := conn.expect([]byte(strconv.Itoa(3*n)+"\n"), "GET", "/add?n=3&key="+c.name, nil); err != nil {
			return err
		}
		c.answered()
	}
	return nil
}

func webEcho(c *client, conn *webConn) error {
	rnd := rand.New(rand.NewSource(1))
	b := make([]byte, 3<<20)
	for c.pause(5 * time.Millisecond) {
		_, _ = rnd.Read(b) // cannot fail
		b := b[:rnd.Intn(len(b))]
		if err := conn.expect(b, "POST", "/echo", b); err != nil {
			return err
		}
		c.answered()
	}
	return nil
}

func webCat(c *client, conn *webConn) error {
	for n := 0; !c.stopped(); n++ {
		line := []byte(fmt.Sprintf("%s %d %s\n", c.name, n, strings.Repeat("x", n%3000)))
		if err := conn.expect(line, "POST", "/cat", line); err != nil {
			return err
		}
		c.answered()
	}
	return nil
}

// webTicks reads an answer that has no end.
func webTicks(c *client, conn *webConn) error {
	resp, err := conn.ask("GET", "/ticks", nil)
	if err != nil {
		return err
	}
	lines := bufio.NewReader(resp.Body)
	for n := 0; !c.stopped(); n++ {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("tick %d: %w", n, err)
		}
		if line != strconv.Itoa(n)+"\n" {
			return fmt.Errorf("tick %q, want %d", line, n)
		}
		c.answered()
	}
	return nil
}

// webFiles reads the files that nginx.sh has made, the large ones slowly.
func webFiles(c *client, conn *webConn) error {
	for n := 0; !c.stopped(); n++ {
		i, size := n%5, 100
		for range i {
			size *= 13
		}
		line := fmt.Sprintf("file %d\n", i)
		want := []byte(strings.Repeat(line, size/7/len(line)+1)[:size/7])
		resp, err := conn.ask("GET", fmt.Sprintf("/files/%d", i), nil)
		if err != nil {
			return err
		}
		got := make([]byte, 0, len(want))
		for buf := make([]byte, 16<<10); err == nil; {
			var k int
			k, err = resp.Body.Read(buf)
			got = append(got, buf[:k]...)
			if len(got) > 100<<10 {
				time.Sleep(100 * time.Microsecond)
			}
		}
		if err != io.EOF || !bytes.Equal(got, want) {
			return fmt.Errorf("file %d: %d bytes, %v, want %d", i, len(got), err, len(want))
		}
		c.answered()
	}
	return nil
}
