package events

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A pidfd (pidfd_open(2)): a descriptor of a process or, with PIDFD_THREAD, of a thread. fdinfo shows its number, -1 when
// it has ended and been waited for. Go has one for every child, and python's asyncio, which watches it by epoll.
//
// It can be opened only when the process is there, by a process in the same pid namespace. So the place in the pool is
// kept, and when all tasks exist one of those that shall have the pidfd opens it there, and the others take it from that
// one (pidfd_getfd(2)): it is one open file again. One of a process that is gone is a pidfd of a helper, which then ends:
// in the tree's pid namespace too, as signals through the pidfd of any other fail in another way. Refused by name: a pidfd
// of a process outside of the tree.
//
// Lost: the inode number, by which a process can be known again (pidfs), and, of a process that is gone, the status that
// PIDFD_GET_INFO of Linux 6.15 tells.
type pidfdState struct {
	PID    int32  `msgpack:"pid,omitempty"` // of the process or thread, in the tree's pid namespace; 0: it is gone
	Thread bool   `msgpack:"thread,omitempty"`
	Flags  uint32 `msgpack:"flags"` // as F_GETFL, without PIDFD_THREAD
}

// Target is whose descriptor it is, 0 of one that is gone.
func (s *pidfdState) Target() int32 { return s.PID }

// pidfdLink is what /proc/PID/fd shows, on pidfs and before there was one (pidfs_dname in fs/pidfs.c).
const pidfdLink = "anon_inode:[pidfd]"

func dumpPidfd(d *object.Dumper, f *object.OpenFile) (*pidfdState, error) {
	flags, err := files.Flags(f)
	if err != nil {
		return nil, err
	}
	s := &pidfdState{Thread: flags&unix.PIDFD_THREAD != 0, Flags: flags &^ unix.PIDFD_THREAD}
	if odd := s.Flags &^ keptFlags; odd != 0 {
		return nil, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	info, err := f.Fdinfo()
	if err != nil {
		return nil, err
	}
	if info.Pidfd == nil {
		return nil, errors.New("fdinfo does not say of which process it is")
	}
	switch pid := info.Pidfd.PID; {
	case pid == 0:
		return nil, object.Unsupportedf("it is a pidfd of a process of another pid namespace, which is not in the tree")
	case pid > 0:
		if s.PID = numberIn(d, pid, s.Thread); s.PID == 0 {
			return nil, &object.Unsupported{
				What: fmt.Sprintf("it is a pidfd of pid %d, which is not in the tree", pid),
				Do:   "dump that process too, or close the descriptor before the dump",
			}
		}
	}
	return s, nil
}

// numberIn returns the number by which the tree knows a process, or thread, that the caller knows as pid; 0 when it is not
// in the tree.
func numberIn(d *object.Dumper, pid int, thread bool) int32 {
	for _, p := range d.Processes {
		if p.PID == pid {
			return int32(p.ID)
		}
		if !thread {
			continue
		}
		for _, t := range p.Threads {
			if t.TID == pid {
				return int32(t.ID)
			}
		}
	}
	return 0
}

// latePidfd is a pidfd whose place in the pool is taken by something else until its process exists.
type latePidfd struct {
	state   *pidfdState
	place   int // its number in the pool
	watches lateWatches
	opener  *files.TableState
}

func restorePidfd(r *object.Restorer, ref stream.Ref, s *pidfdState) (int, error) {
	if odd := s.Flags &^ keptFlags; odd != 0 || s.Flags&unix.O_ACCMODE != unix.O_RDWR || s.PID < 0 {
		return -1, object.BadImagef("a pidfd of %d with flags %#o is impossible", s.PID, s.Flags)
	}
	r.Remember(ref, &latePidfd{state: s})
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	return fd, nil
}

// openCalls appends the calls that open the pidfd at its place. gone is the number of the helper.
func (l *latePidfd) openCalls(b *tracee.Batch, gone int32) {
	pid := l.state.PID
	if pid == 0 {
		pid = gone
	}
	n, flags := b.Sys(), int(l.state.Flags)&unix.PIDFD_NONBLOCK
	if l.state.Thread {
		flags |= unix.PIDFD_THREAD
	}
	fd := b.Call(n.PidfdOpen, pid, flags).Note("the pidfd of %d", l.state.PID)
	if l.state.Flags&^(unix.O_ACCMODE|unix.PIDFD_NONBLOCK) != 0 {
		b.Call(n.Fcntl, fd, unix.F_SETFL, l.state.Flags&^unix.O_ACCMODE).Note("the pidfd of %d", l.state.PID)
	}
	l.settle(b, fd)
}

// settle appends the calls that move what the call fd has opened to its place.
func (l *latePidfd) settle(b *tracee.Batch, fd *tracee.Call) {
	b.Call(b.Sys().Dup3, fd, l.place, 0).Note("the pidfd of %d", l.state.PID) // as inherited as the rest of the pool
	b.Call(b.Sys().Close, fd)
}

// watchLate takes an item of the epoll instance epfd whose file does not exist yet. It returns false for any other.
func watchLate(r *object.Restorer, epfd int, w watch) bool {
	if l, err := object.Recall[latePidfd](r, w.File); err == nil {
		l.watches.add(epfd, w)
		return true
	}
	if u, err := object.Recall[URing](r, w.File); err == nil {
		u.watches.add(epfd, w)
		return true
	}
	return false
}

// Table is a descriptor table, and the process that makes it.
type Table struct {
	PID   int32 // in the pid namespace of the tree
	State *files.TableState
}

// PidfdRound appends the calls that the process which makes a table has to do in one round.
type PidfdRound func(t *files.TableState, b *tracee.Batch) error

// GonePidfds says whether the image has a pidfd of a process that is gone, for which PidfdRounds needs a helper.
func GonePidfds(plan *object.Plan) bool {
	for _, f := range object.All[pidfdState](plan) {
		if f.State.PID == 0 {
			return true
		}
	}
	return false
}

// PidfdRounds returns what makes the pidfds, and the epoll items that watch them: rounds of calls, each to be finished in
// all processes before the next, when all tasks of the image exist and have the pool and nothing else open. exists says
// whether the image has a process, or thread, of a number; a pidfd of any other is refused. gone is the number, in the pid
// namespace of the tree, of a helper that ends and is waited for behind the first round.
func PidfdRounds(r *object.Restorer, tables []Table, exists func(id int32, thread bool) bool, gone int32) ([]PidfdRound, error) {
	var all []*latePidfd
	holders := map[*files.TableState][]*latePidfd{}
	pids := map[*files.TableState]int32{}
	for _, f := range object.All[pidfdState](r.Plan) {
		if f.State.PID != 0 && !exists(f.State.PID, f.State.Thread) {
			return nil, object.BadImagef("a pidfd of %d, which the image does not have", f.State.PID)
		}
		l, err := object.Recall[latePidfd](r, f.Ref)
		if err != nil {
			return nil, err
		}
		if l.place, err = r.File(f.Ref); err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		return nil, nil
	}
	for _, t := range tables {
		pids[t.State] = t.PID
		seen := map[*latePidfd]bool{}
		for _, e := range t.State.Entries {
			l, err := object.Recall[latePidfd](r, e.File)
			if err != nil || seen[l] {
				continue
			}
			seen[l] = true
			holders[t.State] = append(holders[t.State], l)
			if l.opener == nil {
				l.opener = t.State
			}
		}
	}
	for _, l := range all {
		if l.opener == nil {
			return nil, object.BadImagef("a pidfd of %d that no process has", l.state.PID)
		}
	}
	each := func(do func(l *latePidfd, mine bool, b *tracee.Batch)) PidfdRound {
		return func(t *files.TableState, b *tracee.Batch) error {
			for _, l := range holders[t] {
				do(l, l.opener == t, b)
			}
			return nil
		}
	}
	return []PidfdRound{
		each(func(l *latePidfd, mine bool, b *tracee.Batch) {
			if mine {
				l.openCalls(b, gone)
			}
		}),
		each(func(l *latePidfd, mine bool, b *tracee.Batch) {
			if mine {
				l.watches.calls(b)
				return
			}
			n := b.Sys()
			opener := b.Call(n.PidfdOpen, pids[l.opener], 0).Note("who has opened the pidfd of %d", l.state.PID)
			l.settle(b, b.Call(n.PidfdGetfd, opener, l.place, 0).Note("the pidfd of %d", l.state.PID))
			b.Call(n.Close, opener)
		}),
	}, nil
}

// PidfdKind is the kind of pidfds.
var PidfdKind = object.NewFileKind("file.pidfd", claims(kernelview.KindPidfd, pidfdLink), dumpPidfd, restorePidfd)
