package sys

import (
	"encoding/binary"
	"errors"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWaitStatus(t *testing.T) {
	tests := []struct {
		ws                                                     WaitStatus
		dead, exited, killed, stopped, event, group, call, sig bool
		signal                                                 unix.Signal
		text                                                   string
	}{
		{ws: 0x0700, dead: true, exited: true, text: "exited with status 7"},
		{ws: 0x0009, dead: true, killed: true, text: "killed by SIGKILL"},
		{ws: 0x008b, dead: true, killed: true, text: "killed by SIGSEGV"}, // with a core
		{ws: 0x057f, stopped: true, sig: true, signal: unix.SIGTRAP, text: "stopped by SIGTRAP"},
		{ws: 0x287f, stopped: true, sig: true, signal: 40, text: "stopped by signal 40"},
		{ws: 0x857f, stopped: true, call: true, signal: unix.SIGTRAP, text: "stopped at a system call"},
		{ws: 0x80057f, stopped: true, event: true, signal: unix.SIGTRAP, text: "stopped by SIGTRAP, event 128"},
		{ws: 0x80137f, stopped: true, event: true, group: true, signal: unix.SIGSTOP, text: "stopped by SIGSTOP, event 128"},
		{ws: 0x06057f, stopped: true, signal: unix.SIGTRAP, text: "stopped by SIGTRAP, event 6"},
	}
	for _, tt := range tests {
		w := tt.ws
		if w.Dead() != tt.dead || w.Exited() != tt.exited || w.Killed() != tt.killed || w.Stopped() != tt.stopped {
			t.Errorf("%#x: dead %v exited %v killed %v stopped %v", uint32(w), w.Dead(), w.Exited(), w.Killed(), w.Stopped())
		}
		if w.EventStop() != tt.event || w.GroupStop() != tt.group || w.SyscallStop() != tt.call || w.SignalStop() != tt.sig {
			t.Errorf("%#x: event %v group %v call %v signal %v", uint32(w), w.EventStop(), w.GroupStop(), w.SyscallStop(), w.SignalStop())
		}
		if w.Stopped() && w.Signal() != tt.signal {
			t.Errorf("%#x: signal %v", uint32(w), w.Signal())
		}
		if w.String() != tt.text {
			t.Errorf("%#x: %q, want %q", uint32(w), w.String(), tt.text)
		}
	}
	if WaitStatus(0x8b).TermSignal() != unix.SIGSEGV || WaitStatus(0x700).ExitCode() != 7 {
		t.Error("TermSignal or ExitCode is wrong")
	}
}

// stopped starts a sleeping child and seizes and stops it; the test's goroutine is on the tracing
// thread from then on.
func stopped(t *testing.T) int {
	t.Helper()
	runtime.LockOSThread()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it lives until then
		_ = cmd.Wait()
		runtime.UnlockOSThread()
	})
	if err := PtraceSeize(pid, PtraceOTraceSysGood); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("ptrace is not allowed here")
		}
		t.Fatal(err)
	}
	if err := PtraceInterrupt(pid); err != nil {
		t.Fatal(err)
	}
	if _, ws, err := Wait(pid, 0); err != nil || !ws.EventStop() {
		t.Fatalf("%v, %v", ws, err)
	}
	return pid
}

func TestPtraceSignals(t *testing.T) {
	pid := stopped(t)
	const n = 100
	for i := range n {
		var info [SizeofSiginfo]byte
		binary.NativeEndian.PutUint32(info[0:], 40)
		binary.NativeEndian.PutUint32(info[8:], ^uint32(0)) // SI_QUEUE
		binary.NativeEndian.PutUint32(info[24:], uint32(i))
		if err := RtTgsigqueueinfo(pid, pid, 40, &info); err != nil {
			t.Fatal(err)
		}
	}
	if err := Kill(pid, 41); err != nil {
		t.Fatal(err)
	}
	own, err := PtracePeekSiginfo(pid, false)
	if err != nil || len(own) != n {
		t.Fatalf("%d signals of the thread, %v", len(own), err)
	}
	for i, info := range own {
		if got := binary.NativeEndian.Uint32(info[24:]); got != uint32(i) {
			t.Fatalf("signal %d carries %d", i, got)
		}
	}
	shared, err := PtracePeekSiginfo(pid, true)
	if err != nil || len(shared) != 1 || binary.NativeEndian.Uint32(shared[0][:]) != 41 {
		t.Errorf("signals of the process: %v, %v", shared, err)
	}
	const mask = 1<<39 | 1<<40
	if err := PtraceSetSigmask(pid, mask); err != nil {
		t.Fatal(err)
	}
	if got, err := PtraceGetSigmask(pid); err != nil || got != mask {
		t.Errorf("mask %#x, %v", got, err)
	}
}

func TestPtraceState(t *testing.T) {
	pid := stopped(t)
	buf := make([]byte, 8192)
	n, err := PtraceGetRegset(pid, 1, buf)
	if err != nil || n == 0 || n == len(buf) {
		t.Fatalf("NT_PRSTATUS: %d bytes, %v", n, err)
	}
	if err := PtraceSetRegset(pid, 1, buf[:n]); err != nil {
		t.Error(err)
	}
	again := make([]byte, n)
	if m, err := PtraceGetRegset(pid, 1, again); err != nil || m != n || string(again) != string(buf[:n]) {
		t.Errorf("registers changed by writing what was read: %v", err)
	}
	if _, err := PtraceGetRegset(pid, 0x7fff, buf); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) {
		t.Errorf("an unknown register set: %v", err)
	}
	if c, err := PtraceGetRseqConfiguration(pid); err != nil || c.Pointer != 0 && c.Size == 0 {
		t.Errorf("rseq %+v, %v", c, err)
	}
	if err := PtraceSyscall(pid, 0); err != nil {
		t.Fatal(err)
	}
	if _, ws, err := Wait(pid, 0); err != nil || !ws.SyscallStop() {
		t.Fatalf("%v, %v", ws, err)
	}
	if i, err := PtraceGetSyscallInfo(pid); err != nil || i.Op != SyscallInfoEntry && i.Op != SyscallInfoExit || i.InstructionPointer == 0 {
		t.Errorf("%+v, %v", i, err)
	}
	if err := PtraceDetach(pid, 0); err != nil {
		t.Error(err)
	}
	if err := PtraceCont(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("continuing a task that was let go: %v", err)
	}
}

func TestPtraceRefusesBadPids(t *testing.T) {
	for _, pid := range []int{0, -1, -4711} {
		for name, f := range map[string]func() error{
			"seize":  func() error { return PtraceSeize(pid, 0) },
			"detach": func() error { return PtraceDetach(pid, 0) },
			"regs":   func() error { _, err := PtraceGetRegset(pid, 1, make([]byte, 8)); return err },
			"wait":   func() error { _, _, err := Wait(pid, unix.WNOHANG); return err },
			"peek":   func() error { _, err := PtracePeekSiginfo(pid, false); return err },
		} {
			if err := f(); !errors.Is(err, ErrBadPID) || !strings.Contains(err.Error(), "not positive") {
				t.Errorf("%s of pid %d: %v", name, pid, err)
			}
		}
	}
}
