package beside

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// process is a forked process, as its parent sees it.
type process struct {
	pid   int
	pidfd *sys.FD
}

// start forks.
func start(l *life, keep []int) (*process, error) {
	const clearSighand = 0x100000000 // CLONE_CLEAR_SIGHAND, linux/sched.h
	copy(l.name[:len(l.name)-1], "crpipe-guard")
	slices.Sort(keep)
	for i := range l.keep {
		l.keep[i] = uintptr(keep[min(i, len(keep)-1)])
	}
	l.clone = cloneArgs{flags: unix.CLONE_PIDFD | clearSighand, pidfd: addressOf(&l.pidfd), exitSignal: uint64(unix.SIGCHLD)}
	pid, errno := fork(l)
	if errno != 0 {
		return nil, errno
	}
	return &process{int(pid), sys.NewFD(int(l.pidfd))}, nil
}

// spare finds the memory that is ours alone: what can be written and is private. (Go's stacks and heap, and its data.) The first
// stack is left in: it holds the arguments and the environment that /proc shows.
func (l *life) spare() error {
	maps, err := procfs.ReadMaps(os.Getpid())
	if err != nil {
		return err
	}
	n := 0
	for i := range maps {
		if m := &maps[i]; m.Prot&(procfs.ProtWrite|procfs.ProtShared) == procfs.ProtWrite && m.Path != "[stack]" && n < len(l.spared) {
			l.spared[n] = span{uintptr(m.Start), uintptr(m.Size())}
			n++
		}
	}
	return nil
}

// alive reports whether the process has not ended. One that has is reaped.
func (p *process) alive() bool {
	if p == nil {
		return false
	}
	done, err := sys.PidfdWaitExit(p.pidfd, 0)
	if err == nil && !done {
		return true
	}
	_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
	return false
}

func (p *process) close() {
	if p != nil {
		_ = p.pidfd.Close()
	}
}

// A Watch is a guard process and the record from which it knows what to do when this process is dead.
//
// The record is a memfd: a page whose first word says where in the file the current entry lies, 0 for none, and entries
// behind it. The word is changed in one store, so that an entry counts wholly or not at all at whatever moment this
// process dies.
type Watch struct {
	record  *sys.FD
	page    []byte
	next    int64 // where the next entry goes
	command *sys.FD
	tells   *sys.FD // the pipe to the guard, and its other end
	told    *sys.FD
	procs   *sys.FD // may be nil
	mark    string
	guard   *process
	started time.Time // when the guard was
	short   int       // guards on end that died at once
}

const recordName = "crpipe-record"

// moveInterval is shorter than a grace period usually is, and long beside what a move costs that need not wait (70 us).
const moveInterval = 3e6

// NewWatch makes the record and starts the guard. When this process dies and the record holds an entry, the guard executes
// this program with the environment variable mark, which [Orphaned] then finds.
//
// procs, if not nil, is cgroup.procs of the cgroup that this process is in, open for writing; it belongs to the Watch then. It says
// that moves between cgroups are to be expected soon, and lets the guard make them cheap.
//
// A move waits for a grace period of RCU, 5 to 15 ms and on a busy machine much more, unless another was made a moment ago
// (rcu_sync_enter in kernel/rcu/sync.c, by cgroup_threadgroup_rwsem). A move from where one is to where one is moves nothing, but
// counts. The guard makes it, not a thread of the command, because the wait cannot be interrupted, not even by SIGKILL: the
// command could not end. All who change cgroups wait for each other (cgroup_mutex), so that what the guard itself has to do
// comes no later for it.
func NewWatch(mark string, procs *sys.FD) (*Watch, error) {
	w := &Watch{mark: mark, next: int64(os.Getpagesize()), procs: procs}
	err := w.open()
	if err == nil {
		err = w.fork(w.procs != nil)
	}
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	return w, nil
}

func (w *Watch) open() error {
	raw, err := unix.MemfdCreate(recordName, unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	if w.record, err = above(raw); err != nil {
		return err
	}
	if err := unix.Ftruncate(w.record.Int(), w.next); err != nil {
		return err
	}
	if w.page, err = unix.Mmap(w.record.Int(), 0, int(w.next), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	if raw, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return err
	}
	if w.command, err = above(raw); err != nil || w.procs == nil {
		return err
	}
	if w.procs, err = above(w.procs.Disown()); err != nil {
		return err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	w.tells = sys.NewFD(ends[1])
	w.told, err = above(ends[0])
	return err
}

// above moves a descriptor above the standard ones, some of which may have been closed.
func above(raw int) (*sys.FD, error) {
	if raw > 2 {
		return sys.NewFD(raw), nil
	}
	defer unix.Close(raw)
	moved, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return sys.NewFD(moved), nil
}

func (w *Watch) fork(moving bool) error {
	keep := []int{w.record.Int(), w.command.Int()}
	// Not by its path, which this user may be unable to reach, or where another version may be by now.
	l, free, err := newLife("/proc/self/exe", os.Args, append(os.Environ(), w.mark+"="+strconv.Itoa(w.record.Int())))
	if err != nil {
		return err
	}
	defer free()
	l.polled = [2]unix.PollFd{{Fd: int32(w.command.Int()), Events: unix.POLLIN}, {Fd: int32(w.told.Int()), Events: unix.POLLIN}}
	l.word, l.record, l.retry = wordOf(w.page), uintptr(w.record.Int()), unix.Timespec{Nsec: 100e6}
	if w.procs != nil {
		keep = append(keep, w.told.Int(), w.procs.Int())
		l.moving, l.procs, l.self = moving, uintptr(w.procs.Int()), [1]byte{'0'}
	}
	if !withC {
		if err := l.spare(); err != nil {
			return err
		}
	}
	w.guard.close()
	w.guard, err = start(l, keep)
	w.started = time.Now()
	return err
}

// A guard that dies sooner than shortLife after its start, maxShort times on end, is not being killed: it cannot live here.
const (
	shortLife = 100 * time.Millisecond
	maxShort  = 20
)

var errShortLived = errors.New("guards die as soon as they are started (is there a limit, or is something killing them?)")

// Ensure starts a new guard if the one there was has died.
func (w *Watch) Ensure() error {
	if w.guard.alive() {
		return nil
	}
	if w.short++; time.Since(w.started) > shortLife {
		w.short = 0
	}
	if w.short >= maxShort {
		return errShortLived
	}
	if err := w.fork(false); err != nil {
		return fmt.Errorf("starting another guard: %w", err)
	}
	return nil
}

// GuardPID is the pid of the guard.
func (w *Watch) GuardPID() int { return w.guard.pid }

// Write makes entry the current one.
func (w *Watch) Write(entry []byte) error {
	at := w.next
	for done := 0; done < len(entry); {
		n, err := unix.Pwrite(w.record.Int(), entry[done:], at+int64(done))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		done += max(n, 0)
	}
	atomic.StoreUint64(wordOf(w.page), uint64(at)<<32|uint64(len(entry)))
	w.next = at + int64(len(entry))
	if at > int64(len(w.page)) { // the one before is not needed any more
		// Best effort: it is only memory.
		_ = unix.Fallocate(w.record.Int(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(len(w.page)), at-int64(len(w.page)))
	}
	return nil
}

// ExpectMoves says whether moves between cgroups are to be expected soon.
func (w *Watch) ExpectMoves(soon bool) {
	if w == nil || w.procs == nil {
		return
	}
	said := []byte{0}
	if soon {
		said[0] = 1
	}
	// An error: nobody reads there. Moves cost what they cost then.
	_, _ = unix.Write(w.tells.Int(), said)
}

// Clear says that nothing is to be done any more.
func (w *Watch) Clear() {
	atomic.StoreUint64(wordOf(w.page), 0)
	w.next = int64(len(w.page))
}

// Close ends the guard's work, for a process that goes on.
func (w *Watch) Close() {
	if w.page != nil {
		w.Clear()
	}
	if w.guard != nil {
		if done, err := sys.PidfdWaitExit(w.guard.pidfd, 0); err == nil && !done {
			_ = sys.PidfdSendSignal(w.guard.pidfd, unix.SIGKILL)
			_, _ = unix.Wait4(w.guard.pid, nil, 0, nil)
		}
		w.guard.close()
	}
	if w.page != nil {
		_ = unix.Munmap(w.page)
		w.page = nil
	}
	for _, fd := range []*sys.FD{w.record, w.command, w.tells, w.told, w.procs} {
		_ = fd.Close()
	}
}

// Orphaned returns what a dead command has left to undo, if this process has been executed by its guard. It takes the mark
// out of the environment.
func Orphaned(mark string) (entry []byte, ok bool, err error) {
	value, marked := os.LookupEnv(mark)
	if !marked {
		return nil, false, nil
	}
	_ = os.Unsetenv(mark)
	fd, err := strconv.Atoi(value)
	if err != nil || fd <= 2 {
		return nil, false, nil //nolint:nilerr // left over in somebody's environment
	}
	if target, err := os.Readlink("/proc/self/fd/" + value); err != nil || !strings.HasPrefix(target, "/memfd:"+recordName) {
		return nil, false, nil //nolint:nilerr // the same
	}
	unix.CloseOnExec(fd)
	record := os.NewFile(uintptr(fd), "record")
	defer record.Close()
	var head [8]byte
	if _, err := record.ReadAt(head[:], 0); err != nil {
		return nil, true, fmt.Errorf("reading the record: %w", err)
	}
	word := binary.NativeEndian.Uint64(head[:])
	entry = make([]byte, uint32(word))
	if _, err := record.ReadAt(entry, int64(word>>32)); err != nil {
		return nil, true, fmt.Errorf("reading the record: %w", err)
	}
	return entry, true, nil
}

// AwaitDeath waits for the death of a guard. It may run beside all other methods.
func AwaitDeath(guardPID int) {
	// A descriptor of its own, which Ensure cannot close; the poller of Go's runtime waits for it, no thread.
	raw, err := unix.PidfdOpen(guardPID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return // it is dead already
	}
	f := os.NewFile(uintptr(raw), "guard")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}
