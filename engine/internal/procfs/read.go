package procfs

import (
	"bytes"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Reader reads whole proc files into one buffer that it keeps. The zero value
// is ready; it is not safe for concurrent use.
type Reader struct {
	buf []byte
}

// File returns the content of path, valid until the next call. It goes
// through plain system calls: a proc file needs no poller, and a task's files
// are read by the thousand while it stands still.
func (r *Reader) File(path string) ([]byte, error) {
	var fd int
	var err error
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != unix.EINTR { //nolint:errorlint // a bare errno
			break
		}
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return r.Fd(fd, path)
}

// Fd is File for a descriptor that is already open; it reads from the current
// position. name is for the error.
func (r *Reader) Fd(fd int, name string) ([]byte, error) {
	const first = 16 << 10
	if cap(r.buf) < first {
		r.buf = make([]byte, 0, first)
	}
	b := r.buf[:0]
	for {
		if len(b) == cap(b) {
			bigger := make([]byte, len(b), 2*cap(b))
			copy(bigger, b)
			b = bigger
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			continue
		}
		if err != nil {
			r.buf = b
			return nil, &os.PathError{Op: "read", Path: name, Err: err}
		}
		if n == 0 {
			r.buf = b
			return b, nil
		}
		b = b[:len(b)+n]
	}
}

// ReadFile returns the content of a file that the kernel makes up.
func ReadFile(path string) ([]byte, error) {
	return with(path, func(b []byte) ([]byte, error) { return bytes.Clone(b), nil })
}

// Task reads /proc/PID/NAME.
func (r *Reader) Task(pid int, name string) ([]byte, error) {
	return r.File(Path(pid, name))
}

// Thread reads /proc/PID/task/TID/NAME.
func (r *Reader) Thread(pid, tid int, name string) ([]byte, error) {
	return r.File(ThreadPath(pid, tid, name))
}

// Path returns /proc/PID/NAME.
func Path(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

// ThreadPath returns /proc/PID/task/TID/NAME.
func ThreadPath(pid, tid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(tid) + "/" + name
}

var readers = sync.Pool{New: func() any { return new(Reader) }}

// with reads path into a pooled buffer and parses it there.
func with[T any](path string, parse func([]byte) (T, error)) (T, error) {
	r := readers.Get().(*Reader)
	defer readers.Put(r)
	var zero T
	b, err := r.File(path)
	if err != nil {
		return zero, err
	}
	v, err := parse(b)
	if err != nil {
		return zero, &os.PathError{Op: "parse", Path: path, Err: err}
	}
	return v, nil
}

// ReadStat reads /proc/PID/stat, which describes the whole process; pid may
// be the id of any of its threads, whose own numbers ReadThreadStat gives.
func ReadStat(pid int) (Stat, error) { return with(Path(pid, "stat"), ParseStat) }

// ReadThreadStat reads /proc/PID/task/TID/stat.
func ReadThreadStat(pid, tid int) (Stat, error) {
	return with(ThreadPath(pid, tid, "stat"), ParseStat)
}

// ReadStatus reads /proc/PID/status.
func ReadStatus(pid int) (*Status, error) { return with(Path(pid, "status"), ParseStatus) }

// ReadThreadStatus reads /proc/PID/task/TID/status.
func ReadThreadStatus(pid, tid int) (*Status, error) {
	return with(ThreadPath(pid, tid, "status"), ParseStatus)
}

// ReadMaps reads /proc/PID/maps. The file is not a snapshot unless the task
// stands still. A dead thread group leader shows nothing: use a live thread.
func ReadMaps(pid int) ([]VMA, error) {
	return with(Path(pid, "maps"), func(b []byte) ([]VMA, error) { return ParseMaps(b, nil) })
}

// ReadSmaps reads /proc/PID/smaps, which costs ten times as much as maps: the
// kernel walks the page tables.
func ReadSmaps(pid int) ([]SmapsVMA, error) { return with(Path(pid, "smaps"), ParseSmaps) }

// ReadLimits reads /proc/PID/limits, which needs no privilege, unlike prlimit.
func ReadLimits(pid int) (Limits, error) { return with(Path(pid, "limits"), ParseLimits) }

// ReadFdinfo reads /proc/PID/fdinfo/FD.
func ReadFdinfo(pid, fd int) (*Fdinfo, error) {
	return with(Path(pid, "fdinfo/"+strconv.Itoa(fd)), ParseFdinfo)
}

// ReadThreadFdinfo reads /proc/PID/task/TID/fdinfo/FD, which differs from the
// process's when the thread has left the shared descriptor table.
func ReadThreadFdinfo(pid, tid, fd int) (*Fdinfo, error) {
	return with(ThreadPath(pid, tid, "fdinfo/"+strconv.Itoa(fd)), ParseFdinfo)
}

// ReadTimers reads /proc/PID/timers.
func ReadTimers(pid int) ([]Timer, error) { return with(Path(pid, "timers"), ParseTimers) }

// ReadMountinfo reads /proc/PID/mountinfo: the mounts as that task sees them.
func ReadMountinfo(pid int) ([]Mount, error) { return with(Path(pid, "mountinfo"), ParseMountinfo) }

// ReadSelfMountinfo reads the mounts as this thread sees them.
func ReadSelfMountinfo() ([]Mount, error) {
	return with("/proc/thread-self/mountinfo", ParseMountinfo)
}

// ReadCgroups reads /proc/PID/cgroup.
func ReadCgroups(pid int) ([]Cgroup, error) { return with(Path(pid, "cgroup"), ParseCgroups) }

// ReadThreadCgroups reads /proc/PID/task/TID/cgroup: threads of one process
// may be in different v1 cgroups (and v2 ones in a threaded subtree).
func ReadThreadCgroups(pid, tid int) ([]Cgroup, error) {
	return with(ThreadPath(pid, tid, "cgroup"), ParseCgroups)
}

// ReadChildren returns the children of one thread: a child belongs to the
// thread that forked it. The list is exact only if they are all stopped
// (proc_pid_task_tid_children(5)); without CONFIG_PROC_CHILDREN: ENOENT.
func ReadChildren(pid, tid int) ([]int, error) {
	return with(ThreadPath(pid, tid, "children"), ParseChildren)
}

// ReadCmdline returns the arguments of a process. A process may have written
// over them; one without memory (a zombie, a kernel thread) has none.
func ReadCmdline(pid int) ([]string, error) { return with(Path(pid, "cmdline"), ParseCmdline) }

// Threads returns the ids of all threads of a process in ascending order.
func Threads(pid int) ([]int, error) { return numbers(Path(pid, "task")) }

// Descriptors returns the open descriptors of a process in ascending order.
func Descriptors(pid int) ([]int, error) { return numbers(Path(pid, "fd")) }

// Processes returns the ids of all processes in ascending order.
func Processes() ([]int, error) { return numbers("/proc") }

// BootID is the random identity of this boot of the kernel.
func BootID() (string, error) {
	return with("/proc/sys/kernel/random/boot_id", func(b []byte) (string, error) {
		line, _ := cutLine(b)
		return string(line), nil
	})
}

// Namespace returns the inode number of the namespace NAME ("pid", "mnt", ...)
// of a task: two tasks are in the same one if the numbers are equal.
func Namespace(pid int, name string) (uint64, error) {
	return namespaceOf(Path(pid, "ns/"+name))
}

// ThreadNamespace is Namespace of one thread.
func ThreadNamespace(pid, tid int, name string) (uint64, error) {
	return namespaceOf(ThreadPath(pid, tid, "ns/"+name))
}

func namespaceOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
