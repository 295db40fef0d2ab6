package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A read or write of a pipe can block for ever, and cancelling a context does
// not end a system call. So pipes, sockets and terminals are read and written
// with RWF_NOWAIT (preadv2(2)), and where that would block, poll(2) waits for
// the file or for the cancellation, whichever is first. O_NONBLOCK would not do:
// it belongs to the open file description, which is shared with the shell and
// the programs around us.

// waker is an eventfd that becomes readable when the context is cancelled.
type waker struct {
	ctx context.Context
	fd  int
}

func newWaker(ctx context.Context) *waker {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		fd = -1 // no descriptor left: reads and writes then cannot be interrupted
	}
	w := &waker{ctx, fd}
	context.AfterFunc(ctx, func() {
		if w.fd >= 0 {
			_, _ = unix.Write(w.fd, []byte{1, 0, 0, 0, 0, 0, 0, 1}) // cannot fail on an eventfd at 0
		}
	})
	return w
}

// wait blocks until the file is ready or the context is cancelled.
func (w *waker) wait(fd int, events int16) error {
	for {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return err
		}
		if fds[0].Revents != 0 {
			return nil
		}
	}
}

// transfer is one read or write that can be cancelled. try makes the call
// without waiting, plain makes it on a file that has been found ready.
func (w *waker) transfer(fd int, events int16, try, plain func() (int, error)) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	call := try
	for {
		n, err := call()
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if err := w.wait(fd, events); err != nil {
				return 0, err
			}
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ESPIPE):
			// No RWF_NOWAIT for this kind of file (terminals) or kernel.
			call = plain
			if err := w.wait(fd, events); err != nil {
				return 0, err
			}
		default:
			return 0, err
		}
	}
}

func (a *App) read(f *os.File, regular bool, p []byte) (n int, err error) {
	if regular || a.waker == nil {
		return f.Read(p)
	}
	err = withFD(f, func(fd int) error {
		n, err = a.waker.transfer(fd, unix.POLLIN,
			func() (int, error) { return unix.Preadv2(fd, [][]byte{p}, -1, unix.RWF_NOWAIT) },
			func() (int, error) { return unix.Read(fd, p) })
		return err
	})
	if err == nil && n == 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (a *App) write(f *os.File, regular bool, bufs ...[]byte) (written int, err error) {
	rest := make([][]byte, 0, 4)
	for _, p := range bufs {
		if len(p) > 0 {
			rest = append(rest, p)
		}
	}
	err = withFD(f, func(fd int) error {
		for len(rest) > 0 {
			n, err := a.writeSome(fd, regular, rest)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return err
			case n <= 0:
				return io.ErrShortWrite
			}
			written += n
			for n > 0 {
				k := min(n, len(rest[0]))
				n -= k
				if rest[0] = rest[0][k:]; len(rest[0]) == 0 {
					rest = rest[1:]
				}
			}
		}
		return nil
	})
	return written, err
}

func (a *App) writeSome(fd int, regular bool, bufs [][]byte) (int, error) {
	if regular || a.waker == nil {
		return unix.Writev(fd, bufs)
	}
	return a.waker.transfer(fd, unix.POLLOUT,
		func() (int, error) { return unix.Pwritev2(fd, bufs, -1, unix.RWF_NOWAIT) },
		// At most what a ready pipe takes without blocking, pipe(7).
		func() (int, error) { return unix.Write(fd, bufs[0][:min(len(bufs[0]), 4096)]) })
}

// writeNow writes a line of progress, or drops it where it would have to wait:
// nobody's reading of it may hold up the work, with processes stopped. A pipe
// takes a line whole or not at all, pipe(7).
func writeNow(f *os.File, line []byte) error {
	return withFD(f, func(fd int) error {
		_, err := unix.Pwritev2(fd, [][]byte{line}, -1, unix.RWF_NOWAIT)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE) {
			_, err = unix.Write(fd, line) // a terminal, or a file on an old kernel
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return nil
		}
		return err
	})
}

// withFD calls fn with the descriptor of a file, without changing its mode as
// File.Fd may.
func withFD(f *os.File, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func isTerminal(f *os.File) bool {
	return withFD(f, func(fd int) error {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	}) == nil
}

// pipeSize is what a pipe that carries a stream is widened to: the default of
// 64 KiB makes the two ends take turns, and 1 MiB is what an ordinary user may
// have (/proc/sys/fs/pipe-max-size).
const pipeSize = 1 << 20

// widenPipe makes a pipe hold more. It is only for speed, so failing (no pipe,
// the user's quota of pipe pages used up) is no error.
func widenPipe(f *os.File) {
	_ = withFD(f, func(fd int) error {
		size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
		if err == nil && size < pipeSize {
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
		}
		return err
	})
}

// createBeside makes the file that will replace path: one without a name where
// the file system can (O_TMPFILE), so that not even a kill -9 leaves it behind.
func createBeside(path string) (*os.File, string, error) {
	dir := filepath.Dir(path)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return createNamed(path)
	}
	return os.NewFile(uintptr(fd), path), "", nil
}

// nameUnnamed links a file made with O_TMPFILE beside path, open(2).
func nameUnnamed(f *os.File, path string) (string, error) {
	// The name is only taken for the moment between linkat and rename: linkat
	// cannot replace a file.
	placeholder, err := os.CreateTemp(filepath.Dir(path), tempPattern(path))
	if err != nil {
		return "", err
	}
	temp := placeholder.Name()
	_ = placeholder.Close() // empty
	if err := os.Remove(temp); err != nil {
		return "", err
	}
	err = withFD(f, func(fd int) error {
		return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		return "", &os.LinkError{Op: "link", Old: "the written file", New: temp, Err: err}
	}
	return temp, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // only read from
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}
