package tracee

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// BenchmarkRoundTrip is one batch of that many getppid.
func BenchmarkRoundTrip(b *testing.B) {
	for _, pinned := range []bool{true, false} {
		for _, n := range []int{1, 80, 400} {
			b.Run(fmt.Sprintf("pinned=%v/calls=%d", pinned, n), func(b *testing.B) {
				a := native(b)
				ar, err := NewArena(a, 1, 0)
				if err != nil {
					b.Fatal(err)
				}
				defer ar.Close()
				tr := NewTracer()
				defer tr.Close()
				if pinned {
					if err := tr.Pin(); err != nil {
						b.Fatal(err)
					}
				}
				k, err := tr.Spawn(ar, testBase)
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					batch := ar.NewBatch()
					for range n {
						batch.Call(a.Sys.Getppid)
					}
					if err := tr.RunOne(k, batch); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkSpawn is starting the first task and killing it.
func BenchmarkSpawn(b *testing.B) {
	ar, err := NewArena(native(b), 1, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer ar.Close()
	tr := NewTracer()
	defer tr.Close()
	for b.Loop() {
		if _, err := tr.Spawn(ar, testBase); err != nil {
			b.Fatal(err)
		}
		if err := tr.KillAll(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkThreads makes 1000 threads in one batch, runs a batch of 6 calls in each, sets their
// registers and kills them.
func BenchmarkThreads(b *testing.B) {
	const n = 1000
	a := native(b)
	ar, err := NewArena(a, n+1, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer ar.Close()
	tr := NewTracer()
	defer tr.Close()
	if err := tr.Pin(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		k, err := tr.Spawn(ar, testBase)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		batch := ar.NewBatch()
		for range n {
			batch.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
		}
		if err := tr.RunOne(k, batch); err != nil {
			b.Fatal(err)
		}
		tasks := make([]*Task, n)
		batches := make([]*Batch, n)
		for i, c := range batch.calls {
			tasks[i], batches[i] = c.Child(), ar.NewBatch()
			for range 6 {
				batches[i].Call(a.Sys.Getppid)
			}
		}
		if err := tr.Run(tasks, batches); err != nil {
			b.Fatal(err)
		}
		err = tr.Do(func() error {
			for _, k := range tasks {
				regs, err := k.regs()
				if err != nil {
					return err
				}
				if err := tr.SetFinal(k, []RegsetData{{arch.NTPRStatus, regs}}, 0); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := tr.KillAll(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkStop stops a thousand sleeping threads and lets them go.
func BenchmarkStop(b *testing.B) {
	const n = 1000
	a := native(b)
	ar, err := NewArena(a, n+1, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer ar.Close()
	// The threads of a stub that has been let go, with the arena still there: they pause in its routine.
	maker := NewTracer()
	defer maker.Close()
	k, err := maker.Spawn(ar, testBase)
	if err != nil {
		b.Fatal(err)
	}
	batch := ar.NewBatch()
	for range n {
		batch.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
	}
	if err := maker.RunOne(k, batch); err != nil {
		b.Fatal(err)
	}
	tasks := []*Task{k}
	for _, c := range batch.calls {
		tasks = append(tasks, c.Child())
	}
	err = maker.Do(func() error {
		for _, k := range tasks {
			regs, err := k.regs()
			if err != nil {
				return err
			}
			a.SetCall(regs, k.syscallAddr(), a.Sys.Pause, [6]uint64{})
			if err := maker.SetFinal(k, []RegsetData{{arch.NTPRStatus, regs}}, ^uint64(0)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := maker.Commit(tasks, nil); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = unix.Kill(k.Pid, unix.SIGKILL) // > 0: Spawn gave it
		_, _, _ = sys.Wait(k.Pid, 0)
	}()
	tr := NewTracer()
	defer tr.Close()
	for b.Loop() {
		stops, err := tr.StopTree(func() ([]int, error) { return procfs.Threads(k.Pid) }, stopTimeout)
		if err != nil || len(stops) != n+1 {
			b.Fatalf("%d stops, %v", len(stops), err)
		}
		if err := tr.Detach(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/(n+1), "µs/thread")
}
