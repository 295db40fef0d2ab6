package tracee

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// progAt is where the tests put a program, and dataAt its data.
const (
	progAt = arch.Addr(0x400000000)
	dataAt = progAt + 0x10000

	dataSize = 0x4000 // a signal frame with AMX tiles fits
)

// exitWithResult is a program: exit_group(rax).
var exitWithResult = []byte{
	0x48, 0x89, 0xc7, // mov %rax,%rdi
	0xb8, 0xe7, 0, 0, 0, // mov $231,%eax
	0x0f, 0x05, // syscall
}

// program makes the first task consist of a program, a page of data and the arena. The stub's descriptors stay.
func program(t testing.TB, r *rig, code []byte) {
	t.Helper()
	if r.arch.Name != "amd64" {
		t.Skip("the program is amd64's")
	}
	b := r.arena.NewBatch()
	s := b.Sys()
	r.stub.Wipe(b)
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED_NOREPLACE
	b.Call(s.Mmap, progAt, 4096, unix.PROT_READ|unix.PROT_EXEC, flags, -1, 0).Expect(uint64(progAt))
	b.Call(s.Mmap, dataAt, dataSize, unix.PROT_READ|unix.PROT_WRITE, flags, -1, 0).Expect(uint64(dataAt))
	r.run(t, r.stub, b)
	poke(t, r.stub.Tid, progAt, code)
}

// poke writes to a task's memory; /proc/PID/mem may write where the mapping may not be written.
func poke(t testing.TB, tid int, at arch.Addr, data []byte) {
	t.Helper()
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", tid), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mem.WriteAt(data, int64(at)); err != nil {
		t.Fatal(err)
	}
	_ = mem.Close() // nothing is buffered
}

func (r *rig) regs(t testing.TB) []byte {
	t.Helper()
	var regs []byte
	if err := r.Do(func() (err error) { regs, err = r.stub.regs(); return }); err != nil {
		t.Fatal(err)
	}
	return regs
}

// setReg sets a word of amd64's user_regs_struct.
func setReg(regs []byte, i int, v uint64) { hostOrder.PutUint64(regs[8*i:], v) }

const regR12, regRAX, regRSI, regRDI, regOrigRAX = 3, 10, 13, 14, 15

// release unmaps the arena, sets the registers and lets the task go; it returns the exit status.
func (r *rig) release(t testing.TB, regs []byte) sys.WaitStatus {
	t.Helper()
	step := r.stub.Unmap()
	if err := r.CallSteps([]*Step{step}); err != nil || step.Result != 0 {
		t.Fatalf("munmap = %d, %v", step.Result, err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", r.stub.Tid))
	if err != nil || bytes.Contains(maps, []byte("crpipe")) || bytes.Count(maps, []byte("\n")) > 3 {
		t.Errorf("more than the program is mapped: %s %v", maps, err)
	}
	if err := r.SetFinal(r.stub, []RegsetData{{arch.NTPRStatus, regs}}, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit([]*Task{r.stub}, nil); err != nil {
		t.Fatal(err)
	}
	if n := r.Tasks(); n != 0 {
		t.Errorf("the tracer counts %d tasks after Commit", n)
	}
	_, ws, err := sys.Wait(r.stub.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ws
}

func TestCommit(t *testing.T) {
	r := newRig(t, 2)
	program(t, r, append([]byte{0x4c, 0x89, 0xe0}, exitWithResult...)) // mov %r12,%rax
	regs := r.regs(t)
	r.arch.ClearSyscall(regs)
	r.arch.SetPC(regs, progAt)
	setReg(regs, regR12, 42)
	if ws := r.release(t, regs); !ws.Exited() || ws.ExitCode() != 42 {
		t.Errorf("the task %v; want exit status 42", ws)
	}
}

// TestBlock makes a task's system call be found interrupted, with what the kernel keeps of it, in
// registers that never made it.
func TestBlock(t *testing.T) {
	const wait = 300 * time.Millisecond
	timespec := func(b *Batch) *Buf {
		p := hostOrder.AppendUint64(nil, 0)
		return b.Data(hostOrder.AppendUint64(p, uint64(wait)))
	}
	tests := []struct {
		name   string
		class  arch.Restart
		timed  bool
		status int // low byte of the call's result
		call   func(b *Batch, pipe int)
	}{
		{"nanosleep", arch.RestartBlock, true, 0, func(b *Batch, _ int) { b.Call(b.Sys().Nanosleep, timespec(b), 0) }},
		{"poll", arch.RestartBlock, true, 0, func(b *Batch, _ int) { b.Call(b.Sys().Poll, 0, 0, wait.Milliseconds()) }},
		{"futex", arch.RestartBlock, true, -int(unix.ETIMEDOUT) & 0xff, func(b *Batch, _ int) { b.Call(b.Sys().Futex, dataAt, 0, 0, timespec(b)) }},
		{"read", arch.RestartSys, false, 3, func(b *Batch, pipe int) { b.Call(b.Sys().Read, pipe, dataAt, 16) }},
		{"pause", arch.RestartNoHand, false, -1, func(b *Batch, _ int) { b.Call(b.Sys().Pause) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var p [2]int
			if err := unix.Pipe(p[:]); err != nil { // inherited
				t.Fatal(err)
			}
			defer unix.Close(p[0])
			r := newRig(t, 2)
			program(t, r, append([]byte{0x0f, 0x05}, exitWithResult...))
			b := r.arena.NewBatch()
			before := b.Call(b.Sys().Getpid)
			tt.call(b, p[0])
			begin := time.Now()
			classes, err := r.Block([]*Task{r.stub}, []*Batch{b}, stopTimeout)
			if err != nil || classes[0] != tt.class {
				t.Fatalf("blocked in class %v, %v; want %v", classes, err, tt.class)
			}
			if before.Int() != r.stub.Tid {
				t.Errorf("the call before it gave %d", before.Int())
			}
			// Other calls in between, then registers with the result and the number, just behind
			// the program's own system call instruction.
			last := b.calls[len(b.calls)-1]
			result, nr := last.Result(), last.nr
			between := r.arena.NewBatch()
			between.Call(between.Sys().Getppid)
			r.run(t, r.stub, between)
			regs := r.regs(t)
			r.arch.SetPC(regs, progAt+2)
			setReg(regs, regRAX, uint64(result))
			setReg(regs, regOrigRAX, uint64(nr))
			setReg(regs, regRDI, uint64(p[0])) // what a restarted read takes
			setReg(regs, regRSI, uint64(dataAt))
			if r.arch.Restart(regs) != tt.class {
				t.Errorf("final registers are of class %v", r.arch.Restart(regs))
			}
			time.AfterFunc(wait, func() {
				_, _ = unix.Write(p[1], []byte("abc"))
				_ = unix.Close(p[1])
				if tt.status < 0 {
					_ = unix.Kill(r.stub.Pid, unix.SIGTERM) // > 0: Spawn gave it
				}
			})
			setReg(regs, 12, 3) // rdx
			ws := r.release(t, regs)
			if tt.status < 0 {
				if !ws.Killed() || ws.TermSignal() != unix.SIGTERM {
					t.Errorf("the task %v; want killed by SIGTERM", ws)
				}
			} else if !ws.Exited() || ws.ExitCode() != tt.status {
				t.Errorf("the task %v; want status %d", ws, tt.status)
			}
			if took := time.Since(begin); tt.timed && took < wait {
				t.Errorf("it took %v, less than %v", took, wait)
			} else {
				t.Logf("%v beyond its time", took-wait)
			}
		})
	}
}

// TestBlockEndsEarly: a call that does not block at all has its result, and the task is usable.
func TestBlockEndsEarly(t *testing.T) {
	r := newRig(t, 2)
	timespec := func(b *Batch, ns int64) *Buf {
		return b.Data(hostOrder.AppendUint64(hostOrder.AppendUint64(nil, 0), uint64(ns)))
	}
	for _, tt := range []struct {
		name string
		call func(b *Batch) *Call
		want int64
	}{
		{"ppoll for no time", func(b *Batch) *Call { return b.Call(b.Sys().Ppoll, 0, 0, timespec(b, 0), 0, 8) }, 0},
		{"nanosleep for a negative time", func(b *Batch) *Call { return b.Call(b.Sys().Nanosleep, timespec(b, -1), 0) }, -int64(unix.EINVAL)},
	} {
		b := r.arena.NewBatch()
		c := tt.call(b)
		classes, err := r.Block([]*Task{r.stub}, []*Batch{b}, stopTimeout)
		if err != nil || classes[0] != arch.RestartNone || c.Result() != tt.want {
			t.Errorf("%s = %d, class %v, %v", tt.name, c.Result(), classes[0], err)
		}
		b = r.arena.NewBatch()
		pid := b.Call(b.Sys().Getpid)
		r.run(t, r.stub, b)
		if pid.Int() != r.stub.Tid {
			t.Errorf("getpid = %d", pid.Int())
		}
	}
}

// TestSigFrame returns from a signal handler that never ran: all registers, the floating point
// ones, the mask and the alternate stack become what the frame says.
func TestSigFrame(t *testing.T) {
	r := newRig(t, 2)
	program(t, r, exitWithResult)
	regs := r.regs(t)
	r.arch.ClearSyscall(regs)
	r.arch.SetPC(regs, progAt)
	for i := range 15 { // the general registers, but rsp
		setReg(regs, i, 0x1111111111111111*uint64(i%15+1))
	}
	r.arch.SetSP(regs, dataAt+0x800)
	var native []byte
	if err := r.Do(func() (err error) { native, err = r.nativeXState(r.stub.Tid); return }); err != nil {
		t.Fatal(err)
	}
	xs := append([]byte(nil), native...)
	const xmm0, ymmHigh0, inUse = 160, 576, 512
	state, err := arch.ParseX86XState(xs)
	if err != nil {
		t.Fatal(err)
	}
	hostOrder.PutUint64(xs[inUse:], state.InUse|2|state.Enabled&4)
	for i := range 256 {
		xs[xmm0+i] = byte(i)
		if state.Enabled&4 != 0 {
			xs[ymmHigh0+i] = byte(255 - i)
		}
	}
	const mask, stackSize = 0x5400, 8192
	frame, err := r.arch.SigFrame(dataAt+0x803, arch.SigContext{PRStatus: regs, XState: xs, Mask: mask, StackSP: dataAt + 0x8000, StackSize: stackSize})
	if err != nil {
		t.Fatal(err)
	}
	if len(frame.Bytes) > dataSize-0x803 {
		t.Fatalf("the frame has %d bytes, more than the test's pages", len(frame.Bytes))
	}
	poke(t, r.stub.Tid, dataAt+0x803, frame.Bytes)
	if err := r.Do(func() error {
		now, err := r.stub.regs()
		if err != nil {
			return err
		}
		r.arch.SetSP(now, frame.SP)
		r.stub.state = taskAside
		return writeRegs(r.stub.Tid, now)
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.CallSteps([]*Step{{Task: r.stub, Nr: r.arch.Sys.RtSigreturn}}); err != nil {
		t.Fatal(err)
	}
	if got := r.regs(t); !bytes.Equal(got, regs) {
		for i := range len(regs) / 8 {
			if g, w := hostOrder.Uint64(got[8*i:]), hostOrder.Uint64(regs[8*i:]); g != w {
				t.Errorf("register word %d = %#x, want %#x", i, g, w)
			}
		}
	}
	if err := r.Do(func() error {
		got := make([]byte, maxXState)
		n, err := sys.PtraceGetRegset(r.stub.Tid, arch.NTX86XState, got)
		if err != nil {
			return err
		}
		if !bytes.Equal(got[xmm0:464], xs[xmm0:464]) || !bytes.Equal(got[inUse:n], xs[inUse:]) {
			t.Error("floating point registers differ")
		}
		m, err := sys.PtraceGetSigmask(r.stub.Tid)
		if m != mask {
			t.Errorf("signal mask %#x, want %#x", m, mask)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b := r.arena.NewBatch()
	ss := b.Space(24)
	b.Call(b.Sys().Sigaltstack, 0, ss)
	r.run(t, r.stub, b)
	if sp, size := hostOrder.Uint64(ss.Bytes()), hostOrder.Uint64(ss.Bytes()[16:]); sp != uint64(dataAt+0x8000) || size != stackSize {
		t.Errorf("alternate stack %#x, %d bytes", sp, size)
	}
}
