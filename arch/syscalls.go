package arch

import "strconv"

// NoSyscall is the number of a system call that an architecture does not have.
const NoSyscall = -1

// Syscalls holds the numbers, on one architecture, of the system calls that the engine issues in a
// task or recognises there. A call that the architecture lacks is NoSyscall. The names are the
// kernel's, in Go's spelling.
type Syscalls struct {
	Read, Write, Openat, Close, CloseRange, Dup, Dup3, Fcntl, Ioctl, Lseek, Pread64, Pwrite64, Readv                int
	Writev, Pipe2, Socket, Socketpair, Sendmsg, Recvmsg, Mmap, Mmap2, Munmap, Mremap, Mprotect                      int
	PkeyMprotect, Madvise, ProcessMadvise, Mlock, Mlock2, Mlockall, Munlockall, Msync, Mseal, Brk, Prctl            int
	ArchPrctl, RtSigaction, RtSigprocmask, RtSigpending, RtSigqueueinfo, RtTgsigqueueinfo                           int
	RtSigtimedwait, RtSigtimedwaitTime64, RtSigreturn, RtSigsuspend, Sigaltstack, SetTidAddress                     int
	SetRobustList, GetRobustList, Rseq, RestartSyscall, Fchdir, Chdir, Chroot, Umask, Setsid, Getsid                int
	Setpgid, Getpgid, Getpid, Gettid, Getppid, Kill, Tgkill, Tkill, Pause, Clone, Clone3, Fork, Vfork               int
	Exit, ExitGroup, Wait4, Waitid, Execve, Execveat, Unshare, Setns, Setresuid, Setresgid, Setresuid32             int
	Setresgid32, Setfsuid, Setfsgid, Setfsuid32, Setfsgid32, Setgroups, Setgroups32, Getresuid                      int
	Getresgid, Getgroups, Capset, Capget, Prlimit64, Getrlimit, Getpriority, Setpriority, SchedSetattr              int
	SchedGetattr, SchedSetscheduler, SchedSetaffinity, SchedGetaffinity, SchedYield, IoprioSet                      int
	IoprioGet, Personality, Setitimer, Getitimer, TimerCreate, TimerSettime, TimerGettime                           int
	TimerGetoverrun, TimerDelete, TimerfdCreate, TimerfdSettime, TimerfdGettime, Nanosleep                          int
	ClockNanosleep, ClockNanosleepTime64, ClockGettime, Poll, Ppoll, PpollTime64, Select, Newselect                 int
	Pselect6, Pselect6Time64, Futex, FutexTime64, FutexWait, FutexWaitv, FutexRequeue, FutexWake                    int
	EpollCreate1, EpollCtl, EpollWait, EpollPwait, EpollPwait2, Eventfd2, Signalfd4, InotifyInit1                   int
	InotifyAddWatch, Accept, Accept4, Connect, Recvfrom, Recvmmsg, RecvmmsgTime64, Sendto, Sendmmsg                 int
	Socketcall, Sendfile, Sendfile64, Splice, Tee, Vmsplice, Preadv, Preadv2, Pwritev, Pwritev2, Flock              int
	Fallocate, Semop, Semtimedop, SemtimedopTime64, Semget, Semctl, Msgget, Msgctl, Msgrcv, Msgsnd                  int
	Shmat, Shmdt, Shmget, Shmctl, Ipc, MqOpen, MqTimedsend, MqTimedreceive, MqNotify, Seccomp, Keyctl               int
	AddKey, RequestKey, MemfdCreate, MemfdSecret, SetMempolicy, GetMempolicy, Mbind                                 int
	SetMempolicyHomeNode, Membarrier, ModifyLdt, SetThreadArea, GetThreadArea, IoSetup, IoSubmit                    int
	IoDestroy, IoGetevents, IoPgetevents, IoPgeteventsTime64, IoUringSetup, IoUringEnter, IoUringRegister           int
	Userfaultfd, PerfEventOpen, Bpf, Mount, Umount2, PivotRoot, MountSetattr, MoveMount, OpenTree, Fsopen, Fsconfig int
	Fsmount, Sethostname, Setdomainname, Acct, LandlockRestrictSelf, PidfdOpen, PidfdGetfd                          int
	PidfdSendSignal, ProcessVmReadv, ProcessVmWritev, Kcmp, Fstat, Newfstatat, Fstat64, Ftruncate                   int
	Ftruncate64, Iopl, Ioperm, Getcpu, Sysinfo, Times, Getrusage, Getrandom, Utimensat                              int
}

// SyscallName returns the kernel's name of a system call, or "system call N" for a number that this
// build does not know.
func (a *Arch) SyscallName(nr int) string {
	if nr >= 0 && nr < len(a.sysNames) && a.sysNames[nr] != "" {
		return a.sysNames[nr]
	}
	return "system call " + strconv.Itoa(nr)
}
