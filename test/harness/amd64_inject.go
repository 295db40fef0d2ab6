//go:build amd64

package harness

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// InjectGetpid makes a thread execute one getpid() that its program does not contain, and puts its registers back: what
// a dump must not do, here to show that it would be noticed.
func InjectGetpid(tid int) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	insn, err := syscallInstruction(tid)
	if err != nil {
		return err
	}
	if err := unix.PtraceSeize(tid); err != nil {
		return fmt.Errorf("seizing: %w", err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return fmt.Errorf("interrupting: %w", err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(tid, &ws, unix.WALL, nil); err != nil {
		return err
	}
	defer func() {
		if e := unix.PtraceDetach(tid); err == nil {
			err = e
		}
	}()
	var old unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &old); err != nil {
		return err
	}
	regs := old
	regs.Rip, regs.Rax, regs.Orig_rax = insn, unix.SYS_GETPID, ^uint64(0)
	if err := unix.PtraceSetRegs(tid, &regs); err != nil {
		return err
	}
	if err := unix.PtraceSingleStep(tid); err != nil {
		return err
	}
	if _, err := unix.Wait4(tid, &ws, unix.WALL, nil); err != nil {
		return err
	}
	if ws.StopSignal() != syscall.SIGTRAP {
		return fmt.Errorf("single step ended in status %x", int(ws))
	}
	return unix.PtraceSetRegs(tid, &old)
}

// syscallInstruction finds a syscall instruction (0f 05) in the thread's vdso.
func syscallInstruction(tid int) (uint64, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", tid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(maps), "\n") {
		var start, end uint64
		if !strings.HasSuffix(line, "[vdso]") {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x", &start, &end); err != nil {
			return 0, err
		}
		mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
		if err != nil {
			return 0, err
		}
		defer func() { _ = mem.Close() }()
		code := make([]byte, end-start)
		if _, err := mem.ReadAt(code, int64(start)); err != nil {
			return 0, err
		}
		if i := bytes.Index(code, []byte{0x0f, 0x05}); i >= 0 {
			return start + uint64(i), nil
		}
	}
	return 0, fmt.Errorf("no syscall instruction in the vdso of %d", tid)
}
