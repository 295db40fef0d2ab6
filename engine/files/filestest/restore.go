package filestest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/terminals"
	"crpipe/stream"
)

// poolBase is above the descriptors that a test binary has of its own.
const poolBase = 600

// Restored is an image whose open files have been made.
type Restored struct {
	*object.Restorer
	reader *stream.Reader
	first  *stream.Record
}

// Restore makes the open files of an image. with may set the Restorer up.
func Restore(t testing.TB, image []byte, with func(r *object.Restorer)) (*Restored, error) {
	t.Helper()
	reader, err := stream.NewReader(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	plan, first, err := object.ReadPlan(reader, Kinds())
	if err != nil {
		return nil, err
	}
	a, err := arch.Native()
	if err != nil {
		t.Skip(err)
	}
	r := &object.Restorer{Plan: plan, Arch: a, PoolBase: max(files.MaxFD(plan)+1, poolBase),
		Warn: func(format string, args ...any) { t.Logf("warning: "+format, args...) }}
	if with != nil {
		with(r)
	}
	t.Cleanup(r.Close)
	return &Restored{r, reader, first}, r.MakeObjects()
}

// Fill hands all contents of the image to the objects.
func (r *Restored) Fill() error {
	for rec := r.first; rec != nil; {
		var d object.Data
		if err := rec.Decode(&d); err != nil {
			return err
		}
		data, err := rec.Data()
		if err != nil {
			return err
		}
		if err := r.Content(&d, data); err != nil {
			return err
		}
		if rec, err = r.reader.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}

// arenaBase is free in the stub.
const arenaBase = arch.Addr(0x10000000000)

// Task starts a task that has nothing but the pool open, does what was asked of the root task, fills in the contents,
// and gives it the root, working directory and descriptors of the image's first table. Then the pool is closed here:
// what the task holds, only it holds. It is in ptrace-stop and ends with the test; its pid is returned.
func (r *Restored) Task(t testing.TB) int {
	t.Helper()
	k, err := r.task(t)
	if err != nil {
		t.Fatal(err)
	}
	return k.Tid
}

func (r *Restored) task(t testing.TB) (_ *tracee.Task, err error) {
	tracer := tracee.NewTracer()
	defer func() {
		if err != nil { // as a restore undoes what it has made
			err = errors.Join(err, tracer.KillAll())
			r.Close()
		}
	}()
	t.Cleanup(tracer.Close) // what it traces dies with it
	arena, err := tracee.NewArena(r.Arch, 4, 1<<20)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := arena.Close(); err != nil {
			t.Error(err)
		}
	})
	task, err := tracer.Spawn(arena, arenaBase)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = tracer.KillAll() }) // and the tracer's end would do it too
	b := arena.NewBatch()
	for _, f := range r.RootCalls() {
		if err := f(b); err != nil {
			return nil, err
		}
	}
	if b.Len() > 0 {
		if err := tracer.RunOne(task, b); err != nil {
			return nil, err
		}
	}
	if err := r.Fill(); err != nil {
		return nil, err
	}
	if err := terminals.Finish(r.Restorer); err != nil {
		return nil, err
	}
	taken := func() error { return nil }
	run := func(calls func(b *tracee.Batch) error) error {
		b := arena.NewBatch()
		if err := calls(b); err != nil {
			return err
		}
		if b.Len() > 0 {
			if err := tracer.RunOne(task, b); err != nil {
				return err
			}
		}
		return taken()
	}
	if all := object.All[files.FSState](r.Plan); len(all) > 0 {
		if err := run(func(b *tracee.Batch) error { return files.FSCalls(r.Restorer, b, all[0].State) }); err != nil {
			return nil, err
		}
	}
	if all := object.All[files.TableState](r.Plan); len(all) > 0 {
		t := all[0].State
		for _, round := range events.SignalfdRounds(r.Restorer) {
			if err := run(func(b *tracee.Batch) error { return round(t, b) }); err != nil {
				return nil, err
			}
		}
		for _, calls := range []func(b *tracee.Batch) error{
			func(b *tracee.Batch) (err error) { taken, err = files.PoolLockCalls(r.Restorer, b, t); return err },
			func(b *tracee.Batch) error { return files.TableCalls(r.Restorer, b, t) },
			func(b *tracee.Batch) (err error) { taken, err = files.TableLockCalls(r.Restorer, b, t); return err },
		} {
			if err := run(calls); err != nil {
				return nil, err
			}
		}
	}
	if err := events.StartWatches(r.Restorer); err != nil {
		return nil, err
	}
	r.Close()
	return task, nil
}

// TryTask is Task for a test that expects an error.
func (r *Restored) TryTask(t testing.TB) error {
	t.Helper()
	_, err := r.task(t)
	return err
}

// Dup3To puts fd at the number to, without close-on-exec, for programs that want their files at known numbers.
func Dup3To(fd, to int) error {
	if err := unix.Dup3(fd, to, 0); err != nil {
		return fmt.Errorf("duplicating descriptor %d to %d: %w", fd, to, err)
	}
	return unix.Close(fd)
}

// NewBatch returns an empty batch, for no task to run.
func (r *Restored) NewBatch(t testing.TB) *tracee.Batch {
	t.Helper()
	arena, err := tracee.NewArena(r.Arch, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = arena.Close() }) // memory of ours only
	return arena.NewBatch()
}
