package ipc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// Which objects belong to a tree: in an IPC namespace of its own all. In that of cr-dump shared memory that it has attached,
// semaphores that it has adjustments of (SEM_UNDO), and what --ipc names; the kernel does not know who else uses an object.

// Look is what a dump knows of the System V objects of the tree's IPC namespace.
type Look struct {
	Own bool // the namespace is the tree's own
	// Met is what package memory keeps of the segments that the tree has attached.
	Met any

	link  string
	tid   int
	ns    *Namespace // nil for the caller's
	read  bool
	shm   map[int32]*procfs.SysVShm
	order []int32 // of shm, as the kernel has them
	sem   []procfs.SysVSem
	msg   []procfs.SysVMsg
	named []name
	ids   map[int]int32 // of processes: from the caller's pid namespace to the tree's

	sems map[int32]*semDump
}

// name is one --ipc.
type name struct {
	text  string
	all   bool
	typ   Type
	byKey bool
	key   int32
	id    int32
	used  bool
}

// parseName takes "all" or TYPE:ID or TYPE:0xKEY, where TYPE is shm, sem or msg, as ipcs(1) shows them.
func parseName(text string) (name, error) {
	n := name{text: text}
	if text == "all" {
		n.all = true
		return n, nil
	}
	typ, which, ok := strings.Cut(text, ":")
	n.typ = Type(typ)
	if !ok || n.typ != Shm && n.typ != Sem && n.typ != Msg {
		return n, fmt.Errorf("%q is neither all nor shm:, sem: or msg: with an id or 0xKEY", text)
	}
	if hex, is := strings.CutPrefix(which, "0x"); is {
		key, err := strconv.ParseUint(hex, 16, 32)
		if err != nil || key == 0 {
			return n, fmt.Errorf("%q: not a key", text)
		}
		n.byKey, n.key = true, int32(uint32(key))
		return n, nil
	}
	id, err := strconv.ParseInt(which, 10, 32)
	if err != nil || id < 0 {
		return n, fmt.Errorf("%q: not an id", text)
	}
	n.id = int32(id)
	return n, nil
}

// CheckName says what is wrong with what --ipc was given; nil: nothing.
func CheckName(text string) error {
	_, err := parseName(text)
	return err
}

// Named says whether --ipc names an object.
func (l *Look) Named(t Type, p *procfs.IPCPerm) bool {
	found := false
	for i := range l.named {
		n := &l.named[i]
		if n.all || n.typ == t && (n.byKey && n.key == p.Key || !n.byKey && n.id == p.ID) {
			n.used, found = true, true
		}
	}
	return found
}

// Of returns what Dump has found out; without it nothing belongs to the tree but what it has attached.
func Of(d *object.Dumper) *Look {
	if l, ok := d.IPC.(*Look); ok {
		return l
	}
	l := newLook(d)
	d.IPC = l
	return l
}

func newLook(d *object.Dumper) *Look {
	l := &Look{ids: map[int]int32{}, sems: map[int32]*semDump{}}
	for _, p := range d.Processes {
		l.ids[p.PID] = int32(p.ID)
	}
	return l
}

// Dump looks at the IPC namespace, and adds its record where it is the tree's own, and all semaphores and queues that belong to the
// tree. It comes before the address spaces, whose segments are added when they are met.
func Dump(d *object.Dumper) error {
	l := newLook(d)
	d.IPC, l.tid = l, d.Root.Leader().TID
	for _, text := range d.IPCNames {
		n, err := parseName(text)
		if err != nil {
			return err
		}
		l.named = append(l.named, n)
	}
	mine, err := os.Readlink("/proc/self/ns/ipc")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without any IPC
	}
	if err != nil {
		return err
	}
	if l.link, err = os.Readlink(procfs.Path(l.tid, "ns/ipc")); err != nil {
		return err
	}
	if l.Own = mine != l.link; l.Own {
		if err := l.dumpNamespace(d, l.link); err != nil {
			return err
		}
	}
	if err := dumpUndo(d, l); err != nil {
		return err
	}
	if !l.Own && len(l.named) == 0 {
		return nil
	}
	if err := l.load(); err != nil {
		return err
	}
	for i := range l.sem {
		if s := &l.sem[i]; l.Own || l.Named(Sem, &s.IPCPerm) {
			if _, err := l.dumpSem(d, s); err != nil {
				return err
			}
		}
	}
	for i := range l.msg {
		if q := &l.msg[i]; l.Own || l.Named(Msg, &q.IPCPerm) {
			if err := l.dumpMsg(d, q); err != nil {
				return err
			}
		}
	}
	return nil
}

// CheckNames refuses what --ipc names and is not there. It comes when everything has been looked at.
func CheckNames(d *object.Dumper) error {
	l := Of(d)
	for i := range l.named {
		if n := &l.named[i]; !n.used && !n.all {
			return fmt.Errorf("there is no System V object %s in the IPC namespace of the tree (ipcs shows those that there are)", n.text)
		}
	}
	return nil
}

// Link is what /proc/PID/ns/ipc shows of the namespace.
func (l *Look) Link() string { return l.link }

// Do calls f in the tree's IPC namespace.
func (l *Look) Do(f func() error) error { return l.ns.Do(f) }

// load reads the lists of objects, once.
func (l *Look) load() error {
	if l.read {
		return nil
	}
	l.read, l.shm = true, map[int32]*procfs.SysVShm{}
	return l.Do(func() error {
		shm, err := readList("shm", procfs.ParseSysVShm)
		if err != nil {
			return err
		}
		for i := range shm {
			l.shm[shm[i].ID] = &shm[i]
			l.order = append(l.order, shm[i].ID)
		}
		if l.sem, err = readList("sem", procfs.ParseSysVSem); err != nil {
			return err
		}
		l.msg, err = readList("msg", procfs.ParseSysVMsg)
		return err
	})
}

func readList[T any](name string, parse func([]byte) ([]T, error)) ([]T, error) {
	b, err := os.ReadFile("/proc/sysvipc/" + name)
	if errors.Is(err, os.ErrNotExist) { // a kernel without System V IPC
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parse(b)
}

// Segment returns what the kernel shows of a segment; nil when it is not in the tree's IPC namespace.
func (l *Look) Segment(id int32) (*procfs.SysVShm, error) {
	if err := l.load(); err != nil {
		return nil, err
	}
	return l.shm[id], nil
}

// Segments returns all that belong to the tree whoever has attached them.
func (l *Look) Segments() ([]*procfs.SysVShm, error) {
	if !l.Own && len(l.named) == 0 {
		return nil, nil
	}
	if err := l.load(); err != nil {
		return nil, err
	}
	var out []*procfs.SysVShm
	for _, id := range l.order {
		if s := l.shm[id]; l.Own || l.Named(Shm, &s.IPCPerm) {
			out = append(out, s)
		}
	}
	return out, nil
}

// PID turns a process number of the caller's into one of the tree's; 0: it is not in the tree.
func (l *Look) PID(pid int) int32 { return l.ids[pid] }

// RemoveWhenEnded has an object of the caller's namespace go with the tree, when that is ended: it has moved into the image.
func (l *Look) RemoveWhenEnded(d *object.Dumper, t Type, id int32) {
	if l.Own {
		return // it goes with the namespace
	}
	d.Ended = append(d.Ended, func() error {
		err := t.RemoveNow(id)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIDRM) {
			return nil // it has gone by itself
		}
		if err != nil {
			return fmt.Errorf("removing %s %d, which is in the image (%s): %w", t, id, t.Remove(id), err)
		}
		return nil
	})
}

// refuse remembers why an object cannot be kept.
func refuse(d *object.Dumper, t Type, id int32, do, format string, args ...any) {
	d.Refuse(&object.Unsupported{What: fmt.Sprintf("%s %d: %s", t.What(), id, fmt.Sprintf(format, args...)), Do: do})
}
