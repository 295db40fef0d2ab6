//go:build !linux

package cli

import (
	"context"
	"os"
)

// waker has nothing to do here: a signal ends the process (see catchSignals).
type waker struct{}

func newWaker(context.Context) *waker { return nil }

func (a *App) read(f *os.File, _ bool, p []byte) (int, error) { return f.Read(p) }

func (a *App) write(f *os.File, _ bool, bufs ...[]byte) (written int, err error) {
	for _, p := range bufs {
		n, err := f.Write(p)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func writeNow(f *os.File, line []byte) error {
	_, err := f.Write(line)
	return err
}

func widenPipe(*os.File) {}

func createBeside(path string) (*os.File, string, error) { return createNamed(path) }

// nameUnnamed is never called: createBeside names every file.
func nameUnnamed(*os.File, string) (string, error) { panic("cli: internal error: unnamed file") }

func syncDir(string) error { return nil }
