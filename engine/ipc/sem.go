package ipc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// SemSet is the record of a set of System V semaphores (semget(2)). Its values are GETALL of semctl(2), and who changed each last
// GETPID. Who waits for it is not here: the call is interrupted and made again like every other.
//
// A restore makes the set and sets the values (SETALL); the process that changed one last changes it by nothing (semop(2) of +1 and -1
// together, or SETVAL where nobody ever operated on the set). Lost: who changed a semaphore last, if it is not in the tree.
type SemSet struct {
	Perm     Perm     `msgpack:"perm"`
	Operated bool     `msgpack:"operated,omitempty"` // semop(2) was called: sem_otime is not 0
	Values   []uint32 `msgpack:"values"`
	PIDs     []int32  `msgpack:"pids,omitempty"` // processes of the tree that changed each last; 0: another or nobody
}

// SemUndo is the record of what a list of adjustments (SEM_UNDO of semop(2)) has of one set: what the kernel adds to each semaphore
// when the last task with the list ends (struct sem_undo in ipc/sem.c). A restore has a thread call semop(2) with SEM_UNDO.
type SemUndo struct {
	Thread int32      `msgpack:"thread"` // one that has the list
	Of     stream.Ref `msgpack:"of"`
	Adjust []int32    `msgpack:"adjust"` // by semaphore
}

// Kinds of record.
var (
	SemKind  = object.NewKind[SemSet]("ipc.sem", nil)
	UndoKind = object.NewKind[SemUndo]("ipc.undo", nil)
)

const (
	// maxSemaphores keeps a record under the limit of metadata. The kernel's own default for a set is 32,000.
	maxSemaphores = 64 << 10
	maxValue      = 32767 // SEMVMX, which is also the most that an adjustment can be
)

// semDump is a set that has been met.
type semDump struct {
	ref   stream.Ref
	count int
}

// dumpSem adds the record of a set.
func (l *Look) dumpSem(d *object.Dumper, s *procfs.SysVSem) (*semDump, error) {
	if done := l.sems[s.ID]; done != nil {
		return done, nil
	}
	done := &semDump{count: s.Count}
	l.sems[s.ID] = done
	if s.Count > maxSemaphores {
		refuse(d, Sem, s.ID, "", "a set of %d semaphores cannot be checkpointed", s.Count)
		return done, nil
	}
	state := &SemSet{Perm: PermOf(&s.IPCPerm), Operated: s.OTime != 0, Values: make([]uint32, s.Count), PIDs: make([]int32, s.Count)}
	if err := l.Do(func() error {
		values, err := sys.SemValues(s.ID, s.Count)
		if err != nil {
			return fmt.Errorf("reading the values: %w", err)
		}
		for i, v := range values {
			state.Values[i] = uint32(v)
			pid, err := sys.SemPID(s.ID, i)
			if err != nil {
				return fmt.Errorf("reading who changed semaphore %d last: %w", i, err)
			}
			state.PIDs[i] = l.PID(pid)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("%s %d: %w", Sem.What(), s.ID, err)
	}
	if allZero(state.PIDs) {
		state.PIDs = nil
	}
	done.ref = d.Add(SemKind.Type, state)
	l.RemoveWhenEnded(d, Sem, s.ID)
	return done, nil
}

func allZero(list []int32) bool {
	for _, n := range list {
		if n != 0 {
			return false
		}
	}
	return true
}

// dumpUndo adds all adjustments of the tree's threads, and the sets that they are of.
func dumpUndo(d *object.Dumper, l *Look) error {
	lists, first := []kernelview.ID{}, map[kernelview.ID]*object.Thread{}
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			if has, ok := t.View.SemUndo.Get(); !ok || !has {
				continue // unknown is refused elsewhere
			}
			if child, ok := t.View.State.VforkChild.Get(); ok && child {
				d.Refuse(p.Error("", &object.Unsupported{What: "its parent waits for it in vfork, and it has System V semaphore adjustments to undo (SEM_UNDO)",
					Do: "wait until it has called execve, or has ended"}))
				continue
			}
			if id := t.View.SysVSem.V; first[id] == nil {
				lists, first[id] = append(lists, id), t
			}
		}
	}
	if len(lists) == 0 {
		return nil
	}
	view, ok := d.View.(kernelview.SemUndoView)
	if !ok {
		return d.Root.Error("", &object.Lacking{What: "reading System V semaphore adjustments (SEM_UNDO)", Do: "dump it as root on a kernel with BTF (--source bpf)"})
	}
	if err := l.load(); err != nil {
		return err
	}
	sets := map[int32]*procfs.SysVSem{}
	for i := range l.sem {
		sets[l.sem[i].ID] = &l.sem[i]
	}
	undo, err := view.SemUndo(lists, func(id int32) int {
		if s := sets[id]; s != nil {
			return s.Count
		}
		return -1
	})
	if err != nil {
		return fmt.Errorf("reading semaphore adjustments: %w", err)
	}
	for i := range undo {
		u := &undo[i]
		t := first[u.List]
		set := sets[u.SemID]
		if set == nil {
			return t.Process.Error("", fmt.Errorf("internal error: adjustments of semaphores %d, which are not there", u.SemID))
		}
		if u.Outside && !l.Own {
			refuse(d, Sem, u.SemID, "dump the whole job", "thread %d has adjustments of it to undo (SEM_UNDO), and so has somebody outside of the tree", t.TID)
		}
		done, err := l.dumpSem(d, set)
		if err != nil {
			return err
		}
		s := &SemUndo{Thread: int32(t.ID), Of: done.ref, Adjust: make([]int32, len(u.Adjust))}
		for i, n := range u.Adjust {
			s.Adjust[i] = int32(n)
		}
		if !allZero(s.Adjust) && !done.ref.IsZero() {
			d.AddPlain(UndoKind.Type, s)
		}
	}
	return nil
}

// Check refuses what no set can be.
func (s *SemSet) Check() error {
	if err := s.Perm.Check(); err != nil {
		return err
	}
	if len(s.Values) == 0 || len(s.Values) > maxSemaphores || len(s.PIDs) != 0 && len(s.PIDs) != len(s.Values) {
		return object.BadImagef("%d System V semaphores with %d processes", len(s.Values), len(s.PIDs))
	}
	for i, v := range s.Values {
		if v > maxValue || len(s.PIDs) > 0 && s.PIDs[i] < 0 {
			return object.BadImagef("System V semaphore %d has the value %d", i, v)
		}
	}
	return nil
}

// Check refuses adjustments that no set of a plan can have.
func (u *SemUndo) Check(plan *object.Plan) error {
	s, err := object.State[SemSet](plan, u.Of)
	if err != nil {
		return err
	}
	if len(u.Adjust) != len(s.Values) || !s.Operated {
		return object.BadImagef("%d adjustments of %d System V semaphores, or of some that nobody operated on", len(u.Adjust), len(s.Values))
	}
	for i, n := range u.Adjust {
		if n < -maxValue-1 || n > maxValue {
			return object.BadImagef("the adjustment %d of System V semaphore %d", n, i)
		}
	}
	return nil
}

// taken says which object has the id or the key of the set in the namespace of the calling thread.
func taken(t Type, p *Perm) (string, error) {
	var all []procfs.IPCPerm
	switch t {
	case Shm:
		list, err := readList("shm", procfs.ParseSysVShm)
		if err != nil {
			return "", err
		}
		for i := range list {
			all = append(all, list[i].IPCPerm)
		}
	case Sem:
		list, err := readList("sem", procfs.ParseSysVSem)
		if err != nil {
			return "", err
		}
		for i := range list {
			all = append(all, list[i].IPCPerm)
		}
	case Msg:
		list, err := readList("msg", procfs.ParseSysVMsg)
		if err != nil {
			return "", err
		}
		for i := range list {
			all = append(all, list[i].IPCPerm)
		}
	}
	for i := range all {
		o := &all[i]
		who := fmt.Sprintf("of user %d, made by user %d", o.UID, o.CUID)
		switch {
		case o.ID == p.ID:
			return fmt.Sprintf("the id is in use: there is one, %s, with the key %#x", who, uint32(o.Key)), nil
		case p.Key != 0 && o.Key == p.Key:
			return fmt.Sprintf("its key %#x is in use: object %d, %s, has it", uint32(p.Key), o.ID, who), nil
		case o.ID%indexes == p.ID%indexes:
			return fmt.Sprintf("the id is in use: it shares its place in the kernel's table with %d, %s", o.ID, who), nil
		}
	}
	return "", nil
}

// indexes is how many places the kernel's table of objects has (IPCMNI in ipc/util.h); the rest of an id counts their uses.
const indexes = 32768

// TakenError says that an id or key is in use at the restore.
type TakenError struct {
	Type Type
	Perm Perm
	Why  string
}

func (e *TakenError) Error() string { return fmt.Sprintf("%s %d: %s", e.Type.What(), e.Perm.ID, e.Why) }

// Hint is the command that makes room, if it is of what the tree has left behind.
func (e *TakenError) Hint() string {
	return fmt.Sprintf("if that is what the dumped tree has left behind, remove it (%s); cr-dump --kill does so itself", e.Type.Remove(e.Perm.ID))
}

// CheckFree refuses an object whose id or key is in use in the namespace of the calling thread.
func CheckFree(t Type, p *Perm) error {
	why, err := taken(t, p)
	if err != nil {
		return err
	}
	if why != "" {
		return &TakenError{t, *p, why}
	}
	return nil
}

// IsTaken says whether an error is that of an id, key or name in use.
func IsTaken(err error) bool {
	var t *TakenError
	var q *mqueueTakenError
	return errors.As(err, &t) || errors.As(err, &q)
}

// SetValues gives a new set of the caller's namespace its values.
func (s *SemSet) SetValues() error {
	values, zero := make([]uint16, len(s.Values)), true
	for i, v := range s.Values {
		values[i] = uint16(v)
		zero = zero && v == 0
	}
	if zero {
		return nil
	}
	if err := sys.SemSetValues(s.Perm.ID, values); err != nil {
		return fmt.Errorf("%s %d: setting the values: %w", Sem.What(), s.Perm.ID, err)
	}
	return nil
}

// sembuf is struct sembuf.
type sembuf struct {
	num   int
	op    int32
	flags uint16
}

// semop adds a semop(2) that does not wait. Operations that add nothing would wait for zero: they are left out.
func semop(b *tracee.Batch, id int32, ops ...sembuf) {
	const nowait = 0o4000 // IPC_NOWAIT
	var data []byte
	a := b.Arch()
	n := 0
	for _, o := range ops {
		if o.op == 0 {
			continue
		}
		one := make([]byte, 6)
		a.Order.PutUint16(one, uint16(o.num))
		a.Order.PutUint16(one[2:], uint16(int16(o.op)))
		a.Order.PutUint16(one[4:], o.flags|nowait)
		data = append(data, one...)
		n++
	}
	if n > 0 {
		b.Call(b.Sys().Semtimedop, id, b.Data(data), n, 0).Note("semaphore %d of %d", ops[0].num, id)
	}
}

// TouchCalls adds what the process pid does so that it is the one that changed its semaphores last. any: also some semaphore if it has
// none, so that the set is one that was operated on.
func (s *SemSet) TouchCalls(b *tracee.Batch, pid int32, any bool) {
	done := false
	touch := func(i int) {
		done = true
		if !s.Operated {
			value := uint64(s.Values[i])
			if a := b.Arch(); a.WordSize == 8 && a.Order == binary.ByteOrder(binary.BigEndian) {
				value <<= 32 // the int of union semun lies there in a word (ksys_semctl in ipc/sem.c)
			}
			b.Call(b.Sys().Semctl, s.Perm.ID, i, sys.SemSetVal, value).Note("semaphore %d of %d", i, s.Perm.ID)
			return
		}
		up := int32(1)
		if s.Values[i] == maxValue {
			up = -1
		}
		semop(b, s.Perm.ID, sembuf{i, up, 0}, sembuf{i, -up, 0})
	}
	for i := range s.PIDs {
		if s.PIDs[i] == pid && pid != 0 {
			touch(i)
		}
	}
	if any && !done && s.Operated {
		touch(0)
	}
}

// Calls adds the calls by which a thread gets the adjustments. Each first moves the semaphore to where it may be adjusted, and back: its
// value is the same in the end, and for nobody anything else in between.
func (u *SemUndo) Calls(b *tracee.Batch, s *SemSet) {
	for i, adjust := range u.Adjust {
		if adjust == 0 {
			continue
		}
		value := int32(s.Values[i])
		// The adjustment becomes what the operations with SEM_UNDO took away. 16 bits cannot say +32768.
		for _, part := range [...]int32{adjust / 2, adjust - adjust/2} {
			if part == 0 {
				continue
			}
			from := max(part, 0) // the value before: part is taken from it
			semop(b, s.Perm.ID, sembuf{i, from - value, 0}, sembuf{i, -part, sys.SemUndo}, sembuf{i, value - (from - part), 0})
		}
	}
}
