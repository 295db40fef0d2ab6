package files

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A file or directory of proc(5). One that is about no process (/proc/meminfo) is opened by its path. One about a
// process of the tree (/proc/self/stat is /proc/4711/stat in the links) cannot be opened before that process is there,
// so that a task opens it when all tasks are made; as processes keep their numbers, the path stays right. Refused: a
// file about a process outside of the tree, whose number will be somebody else's; about a dead one; and one that two
// descriptor tables share, since each would open its own.
//
// A descriptor of a namespace (namespaces(7)) in which a process of the tree is, is opened again as a file of that process: it
// is the namespace that the process is in then.
//
// Contents that were read but not used up yet are made anew by the kernel when the position is set.
type procState struct {
	Path    string `msgpack:"path"`
	Flags   uint32 `msgpack:"flags"` // as F_GETFL
	Pos     int64  `msgpack:"pos,omitempty"`
	Process bool   `msgpack:"process,omitempty"` // is about a process of the tree
}

// procRootIno is the inode of the root of every proc file system, PROC_ROOT_INO of include/linux/proc_fs.h.
const procRootIno = 1

func claimsProc(d *object.Dumper, f *object.OpenFile) bool {
	if p, _ := namespacePath(d, f); p != "" {
		return true
	}
	return fsType(f) == unix.PROC_SUPER_MAGIC && isPath(f.Link) && f.FD >= 0
}

// namespacePath returns, for a descriptor of a namespace, the path by which the process that has it can open it; "" when none
// is known. By its own link a process can open only its own; by number only where numbers are the same for all.
func namespacePath(d *object.Dumper, f *object.OpenFile) (string, error) {
	kind, _, ok := strings.Cut(f.Link, ":[")
	if !ok || f.FD < 0 || isPath(f.Link) || fsType(f) != unix.NSFS_MAGIC || isOPath(f) || strings.Contains(kind, "/") {
		return "", nil
	}
	for _, p := range append([]*object.Process{f.Process}, d.Processes...) {
		if p.Zombie {
			continue
		}
		ino, err := procfs.Namespace(p.Leader().TID, kind)
		if err != nil {
			return "", err
		}
		switch {
		case ino != f.Stat.Ino:
		case p == f.Process:
			return "/proc/self/ns/" + kind, nil
		case p.Leader().TID == p.Leader().ID:
			return fmt.Sprintf("/proc/%d/ns/%s", p.PID, kind), nil
		}
	}
	return "", nil
}

func dumpProc(d *object.Dumper, f *object.OpenFile) (*procState, error) {
	if p, err := namespacePath(d, f); err != nil || p != "" {
		flags, err := dumpFlags(f)
		if err != nil {
			return nil, err
		}
		return &procState{Path: p, Flags: flags, Process: true}, notShared(d, f)
	}
	st, err := lookup(f.Process, f.Link)
	if err != nil || st.Dev != f.Stat.Dev || st.Mode&unix.S_IFMT != f.Stat.Mode&unix.S_IFMT {
		return nil, object.Unsupportedf("its path does not lead to it any more: the process that it is about is dead, or something was mounted over it")
	}
	flags, err := dumpFlags(f)
	if err != nil {
		return nil, err
	}
	pos, err := position(f)
	if err != nil {
		return nil, err
	}
	s := &procState{Path: f.Link, Flags: flags, Pos: pos}
	if s.Process, err = aboutProcess(d, f.Process, f.Link, &f.Stat); err != nil || !s.Process {
		return s, err
	}
	return s, notShared(d, f)
}

// notShared refuses a file that more than one process has.
func notShared(d *object.Dumper, f *object.OpenFile) error {
	ix, err := indexOf(d)
	if err != nil {
		return err
	}
	if holders := ix.holders[f.View.ID]; len(holders) > 0 {
		for _, h := range holders[1:] {
			if h.Process != holders[0].Process {
				return object.Unsupportedf("a proc file about a process, or a namespace, that pid %d and pid %d share cannot be checkpointed", holders[0].Process.PID, h.Process.PID)
			}
		}
	}
	return nil
}

// aboutProcess says whether a path of a proc file system is about a process of the tree. It refuses one about any
// other process, and numbers that are not those of the tree's pid namespace.
func aboutProcess(d *object.Dumper, p *object.Process, path string, st *unix.Stat_t) (bool, error) {
	number, sub := procNumbers(p, path, st)
	if number == 0 {
		return false, nil
	}
	// The caller's own proc file system shows the caller's numbers; another one is taken for the tree's.
	var own unix.Stat_t
	if err := unix.Stat("/proc", &own); err != nil {
		return false, fmt.Errorf("looking at /proc: %w", err)
	}
	for _, q := range d.Processes {
		for _, t := range append([]*object.Thread{{TID: q.PID, ID: q.ID}}, q.Threads...) {
			n := t.ID
			if own.Dev == st.Dev {
				n = t.TID
			}
			if n != number {
				continue
			}
			if t.TID != t.ID && own.Dev == st.Dev {
				return false, object.Unsupportedf("a proc file about pid %d, which is pid %d in the tree's own pid namespace, cannot be checkpointed", t.TID, t.ID)
			}
			if sub != 0 && !hasThread(q, sub, own.Dev == st.Dev) {
				return false, object.Unsupportedf("it is about thread %d, which is not in the tree", sub)
			}
			return true, nil
		}
	}
	return false, &object.Unsupported{
		What: fmt.Sprintf("it is about pid %d, which is not in the tree", number),
		Do:   "dump that process too, or close the file before the dump",
	}
}

func hasThread(p *object.Process, tid int, outer bool) bool {
	for _, t := range p.Threads {
		if outer && t.TID == tid || !outer && t.ID == tid {
			return true
		}
	}
	return false
}

// procNumbers returns the process (or thread) number that stands behind the root of the proc file system in path, 0
// for none, and that of a thread below its task directory.
func procNumbers(p *object.Process, path string, st *unix.Stat_t) (number, sub int) {
	parts := strings.Split(path, "/") // the first one is empty
	for i := 1; i < len(parts); i++ {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n <= 0 {
			continue
		}
		root, err := lookup(p, "/"+strings.Join(parts[1:i], "/"))
		if err != nil || root.Ino != procRootIno || root.Dev != st.Dev {
			continue
		}
		if i+2 < len(parts) && parts[i+1] == "task" {
			sub, _ = strconv.Atoi(parts[i+2])
		}
		return n, sub
	}
	return 0, 0
}

// lateFile is a file that a task opens itself. Its place in the pool is taken by the root directory, from which it is
// opened: the task may have another one by then.
type lateFile struct {
	state *procState
	table *TableState // the one that has it
}

func restoreProc(r *object.Restorer, ref stream.Ref, s *procState) (int, error) {
	if err := checkFlags(s.Flags, openFlags); err != nil {
		return -1, err
	}
	if err := checkPath(s.Path); err != nil {
		return -1, err
	}
	if s.Process {
		r.Remember(ref, &lateFile{state: s})
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: "/", Err: err}
		}
		return fd, nil
	}
	var fs unix.Statfs_t
	pinned, err := openAny(s.Path, s.Flags&unix.O_NOFOLLOW != 0)
	if err != nil {
		return -1, err
	}
	defer pinned.Close()
	if err := unix.Fstatfs(pinned.Int(), &fs); err != nil {
		return -1, fmt.Errorf("looking at %s: %w", s.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(pinned.Int(), &st); err != nil {
		return -1, fmt.Errorf("looking at %s: %w", s.Path, err)
	}
	if int64(fs.Type) != unix.PROC_SUPER_MAGIC {
		return -1, fmt.Errorf("%s is not on a proc file system now", s.Path)
	}
	fd, err := openPinned(s.Path, pinned, &st, s.Flags)
	if err != nil {
		return -1, fmt.Errorf("opening %s: %w", s.Path, err)
	}
	if s.Flags&unix.O_PATH != 0 {
		return fd, nil
	}
	if err := seek(fd, s.Pos); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", s.Path, err)
	}
	return fd, nil
}

// openCalls appends the calls by which a task opens the file, root being a descriptor of the root directory, and
// returns the one whose result is its descriptor, at or above base: the number that open(2) gives may be one that the
// table needs. The low one is closed or replaced with the rest of the table.
func (l *lateFile) openCalls(b *tracee.Batch, root, base int) *tracee.Call {
	s, n := l.state, b.Sys()
	// O_NONBLOCK so that nothing that took the path's place can hold the restore up.
	flags := int(s.Flags)&^statusFlags | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY
	if s.Flags&unix.O_PATH != 0 {
		flags = int(s.Flags) | unix.O_CLOEXEC
	}
	fd := b.Call(n.Openat, root, strings.TrimLeft(s.Path, "/"), flags, 0).Note("%s", clip(s.Path))
	if s.Flags&unix.O_PATH == 0 {
		b.Call(n.Fcntl, fd, unix.F_SETFL, s.Flags&statusFlags).Note("%s", clip(s.Path))
		if s.Pos != 0 {
			b.Call(n.Lseek, fd, s.Pos, unix.SEEK_SET).Note("position in %s", clip(s.Path))
		}
	}
	high := b.Call(n.Fcntl, fd, unix.F_DUPFD, base).Note("%s", clip(s.Path))
	b.Call(n.Close, fd)
	return high
}

// ProcKind is the kind of files of proc file systems.
var ProcKind = object.NewFileKind("file.proc", claimsProc, dumpProc, restoreProc)
