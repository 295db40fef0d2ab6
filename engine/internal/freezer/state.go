package freezer

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// Way is how a tree was stopped.
type Way string

// The ways. WayNone is a tree that runs (the ticket of a plain cr-restore).
const (
	WayNone    Way = "none"
	WayV2      Way = "v2"
	WayV1      Way = "v1"
	WaySigstop Way = "sigstop"
)

// Before is the state that a task had before it was frozen and that it is to
// have again.
type Before string

// The states.
const (
	BeforeRunning Before = "running" // running or sleeping
	BeforeStopped Before = "stopped" // by job control
	BeforeFrozen  Before = "frozen"  // by somebody else's freezer
	BeforeZombie  Before = "zombie"
)

// Task is one thread of the frozen tree. A process's leader is the task with
// TID equal to PID, first of its process.
type Task struct {
	PID, TID int
	Start    uint64 // clock ticks since boot (proc_pid_stat(5), starttime)
	PPID     int
	Comm     string
	Before   Before
	Cgroup   string // the cgroup, of the hierarchy of the way, that it was in; empty with sigstop
}

// Group is a cgroup that has been or is being frozen.
type Group struct {
	Path      string // below the root of the hierarchy, starts with /
	Transient bool   // made for this freeze: its tasks belong in the parent of Path
	Already   bool   // frozen by somebody else: stays so
}

// State is what is needed to undo a freeze, and the content of a ticket.
type State struct {
	BootID string
	PIDNS  uint64 // inode number of the pid namespace in which the numbers count
	ID     string // random, names the transient cgroups and the lock
	Way    Way
	Groups []Group
	Roots  []int // the processes that were asked for
	Tasks  []Task
	// At is the moment at which everything stood still. Times left are counted
	// from it, however long the tree stays frozen.
	At sys.Instant

	// Stats is what /proc/PID/stat said of processes when they stood still, of a brief freeze alone. No ticket has it.
	Stats map[int]procfs.Stat

	open *openState // of a brief freeze: for the hold that follows
}

// openState is what a freeze leaves open for a hold by the same process.
type openState struct {
	h      *hierarchy
	groups []*openGroup
}

// Options say what to freeze and how.
type Options struct {
	Roots   []int         // processes, each with all its descendants
	Cgroup  string        // or everything in this cgroup
	Way     Way           // empty: the best that works
	Timeout time.Duration // 0: DefaultTimeout
	// Journal, when not nil, is called before each step that changes
	// anything with what is needed to undo it should the caller die. An error
	// stops the freeze.
	Journal func(*State) error
	// Held says that the caller's tracer holds every thread in a ptrace stop and
	// is going to detach: the tasks are frozen when it does, and Stopped are
	// the processes among them that job control stops.
	Held    bool
	Stopped []int
	// Interrupted is as in ThawOptions, for undoing a freeze that failed.
	Interrupted Interrupted
	// Kinship, when not nil, tells who descends from whom for less than /proc does.
	Kinship Kinship
	// Brief says that the state is for this process alone, to hold at once (see
	// HoldOptions.Fresh): with version 2 no more is read of a thread than its
	// number.
	Brief bool
}

// DefaultTimeout is how long a tree may take to stand still.
const DefaultTimeout = 10 * time.Second

var (
	// ErrStale is matched when a state does not describe this machine's tasks
	// any more: another boot, another pid namespace, the tasks are gone.
	ErrStale = errors.New("stale ticket")
	// ErrBusy is matched when somebody else is dumping or thawing the tree.
	ErrBusy = errors.New("in use")
	// ErrTimeout is matched when a tree did not stand still in time.
	ErrTimeout = errors.New("not frozen in time")
	// ErrOwnTree is matched when the tree contains this process.
	ErrOwnTree = errors.New("the tree contains this process")
	// ErrGone is matched when a process that was asked for does not exist.
	ErrGone = errors.New("no such process")
	// ErrTraced is matched when a debugger holds a task of the tree.
	ErrTraced = errors.New("being traced")
	// ErrVfork is matched when a task cannot be stopped because it waits in
	// vfork for its child, which lasts moments.
	ErrVfork = errors.New("waits in vfork for its child: it cannot be stopped")
	// ErrNotUndone is matched when a freeze failed and so did undoing it.
	ErrNotUndone = errors.New("and undoing it")
	// ErrUnusable is matched when a way cannot be used here; another may.
	ErrUnusable = errors.New("this freezer cannot be used")
)

// BusyError says who holds the lock.
type BusyError struct {
	PID  int    // 0: not known
	Comm string // of PID
}

func (e *BusyError) Error() string {
	switch {
	case e.PID == 0:
		return "being dumped by another process"
	case e.Comm == "":
		return fmt.Sprintf("being dumped by pid %d", e.PID)
	}
	return fmt.Sprintf("being dumped by pid %d (%s)", e.PID, e.Comm)
}

// Is matches ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// TimeoutError names the tasks that did not stand still.
type TimeoutError struct {
	After time.Duration
	Tasks []Task // those that were seen running last; may be empty
}

func (e *TimeoutError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "not frozen after %v", e.After)
	const most = 10
	for i, t := range e.Tasks {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(e.Tasks)-most)
			break
		}
		sep := ","
		if i == 0 {
			sep = ":"
		}
		fmt.Fprintf(&b, "%s pid %d (%s)", sep, t.TID, t.Comm)
	}
	return b.String()
}

// Is matches ErrTimeout.
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }

// Frozen reports whether the state is one of a stopped tree.
func (s *State) Frozen() bool { return s.Way != WayNone && s.Way != "" }

// Processes returns the pids of the state in their order, zombies included.
func (s *State) Processes() []int {
	var out []int
	for _, t := range s.Tasks {
		if t.PID == t.TID {
			out = append(out, t.PID)
		}
	}
	return out
}
