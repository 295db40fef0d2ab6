package cmd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crpipe/stream"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

var commands = []string{"cr-freeze", "cr-dump", "cr-filter", "cr-restore", "cr-thaw"}

// binaries builds the commands once and returns their directory. With go test
// -cover they count too, into GOCOVERDIR. CR_TEST_BIN names a directory to use
// instead.
var binaries = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("CR_TEST_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.MkdirTemp("", "crpipe-cmd-")
	if err != nil {
		return "", err
	}
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}
	if testing.CoverMode() != "" {
		args = append(args, "-cover", "-coverpkg=crpipe/...")
	}
	for _, name := range commands {
		args = append(args, "./"+name)
	}
	build := exec.Command("go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if dir, _ := binaries(); dir != "" && os.Getenv("CR_TEST_BIN") == "" {
		_ = os.RemoveAll(dir) // a leftover in /tmp is no failure of the tests
	}
	os.Exit(status)
}

func TestScript(t *testing.T) {
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
			if cover := os.Getenv("GOCOVERDIR"); cover != "" {
				env.Setenv("GOCOVERDIR", cover)
			} else if testing.CoverMode() != "" {
				env.Setenv("GOCOVERDIR", env.WorkDir)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":   statusCommand,
			"mkstream": mkstreamCommand,
			"pty":      ptyCommand,
			"cut":      cutCommand,
			"flip":     flipCommand,
			"empty":    emptyCommand,
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	})
}

// status N command... runs a command that must end with status N, or by the
// signal N if it is a name such as SIGTERM.
func statusCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command...")
	}
	if got := ended(ts.Exec(args[1], args[2:]...)); got != args[0] {
		ts.Fatalf("ended with %s, not %s", got, args[0])
	}
}

// ended says how a command ended: its status, or the name of its signal.
func ended(err error) string {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "0"
	case !errors.As(err, &exit):
		return err.Error()
	}
	if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return unix.SignalName(w.Signal())
	}
	return strconv.Itoa(exit.ExitCode())
}

// mkstream FILE makes a small image with several records: references, a payload
// that shrinks and one that does not. "tiny" leaves the payloads out. With "fail TEXT" its producer gives up at
// the end; with "pages N" N records of 700 kB more make it larger than any pipe.
func mkstreamCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mkstream FILE [tiny | fail TEXT | pages N]")
	}
	var buf bytes.Buffer
	w, err := stream.NewWriter(&buf, stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096, Kernel: "6.18"})
	ts.Check(err)
	type file struct {
		Path string `msgpack:"path"`
	}
	type pages struct {
		Of    stream.Ref `msgpack:"of"`
		Start uint64     `msgpack:"start"`
	}
	ref := w.NewRef()
	ts.Check(w.Put("file.test", ref, &file{"/tmp/\x1b[31mx"}, nil))
	of := stream.Ref{ID: ref, Class: "file"}
	if len(args) == 2 && args[1] == "tiny" {
		ts.Check(w.End())
		ts.Check(os.WriteFile(ts.MkAbs(args[0]), buf.Bytes(), 0o600))
		return
	}
	ts.Check(w.Put("pages", 0, &pages{of, 0x7f0000000000}, bytes.Repeat([]byte("crpipe "), 30000)))
	noise := make([]byte, 70000)
	x := uint32(1)
	for i := range noise {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	ts.Check(w.Put("pages", 0, &pages{of, 0x7f0001000000}, noise))
	if len(args) == 3 && args[1] == "pages" {
		for i := range number(ts, args[2]) {
			ts.Check(w.Put("pages", 0, &pages{of, 0x7f0002000000 + uint64(i)<<20}, bytes.Repeat(noise, 10)))
		}
	}
	if len(args) == 3 && args[1] == "fail" {
		ts.Check(w.Fail(args[2], int(unix.ENOSPC), "pid 7 (job)"))
	} else {
		ts.Check(w.End())
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), buf.Bytes(), 0o600))
}

// cut FILE N shortens a file by N bytes.
func cutCommand(ts *testscript.TestScript, neg bool, args []string) {
	data, n := []byte(ts.ReadFile(args[0])), number(ts, args[1])
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data[:len(data)-n], 0o600))
}

// flip FILE N inverts a bit of byte N of a file.
func flipCommand(ts *testscript.TestScript, neg bool, args []string) {
	data := []byte(ts.ReadFile(args[0]))
	data[number(ts, args[1])] ^= 0x10
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o600))
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// empty DIR succeeds if there is nothing in a directory, hidden or not.
func emptyCommand(ts *testscript.TestScript, neg bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(entries) > 0 {
		ts.Fatalf("%s holds %v", args[0], entries)
	}
}

// pty WHICH N command... runs a command with its standard input, output or error
// on a terminal (WHICH is a list of in, out and err), which must end with status
// N. What it writes to the terminal becomes stdout of the script. testscript's
// own ttyin and ttyout do not attach standard output.
func ptyCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: pty in,out,err N command...")
	}
	master, slave, err := openPTY()
	ts.Check(err)
	defer master.Close()
	defer slave.Close()
	path, err := exec.LookPath(args[2])
	if err != nil {
		dir, _ := binaries()
		path = filepath.Join(dir, args[2])
	}
	command := exec.Command(path, args[3:]...)
	command.Dir = ts.MkAbs(".")
	command.Stdout, command.Stderr = ts.Stdout(), ts.Stderr()
	for _, which := range strings.Split(args[0], ",") {
		switch which {
		case "in":
			command.Stdin = slave
		case "out":
			command.Stdout = slave
		case "err":
			command.Stderr = slave
		}
	}
	var shown bytes.Buffer
	var reading sync.WaitGroup
	reading.Go(func() {
		_, _ = io.Copy(&shown, master) // ends with EIO when the slave is closed, tty_ioctl(4)
	})
	got := ended(command.Run())
	slave.Close()
	reading.Wait()
	_, _ = ts.Stdout().Write(shown.Bytes()) // a buffer
	if got != args[1] {
		ts.Fatalf("ended with %s, not %s: %s", got, args[1], &shown)
	}
}

func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, slave, nil
}
