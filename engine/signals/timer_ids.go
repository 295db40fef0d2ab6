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

// MakeTimers makes the process's POSIX timers, not yet armed, where only the kernel chooses their ids: it counts up, from 0 in
// a new process and past what has been deleted (posix_timer_add in kernel/time/posix-timers.c), so timers are made and deleted
// until the next id is the one that is wanted. Calls does the rest; where ids can be chosen, all of it.
func (s *Process) MakeTimers(tr *tracee.Tracer, k *tracee.Task, newBatch func() *tracee.Batch) error {
	if len(s.Timers) == 0 || choosesIDs() {
		return nil
	}
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
			if err := tr.RunOne(k, b); err != nil {
				return err
			}
			next = int32(binary.NativeEndian.Uint32(id.Bytes())) + 1
		}
		b := newBatch()
		id := b.Space(8)
		createTimer(b, t, id)
		if err := tr.RunOne(k, b); err != nil {
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
