package arch

// Restart says what the registers of a stopped task show of an interrupted system call.
type Restart int

// The classes. In all but RestartNone the kernel, or whoever continues the task, has to issue the call again.
const (
	// RestartNone: the task is in no call, or the call has its result.
	RestartNone Restart = iota
	// RestartSys is -512 (ERESTARTSYS): issued again, unless a handler without SA_RESTART runs first.
	RestartSys
	// RestartNoIntr is -513 (ERESTARTNOINTR): always issued again.
	RestartNoIntr
	// RestartNoHand is -514 (ERESTARTNOHAND): issued again unless a handler runs first. Times left
	// have been written back already, or are absolute.
	RestartNoHand
	// RestartBlock is -516 (ERESTART_RESTARTBLOCK): continued by restart_syscall(2) from
	// task->restart_block, which knows when it ends.
	RestartBlock
	// RestartEINTR is -4 (EINTR) from a call that gives it to a program on a mere stop too,
	// although no handler ran (signal(7), "Interruption of system calls and library functions by
	// stop signals"). The kernel will not issue it again. To rewind it is right when no signal is
	// pending that the task would take: the call had had no effect, and waits again, with its whole
	// timeout if that is relative.
	RestartEINTR
)

// String returns the kernel's name of the class.
func (r Restart) String() string {
	switch r {
	case RestartSys:
		return "ERESTARTSYS"
	case RestartNoIntr:
		return "ERESTARTNOINTR"
	case RestartNoHand:
		return "ERESTARTNOHAND"
	case RestartBlock:
		return "ERESTART_RESTARTBLOCK"
	case RestartEINTR:
		return "EINTR"
	}
	return "none"
}

// Restart classifies the registers of a task that was stopped by PTRACE_INTERRUPT, a freezer or job
// control. It is RestartNone on an architecture whose NT_PRSTATUS does not show the call.
func (a *Arch) Restart(regs []byte) Restart {
	if a.SyscallNr == nil {
		return RestartNone
	}
	nr, ok := a.SyscallNr(regs)
	if !ok {
		return RestartNone
	}
	switch a.Result(regs) {
	case -512:
		return RestartSys
	case -513:
		return RestartNoIntr
	case -514:
		return RestartNoHand
	case -516:
		return RestartBlock
	case -4:
		if a.eintrOnStop(nr, func(i int) uint64 { return a.SyscallArg(regs, i) }) {
			return RestartEINTR
		}
	}
	return RestartNone
}

// Rewind makes registers of any class but RestartNone those of a task that is about to issue the
// call, and says whether it changed them. For RestartBlock the task will issue restart_syscall,
// which continues what is in its restart block: right in the task that was interrupted, where the
// kernel would do the same; in a task made anew the block must have been made too (or the call be
// issued with all its time: RewindSyscall with the call's own number, if the registers still tell
// it).
func (a *Arch) Rewind(regs []byte) bool {
	class := a.Restart(regs)
	if class == RestartNone {
		return false
	}
	nr, _ := a.SyscallNr(regs)
	if class == RestartBlock {
		nr = a.Sys.RestartSyscall
	}
	a.RewindSyscall(regs, nr)
	return true
}

// eintrOnStop is the table of system calls that return EINTR when a freeze, a stop signal or ptrace
// ends their wait and no signal came. Each entry says where in the kernel (6.18) it comes from. For
// each, a call that has returned EINTR has changed nothing, so that issuing it again is right;
// close(2) is deliberately absent: it has closed the descriptor.
func (a *Arch) eintrOnStop(nr int, arg func(int) uint64) bool {
	s := &a.Sys
	switch nr {
	case s.EpollWait, s.EpollPwait, s.EpollPwait2: // fs/eventpoll.c ep_poll. The mask of epoll_pwait stays swapped until the task leaves the kernel, which then puts the old one back
		return true
	case s.Semop, s.Semtimedop, s.SemtimedopTime64: // ipc/sem.c __do_semtimedop
		return true
	case s.RtSigtimedwait, s.RtSigtimedwaitTime64: // kernel/signal.c do_sigtimedwait
		return true
	case s.IoGetevents: // fs/aio.c; io_pgetevents turns it into ERESTARTNOHAND
		return true
	case s.IoUringEnter: // io_uring/io_uring.c io_cqring_wait; when anything was submitted the result is that number instead
		return true
	case s.Msgrcv, s.Msgsnd: // ipc/msg.c: ERESTARTNOHAND since 2.6.9; here for kernels whose 32-bit entry changes it
		return true
	case s.Accept, s.Accept4, s.Connect, s.Recvfrom, s.Recvmsg, s.Recvmmsg, s.RecvmmsgTime64, s.Sendto, s.Sendmsg, s.Sendmmsg,
		s.Read, s.Readv, s.Preadv, s.Preadv2, s.Write, s.Writev, s.Pwritev, s.Pwritev2, s.Sendfile, s.Sendfile64, s.Splice, s.Tee, s.Vmsplice, s.Socketcall:
		// net/sock.h sock_intr_errno: a socket with SO_RCVTIMEO or SO_SNDTIMEO; anything that was
		// moved would have been the result. A connect that is under way goes on waiting when it is
		// issued again. Also read from inotify before Linux 3.8
		return true
	case s.Select, s.Newselect, s.Pselect6, s.Pselect6Time64, s.Ppoll, s.PpollTime64: // fs/select.c poll_select_finish: ERESTARTNOHAND becomes EINTR where the timeout cannot be written back
		return true
	case s.Ipc: // the calls of sem and msg on 386, s390x and ppc64le; shm calls never wait
		return true
	case s.Ioctl:
		const tcsbrk = 0x5409 // asm-generic/ioctls.h
		// drivers/tty/tty_io.c: TCSBRK with an argument is tcdrain(3); with 0 it sends a break,
		// which would be sent twice
		return arg(1) == tcsbrk && arg(2) != 0
	case s.Fallocate: // hugetlbfs, and tmpfs before 6.0; collapsing and inserting a range (mode bits 8 and 0x20) must not be done twice
		return arg(1)&0x28 == 0
	}
	return false
}
