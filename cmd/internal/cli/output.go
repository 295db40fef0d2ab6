package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// Output is a stream or text being written. A file given by -o is written
// beside its name and gets the name when it is complete; a failing run leaves
// neither it nor a part of it.
type Output struct {
	app     *App
	file    *os.File
	info    os.FileInfo // of the file that stands under the name now, or of standard output
	name    string      // as the user knows it
	content Content
	count   atomic.Uint64
	regular bool

	path     string // the name the file gets in the end; "" if it is written in place
	temp     string // its name until then; "" if it has none
	complete bool
}

// Output opens the output of a command: a file, or standard output if the path
// is empty or "-". A terminal is refused for a binary stream, unless the path is
// "-", by which the user insists. A file that is no regular one (a FIFO, a
// device) is written in place.
func (a *App) Output(path string, content Content) (*Output, error) {
	o := &Output{app: a, file: os.Stdout, name: "standard output", content: content}
	var err error
	if path == "" || path == "-" {
		o.info, err = os.Stdout.Stat()
		if err == nil && content == Binary && path == "" && isTerminal(os.Stdout) {
			return nil, UsageError("refusing to write a stream to a terminal",
				"pipe it on, name a file with -o FILE, or insist with -o -")
		}
	} else {
		o.name = path
		err = o.create(path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the output: %w", err)
	}
	for _, in := range a.inputs {
		if sameFile(in.info, o.info) {
			o.abort()
			return nil, errSameFile(o.name)
		}
	}
	o.regular = o.path != "" || o.info.Mode().IsRegular()
	widenPipe(o.file)
	a.outputs = append(a.outputs, o)
	return o, nil
}

// StdoutIsTerminal reports whether standard output is a terminal.
func StdoutIsTerminal() bool { return isTerminal(os.Stdout) }

// create opens the file that will be known as path.
func (o *Output) create(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return &fs.PathError{Op: "open", Path: path, Err: syscall.EISDIR}
	case err == nil && !info.Mode().IsRegular():
		o.info = info
		o.file, err = os.OpenFile(path, os.O_WRONLY, 0)
		return err
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	o.info = info // nil when there is none yet
	o.path = followLinks(path)
	if info != nil {
		// A name under /proc/PID/fd can lead to a file that has no name of its
		// own any more; then there is nothing to rename to.
		target, err := os.Lstat(o.path)
		if err != nil || !os.SameFile(info, target) {
			o.path = ""
			o.file, err = os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			return err
		}
	}
	// An image is the memory of processes: only for its owner to read, unless a
	// file that it replaces had another mode.
	mode := fs.FileMode(0o600)
	if o.content == Public {
		mode = 0o644
	}
	if info != nil {
		mode = info.Mode().Perm()
	}
	o.file, o.temp, err = createBeside(o.path)
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: bare(err)} // not the temporary name
	}
	if err := o.file.Chmod(mode); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		o.abort()
		return err
	}
	return nil
}

// followLinks resolves the symbolic links that the last part of a path may be,
// so that -o replaces the file and not the link.
func followLinks(path string) string {
	for range 40 { // path_resolution(7): the kernel's limit
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return path
}

// createNamed makes a file under a temporary name in the directory of path.
func createNamed(path string) (*os.File, string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPattern(path))
	if err != nil {
		return nil, "", err
	}
	return f, f.Name(), nil
}

func tempPattern(path string) string { return "." + filepath.Base(path) + ".part-*" }

// Write writes to the output. When the context is cancelled it ends with the
// cause, even where nobody reads the other end of a full pipe (on Linux;
// elsewhere the process ends).
func (o *Output) Write(p []byte) (int, error) {
	if o.complete {
		return 0, &ioError{fmt.Errorf("writing %s: %w", o.name, os.ErrClosed)}
	}
	n, err := o.app.write(o.file, o.regular, p)
	o.count.Add(uint64(n))
	if err != nil {
		err = o.failed(err)
	}
	return n, err
}

// WriteVector writes all of several buffers in one call where that is possible.
// Package stream calls it for a record's head and its payload.
func (o *Output) WriteVector(bufs ...[]byte) error {
	if o.complete {
		return &ioError{fmt.Errorf("writing %s: %w", o.name, os.ErrClosed)}
	}
	n, err := o.app.write(o.file, o.regular, bufs...)
	o.count.Add(uint64(n))
	if err != nil {
		err = o.failed(err)
	}
	return err
}

func (o *Output) failed(err error) error {
	if errors.As(err, new(*SignalError)) {
		return &ioError{err}
	}
	if errors.Is(err, syscall.EPIPE) && o.content != Binary {
		return errQuiet // "cr-filter list | head": the reader has had enough
	}
	wrapped := error(&ioError{fmt.Errorf("writing %s: %w", o.name, bare(err))})
	if errors.Is(err, syscall.EPIPE) {
		wrapped = WithHint(wrapped, "the program that reads the stream has ended; its own message says why")
	}
	return wrapped
}

// Count is the number of bytes written so far.
func (o *Output) Count() uint64 { return o.count.Load() }

// Commit makes what was written last: data of a regular file is on the disk, and
// a file given by -o has its name. Call it before doing what cannot be undone,
// such as ending the processes that were dumped. Nothing can be written after
// it.
func (o *Output) Commit() error {
	if o.complete {
		return nil
	}
	if err := o.Sync(); err != nil {
		return err
	}
	if o.path != "" {
		if err := o.rename(); err != nil {
			return &ioError{fmt.Errorf("completing %s: %w", o.name, bare(err))}
		}
	}
	o.complete = true
	if err := o.file.Close(); err != nil {
		return o.failed(err)
	}
	return nil
}

// Sync makes sure that what has been written will be there: a disk that turns out to be full says so here at the latest.
func (o *Output) Sync() error {
	if !o.regular {
		return nil
	}
	if err := o.file.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return o.failed(err)
	}
	return nil
}

// rename gives the file its name and makes the directory entry last.
func (o *Output) rename() error {
	if o.temp == "" {
		temp, err := nameUnnamed(o.file, o.path)
		if err != nil {
			return err
		}
		o.temp = temp
	}
	if err := os.Rename(o.temp, o.path); err != nil {
		return err
	}
	o.temp = ""
	return syncDir(filepath.Dir(o.path))
}

// finish completes the output of a successful run. Unlike Commit it does not
// wait for the disk where the user only redirected standard output.
func (o *Output) finish() error {
	if o.complete {
		return nil
	}
	if o.path != "" {
		return o.Commit()
	}
	o.complete = true
	if err := o.file.Close(); err != nil { // some file systems report a lost write here
		return o.failed(err)
	}
	return nil
}

// abort throws away what is not complete.
func (o *Output) abort() {
	if o.complete || o.path == "" {
		return
	}
	o.complete = true
	_ = o.file.Close() // its content is being thrown away
	if o.temp != "" {
		_ = os.Remove(o.temp) // the failure that led here is what the user hears of
	}
}
