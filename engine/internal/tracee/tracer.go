package tracee

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// ErrClosed is returned by calls on a Tracer after Close.
var ErrClosed = errors.New("tracer is closed")

// A Tracer is the thread that traces.
type Tracer struct {
	tid  int
	work chan func()
	gone chan struct{} // closed when the thread's goroutine has returned

	// All that follows belongs to the thread.
	seized    map[int]*seized
	tasks     map[int]*Task
	events    map[int]sys.WaitStatus // stops of tasks, met while another was waited for
	strays    map[int]sys.WaitStatus // first stops of tasks that nobody has asked for yet
	affinity  []byte                 // before Pin
	suspended bool                   // seccomp filters are, see SuspendSeccomp
	xstate    []byte                 // any task's NT_X86_XSTATE, see SetFinal
}

// NewTracer starts the thread.
func NewTracer() *Tracer {
	t := &Tracer{
		work:   make(chan func()),
		gone:   make(chan struct{}),
		seized: map[int]*seized{},
		tasks:  map[int]*Task{},
		events: map[int]sys.WaitStatus{},
		strays: map[int]sys.WaitStatus{},
	}
	_ = sys.QuietStops() // else it is only slower
	started := make(chan int)
	go t.loop(started)
	t.tid = <-started
	return t
}

// loop never unlocks its thread, which therefore ends with it: to the kernel that is the tracer's death.
func (t *Tracer) loop(started chan<- int) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The runtime parks the main thread instead of ending it. While this goroutine holds it
		// another one gets another thread.
		again := make(chan int)
		go t.loop(again)
		tid := <-again
		runtime.UnlockOSThread()
		started <- tid
		return
	}
	defer close(t.gone)
	started <- unix.Gettid()
	for f := range t.work {
		f()
	}
}

// Do runs f on the tracer's thread and returns its error. Calls to Do from within f are allowed,
// from the same goroutine.
func (t *Tracer) Do(f func() error) error {
	// A thread that a goroutine has locked runs nothing but that goroutine: if this is the tracer's
	// thread, f is already inside Do.
	if unix.Gettid() == t.tid {
		return f()
	}
	done := make(chan error, 1)
	select {
	case t.work <- func() { done <- f() }:
		return <-done
	case <-t.gone:
		return ErrClosed
	}
}

// Tid is the thread id of the tracer, what /proc/TID/status of a tracee shows as TracerPid.
func (t *Tracer) Tid() int { return t.tid }

// Close ends the thread and waits for that. The kernel kills the tasks that Spawn and Clone made
// and that have not been committed, and detaches from all others, stopped or not. It must not be
// called from within Do, nor twice.
func (t *Tracer) Close() {
	close(t.work)
	<-t.gone
	// The goroutine is gone, its thread is about to be. (Signal 0 only asks.)
	pause := 10 * time.Microsecond
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); pause = min(2*pause, time.Millisecond) {
		if err := sys.Tgkill(os.Getpid(), t.tid, 0); errors.Is(err, unix.ESRCH) {
			return
		}
		time.Sleep(pause)
	}
}

// Pin binds the tracer's thread to the processor that it runs on. Tasks that are made from then on
// inherit that, so that a round trip need not cross processors (15 µs instead of 130); they need
// their own affinity set at the end. Unpin undoes it for the thread.
func (t *Tracer) Pin() error {
	return t.Do(func() error {
		if t.affinity != nil {
			return nil
		}
		old, err := sys.SchedGetaffinity(t.tid)
		if err != nil {
			return fmt.Errorf("reading the tracer's affinity: %w", err)
		}
		cpu, err := sys.Getcpu()
		if err != nil {
			return fmt.Errorf("asking for the current processor: %w", err)
		}
		if err := sys.SchedSetaffinity(t.tid, cpuMask(cpu, len(old))); err != nil {
			return fmt.Errorf("binding the tracer to processor %d: %w", cpu, err)
		}
		t.affinity = old
		return nil
	})
}

// Unpin gives the tracer's thread back the affinity that it had before Pin.
func (t *Tracer) Unpin() error {
	return t.Do(func() error {
		if t.affinity == nil {
			return nil
		}
		if err := sys.SchedSetaffinity(t.tid, t.affinity); err != nil {
			return fmt.Errorf("restoring the tracer's affinity: %w", err)
		}
		t.affinity = nil
		return nil
	})
}

// cpuMask is a mask for sched_setaffinity(2) with one processor: an array of longs in this
// machine's byte order.
func cpuMask(cpu, size int) []byte {
	const wordBytes = 8
	size = max(size, (cpu/64+1)*wordBytes)
	m := make([]byte, size)
	word := make([]byte, wordBytes)
	hostOrder.PutUint64(word, 1<<(cpu%64))
	copy(m[cpu/64*wordBytes:], word)
	return m
}
