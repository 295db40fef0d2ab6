package engine

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/freezer"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A Ticket names a tree of tasks and says how it was stopped, so that it can be dumped and thawed. It is written as a
// stream with the content "ticket": one record "ticket", then one "ticket.task" for each thread, a process's leader first; of a tree
// that runs only for each process.
// It is a claim ticket, not a capability: who has it can do no more to the tasks than his privileges allow anyway.
type Ticket struct {
	state freezer.State
}

// Record types of a ticket.
const (
	typeTicket     stream.Type = "ticket"
	typeTicketTask stream.Type = "ticket.task"
)

// ticketState is the metadata of the record "ticket".
type ticketState struct {
	BootID string        `msgpack:"boot"`             // /proc/sys/kernel/random/boot_id
	PIDNS  uint64        `msgpack:"pidns"`            // inode number of the pid namespace in which the numbers count
	ID     string        `msgpack:"id,omitempty"`     // names the transient cgroups
	Way    string        `msgpack:"way"`              // "v2", "v1", "sigstop"; "none": the tree runs
	Groups []ticketGroup `msgpack:"groups,omitempty"` // the frozen cgroups; the first one's directory is the lock
	Roots  []int32       `msgpack:"roots,omitempty"`  // the processes that were asked for
	At     ticketInstant `msgpack:"at"`
}

// ticketInstant is the moment at which everything stood still, in ns.
type ticketInstant struct {
	Realtime  int64 `msgpack:"realtime,omitempty"`
	Monotonic int64 `msgpack:"monotonic,omitempty"`
	Boottime  int64 `msgpack:"boottime,omitempty"`
	TAI       int64 `msgpack:"tai,omitempty"`
}

type ticketGroup struct {
	Path      string `msgpack:"path"`
	Transient bool   `msgpack:"transient,omitempty"` // made for the freeze: what is in it belongs in its parent
	Already   bool   `msgpack:"already,omitempty"`   // frozen by somebody else before
}

// ticketTask is the metadata of a record "ticket.task".
type ticketTask struct {
	PID    int32  `msgpack:"pid"`
	TID    int32  `msgpack:"tid"`
	PPID   int32  `msgpack:"ppid,omitempty"`
	Start  uint64 `msgpack:"start"` // clock ticks since boot
	Comm   []byte `msgpack:"comm"`  // may be no UTF-8
	Before string `msgpack:"before"`
	Cgroup string `msgpack:"cgroup,omitempty"` // where it was before the freeze
}

// maxTicketTasks bounds what a reader takes from a ticket: more tasks than there can be (PID_MAX_LIMIT).
const maxTicketTasks = 4 << 20

func newTicket(st *freezer.State) *Ticket { return &Ticket{state: *st} }

// PIDs returns the processes of the ticket, parents before their children.
func (t *Ticket) PIDs() []int { return t.state.Processes() }

// Roots returns the processes that were asked for.
func (t *Ticket) Roots() []int { return t.state.Roots }

// Frozen reports whether the tree was stopped, and not merely named, when the ticket was written.
func (t *Ticket) Frozen() bool { return t.state.Frozen() }

// Way says how the tree was stopped: "v2", "v1", "sigstop" or "none".
func (t *Ticket) Way() string { return string(t.state.Way) }

// Write writes the ticket as a stream. producer is the program's name and version.
func (t *Ticket) Write(w io.Writer, producer string) error {
	h := stream.Header{Content: stream.ContentTicket, Producer: producer}
	if a, err := arch.Native(); err == nil {
		h.Arch, h.PageSize = a.Name, a.PageSize
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	sw, err := stream.NewWriter(w, h)
	if err != nil {
		return fmt.Errorf("writing the ticket: %w", err)
	}
	s := ticketState{BootID: t.state.BootID, PIDNS: t.state.PIDNS, ID: t.state.ID, Way: string(t.state.Way), At: ticketInstant(t.state.At)}
	for _, g := range t.state.Groups {
		s.Groups = append(s.Groups, ticketGroup{g.Path, g.Transient, g.Already})
	}
	for _, pid := range t.state.Roots {
		s.Roots = append(s.Roots, int32(pid))
	}
	err = failpoint.After("ticket.begun", sw.Put(typeTicket, 0, s, nil))
	for i := range t.state.Tasks {
		if err != nil {
			break
		}
		k := &t.state.Tasks[i]
		err = sw.Put(typeTicketTask, 0, ticketTask{PID: int32(k.PID), TID: int32(k.TID), PPID: int32(k.PPID), Start: k.Start,
			Comm: []byte(k.Comm), Before: string(k.Before), Cgroup: k.Cgroup}, nil)
	}
	if err == nil {
		err = failpoint.After("ticket.written", sw.End())
	}
	if err != nil {
		return fmt.Errorf("writing the ticket: %w", err)
	}
	return nil
}

// ReadTicket reads a ticket to its end. Its numbers are checked for what they can be, not yet for whether such tasks exist.
func ReadTicket(r io.Reader) (*Ticket, error) {
	sr, err := stream.NewReader(r)
	if err != nil {
		return nil, err
	}
	if c := sr.Header().Content; c != stream.ContentTicket {
		return nil, &object.BadImage{Err: fmt.Errorf("this stream holds %q, not a ticket (cr-freeze and cr-restore write those)", c)}
	}
	if err := sr.Header().CheckFeatures(func(string) bool { return false }); err != nil {
		return nil, &object.BadImage{Err: err}
	}
	t := &Ticket{}
	seen := false
	for {
		rec, err := sr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch rec.Type {
		case typeTicket:
			if seen {
				return nil, object.BadImagef("the ticket has two heads")
			}
			seen = true
			var s ticketState
			if err := rec.Decode(&s); err != nil {
				return nil, err
			}
			if err := t.setHead(&s); err != nil {
				return nil, err
			}
		case typeTicketTask:
			if !seen || len(t.state.Tasks) >= maxTicketTasks {
				return nil, object.BadImagef("a task where none can be")
			}
			var k ticketTask
			if err := rec.Decode(&k); err != nil {
				return nil, err
			}
			if err := t.addTask(&k); err != nil {
				return nil, err
			}
		default:
			if rec.Flags&stream.FlagOptional == 0 {
				return nil, &object.BadImage{Err: fmt.Errorf("%w: %s", stream.ErrUnknownType, rec.Type)}
			}
		}
	}
	if !seen {
		return nil, object.BadImagef("the ticket has no head")
	}
	return t, nil
}

// setHead takes over the head of a ticket. Paths are only looked up below the root of the hierarchy; a transient cgroup, which
// will be emptied and removed, must be named like one.
func (t *Ticket) setHead(s *ticketState) error {
	st := &t.state
	st.BootID, st.PIDNS, st.ID, st.Way, st.At = s.BootID, s.PIDNS, s.ID, freezer.Way(s.Way), sys.Instant(s.At)
	switch st.Way {
	case freezer.WayV2, freezer.WayV1:
		if len(s.Groups) == 0 {
			return object.BadImagef("the ticket names no cgroup")
		}
	case freezer.WaySigstop, freezer.WayNone:
		if len(s.Groups) != 0 {
			return object.BadImagef("a cgroup in a ticket of the way %q", s.Way)
		}
	default:
		return object.BadImagef("the ticket says %q of how the tree was frozen", s.Way)
	}
	for _, g := range s.Groups {
		if !strings.HasPrefix(g.Path, "/") || g.Path == "/" || (g.Transient && !strings.HasSuffix(g.Path, freezer.TransientName(s.ID))) {
			return object.BadImagef("the ticket names the cgroup %.200q", g.Path)
		}
		st.Groups = append(st.Groups, freezer.Group{Path: g.Path, Transient: g.Transient, Already: g.Already})
	}
	for _, pid := range s.Roots {
		if pid <= 0 {
			return object.BadImagef("process number %d", pid)
		}
		st.Roots = append(st.Roots, int(pid))
	}
	return nil
}

func (t *Ticket) addTask(k *ticketTask) error {
	if k.PID <= 0 || k.TID <= 0 || k.PPID < 0 {
		return object.BadImagef("task number %d of process %d", k.TID, k.PID)
	}
	b := freezer.Before(k.Before)
	switch b {
	case freezer.BeforeRunning, freezer.BeforeStopped, freezer.BeforeFrozen, freezer.BeforeZombie:
	default:
		return object.BadImagef("task %d was %.40q", k.TID, k.Before)
	}
	t.state.Tasks = append(t.state.Tasks, freezer.Task{PID: int(k.PID), TID: int(k.TID), PPID: int(k.PPID), Start: k.Start,
		Comm: string(k.Comm), Before: b, Cgroup: k.Cgroup})
	return nil
}
