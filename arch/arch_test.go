package arch

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

func TestArchitectures(t *testing.T) {
	for _, name := range []string{"amd64", "386", "arm64", "s390x", "ppc64le"} {
		a, err := For(name)
		if err != nil {
			t.Fatal(err)
		}
		if a.Name != name || a.PageSize == 0 || a.TaskSize == 0 || a.Machine == "" {
			t.Errorf("%s: incomplete: %+v", name, a)
		}
		if len(a.Regsets) == 0 || a.Regsets[0].Note != NTPRStatus || a.Regsets[0].Size != a.PRStatusSize {
			t.Errorf("%s: the first register set is not NT_PRSTATUS of %d bytes", name, a.PRStatusSize)
		}
		if (a.Run == nil) != (a.Routine != nil) || (a.Run == nil) != (a.Stub != nil) || (a.Run == nil) != (a.SigFrame != nil) {
			t.Errorf("%s: Run is %v, but routine, stub and signal frame are there: %v %v %v", name, a.Run, a.Routine != nil, a.Stub != nil, a.SigFrame != nil)
		}
		if a.Run != nil && (!errors.Is(a.Run, ErrUnsupported) || !strings.HasPrefix(a.Run.Error(), name+": ")) {
			t.Errorf("%s: Run = %v", name, a.Run)
		}
		for nr, want := range map[int]string{a.Sys.Mmap: "mmap", a.Sys.Clone3: "clone3", a.Sys.RtSigreturn: "rt_sigreturn", a.Sys.ExitGroup: "exit_group"} {
			if got := a.SyscallName(nr); got != want {
				t.Errorf("%s: call %d is %q, want %q", name, nr, got, want)
			}
		}
		if got := a.SyscallName(100000); got != "system call 100000" {
			t.Errorf("%s: %q", name, got)
		}
		// Accessors stay in the blob, and write what they read.
		regs := make([]byte, a.PRStatusSize)
		if err := a.CheckPRStatus(regs); err != nil {
			t.Error(err)
		}
		if err := a.CheckPRStatus(regs[1:]); err == nil {
			t.Errorf("%s: a short blob is accepted", name)
		}
		a.SetPC(regs, 0x1234)
		a.SetSP(regs, 0x5678)
		if a.PC(regs) != 0x1234 || a.SP(regs) != 0x5678 {
			t.Errorf("%s: pc %v, sp %v", name, a.PC(regs), a.SP(regs))
		}
	}
	if _, err := For("vax"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `"vax"`) {
		t.Errorf("For(vax): %v", err)
	}
	a, err := Native()
	if (err == nil) != (runtime.GOARCH == "amd64") || err == nil && a.Name != runtime.GOARCH {
		t.Errorf("Native() = %v, %v", a, err)
	}
	regs := make([]byte, amd64.PRStatusSize)
	for cs, want := range map[uint64]*Arch{0x33: amd64, 0xe033: amd64, 0x23: amd64Compat, 0x7: amd64Compat} {
		amd64Words.set(regs, amd64CS, cs)
		if got := amd64.Mode(regs); got != want {
			t.Errorf("cs %#x is of mode %s", cs, got.Name)
		}
	}
}

// TestSyscallTables: every field of Syscalls has been set, and numbers agree with names.
func TestSyscallTables(t *testing.T) {
	for _, a := range all {
		if len(a.sysNames) < 400 {
			t.Errorf("%s: %d names", a.Name, len(a.sysNames))
		}
	}
	if amd64.Sys.Read != 0 || amd64.Sys.Mmap != 9 || amd64.Sys.RestartSyscall != 219 || amd64.Sys.Socketcall != NoSyscall {
		t.Error("amd64's numbers are wrong")
	}
}

func TestRestart(t *testing.T) {
	a := amd64
	s := &a.Sys
	tests := []struct {
		name   string
		nr     int
		result int64
		args   [6]uint64
		want   Restart
		rewind int // the number in rax afterwards, -1: unchanged
	}{
		{"in user mode", -1, -512, [6]uint64{}, RestartNone, -1},
		{"finished", s.Read, 5, [6]uint64{}, RestartNone, -1},
		{"failed", s.Read, -9, [6]uint64{}, RestartNone, -1},
		{"read", s.Read, -512, [6]uint64{}, RestartSys, s.Read},
		{"fork", s.Clone3, -513, [6]uint64{}, RestartNoIntr, s.Clone3},
		{"pause", s.Pause, -514, [6]uint64{}, RestartNoHand, s.Pause},
		{"nanosleep", s.Nanosleep, -516, [6]uint64{}, RestartBlock, s.RestartSyscall},
		{"epoll_wait", s.EpollWait, -4, [6]uint64{}, RestartEINTR, s.EpollWait},
		{"close", s.Close, -4, [6]uint64{}, RestartNone, -1},
		{"sigsuspend", s.RtSigsuspend, -4, [6]uint64{}, RestartNone, -1},
		{"tcdrain", s.Ioctl, -4, [6]uint64{1, 0x5409, 1}, RestartEINTR, s.Ioctl},
		{"tcsendbreak", s.Ioctl, -4, [6]uint64{1, 0x5409, 0}, RestartNone, -1},
		{"fallocate", s.Fallocate, -4, [6]uint64{1, 0, 0, 4096}, RestartEINTR, s.Fallocate},
		{"collapse range", s.Fallocate, -4, [6]uint64{1, 8, 0, 4096}, RestartNone, -1},
		{"lacking call", NoSyscall, -4, [6]uint64{}, RestartNone, -1},
	}
	for _, tt := range tests {
		regs := make([]byte, a.PRStatusSize)
		a.SetCall(regs, 0x1002, tt.nr, tt.args)
		amd64Words.set(regs, amd64OrigRAX, uint64(tt.nr))
		a.SetResult(regs, tt.result)
		if got := a.Restart(regs); got != tt.want {
			t.Errorf("%s: class %v, want %v", tt.name, got, tt.want)
		}
		before := bytes.Clone(regs)
		if got := a.Rewind(regs); got != (tt.rewind >= 0) {
			t.Errorf("%s: Rewind = %v", tt.name, got)
		}
		if tt.rewind < 0 {
			if !bytes.Equal(before, regs) {
				t.Errorf("%s: registers changed", tt.name)
			}
			continue
		}
		if _, in := a.SyscallNr(regs); in || a.PC(regs) != 0x1000 || a.Result(regs) != int64(tt.rewind) {
			t.Errorf("%s: pc %v, rax %d", tt.name, a.PC(regs), a.Result(regs))
		}
	}
	// A 32-bit task's words are 32 bits wide.
	regs := make([]byte, i386.PRStatusSize)
	i386.SetCall(regs, 0x1002, i386.Sys.EpollWait, [6]uint64{})
	binary.LittleEndian.PutUint32(regs[i386OrigEAX*4:], uint32(i386.Sys.EpollWait))
	i386.SetResult(regs, -4)
	if got := i386.Restart(regs); got != RestartEINTR {
		t.Errorf("32-bit epoll_wait: %v", got)
	}
	// The same task as an x86-64 kernel has it: what the upper halves hold is not looked at.
	c := amd64Compat
	regs = make([]byte, c.PRStatusSize)
	c.SetCall(regs, 0x1002, c.Sys.Ioctl, [6]uint64{1, 0xffffffff00005409, 1})
	amd64Words.set(regs, amd64OrigRAX, uint64(c.Sys.Ioctl))
	c.SetResult(regs, -4)
	if got := c.Restart(regs); got != RestartEINTR {
		t.Errorf("32-bit tcdrain: %v", got)
	}
	amd64Words.set(regs, amd64OrigRAX, 0xffffffff)
	if got := c.Restart(regs); got != RestartNone {
		t.Errorf("32-bit code in no call: %v", got)
	}
	if arm64.Restart(make([]byte, arm64.PRStatusSize)) != RestartNone {
		t.Error("arm64 knows a call from these registers")
	}
}

func TestPPC64Result(t *testing.T) {
	regs := make([]byte, ppc64le.PRStatusSize)
	ppc64Words.set(regs, ppc64R0, uint64(ppc64le.Sys.EpollWait))
	ppc64Words.set(regs, ppc64R3, 4)
	ppc64Words.set(regs, ppc64Trap, ppc64TrapSC+1)
	if got := ppc64le.Result(regs); got != 4 {
		t.Errorf("success: %d", got)
	}
	ppc64Words.set(regs, ppc64CCR, ppc64CCRSO)
	if got := ppc64le.Result(regs); got != -4 {
		t.Errorf("failure: %d", got)
	}
	if got := ppc64le.Restart(regs); got != RestartEINTR {
		t.Errorf("class %v", got)
	}
}

// TestRoutineCode assembles the routine from the comments beside its bytes and compares.
func TestRoutineCode(t *testing.T) {
	src, err := os.ReadFile("amd64_routine.go")
	if err != nil {
		t.Fatal(err)
	}
	visit, err := os.ReadFile("amd64_visit.go")
	if err != nil {
		t.Fatal(err)
	}
	src = append(src, visit...)
	as, err := exec.LookPath("as")
	if err != nil || runtime.GOARCH != "amd64" {
		t.Skip("needs amd64's as(1)")
	}
	instr := regexp.MustCompile(`(?m)^\t(?:// (\w+:)$|(?:0x[0-9a-f]{2}, ?)+ *// ([0-9a-f]+)  (.*)$)`)
	for _, part := range []struct {
		name string
		code []byte
	}{{"amd64RoutineCode", amd64RoutineCode}, {"amd64StubCode", amd64StubCode}, {"amd64CompatStubCode", amd64CompatStubCode}, {"amd64VisitCode", amd64VisitCode}} {
		_, text, ok := bytes.Cut(src, []byte("var "+part.name+" = []byte{\n"))
		if !ok {
			t.Fatalf("%s is not in the source", part.name)
		}
		text, _, _ = bytes.Cut(text, []byte("\n}\n"))
		var asm strings.Builder
		lines := 0
		for _, m := range instr.FindAllSubmatch(text, -1) {
			asm.Write(append(append(m[1], m[3]...), '\n'))
			lines++
		}
		if want := bytes.Count(text, []byte("\n")) + 1; lines != want {
			t.Fatalf("%s: %d of %d lines understood", part.name, lines, want)
		}
		obj := filepath.Join(t.TempDir(), "routine.o")
		cmd := exec.Command(as, "-o", obj, "-")
		cmd.Stdin = strings.NewReader(asm.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("as: %v\n%s\n%s", err, out, asm.String())
		}
		f, err := elf.Open(obj)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.Section(".text").Data()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, part.code) {
			t.Errorf("%s: assembled to\n% x, the bytes are\n% x", part.name, got, part.code)
		}
	}
	r := amd64Routine
	if !bytes.Equal(r.Code[r.Syscall:r.Syscall+2], amd64.SyscallInsn) {
		t.Error("Routine.Syscall is not at a system call instruction")
	}
	if !bytes.Equal(r.Code[r.Compat:r.Compat+2], amd64Compat.SyscallInsn) {
		t.Error("Routine.Compat is not at int 0x80")
	}
	if r.Code[r.Stop-1] != 0xcc {
		t.Error("Routine.Stop is not after the breakpoint")
	}
	if len(r.Code) > amd64.PageSize {
		t.Errorf("the routine has %d bytes", len(r.Code))
	}
}

func TestStub(t *testing.T) {
	stub := amd64.Stub()
	f, err := elf.NewFile(bytes.NewReader(stub.Image))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || len(f.Progs) != 2 {
		t.Errorf("%+v", f.FileHeader)
	}
	load := f.Progs[0]
	if Addr(load.Vaddr) != stub.Base || load.Filesz != uint64(len(stub.Image)) || load.Flags != elf.PF_R|elf.PF_X {
		t.Errorf("%+v", load.ProgHeader)
	}
	if off := stub.Syscall - stub.Base; !bytes.Equal(stub.Image[off:off+2], amd64.SyscallInsn) {
		t.Error("Syscall is not at a system call instruction")
	}
	if code := stub.Image[f.Entry-uint64(stub.Base):]; !bytes.Equal(code, amd64StubCode) {
		t.Errorf("entry at % x", code)
	}
}

func TestX86UserDesc(t *testing.T) {
	// The descriptor that the kernel makes of glibc's TLS: base, all of the address space, writable data.
	desc := uint64(0x09<<56 | 0xdf<<48 | 0xf3<<40 | 0xdbc380<<16 | 0xffff)
	want := UserDesc{Entry: 12, Base: 0x09dbc380, Limit: 0xfffff, Flags: 0x51}
	if got := X86UserDesc(12, desc); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// 16-bit code that may not be read, absent, expanding down or conforming.
	desc = uint64(0x00<<56 | 0x01<<48 | 0x7c<<40 | 0x123456<<16 | 0x89ab)
	want = UserDesc{Entry: 14, Base: 0x123456, Limit: 0x189ab, Flags: 3<<1 | 1<<3 | 1<<5}
	if got := X86UserDesc(14, desc); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
