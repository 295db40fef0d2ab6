//go:build amd64

package harness

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// AskTasks has every thread of a running job ask what prctl(2) tells it, and let it go on: a value for each thread and getter. What a thread
// is belongs to the program that it runs, so another execve(2) makes other keys.
func (j *Job) AskTasks() map[string]string {
	j.T.Helper()
	words := []string{"prctl"}
	for _, pid := range j.Tasks() {
		words = append(words, strconv.Itoa(pid))
	}
	out, err := traced(words...)
	if err != nil {
		j.T.Fatalf("%s: asking tasks about themselves: %v", j.Name, err)
	}
	told := map[string]string{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if key, value, ok := strings.Cut(line, ": "); ok {
			told[key] = value
		}
	}
	return told
}

// askProcess prints what the threads of a process say. One that ends meanwhile says nothing.
func askProcess(pid int) (err error) {
	getters, err := prctlGetters()
	if err != nil {
		return err
	}
	defer func() {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ECHILD) || errors.Is(err, os.ErrNotExist) {
			err = nil
		} else if err != nil {
			err = fmt.Errorf("pid %d: %w", pid, err)
		}
	}()
	if s := State(pid); s == 'Z' || s == 0 {
		return nil
	}
	insn, err := syscallInstruction(pid)
	if err != nil {
		return err
	}
	var held []*heldThread // all of them: another one might use the memory that is written to
	defer func() {
		for _, h := range held {
			err = errors.Join(err, h.letGo())
		}
	}()
	for more := true; more; {
		more = false
		for _, tid := range Threads(pid) {
			if slices.ContainsFunc(held, func(h *heldThread) bool { return h.tid == tid }) {
				continue
			}
			h, err := hold(tid, insn)
			if err != nil {
				return err
			}
			held, more = append(held, h), true
		}
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = mem.Close() }()
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		return err
	}
	for _, h := range held {
		for _, g := range getters {
			value, err := h.ask(mem, g)
			if err != nil {
				return fmt.Errorf("thread %d: %s: %w", h.tid, g.name, err)
			}
			fmt.Printf("%d/%d of %.4x %s: %s\n", pid, h.tid, sha256.Sum256(auxv), g.name, value)
		}
	}
	return nil
}

// heldThread is a thread in a ptrace stop.
type heldThread struct {
	tid     int
	insn    uint64 // a syscall instruction in its memory
	old     unix.PtraceRegs
	signals []syscall.Signal // that came while it was held
}

// hold stops a thread. A call that a mere stop ends with EINTR is made again afterwards.
func hold(tid int, insn uint64) (*heldThread, error) {
	if err := unix.PtraceSeize(tid); err != nil {
		return nil, fmt.Errorf("seizing: %w", err)
	}
	if err := unix.PtraceInterrupt(tid); err != nil {
		return nil, fmt.Errorf("interrupting: %w", err)
	}
	h := &heldThread{tid: tid, insn: insn}
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(tid, &ws, unix.WALL, nil); err != nil {
			return nil, err
		}
		if !ws.Stopped() {
			return nil, unix.ESRCH
		}
		if int(ws)>>16 == unix.PTRACE_EVENT_STOP {
			break
		}
		if err := unix.PtraceCont(tid, int(ws.StopSignal())); err != nil { // a signal was on its way
			return nil, err
		}
	}
	if err := unix.PtraceGetRegs(tid, &h.old); err != nil {
		return nil, err
	}
	if int64(h.old.Rax) == -int64(unix.EINTR) && endedByStop[int64(h.old.Orig_rax)] {
		h.old.Rax = h.old.Orig_rax
		h.old.Rip -= 2
	}
	return h, nil
}

// endedByStop are the calls that return EINTR for a stop alone, signal(7).
var endedByStop = map[int64]bool{
	unix.SYS_EPOLL_WAIT: true, unix.SYS_EPOLL_PWAIT: true, unix.SYS_EPOLL_PWAIT2: true, unix.SYS_SEMOP: true, unix.SYS_SEMTIMEDOP: true,
	unix.SYS_RT_SIGTIMEDWAIT: true, unix.SYS_MSGRCV: true, unix.SYS_MSGSND: true, unix.SYS_IO_GETEVENTS: true,
}

func (h *heldThread) letGo() error {
	err := unix.PtraceSetRegs(h.tid, &h.old)
	if e := unix.PtraceDetach(h.tid); err == nil {
		err = e
	}
	for _, sig := range h.signals {
		if e := unix.Tgkill(tgid(h.tid), h.tid, sig); err == nil {
			err = e
		}
	}
	return err
}

func tgid(tid int) int {
	n := 0
	_, _ = fmt.Sscan(StatusLine(tid, "Tgid"), &n)
	return n
}

// ask has the thread make one call. What it fills in goes to the page of its stack pointer, whose contents come back.
func (h *heldThread) ask(mem *os.File, g getter) (string, error) {
	const size = 1024 // FX_OUT
	page := int64(h.old.Rsp &^ 4095)
	var was []byte
	args := slices.Clone(g.args)
	if g.out >= 0 {
		was = make([]byte, size)
		if _, err := mem.ReadAt(was, page); err != nil {
			return "", err
		}
		if _, err := mem.WriteAt(make([]byte, size), page); err != nil {
			return "", err
		}
		args[g.out] = uint64(page)
	}
	nr := uint64(unix.SYS_PRCTL)
	if g.arch {
		nr = unix.SYS_ARCH_PRCTL
	}
	r, err := h.call(nr, args)
	value := fmt.Sprint(r)
	if g.out >= 0 {
		out := make([]byte, size)
		if _, e := mem.ReadAt(out, page); err == nil {
			err = e
		}
		if _, e := mem.WriteAt(was, page); err == nil {
			err = e
		}
		value += fmt.Sprintf(" %x", out)
	}
	return value, err
}

func (h *heldThread) call(nr uint64, args []uint64) (int64, error) {
	regs := h.old
	regs.Rip, regs.Rax, regs.Orig_rax = h.insn, nr, ^uint64(0)
	for i, to := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8} {
		*to = 0
		if i < len(args) {
			*to = args[i]
		}
	}
	if err := unix.PtraceSetRegs(h.tid, &regs); err != nil {
		return 0, err
	}
	for {
		if err := unix.PtraceSingleStep(h.tid); err != nil {
			return 0, err
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(h.tid, &ws, unix.WALL, nil); err != nil {
			return 0, err
		}
		switch {
		case !ws.Stopped():
			return 0, unix.ESRCH
		case int(ws)>>16 != 0: // a stop of the group, or that of the interrupt
			continue
		case ws.StopSignal() != syscall.SIGTRAP:
			h.signals = append(h.signals, ws.StopSignal())
			continue
		}
		if err := unix.PtraceGetRegs(h.tid, &regs); err != nil {
			return 0, err
		}
		if regs.Rip != h.insn+2 {
			continue // a signal's stop came first
		}
		return int64(regs.Rax), nil
	}
}
