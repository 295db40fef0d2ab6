package events_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/files/filestest"
	"crpipe/engine/object"
	"crpipe/stream"
)

// pidfdProgram has pidfds of itself and of a process outside of the tree.
func pidfdProgram() error {
	s := &setup{}
	s.put(20)(unix.PidfdOpen(os.Getpid(), unix.PIDFD_NONBLOCK))
	s.put(21)(unix.PidfdOpen(os.Getppid(), 0))
	return s.err
}

func TestPidfd(t *testing.T) {
	view := filestest.View(t)
	c := filestest.Start(t, "pidfd")
	d := restored(filestest.Dumper(t, view, c.PID))
	d.Root.ID = 77 // as in a pid namespace of its own
	err := filestest.Look(t, d)
	var refused object.Refusals
	if !errors.As(err, &refused) || len(refused) != 1 || refused.ExitCode() != object.ExitUnsupported ||
		!strings.Contains(err.Error(), fmt.Sprintf("fd 21 -> anon_inode:[pidfd]: it is a pidfd of pid %d, which is not in the tree", os.Getpid())) {
		t.Errorf("refused %v, want fd 21 alone", err)
	}
	var out strings.Builder
	if err := d.Describe(&out); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("pid=77 flags=%d\n", unix.O_RDWR|unix.O_NONBLOCK); !strings.Contains(out.String(), want) {
		t.Errorf("%s is missing in\n%s", want, out.String())
	}
}

// An image cannot have a pidfd made of a process that is not its own.
func TestHostilePidfds(t *testing.T) {
	ref := stream.Ref{ID: 1, Class: "file"}
	for _, c := range []struct {
		name       string
		pid, flags int64
		entries    []any
		want       string
	}{
		{"outside", 1, unix.O_RDWR, []any{stream.Map{{Name: "fd", Value: 3}, {Name: "file", Value: ref}}}, "a pidfd of 1, which the image does not have"},
		{"in no table", 4711, unix.O_RDWR, nil, "a pidfd of 4711 that no process has"},
		{"negative", -4711, unix.O_RDWR, nil, "impossible"},
		{"flags", 4711, unix.O_RDWR | unix.O_CREAT, nil, "impossible"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filestest.Write(t, func(w *stream.Writer) error {
				err := w.Put("file.pidfd", 1, stream.Map{{Name: "pid", Value: c.pid}, {Name: "flags", Value: c.flags}}, nil)
				return errors.Join(err, w.Put("fdtable", 2, stream.Map{{Name: "entries", Value: c.entries}}, nil))
			})
			r, err := filestest.Restore(t, image, nil)
			if err == nil {
				tables := []events.Table{{PID: 4711, State: object.All[files.TableState](r.Plan)[0].State}}
				_, err = events.PidfdRounds(r.Restorer, tables, func(id int32, _ bool) bool { return id == 4711 }, 0)
			}
			var bad *object.BadImage
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
