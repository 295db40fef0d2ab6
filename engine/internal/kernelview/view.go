// Package kernelview tells what only the kernel knows of a stopped task: which
// objects tasks share, signal actions, timers with the time that is left, the
// way an interrupted system call will go on, prctl state, what is behind each
// descriptor and who else holds it.
//
// There is one interface, View, and each of its sources fills what it can. A
// value that a source cannot know is explicitly unknown (a Maybe whose Known is
// false), never a guess, so that a caller can ask another source or refuse.
//
// The BPF source reads the kernel's own memory and runs not one instruction in
// the tasks it looks at. It needs CAP_BPF, CAP_PERFMON and CAP_SYSLOG (root has
// them), a kernel with BTF, and no lockdown=confidentiality. The classical one
// asks from outside, and has the tasks execute system calls (Remote).
//
// Everything is a snapshot: the tasks must be stopped (frozen, job-stopped or
// in ptrace-stop) while a View looks at them and must not have run in between,
// or parts of an answer may not fit each other. A task that ends meanwhile
// gives an error or unknown values, never memory of something else presented
// as its own as far as the kernel's cross links allow to tell.
//
// Kernel addresses never leave this package: not in results, errors or logs.
package kernelview

import (
	"errors"
	"fmt"

	"crpipe/engine/internal/sys"
)

// ID is the identity of one kernel object within one View: equal IDs are the
// same object, different IDs are different objects. 0 is "there is none" (a
// zombie has no address space). IDs are small numbers given out in the order
// of first sight; they mean nothing outside their View and, like the kernel's
// own memory, may be reused once the object is gone.
type ID uint64

// Maybe is a value that a source may be unable to know. The zero value is
// unknown.
type Maybe[T any] struct {
	V     T
	Known bool
}

// Is returns a known value.
func Is[T any](v T) Maybe[T] { return Maybe[T]{V: v, Known: true} }

// Get returns the value and whether it is known.
func (m Maybe[T]) Get() (T, bool) { return m.V, m.Known }

// View is a look into the kernel. Its methods must not be called at the same
// time from several goroutines.
//
// tids are numbers of threads in the pid namespace of the caller. The error of
// a thread that does not exist (any more) matches unix.ESRCH with errors.Is.
// An error of a method is about the whole call: what it could not read of one
// thread alone is unknown in that thread's answer.
type View interface {
	// Close frees what the View holds. The IDs it gave out are void then.
	Close() error

	// SetNow fixes the moment from which all times left are counted, the one at
	// which the tasks were stopped: two looks at a tree that stands still then
	// say the same. Without it they are counted from the moment of each look.
	SetNow(sys.Instant)

	// Now is the time, in ns, of a clock that is not one of CPU time, at the
	// moment of SetNow, in the initial time namespace as Expires values are.
	Now(clock int32) Maybe[int64]

	// Source names the source: "bpf" or "classical".
	Source() string

	// Threads tells what the kernel knows of each given thread, in the order
	// asked for.
	Threads(tids []int) ([]Thread, error)

	// Processes tells what belongs to the process (signal actions, timers,
	// limits) and to the address space of each given thread, in the order asked
	// for. Pass a live thread where the leader is a zombie: a zombie has no
	// address space.
	Processes(tids []int) ([]Process, error)

	// Areas tells the mappings of the address space of a thread in ascending order
	// (none: it has no address space), at a fraction of what reading smaps costs
	// the kernel. What is no mapping of its own is missing: the page of
	// "[vsyscall]" that maps shows for everybody.
	Areas(tid int) (Maybe[[]Area], error)

	// Files tells the descriptor table of each given thread, in the order asked
	// for. One open file is one *File however many descriptors in however many
	// of the tables lead to it. The content calls below accept the files of the
	// last Files call and of those before it, while they are open.
	Files(tids []int) ([]FileTable, error)

	// Eventfd, Epoll, Signalfd, Timerfd, Inotify, Fanotify, Pipe and Socket tell the content of the open
	// file. A file of another kind, or one that Files has not shown, is an
	// error that matches ErrKind.
	Eventfd(file ID) (Eventfd, error)
	Epoll(file ID) (Epoll, error)
	Signalfd(file ID) (Signalfd, error)
	Timerfd(file ID) (Timerfd, error)
	Inotify(file ID) (Inotify, error)
	Fanotify(file ID) (Fanotify, error)
	Pipe(file ID) (Pipe, error)

	// Lease tells of the lease that was taken through an open file (fcntl(2)
	// F_SETLEASE) by which descriptor number: the signal of its break names that.
	Lease(file ID) (Maybe[int32], error)

	// Socket tells what all families of sockets have; the calls of a family tell
	// more.
	Socket(file ID) (Socket, error)

	// Inet tells what sockets of AF_INET and AF_INET6 have beyond that, Datagrams
	// what waits in a UDP socket, the oldest first.
	Inet(file ID) (Inet, error)
	Datagrams(file ID) ([]Datagram, error)

	// Netlink tells of netlink(7) sockets, PacketSocket of packet(7) sockets.
	Netlink(file ID) (Netlink, error)
	PacketSocket(file ID) (PacketSocket, error)

	// SocketAsync tells the open files of a socket through which its owner is told
	// by a signal (O_ASYNC). An error as of Pipe.
	SocketAsync(file ID) (Maybe[[]Async], error)
	// TCPEnds and TCP tell of a TCP or MPTCP socket: its ends alone, and all of it.
	TCPEnds(file ID) (TCPEnds, error)
	TCP(file ID) (TCP, error)
	// TCPWaitingEnds and TCPWaiting tell of the connections of a listening TCP socket that wait for accept(2), in their order, where the
	// kernel is one that can be given such. Fastopen says of one that its client has sent data with its SYN.
	TCPWaitingEnds(file ID) ([]TCPEnds, error)
	TCPWaiting(file ID) ([]TCP, error)
}

// ErrKind says that a file is not of the kind that was asked for, or that the
// View has never shown it.
var ErrKind = errors.New("no open file of that kind")

// Options say how to open a View. The zero value is right for a command.
type Options struct {
	// CacheDir is where what was learned of this kernel is kept between runs.
	// Empty: /var/cache/crpipe for root, else $XDG_CACHE_HOME/crpipe or
	// $HOME/.cache/crpipe. It is made (mode 0700) when it is missing. One that
	// others can write to, or that belongs to somebody else, is not used.
	CacheDir string

	// NoCache neither reads nor writes a cache.
	NoCache bool

	// Source is SourceBPF or SourceClassical; empty: the best that there is.
	Source string
}

// The sources.
const (
	SourceBPF       = "bpf"
	SourceClassical = "classical"
)

// MissingError says what this machine or this user lacks for a source. It is
// an exit status 5 of a command that cannot go on without.
type MissingError struct {
	What string // e.g. "BTF of the running kernel (/sys/kernel/btf/vmlinux)"
	Fix  string // what the user can do, one sentence without a full stop; may be empty
	Err  error  // what the kernel said; may be nil
}

// Error names what is missing.
func (e *MissingError) Error() string {
	s := "looking into the kernel needs " + e.What
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns what the kernel said.
func (e *MissingError) Unwrap() error { return e.Err }

// ExitCode is the status of a command that cannot go on without: the kernel or
// the privileges lack something.
func (e *MissingError) ExitCode() int { return 5 }

// Hint is what the user can do about it.
func (e *MissingError) Hint() string { return e.Fix }

// Open opens a View: the BPF source, or the classical one where that cannot be had or when it is asked for. A *MissingError says what a
// source lacks. Call it before freezing anything: the first time on a kernel it takes some tenths of a second, later a few
// milliseconds.
func Open(o Options) (View, error) {
	switch o.Source {
	case "", SourceBPF, SourceClassical:
	default:
		return nil, fmt.Errorf("no source of the kernel view is called %q", o.Source)
	}
	var failed error
	if o.Source != SourceClassical {
		v, err := openBPF(o)
		if err == nil {
			return v, nil
		}
		var missing *MissingError
		if o.Source == SourceBPF || !errors.As(err, &missing) {
			return nil, err
		}
		failed = err
	}
	v, err := openClassical()
	if err != nil {
		return nil, errors.Join(failed, err)
	}
	return v, nil
}
