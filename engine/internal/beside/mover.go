package beside

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
)

// A Mover makes moves between cgroups cheap for others.
//
// A move waits for a grace period of RCU, 5 to 15 ms and on a busy machine much more, unless another was made a moment
// ago (rcu_sync_enter in kernel/rcu/sync.c, by cgroup_threadgroup_rwsem). A move from where one is to where one is moves
// nothing, but counts. It is made by a process of its own because the wait cannot be interrupted, not even by SIGKILL: a
// command that waited so could not end.
type Mover struct {
	process *process
	control *sys.FD
}

// moveInterval is shorter than a grace period usually is, and long beside what such a move costs (70 us).
const moveInterval = 3e6

// NewMover starts the process, which makes such moves until it is told not to, or this process ends. procs is cgroup.procs
// of the cgroup that this process is in, open for writing.
func NewMover(procs *sys.FD) (*Mover, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("starting the mover: %w", err)
	}
	r, w := sys.NewFD(ends[0]), sys.NewFD(ends[1])
	defer r.Close()
	kept, err := unix.FcntlInt(uintptr(r.Int()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("starting the mover: %w", err)
	}
	defer unix.Close(kept)
	l := &life{
		isMover: true, procs: uintptr(procs.Int()), zero: [1]byte{'0'},
		control: unix.PollFd{Fd: int32(kept), Events: unix.POLLIN},
	}
	p, err := start(l, "crpipe-mover", procs.Int(), kept)
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("starting the mover: %w", err)
	}
	return &Mover{p, w}, nil
}

// Keep says whether the moves go on. A nil mover does nothing.
func (m *Mover) Keep(on bool) {
	if m == nil {
		return
	}
	told := []byte{0}
	if on {
		told[0] = 1
	}
	// An error: it was killed. Moves cost what they cost then.
	_, _ = unix.Write(m.control.Int(), told)
}

// PID is the pid of the process.
func (m *Mover) PID() int { return m.process.pid }

// Close ends the process, without waiting for it.
func (m *Mover) Close() {
	if m != nil {
		_ = m.control.Close()
		m.process.close()
	}
}
