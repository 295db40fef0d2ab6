// Web is an HTTP server: sums that it keeps in memory, bodies that it sends back, lines that go through a child process, and a stream of numbered
// ticks. web.py and web.js are the same in other languages. Its arguments are its directory, where it makes the socket "sock", and the port on 127.0.0.1.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	dir, port := os.Args[1], os.Args[2]
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()

	child := exec.Command("/bin/cat")
	in, err := child.StdinPipe()
	must(err)
	out, err := child.StdoutPipe()
	must(err)
	must(child.Start())
	lines := bufio.NewReader(out)

	var lock, catLock sync.Mutex
	sums := map[string]int{}
	http.HandleFunc("/add", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("n"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		lock.Lock()
		sums[r.FormValue("key")] += n
		sum := sums[r.FormValue("key")]
		lock.Unlock()
		fmt.Fprintf(w, "%d\n", sum)
	})
	http.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) // the client sees what is missing
	})
	http.HandleFunc("/cat", func(w http.ResponseWriter, r *http.Request) {
		line, err := bufio.NewReader(r.Body).ReadString('\n')
		catLock.Lock()
		defer catLock.Unlock()
		if err == nil {
			_, err = io.WriteString(in, line)
		}
		if err == nil {
			line, err = lines.ReadString('\n')
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, line)
	})
	http.HandleFunc("/ticks", func(w http.ResponseWriter, r *http.Request) {
		t := time.NewTicker(5 * time.Millisecond)
		defer t.Stop()
		for n := 0; ; n++ {
			select {
			case <-t.C:
			case <-r.Context().Done():
				return
			}
			if _, err := fmt.Fprintf(w, "%d\n", n); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush() // the client sees what is missing
		}
	})

	tcp, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	must(err)
	unix, err := net.Listen("unix", filepath.Join(dir, "sock"))
	must(err)
	for _, l := range []net.Listener{tcp, unix} {
		go func() { log.Fatal(http.Serve(l, nil)) }() //nolint:gosec // its only clients are the test's
	}
	<-ended.Done()
	must(in.Close())
	must(child.Wait())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
