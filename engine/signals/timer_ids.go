package signals

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

const (
	prTimerCreateRestoreIDs    = 77 // PR_TIMER_CREATE_RESTORE_IDS, Linux 6.16
	prTimerCreateRestoreIDsGet = 2

	// mostIDs is how far the ids of timers are counted up where they cannot be chosen: a few µs each.
	mostIDs = 1 << 24
	// idsAtOnce is how many a batch counts up.
	idsAtOnce = 256
)

// choosesIDs says whether this kernel lets a process choose the ids of its timers.
var choosesIDs = sync.OnceValue(func() bool {
	_, err := unix.PrctlRetInt(prTimerCreateRestoreIDs, prTimerCreateRestoreIDsGet, 0, 0, 0)
	return err == nil
})

// needMaking says whether MakeTimers makes timers: those that Calls cannot.
func needMaking(timers []Timer) bool {
	return len(timers) > 0 && (!choosesIDs() || slices.ContainsFunc(timers, func(t Timer) bool { return t.Of != 0 }))
}

// MakeTimers makes the process's POSIX timers, not yet armed, where one of them is to be made by another thread than the first, whose CPU
// time it counts, or where only the kernel chooses their ids. thread returns a task of the process by its number, the first one for 0, and
// nil for none. Calls does the rest, and mostly all of it.
func (s *Process) MakeTimers(tr *tracee.Tracer, thread func(tid int32) *tracee.Task, newBatch func() *tracee.Batch) error {
	if !needMaking(s.Timers) {
		return nil
	}
	for _, t := range s.Timers {
		if thread(t.Of) == nil {
			return object.BadImagef("timer %d counts the CPU time of thread %d, which the process has not", t.ID, t.Of)
		}
	}
	if choosesIDs() {
		return s.makeChosen(tr, thread, newBatch)
	}
	return s.countUp(tr, thread, newBatch)
}

// makeChosen makes timers with ids of our choice, in the order in which they were made.
func (s *Process) makeChosen(tr *tracee.Tracer, thread func(tid int32) *tracee.Task, newBatch func() *tracee.Batch) error {
	turn := func(on uint64) error {
		b := newBatch()
		b.Call(b.Sys().Prctl, prTimerCreateRestoreIDs, on, 0, 0, 0).Note("prctl(PR_TIMER_CREATE_RESTORE_IDS)")
		return tr.RunOne(thread(0), b)
	}
	if err := turn(1); err != nil {
		return err
	}
	for i := range s.Timers {
		t := &s.Timers[i]
		b := newBatch()
		createTimer(b, t, b.Data(binary.NativeEndian.AppendUint32(nil, uint32(t.ID))))
		if err := tr.RunOne(thread(t.Of), b); err != nil {
			return err
		}
	}
	return turn(0) // Calls turns it on again where the process had
}

// countUp makes timers whose ids the kernel chooses: it counts up, from 0 in a new process and past what has been deleted
// (posix_timer_add in kernel/time/posix-timers.c), so timers are made and deleted until the next id is the one that is wanted.
func (s *Process) countUp(tr *tracee.Tracer, thread func(tid int32) *tracee.Task, newBatch func() *tracee.Batch) error {
	sorted := slices.Clone(s.Timers)
	slices.SortFunc(sorted, func(a, b Timer) int { return int(a.ID) - int(b.ID) })
	if last := sorted[len(sorted)-1].ID; last >= mostIDs {
		return &object.Lacking{
			What: fmt.Sprintf("making a timer with the id %d (PR_TIMER_CREATE_RESTORE_IDS, Linux 6.16; before it, ids below %d)", last, mostIDs),
			Do:   "restore on a later kernel",
		}
	}
	next := int32(0)
	for i := range sorted {
		t := &sorted[i]
		for next < t.ID {
			b := newBatch()
			id := b.Space(8)
			for range min(t.ID-next, idsAtOnce) {
				createTimer(b, &Timer{Notify: sigevNone}, id)
				b.Call(b.Sys().TimerDelete, tracee.Word{Buf: id}).Note("counting up to timer %d", t.ID)
			}
			if err := tr.RunOne(thread(0), b); err != nil {
				return err
			}
			next = int32(binary.NativeEndian.Uint32(id.Bytes())) + 1
		}
		b := newBatch()
		id := b.Space(8)
		createTimer(b, t, id)
		if err := tr.RunOne(thread(t.Of), b); err != nil {
			return err
		}
		if got := int32(binary.NativeEndian.Uint32(id.Bytes())); got != t.ID {
			return fmt.Errorf("making timer %d: the kernel gave it the id %d", t.ID, got)
		}
		next = t.ID + 1
	}
	return nil
}

// createTimer adds the call that makes a timer; id is where its id is read from or, where it cannot be chosen, written to.
func createTimer(b *tracee.Batch, t *Timer, id *tracee.Buf) {
	// struct sigevent: value, signal, notify, thread id.
	ev := binary.NativeEndian.AppendUint64(nil, t.Value)
	ev = binary.NativeEndian.AppendUint32(ev, uint32(t.Signal))
	ev = binary.NativeEndian.AppendUint32(ev, uint32(t.Notify))
	ev = binary.NativeEndian.AppendUint32(ev, uint32(t.Target))
	ev = append(ev, make([]byte, 64-len(ev))...)
	b.Call(b.Sys().TimerCreate, uint64(int64(t.Clock)), b.Data(ev), id).Note("making timer %d", t.ID)
}
