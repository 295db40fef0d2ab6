package kernelview

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// The classical source tells what every owner of a process can find out: identities by kcmp(2), descriptors by fdinfo,
// and what only a task itself is told by system calls that it executes for us (Remote). It needs no privilege and no BTF.
//
// Unknown to it, always: how an interrupted call goes on (Restart), reference counts, adjustments of semaphores where there
// could be any, whether a parent has been told that a child stopped or went on, and on which clock and when a timer ends
// other than by the time left.

// Remote is what the classical source needs of whoever holds the tasks in ptrace stops.
type Remote interface {
	// Do runs f, and the error of it is that of Do, where tasks can be asked by ptrace and be visited.
	Do(f func() error) error
	// Visit has a thread execute system calls, as f says; only within Do.
	Visit(tid int, f func(RemoteVisit) error) error
	// StopSignal is the signal of the job control stop that a process is in, 0 for none.
	StopSignal(pid int) int32
}

// RemoteVisit is a thread that executes system calls.
type RemoteVisit interface {
	// Base is where the room begins: memory of the thread's that is there as long as the visit.
	Base() arch.Addr
	// Room returns the address of n zero bytes in it.
	Room(n int) (arch.Addr, error)
	Read(at arch.Addr, b []byte) error
	// Run executes calls, all of them whatever their results.
	Run(calls []RemoteCall) error
}

// RemoteCall is a system call and its result, a negative errno for a failure.
type RemoteCall struct {
	Nr     int
	Args   [6]uint64
	Result int64
}

// A NeedsRemote is a View that cannot know all without a Remote; it is asked for once the tasks are held.
type NeedsRemote interface{ SetRemote(Remote) }

// RefusedError is about a thread that cannot be looked at this way.
type RefusedError struct {
	What string // a whole sentence without a full stop
	Fix  string
}

func (e *RefusedError) Error() string { return e.What }

// Hint is what the user can do about it.
func (e *RefusedError) Hint() string { return e.Fix }

// ExitCode is that of a tree that cannot be checkpointed.
func (e *RefusedError) ExitCode() int { return 3 }

// classicalView is that source.
type classicalView struct {
	a      *arch.Arch
	remote Remote
	clocks clocks
	at     sys.Instant // what SetNow has fixed
	fixed  bool

	nextID  ID
	objects map[sys.KcmpType]*objectSet
	none    *helper // a process without an I/O context and without a list of semaphore adjustments
	files   openFiles
}

func openClassical() (*classicalView, error) {
	a, err := arch.Native()
	if err != nil {
		return nil, &MissingError{What: "an architecture that this build knows", Err: err}
	}
	if _, err := sys.Kcmp(os.Getpid(), os.Getpid(), sys.KcmpVM, 0, 0); err != nil {
		return nil, &MissingError{What: "kcmp(2)", Fix: "use a kernel with CONFIG_KCMP", Err: err}
	}
	v := &classicalView{a: a, clocks: readClocks(), objects: map[sys.KcmpType]*objectSet{}}
	v.files.init()
	return v, nil
}

// Close ends the helper process.
func (v *classicalView) Close() error {
	if v.none != nil {
		v.none.close()
		v.none = nil
	}
	return nil
}

// Source names the source.
func (v *classicalView) Source() string { return "classical" }

// SetRemote implements NeedsRemote. What was learned of an earlier hold is forgotten: the tasks have run.
func (v *classicalView) SetRemote(r Remote) {
	v.remote = r
	v.objects = map[sys.KcmpType]*objectSet{}
	v.files.init()
	_ = v.Close() // a helper dies with the thread that started it, the remote's
}

// SetNow fixes the moment from which times left are counted.
func (v *classicalView) SetNow(at sys.Instant) {
	v.at, v.fixed = at, true
	v.clocks.fixed = &v.at
}

// Now is the time of a clock at that moment.
func (v *classicalView) Now(clock int32) Maybe[int64] {
	t := v.clocks.read(clock)
	if !t.Known {
		return t
	}
	switch clock {
	case unix.CLOCK_MONOTONIC:
		t.V -= v.clocks.monotonic
	case unix.CLOCK_BOOTTIME:
		t.V -= v.clocks.boottime
	}
	return t
}

// sinceFixed is how long ago, in ns, the moment of SetNow was: what a time left has lost since.
func (v *classicalView) sinceFixed() int64 {
	if !v.fixed {
		return 0
	}
	now, err := sys.Now()
	if err != nil {
		return 0
	}
	return max(now.Boottime-v.at.Boottime, 0)
}

// Areas are in /proc/PID/smaps, which the caller reads itself.
func (v *classicalView) Areas(int) (Maybe[[]Area], error) { return Maybe[[]Area]{}, nil }

// objectSet numbers the objects of one type that tasks use. kcmp orders them, so that one more is found in few calls.
type objectSet struct{ members []objectMember }

type objectMember struct {
	tid int
	id  ID
}

func (v *classicalView) newID() ID {
	v.nextID++
	return v.nextID
}

// identify returns the ID of an object that a thread uses.
func (v *classicalView) identify(typ sys.KcmpType, tid int) (Maybe[ID], error) {
	set := v.objects[typ]
	if set == nil {
		set = &objectSet{}
		v.objects[typ] = set
		if typ == sys.KcmpIO || typ == sys.KcmpSysvsem {
			if v.none == nil {
				return Maybe[ID]{}, nil // two without one compare as equal
			}
			set.members = append(set.members, objectMember{v.none.pid(), 0})
		}
	}
	low, high := 0, len(set.members)
	for low < high {
		mid := (low + high) / 2
		order, err := sys.Kcmp(tid, set.members[mid].tid, typ, 0, 0)
		if err != nil {
			return Maybe[ID]{}, fmt.Errorf("comparing thread %d with %d by kcmp: %w", tid, set.members[mid].tid, err)
		}
		switch order {
		case sys.Same:
			return Is(set.members[mid].id), nil
		case sys.Less:
			high = mid
		case sys.Greater:
			low = mid + 1
		default:
			return Maybe[ID]{}, errors.New("kcmp(2) gives no order")
		}
	}
	m := objectMember{tid, v.newID()}
	set.members = append(set.members, objectMember{})
	copy(set.members[low+1:], set.members[low:])
	set.members[low] = m
	return Is(m.id), nil
}

// startNone starts the process that has nothing, if there is none yet. It runs on the remote's thread, with which it dies.
func (v *classicalView) startNone() {
	if v.none != nil {
		return
	}
	if h, err := startHelper(); err == nil { // without one these objects are unknown
		v.none = h
	}
}

// do runs f where tasks can be asked.
func (v *classicalView) do(f func() error) error {
	if v.remote == nil {
		return errors.New("internal error: the classical source has no hold of the tasks")
	}
	return v.remote.Do(func() error {
		v.startNone()
		return f()
	})
}
