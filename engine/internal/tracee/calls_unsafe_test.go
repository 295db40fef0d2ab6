package tracee

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// A blockingCall is made by a thread of helperCalls that has all signals blocked.
type blockingCall struct {
	name  string // of the system call, then anything
	class string // what its registers are to show of it when it has been stopped
	want  string // its result in the end, stops or not
	// prepare returns the arguments, and what wakes the call after a while (nil: its own timeout does).
	prepare func() (args [6]uintptr, wake func())
}

// callTime is what each call waits.
const callTime = time.Second

func ptr[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }

// keep holds what the arguments point to.
var keep []any

func kept[T any](v T) *T {
	p := new(T)
	*p = v
	keep = append(keep, p)
	return p
}

func relative() uintptr { return ptr(kept(unix.NsecToTimespec(int64(callTime)))) }

func timeoutSocket(option, kind int) (one, other int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	check(err)
	tv := unix.NsecToTimeval(int64(callTime))
	check(unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, option, &tv))
	return fds[0], fds[1]
}

func listener(option int) (fd int, addr unix.Sockaddr) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(err)
	check(unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("@crpipe-%d-%d", os.Getpid(), fd)}))
	check(unix.Listen(fd, 0))
	tv := unix.NsecToTimeval(int64(callTime))
	check(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv))
	addr, err = unix.Getsockname(fd)
	check(err)
	return fd, addr
}

func semaphore() uintptr {
	const ipcPrivate, ipcCreat = 0, 0o1000
	id, errno := call(ownSys.Semget, ipcPrivate, 1, ipcCreat|0o600)
	if errno != 0 {
		panic(errno)
	}
	ownIPC.semaphores = append(ownIPC.semaphores, id)
	return id
}

type sembuf struct {
	_  uint16 // sem_num
	op int16
	_  int16 // sem_flg
}

// ownIPC are the System V objects that helperCalls has made. They outlive a process, and only their ids tell whose they are.
var ownIPC struct{ semaphores, messages []uintptr }

func removeIPC(semaphores, messages []uintptr) {
	for _, id := range semaphores {
		_, _ = call(ownSys.Semctl, id, 0, unix.IPC_RMID) // it may be gone already
	}
	for _, id := range messages {
		_, _ = call(ownSys.Msgctl, id, unix.IPC_RMID, 0)
	}
}

func newEpoll() uintptr {
	fd, err := unix.EpollCreate1(0)
	check(err)
	return uintptr(fd)
}

func aioContext() uintptr {
	ctx := kept(uintptr(0))
	if _, errno := call(ownSys.IoSetup, 4, ptr(ctx)); errno != 0 {
		panic(errno)
	}
	return *ctx
}

type epollEvents [2]unix.EpollEvent

var blockingCalls = []blockingCall{
	{"epoll_wait", "EINTR", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{newEpoll(), ptr(kept(epollEvents{})), 1, uintptr(callTime.Milliseconds())}, nil
	}},
	{"epoll_pwait", "EINTR", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{newEpoll(), ptr(kept(epollEvents{})), 1, uintptr(callTime.Milliseconds()), ptr(kept(^uint64(1 << 9))), 8}, nil
	}},
	{"epoll_pwait2", "EINTR", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{newEpoll(), ptr(kept(epollEvents{})), 1, relative(), 0, 8}, nil
	}},
	{"semop", "EINTR", "0", func() ([6]uintptr, func()) {
		id := semaphore()
		return [6]uintptr{id, ptr(kept(sembuf{op: -1})), 1}, func() {
			const setval = 16
			_, _ = call(ownSys.Semctl, id, 0, setval, 1)
		}
	}},
	{"semtimedop", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		id := semaphore()
		return [6]uintptr{id, ptr(kept(sembuf{op: -1})), 1, relative()}, nil
	}},
	{"rt_sigtimedwait", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		return [6]uintptr{ptr(kept(uint64(1 << 11))), 0, relative(), 8}, nil
	}},
	{"io_getevents", "EINTR", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{aioContext(), 1, 1, ptr(kept([32]byte{})), relative()}, nil
	}},
	{"io_pgetevents", "ERESTARTNOHAND", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{aioContext(), 1, 1, ptr(kept([32]byte{})), relative(), 0}, nil
	}},
	{"recvfrom", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		fd, _ := timeoutSocket(unix.SO_RCVTIMEO, unix.SOCK_STREAM)
		return [6]uintptr{uintptr(fd), ptr(kept([8]byte{})), 8}, nil
	}},
	{"recvmsg", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		fd, _ := timeoutSocket(unix.SO_RCVTIMEO, unix.SOCK_DGRAM)
		iov := kept(unix.Iovec{Base: &kept([8]byte{})[0]})
		iov.SetLen(8)
		msg := kept(unix.Msghdr{Iov: iov})
		msg.SetIovlen(1)
		return [6]uintptr{uintptr(fd), ptr(msg)}, nil
	}},
	{"read of a socket", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		fd, _ := timeoutSocket(unix.SO_RCVTIMEO, unix.SOCK_SEQPACKET)
		return [6]uintptr{uintptr(fd), ptr(kept([8]byte{})), 8}, nil
	}},
	{"write to a socket", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		fd, _ := timeoutSocket(unix.SO_SNDTIMEO, unix.SOCK_STREAM)
		for {
			if _, err := unix.SendmsgN(fd, make([]byte, 4096), nil, nil, unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
		return [6]uintptr{uintptr(fd), ptr(kept([4096]byte{})), 4096}, nil
	}},
	{"accept4", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		fd, _ := listener(unix.SO_RCVTIMEO)
		return [6]uintptr{uintptr(fd)}, nil
	}},
	{"connect", "EINTR", "EAGAIN", func() ([6]uintptr, func()) {
		_, addr := listener(unix.SO_RCVTIMEO)
		var fd int
		for range 3 { // fill the backlog
			fd, _ = timeoutSocketAlone(unix.SO_SNDTIMEO)
			check(unix.SetNonblock(fd, true))
			if unix.Connect(fd, addr) != nil {
				break
			}
		}
		check(unix.SetNonblock(fd, false))
		name := addr.(*unix.SockaddrUnix).Name
		sa := kept([unix.SizeofSockaddrUnix]byte{})
		hostOrder.PutUint16(sa[:], unix.AF_UNIX)
		copy(sa[3:], name[1:]) // abstract: a zero byte instead of the @
		return [6]uintptr{uintptr(fd), ptr(sa), uintptr(2 + len(name))}, nil
	}},
	{"msgrcv", "ERESTARTNOHAND", "4", func() ([6]uintptr, func()) {
		id, errno := call(ownSys.Msgget, 0, 0o1600)
		if errno != 0 {
			panic(errno)
		}
		buf := kept([16]byte{1})
		ownIPC.messages = append(ownIPC.messages, id)
		return [6]uintptr{id, ptr(kept([16]byte{})), 8}, func() { _, _ = call(ownSys.Msgsnd, id, ptr(buf), 4, 0) }
	}},
	{"poll", "ERESTART_RESTARTBLOCK", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{0, 0, uintptr(callTime.Milliseconds())}, nil
	}},
	{"ppoll", "ERESTARTNOHAND", "0", func() ([6]uintptr, func()) { return [6]uintptr{0, 0, relative(), 0, 8}, nil }},
	{"select", "ERESTARTNOHAND", "0", func() ([6]uintptr, func()) {
		return [6]uintptr{0, 0, 0, 0, ptr(kept(unix.NsecToTimeval(int64(callTime))))}, nil
	}},
	{"select, timeout not writable", "EINTR", "0", func() ([6]uintptr, func()) {
		page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		check(err)
		*(*unix.Timeval)(unsafe.Pointer(&page[0])) = unix.NsecToTimeval(int64(callTime))
		check(unix.Mprotect(page, unix.PROT_READ))
		return [6]uintptr{0, 0, 0, 0, ptr(&page[0])}, nil
	}},
	{"nanosleep", "ERESTART_RESTARTBLOCK", "0", func() ([6]uintptr, func()) { return [6]uintptr{relative(), 0}, nil }},
	{"clock_nanosleep, absolute", "ERESTARTNOHAND", "0", func() ([6]uintptr, func()) {
		var ts unix.Timespec
		check(unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
		return [6]uintptr{unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, ptr(kept(unix.NsecToTimespec(ts.Nano() + int64(callTime)))), 0}, nil
	}},
	{"futex with timeout", "ERESTART_RESTARTBLOCK", "ETIMEDOUT", func() ([6]uintptr, func()) {
		return [6]uintptr{ptr(kept(uint32(0))), 0, 0, relative()}, nil
	}},
	{"futex", "ERESTARTSYS", "0", func() ([6]uintptr, func()) {
		word := kept(uint32(0))
		return [6]uintptr{ptr(word), 0, 0, 0}, func() { _, _ = call(ownSys.Futex, ptr(word), 1, 1) }
	}},
	{"read of a pipe", "ERESTARTSYS", "1", func() ([6]uintptr, func()) {
		var p [2]int
		check(unix.Pipe(p[:]))
		return [6]uintptr{uintptr(p[0]), ptr(kept([8]byte{})), 8}, func() { _, _ = unix.Write(p[1], []byte{1}) }
	}},
}

func timeoutSocketAlone(option int) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	check(err)
	tv := unix.NsecToTimeval(int64(callTime))
	return fd, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv)
}

// ownSys are this machine's system call numbers; x/sys does not have all of them everywhere.
var ownSys = func() *arch.Syscalls {
	a, err := arch.For(runtime.GOARCH)
	check(err)
	return &a.Sys
}()

// call makes a system call by its arch number.
func call(nr int, args ...uintptr) (uintptr, unix.Errno) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, errno := unix.Syscall6(uintptr(nr), a[0], a[1], a[2], a[3], a[4], a[5])
	return r, errno
}

// callNumbers are the numbers behind the first words of the names.
var callNumbers = map[string]int{
	"epoll_wait": ownSys.EpollPwait, "epoll_pwait": ownSys.EpollPwait, "epoll_pwait2": ownSys.EpollPwait2,
	"semop": ownSys.Semop, "semtimedop": ownSys.Semtimedop, "rt_sigtimedwait": ownSys.RtSigtimedwait,
	"io_getevents": ownSys.IoGetevents, "io_pgetevents": ownSys.IoPgetevents, "recvfrom": ownSys.Recvfrom,
	"recvmsg": ownSys.Recvmsg, "read": ownSys.Read, "write": ownSys.Write, "accept4": ownSys.Accept4,
	"connect": ownSys.Connect, "msgrcv": ownSys.Msgrcv, "poll": ownSys.Poll, "ppoll": ownSys.Ppoll,
	"select": ownSys.Select, "nanosleep": ownSys.Nanosleep, "clock_nanosleep": ownSys.ClockNanosleep, "futex": ownSys.Futex,
}

func (c *blockingCall) nr() int {
	word, _, _ := strings.Cut(c.name, " ")
	return callNumbers[strings.TrimSuffix(word, ",")]
}

func blockSignals(but ...unix.Signal) {
	var mask unix.Sigset_t
	for i := range mask.Val {
		mask.Val[i]-- // all bits, whatever the word's size
	}
	for _, s := range but {
		mask.Val[0] &^= 1 << (s - 1)
	}
	check(unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil))
}

// helperCalls makes all of blockingCalls, each on its own thread. It prints the thread ids on one
// line, then, when all have ended, a line with the result of each.
func helperCalls() {
	var wg sync.WaitGroup
	tids := make([]string, len(blockingCalls))
	results := make([]string, len(blockingCalls))
	ready := make(chan bool)
	for i := range blockingCalls {
		c := &blockingCalls[i]
		args, wake := c.prepare()
		wg.Add(1)
		go func() {
			runtime.LockOSThread()
			blockSignals()
			tids[i] = itoa(unix.Gettid())
			ready <- true
			r, errno := call(c.nr(), args[:]...)
			results[i] = itoa(int(r))
			if errno != 0 {
				results[i] = unix.ErrnoName(errno)
			}
			wg.Done()
		}()
		<-ready
		if wake != nil {
			time.AfterFunc(2*callTime, wake)
		}
	}
	// The parent removes them too: it may have to kill.
	fmt.Println(strings.Join(tids, " "), ownIPC.semaphores, ownIPC.messages)
	wg.Wait()
	removeIPC(ownIPC.semaphores, ownIPC.messages)
	for _, r := range results {
		fmt.Println(r)
	}
	time.Sleep(time.Hour)
}

// helperHandler sleeps in epoll_wait with SIGUSR1 handled and unblocked.
func helperHandler() {
	runtime.LockOSThread()
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	blockSignals(unix.SIGUSR1)
	ep := newEpoll()
	fmt.Println(unix.Gettid())
	_, errno := call(ownSys.EpollPwait, ep, ptr(kept(epollEvents{})), 1, ^uintptr(0))
	fmt.Println(unix.ErrnoName(errno))
}

// helperVfork stays in vfork: its child, which shares its memory, only sleeps. It prints the id of
// the thread that waits.
func helperVfork() {
	runtime.LockOSThread()
	blockSignals()
	fmt.Println(unix.Gettid())
	ts := kept(unix.Timespec{Sec: 1000})
	vfork(ts)
}

// vfork must not touch its stack frame after the call returns in the child: the child runs on the
// same stack. It only makes system calls.
//
//go:norace
func vfork(ts *unix.Timespec) {
	pid, _, _ := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_VM|unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
		for {
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(ts)), 0, 0)
		}
	}
}
