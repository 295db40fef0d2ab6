package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// Input is a stream or text being read. It is an io.Reader whose Read ends with
// the cause of the App's context when that is cancelled (on Linux; elsewhere the
// process ends).
type Input struct {
	app     *App
	file    *os.File
	info    os.FileInfo
	name    string
	count   atomic.Uint64
	regular bool
}

// Content says what a file holds, which decides what a terminal may do with it.
type Content int

const (
	Binary Content = iota // a stream: never from or to a terminal
	Text                  // words, lines, JSON
	Public                // text that everybody may read, a pid file
)

// Input opens the input of a command: a file, or standard input if the path is
// empty or "-". A terminal is refused for a binary stream.
func (a *App) Input(path string, content Content) (*Input, error) {
	in := &Input{app: a, file: os.Stdin, name: "standard input"}
	if path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("opening the input: %w", err)
		}
		in.file, in.name = f, path
	}
	info, err := in.file.Stat()
	if err != nil {
		in.close()
		return nil, fmt.Errorf("opening the input: %w", err)
	}
	in.info, in.regular = info, info.Mode().IsRegular()
	if info.IsDir() {
		in.close()
		return nil, UsageError(fmt.Sprintf("%s is a directory", in.name), "")
	}
	if content == Binary && isTerminal(in.file) {
		in.close()
		return nil, UsageError("refusing to read a stream from a terminal",
			"pipe a stream in, or name its file with -i FILE")
	}
	for _, out := range a.outputs {
		if sameFile(in.info, out.info) {
			in.close()
			return nil, errSameFile(in.name)
		}
	}
	widenPipe(in.file)
	a.inputs = append(a.inputs, in)
	return in, nil
}

// Read reads from the input.
func (in *Input) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := in.app.read(in.file, in.regular, p)
	in.count.Add(uint64(n))
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case errors.As(err, new(*SignalError)):
		return n, &ioError{err}
	}
	return n, &ioError{fmt.Errorf("reading %s: %w", in.name, bare(err))}
}

// Count is the number of bytes read so far.
func (in *Input) Count() uint64 { return in.count.Load() }

func (in *Input) close() {
	if in.file != os.Stdin {
		_ = in.file.Close() // only read from: nothing can be lost
	}
}

// ioError marks an error of the machine below a stream, so that it is not taken
// for one of the stream's content.
type ioError struct{ error }

func (e *ioError) Unwrap() error { return e.error }

// bare takes the file name away that *os.PathError holds: the messages here name
// the file as the user knows it.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// sameFile reports whether both are one regular file. A pipe or a device may
// well be both input and output.
func sameFile(a, b os.FileInfo) bool {
	return a != nil && b != nil && a.Mode().IsRegular() && os.SameFile(a, b)
}

func errSameFile(name string) error {
	return UsageError(fmt.Sprintf("%s is both input and output", name),
		"write to another file and rename it afterwards")
}
