//go:build failpoints

package failpoint

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// point is what the environment asks for.
var point = parse(os.Getenv(Env))

type spec struct {
	name, action string
	left         int // comes there that often before it acts
	mu           sync.Mutex
}

// parse ends the process when it is asked for what there is not: a test that tests nothing is worse than one that fails.
func parse(v string) *spec {
	// The guard of a command inherits its environment. It shall mend, not fail at the same place.
	if v == "" || os.Getenv("CRPIPE_GUARD") != "" {
		return nil
	}
	if v == "trace" {
		return &spec{action: "trace"}
	}
	s := &spec{left: 1}
	s.name, s.action, _ = strings.Cut(v, ":")
	name, nth, counted := strings.Cut(s.name, "@")
	if s.name = name; counted {
		n, err := strconv.Atoi(nth)
		if err != nil || n < 1 {
			stop(v)
		}
		s.left = n
	}
	if s.action == "" {
		s.action = "error"
	}
	if !slices.Contains(Names, s.name) || !slices.Contains([]string{"error", "kill", "sleep"}, s.action) {
		stop(v)
	}
	return s
}

func stop(v string) {
	fmt.Fprintf(os.Stderr, "%s: no failpoint %q\n", os.Args[0], v)
	os.Exit(80)
}

// Hit is where a command can be told to fail.
func Hit(name string) error {
	if point == nil {
		return nil
	}
	point.mu.Lock()
	defer point.mu.Unlock()
	if point.action == "trace" {
		fmt.Fprintf(os.Stderr, "failpoint %s\n", name)
		return nil
	}
	if name != point.name || point.left == 0 {
		return nil
	}
	if point.left--; point.left > 0 {
		return nil
	}
	switch point.action {
	case "kill":
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {} // it comes to this thread at the latest when it is scheduled next
	case "sleep":
		time.Sleep(time.Second)
		return nil
	}
	return errors.New("failpoint " + name)
}

// After is Hit behind a step that may have failed by itself.
func After(name string, err error) error {
	if err != nil {
		return err
	}
	return Hit(name)
}
