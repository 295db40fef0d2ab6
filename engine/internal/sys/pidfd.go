package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// PidfdOpen is pidfd_open(2). flags: 0, unix.PIDFD_NONBLOCK, or since Linux
// 6.9 unix.PIDFD_THREAD, without which pid must be a thread group leader.
// The descriptor is always close-on-exec.
func PidfdOpen(pid, flags int) (*FD, error) {
	if err := checkPID(pid); err != nil {
		return nil, err
	}
	raw, err := unix.PidfdOpen(pid, flags)
	if err != nil {
		return nil, err
	}
	return NewFD(raw), nil
}

// PidfdOfThread opens a pidfd of one thread, for PidfdGetfd. Before Linux 6.9 there is none but of the first thread of a
// process: EINVAL for others.
func PidfdOfThread(tid int) (*FD, error) {
	fd, err := PidfdOpen(tid, unix.PIDFD_THREAD)
	if errors.Is(err, unix.EINVAL) {
		return PidfdOpen(tid, 0)
	}
	return fd, err
}

// PidfdGetfd is pidfd_getfd(2): a duplicate, close-on-exec, of descriptor
// target of the process. It never blocks and never breaks a lease, unlike
// opening /proc/PID/fd/N. The permission is PTRACE_MODE_ATTACH_REALCREDS.
func PidfdGetfd(pidfd *FD, target int) (*FD, error) {
	raw, err := unix.PidfdGetfd(pidfd.Int(), target, 0)
	if err != nil {
		return nil, err
	}
	return NewFD(raw), nil
}

// PidfdSendSignal is pidfd_send_signal(2) with the siginfo that kill(2) would
// make. Signal 0 only asks whether the process is there.
func PidfdSendSignal(pidfd *FD, sig unix.Signal) error {
	return unix.PidfdSendSignal(pidfd.Int(), sig, nil, 0)
}

// PidfdWaitExit waits until the process of pidfd is dead (a zombie is dead:
// pidfd_open(2), "poll"). timeout is in milliseconds, -1 for ever; done is
// false when it passed first.
func PidfdWaitExit(pidfd *FD, timeout int) (done bool, err error) {
	fds := []unix.PollFd{{Fd: int32(pidfd.Int()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, timeout)
		if err == unix.EINTR { //nolint:errorlint // a bare errno
			if timeout > 0 {
				// The caller's clock decides; a little early is no harm, and a
				// signal storm must not make this wait endless.
				return false, nil
			}
			continue
		}
		if err != nil {
			return false, err
		}
		return n > 0, nil
	}
}

// Kill sends sig to exactly one process, pid > 0 (kill(2)).
func Kill(pid int, sig unix.Signal) error {
	if err := checkPID(pid); err != nil {
		return err
	}
	return unix.Kill(pid, sig)
}

// Tgkill sends sig to thread tid of process pid, both > 0 (tgkill(2)).
func Tgkill(pid, tid int, sig unix.Signal) error {
	if err := checkPID(pid); err != nil {
		return err
	}
	if err := checkPID(tid); err != nil {
		return err
	}
	return unix.Tgkill(pid, tid, sig)
}
