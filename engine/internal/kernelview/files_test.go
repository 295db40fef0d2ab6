//go:build amd64

package kernelview

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fileSet opens one file of each kind in this process.
type fileSet struct {
	fds   []int
	kinds []Kind
	names []string
}

func (s *fileSet) add(t *testing.T, name string, kind Kind, fd int, err error) int {
	t.Helper()
	if err != nil {
		t.Logf("without %s: %v", name, err)
		return -1
	}
	s.fds, s.kinds, s.names = append(s.fds, fd), append(s.kinds, kind), append(s.names, name)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func raw(nr uintptr, args ...uintptr) (int, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return -1, e
	}
	return int(r), nil
}

func openAll(t *testing.T) *fileSet {
	t.Helper()
	s := new(fileSet)
	dir := t.TempDir()
	open := func(name string, kind Kind, path string, flags int) int {
		t.Helper()
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o640)
		return s.add(t, name, kind, fd, err)
	}
	fd := open("regular file", KindRegular, dir+"/file", unix.O_RDWR|unix.O_CREAT|unix.O_APPEND)
	if _, err := unix.Write(fd, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(fd, 1234, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/file", dir+"/second"); err != nil {
		t.Fatal(err)
	}
	open("deleted file", KindRegular, dir+"/deleted", unix.O_WRONLY|unix.O_CREAT)
	if err := os.Remove(dir + "/deleted"); err != nil {
		t.Fatal(err)
	}
	open("directory", KindDirectory, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	open("path", KindPath, dir+"/file", unix.O_PATH)
	if err := os.Symlink("nowhere", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	open("path of a symlink", KindPath, dir+"/link", unix.O_PATH|unix.O_NOFOLLOW)
	open("null device", KindCharDevice, "/dev/null", unix.O_RDWR|unix.O_NONBLOCK)
	open("zero device", KindCharDevice, "/dev/zero", unix.O_RDONLY)
	open("proc file", KindRegular, "/proc/self/status", unix.O_RDONLY)
	open("proc mem", KindRegular, "/proc/self/mem", unix.O_RDONLY)
	open("shared memory", KindRegular, "/dev/shm", unix.O_RDWR|unix.O_TMPFILE)
	open("terminal master", KindTTY, "/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	open("namespace", KindNamespace, "/proc/self/ns/uts", unix.O_RDONLY)
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	open("fifo", KindPipe, dir+"/fifo", unix.O_RDWR)

	var p [2]int
	err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_DIRECT)
	s.add(t, "pipe read end", KindPipe, p[0], err)
	s.add(t, "pipe write end", KindPipe, p[1], err)
	p, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	s.add(t, "unix socket", KindSocket, p[0], err)
	s.add(t, "its peer", KindSocket, p[1], err)
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	s.add(t, "tcp socket", KindSocket, fd, err)
	fd, err = unix.Eventfd(3, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	s.add(t, "eventfd", KindEventfd, fd, err)
	fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	s.add(t, "epoll", KindEpoll, fd, err)
	fd, err = unix.Signalfd(-1, &unix.Sigset_t{}, unix.SFD_CLOEXEC)
	s.add(t, "signalfd", KindSignalfd, fd, err)
	fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	s.add(t, "timerfd", KindTimerfd, fd, err)
	fd, err = unix.InotifyInit1(unix.IN_CLOEXEC)
	s.add(t, "inotify", KindInotify, fd, err)
	fd, err = unix.FanotifyInit(unix.FAN_CLOEXEC, unix.O_RDONLY)
	s.add(t, "fanotify", KindFanotify, fd, err)
	fd, err = unix.PidfdOpen(os.Getpid(), 0)
	s.add(t, "pidfd", KindPidfd, fd, err)
	fd, err = unix.MemfdCreate("view", unix.MFD_CLOEXEC)
	s.add(t, "memfd", KindRegular, fd, err)
	fd, err = raw(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1)
	s.add(t, "userfaultfd", KindUserfaultfd, fd, err)
	fd, err = unix.Dup(view(t).mem.prog.Int())
	unix.CloseOnExec(fd)
	s.add(t, "bpf program", KindBPF, fd, err)
	return s
}

// TestFiles passes one open file of each kind to a child and compares its
// table with /proc, stat, fcntl and kcmp.
func TestFiles(t *testing.T) {
	v := view(t)
	s := openAll(t)
	c := newChild(t) // has a process group of its own
	// Owners: a process with a signal, a group.
	for i, name := range s.names {
		switch name {
		case "unix socket":
			must(t)(raw(unix.SYS_FCNTL, uintptr(s.fds[i]), unix.F_SETOWN, uintptr(os.Getpid())))
			must(t)(raw(unix.SYS_FCNTL, uintptr(s.fds[i]), unix.F_SETSIG, 36))
		case "tcp socket":
			must(t)(raw(unix.SYS_FCNTL, uintptr(s.fds[i]), unix.F_SETOWN, uintptr(-c.pid())))
		case "regular file":
			if err := unix.Flock(s.fds[i], unix.LOCK_EX); err != nil {
				t.Fatal(err)
			}
		}
	}

	me := c.must(unix.SYS_PIDFD_OPEN, uint64(os.Getpid()), 0)
	var theirs []int
	for _, fd := range s.fds {
		theirs = append(theirs, int(c.must(unix.SYS_PIDFD_GETFD, uint64(me), uint64(fd), 0)))
	}
	high := int(c.must(unix.SYS_FCNTL, uint64(theirs[0]), unix.F_DUPFD, 700))
	c.must(unix.SYS_FCNTL, uint64(theirs[1]), unix.F_SETFD, 0) // no close-on-exec
	tables, err := v.Files([]int{c.pid(), os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	table := &tables[0]
	byFD := make(map[int]FD)
	last := -1
	for _, fd := range table.FDs {
		if fd.FD <= last {
			t.Fatalf("descriptor %d after %d", fd.FD, last)
		}
		last = fd.FD
		byFD[fd.FD] = fd
	}
	mine := make(map[int]*File)
	for _, fd := range tables[1].FDs {
		mine[fd.FD] = fd.File
	}

	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid()))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != len(byFD) {
		t.Errorf("%d descriptors, /proc says %d", len(byFD), len(names))
	}
	for _, name := range names {
		n, _ := strconv.Atoi(name.Name())
		fd, ok := byFD[n]
		if !ok {
			t.Errorf("descriptor %d is missing", n)
			continue
		}
		compareFdinfo(t, c.pid(), fd)
	}
	for i, n := range theirs {
		fd := byFD[n]
		if fd.File == nil {
			continue
		}
		if fd.File.Kind != s.kinds[i] {
			t.Errorf("%s: kind %q, want %q", s.names[i], fd.File.Kind, s.kinds[i])
		}
		if fd.CloseOnExec != (i != 1) {
			t.Errorf("%s: close on exec %v", s.names[i], fd.CloseOnExec)
		}
		if mine[s.fds[i]] != fd.File {
			t.Errorf("%s: not the file that it was passed as", s.names[i])
		}
		refs := int64(2)
		if s.names[i] == "bpf program" {
			refs = 3 // with the view's own
		}
		if i == 0 {
			refs = 3 // with the high one
		}
		same(t, s.names[i]+": references", fd.File.Refs, refs)
		compareStat(t, s.names[i], s.fds[i], fd.File)
		compareOwner(t, s.names[i], s.fds[i], fd.File)
		same(t, s.names[i]+": locks", fd.File.Locks, s.names[i] == "regular file" || s.names[i] == "path")
	}
	if byFD[high].File != byFD[theirs[0]].File || byFD[high].CloseOnExec {
		t.Error("a duplicate is not the same file, or is closed on exec")
	}
	// Same file or not, against kcmp, for all pairs.
	for i, a := range theirs {
		for _, b := range append([]int{high}, theirs[:i]...) {
			r, err := raw(unix.SYS_KCMP, uintptr(c.pid()), uintptr(c.pid()), 0, uintptr(a), uintptr(b))
			if err != nil {
				t.Skipf("needs kcmp: %v", err)
			}
			if (byFD[a].File.ID == byFD[b].File.ID) != (r == 0) {
				t.Errorf("descriptors %d and %d: kcmp %d, IDs %d %d", a, b, r, byFD[a].File.ID, byFD[b].File.ID)
			}
		}
	}
}

// must takes a result and its error.
func must(t *testing.T) func(int, error) int {
	return func(r int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

func compareFdinfo(t *testing.T, pid int, fd FD) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd.FD))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		f := fd.File
		var got string
		switch key {
		case "pos":
			got = fmt.Sprint(f.Pos.V)
		case "flags":
			flags := f.Flags.V
			if fd.CloseOnExec {
				flags |= unix.O_CLOEXEC
			}
			got = fmt.Sprintf("0%o", flags)
		case "mnt_id":
			got = fmt.Sprint(f.Mount.V)
		case "ino":
			got = fmt.Sprint(f.Ino.V)
		default:
			continue
		}
		if got != value {
			t.Errorf("descriptor %d (%s): %s %s, fdinfo says %s", fd.FD, f.Kind, key, got, value)
		}
	}
}

func compareStat(t *testing.T, name string, fd int, f *File) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	same(t, name+": device", f.Dev, st.Dev)
	same(t, name+": inode", f.Ino, st.Ino)
	same(t, name+": links", f.Nlink, uint32(st.Nlink))
	switch f.FSType.V {
	case unix.PROC_SUPER_MAGIC: // stat(2) asks the task there
	case unix.PID_FS_MAGIC: // stat(2) does not show the type
		same(t, name+": mode", Is(f.Mode.V&^unix.S_IFMT), uint16(st.Mode))
	default:
		same(t, name+": mode", f.Mode, uint16(st.Mode))
	}
	same(t, name+": device number", f.Rdev, st.Rdev)
	same(t, name+": size", f.Size, st.Size)
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err == nil {
		same(t, name+": file system", f.FSType, uint64(sfs.Type))
	}
	if f.Kind != KindPath {
		flags := must(t)(raw(unix.SYS_FCNTL, uintptr(fd), unix.F_GETFL))
		same(t, name+": flags", f.Flags, uint32(flags)&^unix.O_CLOEXEC)
	}
}

func compareOwner(t *testing.T, name string, fd int, f *File) {
	t.Helper()
	if f.Kind == KindPath {
		return
	}
	if !f.Owner.Known {
		t.Errorf("%s: owner unknown", name)
		return
	}
	o := f.Owner.V
	got := o.PID
	if o.Type == 2 {
		got = -got
	}
	own, err := raw(unix.SYS_FCNTL, uintptr(fd), unix.F_GETOWN)
	var e unix.Errno
	if errors.As(err, &e) { // a small process group looks like an error, fcntl(2) BUGS
		own = -int(e)
	}
	if int(int32(own)) != got {
		t.Errorf("%s: owner %+v, F_GETOWN says %d", name, o, own)
	}
	if sig := must(t)(raw(unix.SYS_FCNTL, uintptr(fd), unix.F_GETSIG)); int32(sig) != o.Signal {
		t.Errorf("%s: owner %+v, F_GETSIG says %d", name, o, sig)
	}
	if (name == "unix socket" || name == "tcp socket") != o.Set {
		t.Errorf("%s: owner %+v", name, o)
	}
}

func TestSharedTable(t *testing.T) {
	v, c := view(t), newChild(t)
	tid := c.clone(unix.CLONE_FILES|unix.CLONE_VM, 0x8000)
	other := newChild(t)
	tables, err := v.Files([]int{c.pid(), tid, other.pid()})
	if err != nil {
		t.Fatal(err)
	}
	if tables[0].ID != tables[1].ID || tables[0].ID == tables[2].ID {
		t.Errorf("tables %v %v %v", tables[0].ID, tables[1].ID, tables[2].ID)
	}
	same(t, "users", tables[0].Users, 2)
	same(t, "users", tables[2].Users, 1)
	if len(tables[0].FDs) != 2 || len(tables[1].FDs) != 2 {
		t.Errorf("descriptors %v and %v", tables[0].FDs, tables[1].FDs)
	}
	threads, err := v.Threads([]int{c.pid()})
	if err != nil || threads[0].Files != tables[0].ID {
		t.Errorf("the thread's table %v is not %v: %v", threads[0].Files, tables[0].ID, err)
	}
}

// TestLargeTable fills a large table with holes in it.
func TestLargeTable(t *testing.T) {
	v, c := view(t), newChild(t)
	c.must(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, c.putWords(0, 20000, 20000), 0)
	want := map[int]bool{0: true, 1: true}
	for fd := 64; fd < 20000; fd += 977 {
		c.must(unix.SYS_DUP3, 0, uint64(fd), uint64(fd%2*unix.O_CLOEXEC))
		want[fd] = true
	}
	tables, err := v.Files([]int{c.pid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range tables[0].FDs {
		if !want[fd.FD] || fd.CloseOnExec != (fd.FD >= 64 && fd.FD%2 == 1) {
			t.Errorf("descriptor %d, close on exec %v", fd.FD, fd.CloseOnExec)
		}
		delete(want, fd.FD)
	}
	if len(want) != 0 {
		t.Errorf("missing descriptors %v", want)
	}
	same(t, "references", tables[0].FDs[0].File.Refs, int64(len(tables[0].FDs)))
}

// TestLease checks that a lease counts as a lock.
func TestLease(t *testing.T) {
	v := view(t)
	path := filepath.Join(t.TempDir(), "leased")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	locks := func() Maybe[bool] {
		tables, err := v.Files([]int{os.Getpid()})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tables[0].FDs {
			if d.FD == fd {
				return d.File.Locks
			}
		}
		t.Fatal("the descriptor is missing")
		return Maybe[bool]{}
	}
	same(t, "locks", locks(), false)
	if _, err := raw(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Skipf("needs leases: %v", err)
	}
	same(t, "locks", locks(), true)
	must(t)(raw(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK))
	same(t, "locks", locks(), false)
}
