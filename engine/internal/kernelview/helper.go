package kernelview

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A helper is a throw-away child that makes system calls on demand. It is a
// few machine instructions, not Go: it has one thread, does nothing between
// two calls, and calls that no Go program survives do it no harm.
type helper struct {
	process *os.Process
	socket  int
}

var errNoHelper = errors.New("starting a helper process: not on this architecture")

// startHelper starts a helper in its own session. It dies with the calling
// thread, which must therefore be locked.
func startHelper() (*helper, error) {
	image := helperImage()
	if image == nil {
		return nil, errNoHelper
	}
	memfd, err := unix.MemfdCreate("crpipe-helper", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC is of Linux 6.3
		memfd, err = unix.MemfdCreate("crpipe-helper", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("making a helper process: %w", err)
	}
	program := os.NewFile(uintptr(memfd), "memfd")
	defer program.Close()
	if _, err := program.Write(image); err != nil {
		return nil, fmt.Errorf("making a helper process: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a helper process: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	// A helper that does not answer is no reason to hang.
	patience := unix.NsecToTimeval(10e9)
	err = unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience)
	var p *os.Process
	if err == nil {
		path := fmt.Sprintf("/proc/self/fd/%d", memfd)
		p, err = os.StartProcess(path, []string{"crpipe-helper"}, &os.ProcAttr{
			Env: []string{}, Files: []*os.File{theirs, theirs},
			Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
	}
	if err != nil {
		_ = unix.Close(pair[0]) // the first failure is what matters
		return nil, fmt.Errorf("starting a helper process: %w", err)
	}
	h := &helper{process: p, socket: pair[0]}
	// It must not keep open what this process has inherited and does not know of:
	// the end of somebody's pipe, say.
	if _, err := h.call(unix.SYS_CLOSE_RANGE, 2, math.MaxUint32, 0); err != nil {
		h.close()
		return nil, fmt.Errorf("starting a helper process: %w", err)
	}
	return h, nil
}

func (h *helper) pid() int { return h.process.Pid }

// send makes the helper begin a system call.
func (h *helper) send(nr uintptr, args ...uint64) error {
	var request [7]uint64
	request[0] = uint64(nr)
	copy(request[1:], args)
	b := make([]byte, 0, 56)
	for _, w := range request {
		b = binary.NativeEndian.AppendUint64(b, w)
	}
	for {
		_, err := unix.Write(h.socket, b)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive waits for the call's result: a negative errno for a failure.
func (h *helper) receive() (int64, error) {
	var b [8]byte
	for {
		n, err := unix.Read(h.socket, b[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n != len(b):
			return 0, unix.EPIPE
		default:
			return int64(binary.NativeEndian.Uint64(b[:])), nil
		}
	}
}

// call makes a system call and returns the errno of its failure as the error.
func (h *helper) call(nr uintptr, args ...uint64) (int64, error) {
	if err := h.send(nr, args...); err != nil {
		return 0, fmt.Errorf("asking a helper process: %w", err)
	}
	r, err := h.receive()
	if err != nil {
		return 0, fmt.Errorf("asking a helper process: %w", err)
	}
	if r < 0 && r >= -4095 {
		return r, unix.Errno(-r)
	}
	return r, nil
}

// write puts bytes into the helper's memory.
func (h *helper) write(addr uint64, b []byte) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", h.pid()), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, int64(addr))
	return err
}

// stop stops the helper by SIGSTOP and waits until it is.
func (h *helper) stop() error {
	if err := unix.Kill(h.pid(), unix.SIGSTOP); err != nil {
		return err
	}
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(h.pid(), &status, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case status.Stopped():
			return nil
		default:
			return unix.ESRCH
		}
	}
}

// close ends the helper.
func (h *helper) close() {
	_ = h.process.Kill()    // it may be gone already
	_, _ = h.process.Wait() // reaps it; nothing depends on its status
	_ = unix.Close(h.socket)
}

// withHelper runs fn with a helper of its own.
func withHelper(fn func(h *helper) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := startHelper()
	if err != nil {
		return err
	}
	defer h.close()
	return fn(h)
}
