package files

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// Locks on files. The kernel shows, in the fdinfo of a descriptor, those that were taken through its open file: flock(2)
// and open file description locks (fcntl_locking(2)), which belong to the open file, and of the POSIX ones those that
// belong to the descriptor table (fl_owner in fs/locks.c). Each is kept with the table of a process that holds it, which
// takes it again: a POSIX one must be taken by it, and last, since any close of the file in that process gives it up; the
// others early, while the tree is made, by the process that had taken it, so that lslocks(8) shows the same number.
// Where that process has ended, or is not in the tree, the first that has the file does it.
//
// A lease (fcntl(2) F_SETLEASE) belongs to the open file as well. It is taken again with the POSIX locks, through the
// number by which it was taken, which the signal of its break can name. Nothing is opened meanwhile that would break it.
//
// A lock that somebody else has taken meanwhile ends the restore. Whoever waits for a lock (F_SETLKW, F_OFD_SETLKW,
// flock) holds nothing, and waits again. Refused by name: leases that are being broken,
// delegations and mandatory locks; locks on a file outside
// of the tree, for which another will stand in, and on one that the restored process opens itself; most locks that only a mapping
// keeps (lock_mapped.go).

// TableLock is one lock.
type TableLock struct {
	FD     int32  `msgpack:"fd"` // the number in the table that leads to the file
	Kind   string `msgpack:"kind"`
	Write  bool   `msgpack:"write,omitempty"`  // exclusive
	Start  int64  `msgpack:"start,omitempty"`  // the first byte; of flock 0
	Length int64  `msgpack:"length,omitempty"` // bytes; 0: to the end, however far it moves
}

const (
	lockPOSIX = "posix"
	lockOFD   = "ofd"
	lockFlock = "flock"
	lockLease = "lease"
)

// dumpLocks returns the locks that the table of f's process is to take through f. known: the table has f under a lower
// number too.
func dumpLocks(d *object.Dumper, f *object.OpenFile, known bool) ([]TableLock, error) {
	if some, ok := f.View.Locks.Get(); ok && !some {
		return nil, nil
	}
	info, err := f.Fdinfo()
	if err != nil || len(info.Locks) == 0 {
		return nil, err
	}
	ix, err := indexOf(d)
	if err != nil {
		return nil, err
	}
	var out []TableLock
	for i := range info.Locks {
		l := &info.Locks[i]
		s, err := newTableLock(f.FD, l)
		if err != nil {
			return nil, err
		}
		if s.Kind == lockLease {
			if s.FD, err = ix.leaseNumber(d, f, l.PID); err != nil {
				return nil, err
			}
		}
		ix.locked[lockedFile(l.Major, l.Minor, l.Ino)] = true
		mine := !known
		if mine && s.Kind != lockPOSIX {
			mine = ix.takes(f, l.PID)
		}
		if mine {
			out = append(out, s)
		}
	}
	switch {
	case claimsExternal(d, f):
		return nil, object.Unsupportedf("the process holds a lock on it (%s), and it leads out of the tree", describeLock(&info.Locks[0]))
	case fsType(f) == unix.PROC_SUPER_MAGIC, f.View.Kind == kernelview.KindPidfd:
		return nil, object.Unsupportedf("the process holds a lock on it (%s), which cannot be checkpointed for a file of this kind", describeLock(&info.Locks[0]))
	}
	return out, nil
}

// leased says whether a lease was taken through an open file.
func leased(f *object.OpenFile) bool {
	if some, ok := f.View.Locks.Get(); ok && !some || f.FD < 0 {
		return false
	}
	info, err := f.Fdinfo()
	return err == nil && slices.ContainsFunc(info.Locks, func(l procfs.Lock) bool { return l.Kind == "LEASE" })
}

func describeLock(l *procfs.Lock) string { return l.Kind + " " + l.Mode + " " + l.Type }

func newTableLock(fd int, l *procfs.Lock) (TableLock, error) {
	s := TableLock{FD: int32(fd), Write: l.Type == "WRITE", Start: l.Start}
	switch l.Kind {
	case "POSIX":
		s.Kind = lockPOSIX
	case "OFDLCK":
		s.Kind = lockOFD
	case "FLOCK":
		s.Kind = lockFlock
	case "LEASE":
		s.Kind = lockLease
	}
	mode := "ADVISORY"
	if s.Kind == lockLease {
		mode = "ACTIVE" // not being broken
	}
	if s.Kind == "" || l.Mode != mode || !s.Write && l.Type != "READ" {
		return s, object.Unsupportedf("the process holds a lock or lease on it (%s), which cannot be checkpointed", describeLock(l))
	}
	if !l.ToEOF && s.Kind != lockLease {
		s.Length = l.End - l.Start + 1
	}
	return s, nil
}

// leaseNumber returns the number through which the lease on an open file, taken by process pid, is to be taken again.
func (ix *index) leaseNumber(d *object.Dumper, f *object.OpenFile, pid int) (int32, error) {
	number, err := d.View.Lease(f.View.ID)
	if err != nil {
		return -1, err
	}
	n, known := number.Get()
	if !known {
		return -1, object.Unsupportedf("the process holds a lease on it, and without the kernel view nobody knows by which descriptor number it was taken")
	}
	lowest := int32(-1)
	for _, h := range ix.holders[f.View.ID] {
		if h.FD == int(n) && ix.takesFor(f, pid) == h.Process {
			return n, nil
		}
		if h.Process == ix.takesFor(f, pid) && (lowest < 0 || int32(h.FD) < lowest) {
			lowest = int32(h.FD)
		}
	}
	if owner, err := ownerOf(f); err != nil || owner.Signal != 0 {
		return -1, errors.Join(err, object.Unsupportedf("the process holds a lease on it, whose signal (F_SETSIG) names descriptor %d, which is not that file any more; this cannot be checkpointed", n))
	}
	return lowest, nil
}

// takes says whether f's process is the one that takes a lock which belongs to the open file: it is the one that had
// taken it, pid, or, when no holder is, the first.
func (ix *index) takes(f *object.OpenFile, pid int) bool { return ix.takesFor(f, pid) == f.Process }

func (ix *index) takesFor(f *object.OpenFile, pid int) *object.Process {
	var first *object.Process
	for _, h := range ix.holders[f.View.ID] {
		if h.Process.PID == pid {
			return h.Process
		}
		if first == nil {
			first = h.Process
		}
	}
	return first
}

// checkLocks refuses locks that nobody can hold. The entries have been checked.
func (t *TableState) checkLocks() error {
	for i := range t.Locks {
		l := &t.Locks[i]
		switch {
		case t.file(l.FD).IsZero():
			return object.BadImagef("a lock on descriptor %d, which the table does not have", l.FD)
		case l.Start < 0 || l.Length < 0 || l.Start+l.Length < 0:
			return object.BadImagef("a lock of %d bytes at %d", l.Length, l.Start)
		}
		switch l.Kind {
		case lockPOSIX, lockOFD:
		case lockFlock, lockLease:
			if l.Start != 0 || l.Length != 0 {
				return object.BadImagef("a lock by %s of a part of a file", l.Kind)
			}
		default:
			return object.BadImagef("a lock of the kind %q", l.Kind)
		}
	}
	return nil
}

// file returns what a number leads to, the zero Ref for nothing.
func (t *TableState) file(fd int32) stream.Ref {
	i, ok := slices.BinarySearchFunc(t.Entries, fd, func(e TableEntry, fd int32) int { return cmp.Compare(e.FD, fd) })
	if !ok {
		return stream.Ref{}
	}
	return t.Entries[i].File
}

// restoreTable looks whether the locks can be had, before any task exists. Nothing is taken yet.
func restoreTable(r *object.Restorer, _ stream.Ref, t *TableState) error {
	if err := t.check(); err != nil {
		return err
	}
	for i := range t.Locks {
		l := &t.Locks[i]
		fd, err := r.File(t.file(l.FD))
		if err != nil {
			return err
		}
		if l.Kind == lockFlock || l.Kind == lockLease { // cannot be asked about
			continue
		}
		other, err := l.conflict(fd)
		if err != nil {
			return fmt.Errorf("descriptor %d: asking about a lock: %w", l.FD, err)
		}
		if other != nil {
			return newLockTaken(fd, l)
		}
	}
	return nil
}

// conflict returns the lock that prevents l from being taken by cr-restore, through fd; nil: none.
func (l *TableLock) conflict(fd int) (*unix.Flock_t, error) {
	cmd := unix.F_GETLK
	if l.Kind == lockOFD {
		cmd = unix.F_OFD_GETLK
	}
	lk := unix.Flock_t{Type: l.lockType(), Start: l.Start, Len: l.Length}
	if err := unix.FcntlFlock(uintptr(fd), cmd, &lk); err != nil {
		return nil, err
	}
	if lk.Type == unix.F_UNLCK {
		return nil, nil
	}
	return &lk, nil
}

func (l *TableLock) lockType() int16 {
	if l.Write {
		return unix.F_WRLCK
	}
	return unix.F_RDLCK
}

// PoolLockCalls appends the calls by which a process whose table is t takes the locks that belong to open files, while
// the pool is open in it. taken says, after they were run, whether somebody else holds one.
func PoolLockCalls(r *object.Restorer, b *tracee.Batch, t *TableState) (taken func() error, err error) {
	return t.lockCalls(r, b, func(l *TableLock) bool { return !l.ofNumber() }, func(l *TableLock, pool int) int { return pool })
}

// ofNumber says whether a lock is to be taken through its number in the table.
func (l *TableLock) ofNumber() bool { return l.Kind == lockPOSIX || l.Kind == lockLease }

// TableLockCalls is PoolLockCalls for the locks that belong to the process, and for leases, after TableCalls. From then on the process
// must not close any descriptor.
func TableLockCalls(r *object.Restorer, b *tracee.Batch, t *TableState) (taken func() error, err error) {
	return t.lockCalls(r, b, (*TableLock).ofNumber, func(l *TableLock, pool int) int { return int(l.FD) })
}

func (t *TableState) lockCalls(r *object.Restorer, b *tracee.Batch, now func(*TableLock) bool, number func(l *TableLock, pool int) int) (func() error, error) {
	type attempt struct {
		lock *TableLock
		pool int
		call *tracee.Call
	}
	var all []attempt
	for i := range t.Locks {
		l := &t.Locks[i]
		if !now(l) {
			continue
		}
		pool, err := r.File(t.file(l.FD))
		if err != nil {
			return nil, err
		}
		call := l.call(b, number(l, pool)).Allow(unix.EAGAIN, unix.EACCES).Note("the lock on fd %d", l.FD)
		all = append(all, attempt{l, pool, call})
	}
	return func() error {
		for _, a := range all {
			if a.call.Errno() != 0 {
				return newLockTaken(a.pool, a.lock)
			}
		}
		return nil
	}, nil
}

func (l *TableLock) call(b *tracee.Batch, fd int) *tracee.Call {
	n := b.Sys()
	if l.Kind == lockFlock {
		how := unix.LOCK_SH
		if l.Write {
			how = unix.LOCK_EX
		}
		return b.Call(n.Flock, fd, how|unix.LOCK_NB)
	}
	if l.Kind == lockLease {
		return b.Call(n.Fcntl, fd, unix.F_SETLEASE, int(l.lockType()))
	}
	cmd := unix.F_SETLK
	if l.Kind == lockOFD {
		cmd = unix.F_OFD_SETLK
	}
	// struct flock: l_type, l_whence (SEEK_SET), l_start, l_len, l_pid; in struct flock64 of 32-bit x86 without padding.
	word := b.Arch().WordSize
	lk := make([]byte, 4*word)
	binary.NativeEndian.PutUint16(lk, uint16(l.lockType()))
	binary.NativeEndian.PutUint64(lk[word:], uint64(l.Start))
	binary.NativeEndian.PutUint64(lk[word+8:], uint64(l.Length))
	return b.Call(n.Fcntl, fd, cmd, append(lk, make([]byte, 8)...))
}

// LockTakenError says that somebody else holds a lock that the image needs.
type LockTakenError struct {
	Path   string
	What   string // "an exclusive lock on bytes 0 to 9"
	Holder string // e.g. "sqlite3 (pid 4711)"
	Lease  bool   // it is a lease
}

func (e *LockTakenError) Error() string {
	does := "holds a lock on the file"
	if e.Lease {
		does = "has the file open"
	}
	return fmt.Sprintf("%s: %s, which the image needs, cannot be had: %s %s", e.Path, e.What, e.Holder, does)
}

// Hint says what to do about it.
func (e *LockTakenError) Hint() string { return "wait until it lets go of it, or end it" }

// TakeFlock takes a lock by flock(2) through fd of cr-restore, for what a mapping keeps open.
func TakeFlock(fd int, exclusive bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	err := unix.Flock(fd, how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return newLockTaken(fd, &TableLock{Kind: lockFlock, Write: exclusive})
	}
	return err
}

// newLockTaken finds out who holds what prevents l from being taken through fd of cr-restore.
func newLockTaken(fd int, l *TableLock) error {
	e := &LockTakenError{What: "a shared lock", Lease: l.Kind == lockLease}
	if l.Write {
		e.What = "an exclusive lock"
	}
	switch {
	case e.Lease && l.Write:
		e.What = "a write lease"
	case e.Lease:
		e.What = "a read lease"
	case l.Length > 0:
		e.What += fmt.Sprintf(" on bytes %d to %d", l.Start, l.Start+l.Length-1)
	case l.Start > 0:
		e.What += fmt.Sprintf(" on everything from byte %d on", l.Start)
	}
	// Another goroutine is in the mount namespace of cr-restore, where /proc knows it.
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		if e.Path, err = os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil {
			e.Path = "descriptor " + strconv.Itoa(int(l.FD))
		}
		e.Holder = lockHolder(fd, l)
	}()
	<-done
	return e
}

func lockHolder(fd int, l *TableLock) string {
	pid := 0
	if l.Kind == lockFlock {
		pid = flockHolder(fd)
	} else if l.Kind == lockLease {
		pid = 0 // nothing tells
	} else if other, err := l.conflict(fd); err == nil && other != nil {
		pid = int(other.Pid)
	}
	switch {
	case pid < 0:
		return "another open file (F_OFD_SETLK)"
	case pid == 0:
		return "somebody else"
	}
	if st, err := procfs.ReadStat(pid); err == nil {
		return fmt.Sprintf("%s (pid %d)", st.Comm, pid)
	} else if errors.Is(err, os.ErrNotExist) {
		return fmt.Sprintf("pid %d, or who has inherited it from that ended process,", pid)
	}
	return fmt.Sprintf("pid %d", pid)
}

// flockHolder returns the process that /proc/locks names for a lock by flock on the file, 0: none.
func flockHolder(fd int) int {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	locks, err := fileLocks()
	if err != nil {
		return 0
	}
	file := lockedFile(unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	for _, l := range locks {
		if l.kind == "FLOCK" && l.file == file {
			return l.pid
		}
	}
	return 0
}

// fileLock is a lock of any process that belongs to an open file.
type fileLock struct {
	kind string // FLOCK, OFDLCK, LEASE, ...
	pid  int    // who has taken it; -1: not told
	file string // see lockedFile
}

// lockedFile is how the kernel writes down a file in proc_locks(5).
func lockedFile(major, minor uint32, ino uint64) string {
	return fmt.Sprintf("%02x:%02x:%d", major, minor, ino)
}

// fileLocks returns all locks that /proc/locks shows but POSIX ones.
func fileLocks() ([]fileLock, error) {
	data, err := os.ReadFile("/proc/locks")
	if errors.Is(err, os.ErrNotExist) { // a kernel without locks
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading locks: %w", err)
	}
	var out []fileLock
	for line := range strings.Lines(string(data)) {
		// "1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF"; one that waits has "->" behind its number.
		f := strings.Fields(line)
		if len(f) < 6 || f[1] == "POSIX" || f[1] == "->" {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil {
			out = append(out, fileLock{f[1], pid, f[5]})
		}
	}
	return out, nil
}
