package beside

import (
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of clone3(2), first version.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// span is a range of addresses.
type span struct{ at, size uintptr }

// life is everything that a forked process uses, in a mapping of its own, shared so that nothing of it is copied.
type life struct {
	clone  cloneArgs
	pidfd  int32 // of the child, out
	mask   uint64
	before uint64 // the signal mask of the forking thread

	// What the child needs nothing of: Go's memory. A fork makes every page of it that either side writes a page fault, of which
	// there are hundreds while a command starts, each as dear as a system call or dearer.
	spared [64]span
	page   uintptr

	keep [4]uintptr // descriptors, ascending, above 2
	name [16]byte   // what ps shows

	// The command, and the pipe by which it says whether moves are to be expected.
	polled [2]unix.PollFd
	word   *uint64 // in the record, shared: 0 while there is nothing to undo
	record uintptr
	path   uintptr
	argv   uintptr
	envp   uintptr
	retry  unix.Timespec

	moving   bool
	procs    uintptr // cgroup.procs of the cgroup that this process is in
	interval unix.Timespec
	self     [1]byte // "0" means who writes it
	told     [1]byte
}

const (
	sigBlock   = 0 // SIG_BLOCK, and below SIG_SETMASK; the generic values, not those of alpha, mips, parisc
	sigSetmask = 2
	maskSize   = 8
)

// fork starts the process. The child never returns from it.
//
// All signals stay blocked in the child, for the handlers that it has are Go's; SIGKILL ends it. It must not be
// preempted and its stack must not grow between the fork and the end, so everything it calls is nosplit, which the
// linker checks.
//
//go:noinline
//go:norace
//go:nosplit
func fork(l *life) (pid uintptr, errno syscall.Errno) {
	l.mask = ^uint64(0)
	_, _, errno = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, sigBlock, uintptr(unsafe.Pointer(&l.mask)), uintptr(unsafe.Pointer(&l.before)), maskSize, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	for i := range l.spared {
		if l.spared[i].size > 0 {
			_, _, _ = syscall.RawSyscall(unix.SYS_MADVISE, l.spared[i].at, l.spared[i].size, unix.MADV_DONTFORK)
		}
	}
	// But for this stack, which cannot move as long as nothing is called that is not nosplit.
	here := uintptr(unsafe.Pointer(&pid)) &^ (l.page - 1)
	_, _, _ = syscall.RawSyscall(unix.SYS_MADVISE, here-l.page, 3*l.page, unix.MADV_DOFORK)
	pid, _, errno = syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&l.clone)), unsafe.Sizeof(l.clone), 0)
	if errno == 0 && pid == 0 {
		live(l)
	}
	for i := range l.spared {
		if l.spared[i].size > 0 {
			_, _, _ = syscall.RawSyscall(unix.SYS_MADVISE, l.spared[i].at, l.spared[i].size, unix.MADV_DOFORK)
		}
	}
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, sigSetmask, uintptr(unsafe.Pointer(&l.before)), 0, maskSize, 0, 0)
	return pid, errno
}

// live is the child.
//
//go:norace
//go:nosplit
func live(l *life) {
	// A session of its own: no signal of the terminal's reaches it.
	_, _, _ = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	_, _, _ = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&l.name)), 0)
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 0, 1, 0)
	from := uintptr(3)
	for i := range l.keep {
		if l.keep[i] > from {
			_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, from, l.keep[i]-1, 0)
		}
		from = l.keep[i] + 1
	}
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, from, uintptr(^uint32(0)), 0)
	watch(l)
}

// watch waits for the command's end, and executes the program if something is left to undo.
//
//go:norace
//go:nosplit
func watch(l *life) {
	for {
		var timeout unsafe.Pointer // for ever
		if l.moving {
			_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, l.procs, uintptr(unsafe.Pointer(&l.self)), 1)
			l.interval = unix.Timespec{Nsec: moveInterval} // the system call, unlike ppoll(2), leaves the time left in it
			timeout = unsafe.Pointer(&l.interval)
		}
		l.polled[0].Revents, l.polled[1].Revents = 0, 0
		n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&l.polled)), uintptr(len(l.polled)), uintptr(timeout), 0, 0, 0)
		if errno != 0 || n == 0 {
			continue
		}
		if l.polled[0].Revents != 0 {
			break
		}
		n, _, errno = syscall.RawSyscall(unix.SYS_READ, uintptr(l.polled[1].Fd), uintptr(unsafe.Pointer(&l.told)), 1)
		if l.moving = errno == 0 && n == 1 && l.told[0] != 0; errno == 0 && n == 0 {
			l.polled[1].Fd = -1 // the other end is gone, so the command is about to be
		}
	}
	for *l.word != 0 {
		_, _, _ = syscall.RawSyscall(unix.SYS_FCNTL, l.record, unix.F_SETFD, 0) // not close-on-exec
		_, _, _ = syscall.RawSyscall(unix.SYS_EXECVE, l.path, l.argv, l.envp)
		// Out of memory, or the like: a tree stands still, so it is tried for as long as it takes.
		_, _, _ = syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, uintptr(unsafe.Pointer(&l.retry)), 0, 0, 0)
	}
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// newLife makes the mapping, with the path, arguments and environment of what a guard executes. free unmaps it in this process.
func newLife(path string, args, env []string) (l *life, free func(), err error) {
	const align = unsafe.Alignof(uintptr(0))
	size := unsafe.Sizeof(life{}) + align + uintptr(len(args)+len(env)+2)*unsafe.Sizeof(uintptr(0)) + uintptr(len(path)+1)
	for _, s := range slices.Concat(args, env) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, nil, unix.EINVAL
		}
		size += uintptr(len(s) + 1)
	}
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	l = (*life)(unsafe.Pointer(&mem[0]))
	l.page = uintptr(unix.Getpagesize())
	at := (unsafe.Sizeof(life{}) + align - 1) &^ (align - 1)
	pointers := unsafe.Slice((*uintptr)(unsafe.Pointer(&mem[at])), len(args)+len(env)+2) // 0 at the end of each list
	l.argv, l.envp = uintptr(unsafe.Pointer(&pointers[0])), uintptr(unsafe.Pointer(&pointers[len(args)+1]))
	at += uintptr(len(pointers)) * unsafe.Sizeof(uintptr(0))
	put := func(s string) uintptr {
		p := uintptr(unsafe.Pointer(&mem[at]))
		at += uintptr(copy(mem[at:], s) + 1)
		return p
	}
	l.path = put(path)
	for i, s := range args {
		pointers[i] = put(s)
	}
	for i, s := range env {
		pointers[len(args)+1+i] = put(s)
	}
	return l, func() { _ = unix.Munmap(mem) }, nil
}

func wordOf(page []byte) *uint64 { return (*uint64)(unsafe.Pointer(&page[0])) }

func addressOf(p *int32) uint64 { return uint64(uintptr(unsafe.Pointer(p))) }
