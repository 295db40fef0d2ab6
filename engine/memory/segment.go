package memory

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/ipc"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Segment is the record of a segment of System V shared memory (shmget(2)). An attached one shows in /proc/PID/maps as
// "/SYSV<key> (deleted)" of the kernel's internal tmpfs, with its id for an inode number (newseg in ipc/shm.c), and is read whole through
// /proc/PID/map_files like other shared memory, so that nobody attaches it for a dump. One that nobody has attached is, and only that
// changes its times and the process that attached it last.
//
// A restore makes it in the process that made it, if that is in the tree, and has tasks attach it by shmat(2); what was unmapped or given
// another protection is afterwards. Lost: its times, the process that attached or detached it last, who made it if that is not in the
// tree, and SHM_NORESERVE, which says only that it does not count as committed memory.
type Segment struct {
	Perm     ipc.Perm `msgpack:"perm"`
	Size     uint64   `msgpack:"size"`               // bytes
	Maker    int32    `msgpack:"cpid,omitempty"`     // process of the tree that made it; 0: another
	Dest     bool     `msgpack:"dest,omitempty"`     // destroyed (IPC_RMID), but attached
	Name     int32    `msgpack:"name,omitempty"`     // the key that /proc shows of it, where it was made with another than it has now
	Locked   bool     `msgpack:"locked,omitempty"`   // SHM_LOCK
	Attached bool     `msgpack:"attached,omitempty"` // was attached some time: may have contents
}

// TypeSegment is the type of a Segment's record.
const TypeSegment stream.Type = "ipc.shm"

// segKey is the identity of a segment in a dump, segUse what was found out when it was met.
type segKey struct{ id int32 }

type segUse struct {
	ref      stream.Ref
	info     *procfs.SysVShm
	mappings uint64 // of the tree
	p        *object.Process
}

// segments are those that the tree has attached, by id, in the order in which they were met.
type segments struct {
	all   map[int32]*segUse
	order []int32
}

const sysvPrefix = "/SYSV"

// segmentsOf returns what was met so far in a dump.
func segmentsOf(d *object.Dumper) *segments {
	l := ipc.Of(d)
	if l.Met == nil {
		l.Met = &segments{all: map[int32]*segUse{}}
	}
	return l.Met.(*segments)
}

// segment dumps the segment behind a map_files link, which shows the given name.
func (m *mmDump) segment(path, name string, st *unix.Stat_t) (mapped, error) {
	l := ipc.Of(m.d)
	if st.Ino > 1<<31-1 {
		return mapped{}, object.Unsupportedf("System V shared memory of an id that there is not (%d) cannot be checkpointed", st.Ino)
	}
	id := int32(st.Ino)
	s := segmentsOf(m.d)
	if use := s.all[id]; use != nil {
		return mapped{ref: use.ref, segment: use}, nil
	}
	info, err := l.Segment(id)
	if err != nil {
		return mapped{}, err
	}
	key, err := strconv.ParseUint(strings.TrimPrefix(name, sysvPrefix), 16, 32)
	if info == nil || err != nil || info.Size != uint64(st.Size) && pageCeil(info.Size, m.d.Arch.PageSize) != uint64(st.Size) {
		return mapped{}, object.Unsupportedf("System V shared memory of another IPC namespace than the process's own cannot be checkpointed")
	}
	fd, err := sys.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return mapped{}, err
	}
	m.d.Keep(fd)
	use := &segUse{info: info, p: m.p}
	use.ref = addSegment(m.d, l, info, int32(uint32(key)), fd)
	s.all[id] = use
	s.order = append(s.order, id)
	return mapped{ref: use.ref, segment: use}, nil
}

func pageCeil(n uint64, page int) uint64 { return (n + uint64(page) - 1) &^ uint64(page-1) }

// addSegment adds the record of a segment and the contents that fd shows; nil for none.
func addSegment(d *object.Dumper, l *ipc.Look, info *procfs.SysVShm, name int32, fd *sys.FD) stream.Ref {
	s := &Segment{Perm: ipc.PermOf(&info.IPCPerm), Size: info.Size, Maker: l.PID(info.CPID), Dest: info.Mode&procfs.IPCDest != 0,
		Locked: info.Mode&procfs.IPCLocked != 0, Attached: info.ATime != 0 || info.NAttch > 0}
	if name != s.Perm.Key {
		s.Name = name
	}
	ref := d.Add(TypeSegment, s)
	if fd != nil {
		d.AddBulk(ref, func(w *stream.Writer) error { return writeShm(w, ref, fd, info.Size, d.Arch.PageSize) })
	}
	if !s.Dest {
		l.RemoveWhenEnded(d, ipc.Shm, info.ID)
	}
	return ref
}

// DumpSegments adds the segments that belong to the tree although it has not attached them, and refuses those that somebody else has
// attached. It comes when all address spaces have been looked at.
func DumpSegments(d *object.Dumper) error {
	s := segmentsOf(d)
	for _, id := range s.order {
		use := s.all[id]
		switch attached := use.info.NAttch; {
		case attached < use.mappings:
			d.Refuse(use.p.Error("", object.Unsupportedf("System V shared memory %d is mapped other than by shmat(2), or of another IPC namespace", id)))
		case attached > use.mappings:
			d.Refuse(use.p.Error("", &object.Unsupported{
				What: fmt.Sprintf("System V shared memory %d is also attached outside of the tree%s", id, attachedBy(d, id)),
				Do:   "dump the whole job, or end or detach the other process first"}))
		}
	}
	l := ipc.Of(d)
	belong, err := l.Segments()
	if err != nil {
		return err
	}
	for _, info := range belong {
		if s.all[info.ID] != nil {
			continue
		}
		if info.NAttch > 0 {
			d.Refuse(&object.Unsupported{What: fmt.Sprintf("System V shared memory %d is attached outside of the tree%s", info.ID, attachedBy(d, info.ID))})
			continue
		}
		var fd *sys.FD
		if err := l.Do(func() (err error) {
			if info.ATime == 0 { // nobody has ever attached it: it has no contents
				return nil
			}
			if fd, err = openSegment(info.ID, sys.ShmRdonly, unix.O_RDONLY); err == nil {
				d.Keep(fd)
			}
			return err
		}); err != nil {
			var u *object.Unsupported
			if !errors.As(err, &u) {
				return fmt.Errorf("%s %d: %w", ipc.Shm.What(), info.ID, err)
			}
			d.Refuse(u)
			continue
		}
		addSegment(d, l, info, info.Key, fd)
	}
	return nil
}

// attachedBy says which process outside of the tree has attached a segment, if that can be seen.
func attachedBy(d *object.Dumper, id int32) string {
	pids, err := procfs.Processes()
	if err != nil {
		return ""
	}
	internal, _ := shmDevice()
	ours := map[int]bool{}
	for _, p := range d.Processes {
		ours[p.PID] = true
	}
	want := ipc.Of(d).Link()
	for _, pid := range pids {
		if ours[pid] {
			continue
		}
		if link, err := os.Readlink(procfs.Path(pid, "ns/ipc")); err != nil || link != want {
			continue
		}
		maps, err := procfs.ReadMaps(pid)
		if err != nil {
			continue
		}
		for i := range maps {
			v := &maps[i]
			if v.Inode == uint64(id) && strings.HasPrefix(v.Path, sysvPrefix) && unix.Mkdev(v.Major, v.Minor) == internal {
				st, _ := procfs.ReadStat(pid)
				return fmt.Sprintf(", by pid %d (%s)", pid, st.Comm)
			}
		}
	}
	return ""
}

// openSegment opens the memory of a segment of the calling thread's namespace. It is attached for a moment: that its owner says it may not be
// destroyed by that is the caller's business.
func openSegment(id int32, flags, mode int) (*sys.FD, error) {
	if forced, err := os.ReadFile("/proc/sys/kernel/shm_rmid_forced"); err == nil && strings.TrimSpace(string(forced)) != "0" {
		return nil, &object.Unsupported{What: fmt.Sprintf("System V shared memory %d, which nobody has attached, cannot be checkpointed: it would be destroyed by being looked at", id),
			Do: "sysctl kernel.shm_rmid_forced=0 in its IPC namespace"}
	}
	return attachAndOpen(id, flags, mode)
}

func attachAndOpen(id int32, flags, mode int) (*sys.FD, error) {
	at, err := sys.ShmAttach(id, flags)
	if err != nil {
		return nil, fmt.Errorf("attaching it: %w", err)
	}
	fd, err := openAttached(at, mode)
	if detach := sys.ShmDetach(at); detach != nil && err == nil {
		err = errors.Join(fmt.Errorf("detaching it: %w", detach), fd.Close())
	}
	if err != nil {
		return nil, err
	}
	return fd, nil
}

func openAttached(at uintptr, mode int) (*sys.FD, error) {
	maps, err := procfs.ReadMaps(os.Getpid())
	if err != nil {
		return nil, err
	}
	internal, err := shmDevice()
	if err != nil {
		return nil, err
	}
	for i := range maps {
		v := &maps[i]
		if uint64(v.Start) != uint64(at) {
			continue
		}
		if unix.Mkdev(v.Major, v.Minor) != internal {
			return nil, object.Unsupportedf("System V shared memory of huge pages (SHM_HUGETLB) cannot be checkpointed")
		}
		fd, err := sys.Open(fmt.Sprintf("/proc/self/map_files/%x-%x", uint64(v.Start), uint64(v.End)), mode|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EPERM) {
			err = &object.Lacking{What: "opening shared memory through /proc/self/map_files", Err: err, Do: "it needs CAP_CHECKPOINT_RESTORE"}
		}
		return fd, err
	}
	return nil, errors.New("internal error: what was attached is not mapped")
}

// Check refuses what no segment can be.
func (s *Segment) Check(taskSize uint64) error {
	if err := s.Perm.Check(); err != nil {
		return err
	}
	if s.Size == 0 || s.Size > taskSize || s.Maker < 0 || s.Dest && s.Perm.Key != 0 {
		return object.BadImagef("System V shared memory %d of %d bytes, made by %d, key %#x", s.Perm.ID, s.Size, s.Maker, s.Perm.Key)
	}
	return nil
}
