package kernelview

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// semaphores is a set of System V semaphores that has been operated on. A thread can have adjustments (SEM_UNDO of semop(2)) only of
// such a set, and if it may change it.
type semaphores struct {
	mode     uint32
	uid, gid [2]uint32 // of the owner and of the maker
	used     int64     // when it was last operated on, in seconds since 1970
}

// usedSemaphores lists them, as far as the threads are in one IPC namespace that the caller may enter; unknown where they are not.
func usedSemaphores(tids []int) Maybe[[]semaphores] {
	own, err := procfs.Namespace(os.Getpid(), "ipc")
	if err != nil {
		return Maybe[[]semaphores]{}
	}
	theirs := own
	for i, tid := range tids {
		ns, err := procfs.Namespace(tid, "ipc")
		if err != nil || i > 0 && ns != theirs {
			return Maybe[[]semaphores]{}
		}
		theirs = ns
	}
	read := func() ([]byte, error) { return os.ReadFile("/proc/sysvipc/sem") }
	if theirs != own {
		read = func() ([]byte, error) { return readSemaphoresOf(tids[0]) }
	}
	b, err := read()
	if errors.Is(err, os.ErrNotExist) && theirs == own {
		return Is[[]semaphores](nil) // a kernel without System V IPC
	}
	if err != nil {
		return Maybe[[]semaphores]{}
	}
	var out []semaphores
	_, b2, _ := strings.Cut(string(b), "\n")
	for line := range strings.Lines(b2) {
		f := strings.Fields(line) // key semid perms nsems uid gid cuid cgid otime ctime
		if len(f) < 10 {
			return Maybe[[]semaphores]{}
		}
		mode, err := strconv.ParseUint(f[2], 8, 32)
		used, err2 := strconv.ParseInt(f[8], 10, 64)
		s := semaphores{mode: uint32(mode), used: used}
		err = errors.Join(err, err2)
		for i, to := range []*uint32{&s.uid[0], &s.gid[0], &s.uid[1], &s.gid[1]} {
			n, e := strconv.ParseUint(f[4+i], 10, 32)
			*to, err = uint32(n), errors.Join(err, e)
		}
		if err != nil {
			return Maybe[[]semaphores]{}
		}
		if used != 0 {
			out = append(out, s)
		}
	}
	return Is(out)
}

// readSemaphoresOf reads the list of the IPC namespace that a thread is in.
func readSemaphoresOf(tid int) (b []byte, err error) {
	ns, err := sys.Open(procfs.Path(tid, "ns/ipc"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err = unix.Setns(ns.Int(), unix.CLONE_NEWIPC); err == nil {
			b, err = os.ReadFile("/proc/sysvipc/sem")
		}
	}()
	<-done
	return b, err
}

// mayBeOf says whether a thread can have adjustments of the set (ipcperms in ipc/util.c: effective ids and groups, and
// CAP_IPC_OWNER). What the process was before it changed its ids counts too, so that only plain users are told apart.
func (s *semaphores) mayBeOf(st *procfs.Status) bool {
	if st.CapPrm != 0 || st.UID[0] != st.UID[1] || st.UID[0] != st.UID[2] {
		return true
	}
	uid := st.UID[0]
	if uid == s.uid[0] || uid == s.uid[1] || s.mode&0o002 != 0 {
		return true
	}
	for _, g := range append([]uint32{st.GID[0], st.GID[1], st.GID[2]}, st.Groups...) {
		if g == s.gid[0] || g == s.gid[1] {
			return true
		}
	}
	return false
}
