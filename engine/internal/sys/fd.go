package sys

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD owns one file descriptor of this process. The zero value and nil own
// nothing. An FD is not safe for concurrent Close and use; its owner decides
// when nobody uses it any more. There is no finalizer on purpose: one that
// ran while Int's result was in use would hit a foreign descriptor.
type FD struct {
	raw int
	own bool
}

var openFDs atomic.Int64

// OpenFDs returns how many descriptors FDs own at this moment. Tests compare
// it before and after to find leaks.
func OpenFDs() int64 { return openFDs.Load() }

// NewFD takes ownership of raw. A negative number is a caller's bug: it is
// what a failed call returns.
func NewFD(raw int) *FD {
	if raw < 0 {
		panic("sys: internal error: owning a negative descriptor")
	}
	openFDs.Add(1)
	return &FD{raw: raw, own: true}
}

// Int returns the descriptor's number, or -1 when nothing is owned (closed,
// disowned, nil): every system call refuses that with EBADF.
func (f *FD) Int() int {
	if f == nil || !f.own {
		return -1
	}
	return f.raw
}

// Valid reports whether a descriptor is owned.
func (f *FD) Valid() bool { return f != nil && f.own }

// Disown gives the descriptor to the caller, who has to close it.
func (f *FD) Disown() int {
	raw := f.Int()
	if raw >= 0 {
		f.own = false
		openFDs.Add(-1)
	}
	return raw
}

// Close closes the descriptor. Closing again does nothing, so a deferred
// Close beside an explicit one is harmless. EINTR is not retried: Linux has
// released the number by then (close(2), "Dealing with error returns").
func (f *FD) Close() error {
	raw := f.Disown()
	if raw < 0 {
		return nil
	}
	if err := unix.Close(raw); err != nil && err != unix.EINTR { //nolint:errorlint // a bare errno
		return err
	}
	return nil
}

// Dup returns a second descriptor of the same open file description with
// close-on-exec set (fcntl(2) F_DUPFD_CLOEXEC).
func (f *FD) Dup() (*FD, error) {
	raw, err := unix.FcntlInt(uintptr(f.Int()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return NewFD(raw), nil
}

// File turns the descriptor into an *os.File, which owns it from then on.
func (f *FD) File(name string) *os.File {
	raw := f.Disown()
	if raw < 0 {
		return nil
	}
	return os.NewFile(uintptr(raw), name)
}

// Open is open(2) with O_CLOEXEC added.
func Open(path string, flags int, mode uint32) (*FD, error) {
	return OpenAt(unix.AT_FDCWD, path, flags, mode)
}

// OpenAt is openat(2) with O_CLOEXEC added; dir is a descriptor's number or
// unix.AT_FDCWD.
func OpenAt(dir int, path string, flags int, mode uint32) (*FD, error) {
	var raw int
	err := retry(func() (err error) {
		raw, err = unix.Openat(dir, path, flags|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return NewFD(raw), nil
}
