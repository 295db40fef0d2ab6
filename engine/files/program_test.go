package files_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/files/filestest"
)

func TestMain(m *testing.M) {
	filestest.Main(m, map[string]func() error{
		"files": filesProgram, "held": heldProgram, "proc": procProgram, "outside": outsideProgram, "mounted": mountedProgram,
		"threads": threadsProgram, "terminal": terminalProgram, "many": manyProgram, "sockets": socketsProgram, "family": familyProgram, "locks": locksProgram, "maplocked": mapLockedProgram, "leases": leasesProgram, "idle": func() error { return nil },
	})
}

// at opens files at numbers that the tests know; the first error stays.
type at struct {
	dir string
	err error
}

func (a *at) path(name string) string { return filepath.Join(a.dir, name) }

func (a *at) fail(err error) {
	if a.err == nil && err != nil {
		a.err = err
	}
}

func (a *at) open(to int, path string, flags int) {
	fd, err := unix.Open(path, flags, 0o640)
	if err != nil {
		a.fail(fmt.Errorf("%d: %s: %w", to, path, err))
		return
	}
	a.move(fd, to)
}

func (a *at) reopen(to, from, flags int) { a.open(to, fmt.Sprintf("/proc/self/fd/%d", from), flags) }

func (a *at) move(fd, to int) { a.fail(filestest.Dup3To(fd, to)) }

func (a *at) dup(from, to, flags int) { a.fail(unix.Dup3(from, to, flags)) }

func (a *at) seek(fd int, pos int64) {
	_, err := unix.Seek(fd, pos, unix.SEEK_SET)
	a.fail(err)
}

func (a *at) write(fd int, b []byte) {
	n, err := unix.Write(fd, b)
	a.fail(err)
	if n != len(b) {
		a.fail(fmt.Errorf("%d: %d of %d bytes written", fd, n, len(b)))
	}
}

func (a *at) pipe(r, w, flags int) {
	var p [2]int
	if err := unix.Pipe2(p[:], flags); err != nil {
		a.fail(err)
		return
	}
	a.move(p[0], r)
	a.move(p[1], w)
}

// filesProgram holds everything that this family keeps.
func filesProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	for _, f := range []struct{ name, text string }{{"plain", "0123456789"}, {"linked", "two names"}, {"gone", ""}} {
		a.fail(os.WriteFile(a.path(f.name), []byte(f.text), 0o644))
	}
	a.fail(os.Symlink("plain", a.path("symlink")))
	a.fail(unix.Mkfifo(a.path("fifo"), 0o600))
	a.fail(os.Mkdir(a.path("many"), 0o755))
	for i := range 300 {
		a.fail(os.WriteFile(a.path(fmt.Sprintf("many/%d", i)), nil, 0o600))
	}

	a.open(20, a.path("plain"), unix.O_RDONLY)
	a.seek(20, 5)
	a.dup(20, 21, unix.O_CLOEXEC)
	a.open(22, a.path("plain"), unix.O_RDWR|unix.O_APPEND|unix.O_NONBLOCK)
	a.open(23, a.path("plain"), unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_SYNC)
	a.seek(23, 4000) // behind its end
	a.open(24, a.path("many"), unix.O_RDONLY|unix.O_DIRECTORY)
	_, err := unix.Getdents(24, make([]byte, 1024))
	a.fail(err)
	a.open(25, a.dir, unix.O_PATH|unix.O_DIRECTORY)
	a.open(26, a.path("symlink"), unix.O_PATH|unix.O_NOFOLLOW)
	a.open(27, a.path("fifo"), unix.O_PATH)

	a.deleted()
	a.pipes()

	a.open(50, "/dev/null", unix.O_RDWR|unix.O_NONBLOCK)
	a.open(51, "/dev/zero", unix.O_RDONLY)
	a.open(52, "/dev/urandom", unix.O_RDONLY)
	a.open(53, "/dev/full", unix.O_WRONLY)
	a.open(54, "/proc/meminfo", unix.O_RDONLY)
	_, err = unix.Read(54, make([]byte, 20))
	a.fail(err)
	a.open(55, "/proc/sys/kernel", unix.O_RDONLY|unix.O_DIRECTORY)
	a.dup(20, 200, unix.O_CLOEXEC)
	a.fail(os.Chdir(a.path("many")))
	unix.Umask(0o137)
	return a.err
}

func (a *at) deleted() {
	a.open(28, a.path("gone"), unix.O_RDWR)
	a.write(28, []byte("begin"))
	a.seek(28, 3<<20)
	a.write(28, bytes.Repeat([]byte("end."), 300<<10)) // more than one record
	a.fail(unix.Ftruncate(28, 6<<20))
	a.fail(unix.Fchmod(28, 0o2751))
	a.fail(unix.Fchown(28, 12, 34))
	a.fail(unix.Fsetxattr(28, "user.colour", []byte("blue\x00"), 0))
	a.fail(unix.Fsetxattr(28, "user.empty", nil, 0))
	a.reopen(29, 28, unix.O_RDONLY|unix.O_NOATIME)
	a.seek(29, 7)
	a.reopen(30, 28, unix.O_PATH)
	a.fail(os.Remove(a.path("gone")))

	a.open(31, a.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_APPEND)
	a.write(31, []byte("no name at all"))
	a.reopen(32, 31, unix.O_RDONLY)

	a.fail(os.Link(a.path("linked"), a.path("other")))
	a.open(33, a.path("linked"), unix.O_RDONLY)
	a.seek(33, 4)
	a.fail(os.Remove(a.path("linked")))

	fd, err := unix.MemfdCreate("some memory", unix.MFD_ALLOW_SEALING)
	a.fail(err)
	a.move(fd, 34)
	a.write(34, []byte("sealed"))
	a.reopen(35, 34, unix.O_RDONLY)
	_, err = unix.FcntlInt(34, unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW)
	a.fail(err)
	fd, err = unix.MemfdCreate("", 0)
	a.fail(err)
	a.move(fd, 36)
}

func (a *at) pipes() {
	a.pipe(40, 41, unix.O_NONBLOCK)
	_, err := unix.FcntlInt(40, unix.F_SETPIPE_SZ, 1<<18)
	a.fail(err)
	a.write(41, bytes.Repeat([]byte("pipe"), 30000))
	a.reopen(42, 40, unix.O_RDONLY)
	a.reopen(43, 40, unix.O_RDWR|unix.O_NONBLOCK)

	a.pipe(44, 45, unix.O_DIRECT)
	a.write(45, []byte("first"))
	a.write(45, []byte("second one"))
	_, err = unix.FcntlInt(45, unix.F_SETFL, 0)
	a.fail(err)
	a.write(45, []byte("stream"))

	a.pipe(46, 90, 0)
	a.write(90, []byte("the writer is gone"))
	a.fail(unix.Close(90))
	a.pipe(91, 47, 0)
	a.write(47, []byte("nobody reads this"))
	a.fail(unix.Close(91))

	a.open(48, a.path("fifo"), unix.O_RDWR)
	a.write(48, []byte("in the fifo"))
	a.open(49, a.path("fifo"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	a.pipe(56, 57, 0) // empty
}

// heldProgram holds what must be refused, and nothing else that the tests name.
func heldProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	for _, name := range []string{"leased", "replaced", "covered", "hard", "async", "owner"} {
		a.fail(os.WriteFile(a.path(name), []byte("text"), 0o644))
	}
	a.open(20, a.path("leased"), unix.O_RDONLY)
	_, err := unix.FcntlInt(20, unix.F_SETLEASE, unix.F_RDLCK)
	a.fail(err)
	if _, err := unix.Open(a.path("leased"), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EWOULDBLOCK) {
		a.fail(fmt.Errorf("breaking a lease: %v", err))
	}
	a.open(21, "/proc/self/status", unix.O_RDONLY)
	a.fail(unix.Flock(21, unix.LOCK_EX))

	// The old file is gone, the path leads to a new one: not the same, and yet only a deleted file.
	a.open(22, a.path("replaced"), unix.O_RDONLY)
	a.fail(os.WriteFile(a.path("new"), []byte("another"), 0o644))
	a.fail(os.Rename(a.path("new"), a.path("replaced")))

	a.open(23, a.path("hard"), unix.O_RDONLY)
	a.fail(os.Mkdir(a.path("elsewhere"), 0o755))
	a.fail(os.Link(a.path("hard"), a.path("elsewhere/name")))
	a.fail(os.Remove(a.path("hard")))

	a.fail(unix.Mkfifo(a.path("fifo"), 0o600))
	a.open(25, a.path("fifo"), unix.O_RDWR)
	a.fail(os.Remove(a.path("fifo")))

	a.open(26, "/proc/1/status", unix.O_RDONLY)

	a.pipe(27, 28, 0)
	_, err = unix.FcntlInt(27, unix.F_SETOWN, 1)
	a.fail(err)
	a.open(29, a.dir, unix.O_RDONLY|unix.O_DIRECTORY)
	_, err = unix.FcntlInt(29, unix.F_NOTIFY, 4) // DN_CREATE
	a.fail(err)

	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	a.fail(err)
	a.move(fd, 32)
	a.open(33, "/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK)
	return a.err
}

// procProgram holds files about itself.
func procProgram() error {
	a := &at{}
	a.open(20, "/proc/self/status", unix.O_RDONLY)
	a.seek(20, 10)
	a.dup(20, 21, unix.O_CLOEXEC)
	a.open(22, "/proc/thread-self/comm", unix.O_RDONLY)
	a.open(23, "/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY)
	a.open(24, "/proc/self/status", unix.O_PATH)
	return a.err
}

// outsideProgram has a pipe end at 20 that the test holds too.
func outsideProgram() error {
	a := &at{}
	a.reopen(20, 0, unix.O_RDONLY|unix.O_NONBLOCK) // the same pipe as stdin, opened once more
	a.dup(1, 21, 0)
	a.open(22, os.Getenv("FIFO"), unix.O_RDWR)
	return a.err
}

// mountedProgram sees a file system that nobody else sees.
func mountedProgram() error {
	a := &at{dir: os.Getenv("DIR")}
	a.fail(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	a.fail(unix.Mount("none", a.dir, "tmpfs", 0, ""))
	a.fail(os.Chdir(a.dir))
	a.open(20, a.path("inside"), unix.O_WRONLY|unix.O_CREAT)
	a.fail(unix.Fchmod(20, 0o644))
	a.write(20, []byte("text"))
	a.open(21, a.path("deleted"), unix.O_RDWR|unix.O_CREAT)
	a.write(21, []byte("hidden"))
	a.fail(os.Remove(a.path("deleted")))
	return a.err
}

// threadsProgram has a thread with a descriptor table and a working directory of its own.
func threadsProgram() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- unix.Unshare(unix.CLONE_FILES | unix.CLONE_FS)
		select {}
	}()
	return <-done
}

// socketsProgram has both ends of a pair as stdout and stderr.
func socketsProgram() error {
	a := &at{}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	a.dup(1, 30, 0) // says that the program is ready
	a.move(p[0], 1)
	a.move(p[1], 2)
	a.write(30, []byte("ready\n"))
	return a.err
}

// terminalProgram has a controlling terminal as stderr, once more at 20, and as /dev/tty at 21.
func terminalProgram() error {
	a := &at{}
	a.open(2, os.Getenv("TTY"), unix.O_RDWR) // a session leader without a terminal gets it
	a.open(20, os.Getenv("TTY"), unix.O_RDWR)
	a.open(21, "/dev/tty", unix.O_RDWR)
	return a.err
}

// familyProgram has two children: the first shares its descriptor table and directories, the second has copies.
func familyProgram() error {
	a := &at{}
	a.pipe(20, 21, 0)
	a.open(22, "/dev/null", unix.O_RDONLY)
	for _, flags := range []uintptr{unix.CLONE_FILES | unix.CLONE_FS, 0} {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid == 0 { // only raw calls from here on: the other threads of the runtime are not here
			unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
			for {
				unix.RawSyscall(unix.SYS_PPOLL, 0, 0, 0)
			}
		}
	}
	a.open(23, "/dev/zero", unix.O_RDONLY) // the second child does not have it
	return a.err
}
