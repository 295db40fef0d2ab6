package freezer

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// Lock marks a frozen tree as being dumped or thawed, so that nobody thaws it
// meanwhile. It is an flock(2) and ends with its holder, however that dies: on
// the directory of the first cgroup of the state, or, of a tree that was
// stopped by signals, on the /proc directory of its first process. That needs
// no file that could stay behind, and is the same object for whoever opens it
// while it is held.
type Lock struct {
	fd *sys.FD
}

// Lock takes the lock without waiting; the error matches ErrBusy, and is a
// *BusyError, while somebody else has it.
func (s *State) Lock() (*Lock, error) {
	fd, err := s.lockFile()
	if err != nil {
		return nil, err
	}
	return flock(fd)
}

// flock takes the lock on an open file of its own, which belongs to the lock then.
func flock(fd *sys.FD) (*Lock, error) {
	err := unix.Flock(fd.Int(), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		busy := &BusyError{PID: holder(fd)}
		_ = fd.Close()
		if st, err := procfs.ReadStat(max(busy.PID, 1)); err == nil && busy.PID > 0 {
			busy.Comm = st.Comm
		}
		return nil, busy
	}
	if err != nil {
		_ = fd.Close()
		return nil, fmt.Errorf("locking the frozen tree: %w", err)
	}
	return &Lock{fd: fd}, nil
}

// Unlock gives the lock back; a nil lock is none.
func (l *Lock) Unlock() {
	if l != nil {
		_ = l.fd.Close()
	}
}

func (s *State) lockFile() (*sys.FD, error) {
	if len(s.Groups) > 0 {
		h, err := openHierarchy(s.Way)
		if err != nil {
			return nil, err
		}
		defer h.Close()
		return h.dir(s.Groups[0].Path)
	}
	for _, t := range s.Tasks {
		st, err := procfs.ReadStat(t.PID)
		if err != nil || st.Starttime != t.Start || t.TID != t.PID {
			continue
		}
		return sys.Open(procfs.Path(t.PID, ""), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	return nil, fmt.Errorf("locking the frozen tree: %w", ErrGone)
}

// holder finds who has the flock on an open file, 0 if /proc/locks does not
// tell (proc_locks(5)): it was given up this moment, or is held in a pid
// namespace that we cannot see.
func holder(fd *sys.FD) int {
	var st unix.Stat_t
	if unix.Fstat(fd.Int(), &st) != nil {
		return 0
	}
	var r procfs.Reader
	b, err := r.File("/proc/locks")
	if err != nil {
		return 0
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino) //nolint:unconvert // its width differs between architectures
	for line := range bytes.SplitSeq(b, []byte{'\n'}) {
		f := bytes.Fields(line)
		if len(f) >= 6 && string(f[1]) == "FLOCK" && string(f[5]) == want {
			if pid, err := strconv.Atoi(string(f[4])); err == nil && pid > 0 {
				return pid
			}
		}
	}
	return 0
}
