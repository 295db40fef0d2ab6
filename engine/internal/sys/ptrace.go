package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The functions named Ptrace* are one request of ptrace(2) each. All but PtraceSeize must be called
// on the operating system thread that seized the task, while the task is in a ptrace-stop
// (PtraceInterrupt excepted); otherwise they are ESRCH.

// Options of PtraceSeize and PtraceSetOptions, PTRACE_O_* of ptrace(2).
const (
	PtraceOExitKill     = unix.PTRACE_O_EXITKILL
	PtraceOTraceSysGood = unix.PTRACE_O_TRACESYSGOOD

	PtraceOSuspendSeccomp = unix.PTRACE_O_SUSPEND_SECCOMP
)

// WaitStatus is a status word of wait4(2).
type WaitStatus uint32

// Exited says that the task ended by itself; ExitCode is then what it passed to exit.
func (w WaitStatus) Exited() bool { return w&0x7f == 0 }

// ExitCode is the exit status, 0..255.
func (w WaitStatus) ExitCode() int { return int(w>>8) & 0xff }

// Killed says that a signal ended the task; TermSignal is which.
func (w WaitStatus) Killed() bool { return w&0x7f != 0 && w&0x7f != 0x7f }

// TermSignal is the signal that ended the task.
func (w WaitStatus) TermSignal() unix.Signal { return unix.Signal(w & 0x7f) }

// Dead says that the task is gone, either way.
func (w WaitStatus) Dead() bool { return !w.Stopped() }

// Stopped says that the task is in a ptrace-stop (or, untraced, in job control stop).
func (w WaitStatus) Stopped() bool { return w&0xff == 0x7f }

// Signal is the signal of a stop, without the mark of PTRACE_O_TRACESYSGOOD.
func (w WaitStatus) Signal() unix.Signal { return unix.Signal(w>>8) & 0x7f }

// Event is the PTRACE_EVENT_* of a stop, 0 for none.
func (w WaitStatus) Event() int { return int(w >> 16) }

// EventStop says that this is a PTRACE_EVENT_STOP: an answer to PtraceInterrupt, a new task's first
// stop (Signal is SIGTRAP), or a group-stop (see GroupStop).
func (w WaitStatus) EventStop() bool { return w.Stopped() && w.Event() == unix.PTRACE_EVENT_STOP }

// GroupStop says that the stop shows a job control stop of the task's process; Signal is the stop signal.
func (w WaitStatus) GroupStop() bool { return w.EventStop() && w.Signal() != unix.SIGTRAP }

// SyscallStop says that the task is at the entry or the exit of a system call (only with PtraceOTraceSysGood).
func (w WaitStatus) SyscallStop() bool {
	return w.Stopped() && w.Event() == 0 && unix.Signal(w>>8)&0xff == unix.SIGTRAP|0x80
}

// SignalStop says that the task is about to take Signal: a signal-delivery-stop. The signal is lost
// unless it is given to the request that continues the task.
func (w WaitStatus) SignalStop() bool { return w.Stopped() && w.Event() == 0 && !w.SyscallStop() }

// String describes the status, e.g. "stopped by SIGTRAP, event 128".
func (w WaitStatus) String() string {
	switch {
	case w.Exited():
		return fmt.Sprintf("exited with status %d", w.ExitCode())
	case w.Killed():
		return "killed by " + SignalName(w.TermSignal())
	case w.SyscallStop():
		return "stopped at a system call"
	case w.Event() != 0:
		return fmt.Sprintf("stopped by %s, event %d", SignalName(w.Signal()), w.Event())
	}
	return "stopped by " + SignalName(w.Signal())
}

// SignalName is the name of a signal, e.g. "SIGKILL", or "signal 40".
func SignalName(s unix.Signal) string {
	if n := unix.SignalName(s); n != "" {
		return n
	}
	return fmt.Sprintf("signal %d", int(s))
}

// Wait is wait4(2) with __WALL for one task, which must be a tracee or child of the calling
// thread's process. With WNOHANG in options and nothing to report tid is 0. EINTR is retried.
func Wait(pid, options int) (tid int, status WaitStatus, err error) {
	if err := checkPID(pid); err != nil {
		return 0, 0, err
	}
	return wait(pid, options|unix.WALL)
}

// WaitAny is wait4(2) for any tracee or child of the calling thread, not of the other threads of
// this process (__WNOTHREAD): it never takes what os/exec waits for on another thread.
func WaitAny(options int) (tid int, status WaitStatus, err error) {
	return wait(-1, options|unix.WALL|unix.WNOTHREAD)
}

func wait(pid, options int) (int, WaitStatus, error) {
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(pid, &ws, options, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return tid, WaitStatus(ws), err
	}
}

// PtraceSeize attaches to a task without stopping it (PTRACE_SEIZE).
func PtraceSeize(tid, options int) error {
	return ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(options))
}

// PtraceInterrupt asks for a stop (PTRACE_INTERRUPT). The kernel forgets the request when the task
// stops for another reason first.
func PtraceInterrupt(tid int) error { return ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0) }

// PtraceCont continues a task, which takes sig first if it is not 0 (PTRACE_CONT).
func PtraceCont(tid int, sig unix.Signal) error {
	return ptrace(unix.PTRACE_CONT, tid, 0, uintptr(sig))
}

// PtraceSyscall continues a task to the next entry or exit of a system call (PTRACE_SYSCALL).
func PtraceSyscall(tid int, sig unix.Signal) error {
	return ptrace(unix.PTRACE_SYSCALL, tid, 0, uintptr(sig))
}

// PtraceStep executes one instruction (PTRACE_SINGLESTEP).
func PtraceStep(tid int, sig unix.Signal) error {
	return ptrace(unix.PTRACE_SINGLESTEP, tid, 0, uintptr(sig))
}

// PtraceListen lets a task in group-stop be stopped as if untraced, and report what ends that (PTRACE_LISTEN).
func PtraceListen(tid int) error { return ptrace(unix.PTRACE_LISTEN, tid, 0, 0) }

// PtraceDetach lets a task go, with sig delivered if it is in a signal-delivery-stop or a syscall
// stop (PTRACE_DETACH).
func PtraceDetach(tid int, sig unix.Signal) error {
	return ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(sig))
}

// PtraceSetOptions replaces the options that PtraceSeize gave (PTRACE_SETOPTIONS).
func PtraceSetOptions(tid, options int) error {
	return ptrace(unix.PTRACE_SETOPTIONS, tid, 0, uintptr(options))
}

// PtracePeekUser reads a word of struct user (PTRACE_PEEKUSER), for the debug registers.
func PtracePeekUser(tid int, offset uintptr) (uintptr, error) {
	var v uintptr
	err := ptraceWord(unix.PTRACE_PEEKUSR, tid, offset, &v)
	return v, err
}

// PtracePokeUser writes a word of struct user (PTRACE_POKEUSER).
func PtracePokeUser(tid int, offset, value uintptr) error {
	return ptrace(unix.PTRACE_POKEUSR, tid, offset, value)
}
