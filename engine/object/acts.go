package object

import (
	"crpipe/engine/internal/tracee"
)

// Actor is who makes calls: the kernel notes in some objects, for ever, which process made them and with which credentials
// (SO_PEERCRED of unix(7)).
type Actor struct {
	PID      int32 // in the pid namespace of the tree; 0: a process outside of that
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Same says whether two are the same.
func (a *Actor) Same(b *Actor) bool {
	if a.PID != b.PID || a.UID != b.UID || a.GID != b.GID || len(a.Groups) != len(b.Groups) {
		return false
	}
	for i := range a.Groups {
		if a.Groups[i] != b.Groups[i] {
			return false
		}
	}
	return true
}

// Act is something that only an Actor can make: calls that are made, before anything is made that InRoot is asked for, by a task
// with this number and these credentials that has the pool, and nothing else, open, and whose root and working directories it may
// change. Makes are the numbers in the pool where they put open files; what was there before is only a place.
type Act struct {
	By    Actor
	Calls func(b *tracee.Batch) error
	Makes []int
}

// Act asks for an Act. They are done in the order of the asking, but those of a process outside of the tree's pid namespace come
// first.
func (r *Restorer) Act(a Act) { r.acts = append(r.acts, a) }

// Acts returns what Act collected.
func (r *Restorer) Acts() []Act { return r.acts }

// EndedProcess is one that the image does not have, at least not by that number.
type EndedProcess struct {
	ID    int32  // in the pid namespace of the tree; 0: outside of that
	Began uint64 // clock ticks since boot, of one that lived outside of the tree, and may still live; else 0
}

// NeedEnded asks for the number of a process to be one that the kernel knows while contents arrive: only of such it lets be said that
// they have sent a message (SCM_CREDENTIALS of unix(7)).
func (r *Restorer) NeedEnded(p EndedProcess) { r.ended = append(r.ended, p) }

// NeededEnded returns what NeedEnded collected.
func (r *Restorer) NeededEnded() []EndedProcess { return r.ended }

// AfterContents asks for f to be called when all contents have arrived and the end of the image has been verified; no task runs
// yet, and all have the pool open.
func (r *Restorer) AfterContents(f func() error) { r.afterContents = append(r.afterContents, f) }

// Finish calls what AfterContents collected.
func (r *Restorer) Finish() error {
	for _, f := range r.afterContents {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// Undo asks for f to be called, when the pool is closed or later, if the restore fails.
func (r *Restorer) Undo(f func()) { r.undo = append(r.undo, f) }

// Undone calls what Undo collected.
func (r *Restorer) Undone() {
	for _, f := range r.undo {
		f()
	}
	r.undo = nil
}
