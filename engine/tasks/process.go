package tasks

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/stream"
)

// Process is the record of a thread group, live or zombie. Numbers of tasks, groups and sessions are those of the pid
// namespace of the tree's root.
type Process struct {
	PID        int32 `msgpack:"pid"`
	Parent     int32 `msgpack:"parent,omitempty"` // 0: the parent is outside of the tree
	Group      int32 `msgpack:"group,omitempty"`
	Session    int32 `msgpack:"session,omitempty"`
	ExitSignal int32 `msgpack:"exit_signal,omitempty"`
	// The thread of the parent whose child it is (__WNOTHREAD of wait(2), PR_SET_PDEATHSIG); 0: the leader.
	ParentThread int32 `msgpack:"parent_thread,omitempty"`

	// The group or session is led by somebody outside of the tree. A restore joins it where it can, else its own.
	OutsideGroup   bool `msgpack:"outside_group,omitempty"`
	OutsideSession bool `msgpack:"outside_session,omitempty"`

	// The leader has ended (exit(2), pthread_exit(3)), other threads live on.
	LeaderDead bool `msgpack:"leader_dead,omitempty"`

	Zombie     bool   `msgpack:"zombie,omitempty"`
	WaitStatus uint32 `msgpack:"wait_status,omitempty"` // of a zombie or dead leader, as wait(2) gives it
	Comm       string `msgpack:"comm,omitempty"`        // of these; live threads have their own
	UID        uint32 `msgpack:"uid,omitempty"`         // of these, real user and group, which ps(1) shows
	GID        uint32 `msgpack:"gid,omitempty"`

	MM      stream.Ref      `msgpack:"mm,omitempty"`
	Files   stream.Ref      `msgpack:"files,omitempty"`
	FS      stream.Ref      `msgpack:"fs,omitempty"`
	Sighand stream.Ref      `msgpack:"sighand,omitempty"`
	Signals signals.Process `msgpack:"signals"`

	Keyring   stream.Ref `msgpack:"keyring,omitempty"` // session keyring of its own
	LoginUID  uint32     `msgpack:"loginuid,omitempty"`
	Limits    Limits     `msgpack:"limits,omitempty"`
	OOMScore  int32      `msgpack:"oom_score_adj,omitempty"`
	Subreaper bool       `msgpack:"subreaper,omitempty"`
	AutoNice  int32      `msgpack:"autogroup_nice,omitempty"` // /proc/PID/autogroup
	Cgroups   []Cgroup   `msgpack:"cgroups,omitempty"`

	// Job control: the signal that has stopped the process, and whether its parent has yet to hear of it.
	StopSignal int32 `msgpack:"stop_signal,omitempty"`
	Unwaited   bool  `msgpack:"unwaited,omitempty"`
	// It was stopped and has been continued, of which its parent has yet to hear (WCONTINUED of wait(2)).
	Continued bool `msgpack:"continued,omitempty"`
}

// ProcessKind is the kind of record "process".
var ProcessKind = object.NewKind[Process]("process", nil)

// Cgroup is one membership (cgroups(7)).
type Cgroup struct {
	Controllers string `msgpack:"controllers,omitempty"` // empty: version 2
	Path        string `msgpack:"path"`
}

// Place fills in where p stands in the tree. inTree tells whether a number (in the root's pid namespace) belongs to a
// process of the tree, alive whether it belongs to any task at all.
func Place(p *object.Process, s *Process, inTree, alive func(id int) bool) error {
	s.PID = int32(p.ID)
	if p.Parent != nil {
		s.Parent = int32(p.Parent.ID)
	}
	s.ExitSignal = p.Stat.ExitSignal
	group, session := innermost(p.Status.NSpgid, len(p.Status.NSpid)), innermost(p.Status.NSsid, len(p.Status.NSpid))
	s.Group, s.OutsideGroup = int32(group), group == 0 || !inTree(group) && alive(group)
	s.Session, s.OutsideSession = int32(session), session == 0 || !inTree(session) && alive(session)
	if s.OutsideGroup && !s.OutsideSession {
		return p.Error("", object.Unsupportedf("its process group %d is led from outside of the tree, but its session %d is not", group, session))
	}
	return nil
}

// innermost returns the number in the task's own pid namespace, which is at index levels-1 of every NS line; 0 when the
// leader is not visible there.
func innermost(numbers []int, levels int) int {
	if len(numbers) < levels || levels == 0 {
		return 0
	}
	return numbers[levels-1]
}

// Check refuses what is no process, as far as that can be said of it alone.
func (s *Process) Check() error {
	if s.Zombie {
		return s.checkZombie()
	}
	switch s.StopSignal {
	case 0, int32(unix.SIGSTOP), int32(unix.SIGTSTP), int32(unix.SIGTTIN), int32(unix.SIGTTOU):
	default:
		return object.BadImagef("stopped by signal %d", s.StopSignal)
	}
	if s.Continued && s.StopSignal != 0 {
		return object.BadImagef("stopped and continued")
	}
	if s.ExitSignal < 0 || s.ExitSignal > 64 {
		return object.BadImagef("exit signal %d", s.ExitSignal)
	}
	if s.ParentThread < 0 || s.ParentThread > MaxPID || s.ParentThread != 0 && s.Parent == 0 {
		return object.BadImagef("thread %d as its parent", s.ParentThread)
	}
	if s.LeaderDead && (s.WaitStatus&^0xff00 != 0 || len(s.Comm) > commLen) {
		return object.BadImagef("wait status %#x of a dead leader, name of %d bytes", s.WaitStatus, len(s.Comm))
	}
	if s.AutoNice < -20 || s.AutoNice > 19 {
		return object.BadImagef("nice value %d of an autogroup", s.AutoNice)
	}
	if s.OOMScore < -1000 || s.OOMScore > 1000 {
		return object.BadImagef("oom_score_adj %d", s.OOMScore)
	}
	if err := s.Limits.Check(); err != nil {
		return err
	}
	return s.Signals.Check()
}

// commLen is what the kernel keeps of a task's name, in bytes (TASK_COMM_LEN without its terminating zero).
const commLen = 15

func (s *Process) checkZombie() error {
	sig, code := unix.Signal(s.WaitStatus&0xff), s.WaitStatus>>8
	switch sig {
	case 0:
	case unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return object.BadImagef("wait status %#x: %s kills nobody", s.WaitStatus, sys.SignalName(sig))
	default:
		if sig > 64 || code != 0 {
			return object.BadImagef("wait status %#x", s.WaitStatus)
		}
	}
	if s.LeaderDead || s.ParentThread != 0 {
		return object.BadImagef("a zombie with threads")
	}
	if code > 0xff || s.ExitSignal < 0 || s.ExitSignal > 64 || len(s.Comm) > commLen {
		return object.BadImagef("wait status %#x, exit signal %d, name of %d bytes", s.WaitStatus, s.ExitSignal, len(s.Comm))
	}
	return nil
}

// DumpDeadLeader fills in what is left of a leader that has ended while other threads of its process live.
func DumpDeadLeader(p *object.Process, s *Process, status uint32) error {
	s.LeaderDead, s.WaitStatus = true, status
	s.Comm = p.Stat.Comm
	s.UID, s.GID = p.Status.UID[0], p.Status.GID[0]
	if s.WaitStatus&^0xff00 != 0 {
		return p.Error("", object.Unsupportedf("its leading thread was killed alone (wait status %#x, by a seccomp filter), which cannot be made again", s.WaitStatus))
	}
	return nil
}

// DumpZombie fills in what is left of a process that has ended.
func DumpZombie(p *object.Process, s *Process) error {
	s.Zombie = true
	s.WaitStatus = uint32(p.Stat.ExitCode)
	s.Comm = p.Stat.Comm
	s.UID, s.GID = p.Status.UID[0], p.Status.GID[0]
	if s.WaitStatus&0x80 != 0 {
		return p.Error("", object.Unsupportedf("the zombie has dumped core (wait status %#x), which cannot be made again", s.WaitStatus))
	}
	if sig := s.WaitStatus & 0x7f; sig == 0x7f {
		return p.Error("", fmt.Errorf("internal error: wait status %#x of a zombie", s.WaitStatus))
	}
	return nil
}
