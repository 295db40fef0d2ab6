package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// pipeApp makes an App whose reads and writes can be cancelled.
func pipeApp(t *testing.T) (*App, context.CancelCauseFunc) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	app := newApp(t)
	app.Context, app.waker = ctx, newWaker(ctx)
	t.Cleanup(func() {
		cancel(nil)
		// The waker writes from a goroutine of its own. Were its descriptor closed before that, the eight bytes would go into
		// whatever the next test opens.
		fds := []unix.PollFd{{Fd: int32(app.waker.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 10_000); n != 1 {
			t.Fatalf("the waker of a cancelled context is not readable: %d, %v", n, err)
		}
		_ = unix.Close(app.waker.fd)
	})
	return app, cancel
}

func TestPipeCarriesEverything(t *testing.T) {
	app, _ := pipeApp(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data := make([]byte, 5<<20)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	done := make(chan error, 1)
	go func() {
		_, err := app.write(w, false, data[:3], nil, data[3:2<<20], data[2<<20:])
		w.Close()
		done <- err
	}()
	var got bytes.Buffer
	buffer := make([]byte, 100_000)
	for {
		n, err := app.read(r, false, buffer)
		got.Write(buffer[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), data) {
		t.Error("what came out is not what went in")
	}
}

// Without the waker both would block for ever and the test would time out.
func TestCancelEndsBlockedPipes(t *testing.T) {
	for _, direction := range []string{"read", "write"} {
		app, cancel := pipeApp(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			if direction == "read" {
				_, err := app.read(r, false, make([]byte, 10))
				done <- err
			} else {
				_, err := app.write(w, false, make([]byte, 4<<20))
				done <- err
			}
		}()
		want := &SignalError{unix.SIGTERM}
		cancel(want)
		var got *SignalError
		if err := <-done; !errors.As(err, &got) || got != want {
			t.Errorf("%s: %v", direction, err)
		}
		r.Close()
		w.Close()
	}
}

func TestClosedPipe(t *testing.T) {
	for _, test := range []struct {
		content Content
		quiet   bool
	}{{Binary, false}, {Text, true}} {
		app, _ := pipeApp(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		o := &Output{app: app, file: w, name: "standard output", content: test.content}
		_, err = o.Write([]byte("x"))
		if Status(err) != StatusFailed || errors.Is(err, errQuiet) != test.quiet {
			t.Errorf("content %d: %v", test.content, err)
		}
		if !test.quiet && (!errors.Is(err, unix.EPIPE) || hintOf(err) == "") {
			t.Errorf("not named, or no hint: %v", err)
		}
		w.Close()
	}
}

func TestPipeIsWidened(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		t.Skipf("this user may not have pipes of 1 MiB: %v", err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 64<<10); err != nil {
		t.Fatal(err)
	}
	widenPipe(w)
	if size, err := unix.FcntlInt(r.Fd(), unix.F_GETPIPE_SZ, 0); err != nil || size != pipeSize {
		t.Errorf("the pipe holds %d, %v", size, err)
	}
}

// A FIFO or a device named by -o is written, never replaced.
func TestOutputInPlace(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(fifo, os.O_RDWR, 0) // both ends, so that no open blocks
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	app, _ := pipeApp(t)
	out, err := app.Output(fifo, Binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("through")); err != nil {
		t.Fatal(err)
	}
	if err := app.finish(nil); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := r.Read(got)
	if err != nil || string(got[:n]) != "through" {
		t.Errorf("read %q, %v", got[:n], err)
	}
	if info, err := os.Lstat(fifo); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the FIFO is now %v, %v", info.Mode(), err)
	}
}

// A file reached through /proc that has lost its name is written in place.
func TestOutputToDeletedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	app, _ := pipeApp(t)
	out, err := app.Output(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), Binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("kept")); err != nil {
		t.Fatal(err)
	}
	if err := app.finish(nil); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "kept" {
		t.Errorf("the file holds %q", got[:n])
	}
}
