package tracee

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

func TestBatchResultsAndReferences(t *testing.T) {
	r := newRig(t, 2)
	b := r.arena.NewBatch()
	s := b.Sys()
	pid := b.Call(s.Getpid)
	again := b.Call(s.Getpgid, pid)
	pipe := b.Space(8)
	b.Call(s.Pipe2, pipe, 0)
	text := b.Data([]byte("through a pipe"))
	out := b.Space(64)
	b.Call(s.Write, Word{pipe, 4}, text, 14)
	got := b.Call(s.Read, Word{pipe, 0}, At{out, 10}, 14)
	iov := b.Space(16)
	iov.Pointer(0, out)
	hostOrder.PutUint64(iov.Bytes()[8:], 4)
	wrote := b.Call(s.Writev, Word{pipe, 4}, iov, 1)
	missing := b.Call(s.Openat, unix.AT_FDCWD, "/nonexistent/file", 0).Allow(unix.ENOENT)
	m := b.Call(s.Mmap, arch.Addr(0x200000000), 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, -1, 0).Expect(0x200000000)
	un := b.Call(s.Munmap, m, 4096)
	r.run(t, r.stub, b)

	if pid.Int() != r.stub.Tid {
		t.Errorf("getpid = %d, want %d", pid.Int(), r.stub.Tid)
	}
	if want := unix.Getpgrp(); again.Int() != want {
		t.Errorf("getpgid(result of getpid) = %d, want %d", again.Int(), want)
	}
	if got.Int() != 14 || !bytes.Equal(out.Bytes()[10:24], []byte("through a pipe")) {
		t.Errorf("read = %d, %q", got.Int(), out.Bytes())
	}
	if wrote.Int() != 4 {
		t.Errorf("writev with a pointer = %d, want 4", wrote.Result())
	}
	if missing.Errno() != unix.ENOENT {
		t.Errorf("openat = %v, want ENOENT", missing.Errno())
	}
	if m.Result() != 0x200000000 || un.Result() != 0 {
		t.Errorf("mmap = %#x, munmap = %d", m.Result(), un.Result())
	}
}

func TestBatchStopsAtError(t *testing.T) {
	tests := []struct {
		name string
		add  func(b *Batch, s *arch.Syscalls) // appends call 1
		want string
		errn unix.Errno
	}{
		{"error", func(b *Batch, s *arch.Syscalls) { b.Call(s.Close, 99).Note("fd %d", 99) }, "call 1 of a batch, close for fd 99: EBADF", unix.EBADF},
		{"expect", func(b *Batch, s *arch.Syscalls) { b.Call(s.Getppid).Expect(1 << 40) }, "call 1 of a batch, getppid: returned", 0},
		{"allow", func(b *Batch, s *arch.Syscalls) { b.Call(s.Close, 99).Allow(unix.EINVAL) }, "call 1 of a batch, close: EBADF", unix.EBADF},
	}
	r := newRig(t, 2)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := r.arena.NewBatch()
			b.Call(b.Sys().Getpid)
			tt.add(b, b.Sys())
			after := b.Call(b.Sys().Getpid)
			err := r.RunOne(r.stub, b)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			var ce *CallError
			if !errors.As(err, &ce) || ce.Tid != r.stub.Tid || ce.Index != 1 {
				t.Errorf("no CallError for call 1: %#v", err)
			}
			if tt.errn != 0 && !errors.Is(err, tt.errn) {
				t.Errorf("%v is not %v", err, tt.errn)
			}
			if after.Ran() != (tt.name == "allow") {
				t.Errorf("call after it ran: %v", after.Ran())
			}
			// The task is as usable as before.
			b = r.arena.NewBatch()
			pid := b.Call(b.Sys().Getpid)
			r.run(t, r.stub, b)
			if pid.Int() != r.stub.Tid {
				t.Errorf("getpid = %d afterwards", pid.Int())
			}
		})
	}
}

func TestBatchSplits(t *testing.T) {
	r := newRig(t, 2)
	b := r.arena.NewBatch()
	s := b.Sys()
	const n = 2000
	shared := b.InOut(make([]byte, 8))
	pipe := b.Space(8)
	b.Call(s.Pipe2, pipe, 0)
	first := b.Call(s.Getpid)
	var writes []*Call
	for i := range n {
		writes = append(writes, b.Call(s.Write, Word{pipe, 4}, b.Data(bytes.Repeat([]byte{byte(i)}, 7)), 7))
	}
	// The result of a call, a word and a buffer that belong to a part that ran long ago.
	pgid := b.Call(s.Getpgid, first)
	b.Call(s.Read, Word{pipe, 0}, shared, 8)
	r.run(t, r.stub, b)
	for i, w := range writes {
		if w.Result() != 7 {
			t.Fatalf("write %d = %d", i, w.Result())
		}
	}
	if pgid.Int() != unix.Getpgrp() {
		t.Errorf("getpgid = %d, want %d", pgid.Int(), unix.Getpgrp())
	}
	if want := []byte{0, 0, 0, 0, 0, 0, 0, 1}; !bytes.Equal(shared.Bytes(), want) {
		t.Errorf("read %v, want %v", shared.Bytes(), want)
	}

	// An error beyond the first part is named by its place in the whole batch, and nothing after it runs.
	b = r.arena.NewBatch()
	for range n {
		b.Call(s.Getpid)
	}
	b.Call(s.Close, 99)
	last := b.Call(s.Getpid)
	for range n {
		last = b.Call(s.Getpid)
	}
	var ce *CallError
	if err := r.RunOne(r.stub, b); !errors.As(err, &ce) || ce.Index != n {
		t.Errorf("error %v, want call %d", err, n)
	}
	if last.Ran() {
		t.Error("calls of a later part ran after an error")
	}
}

func TestBatchMistakes(t *testing.T) {
	r := newRig(t, 2)
	later := func() *Batch {
		b := r.arena.NewBatch()
		other := &Call{nr: 1}
		b.Call(b.Sys().Getpgid, other)
		return b
	}
	kind := func() *Batch { b := r.arena.NewBatch(); b.Call(b.Sys().Getpgid, 1.5); return b }
	lacking := func() *Batch { b := r.arena.NewBatch(); b.Call(arch.NoSyscall); return b }
	big := func() *Batch {
		b := r.arena.NewBatch()
		b.Call(b.Sys().Write, 1, make([]byte, DefaultSlot), 1)
		return b
	}
	slots := func() *Batch {
		b := r.arena.NewBatch()
		b.Clone(sys.CloneArgs{}, nil, 0)
		b.Clone(sys.CloneArgs{}, nil, 0)
		return b
	}
	for want, make := range map[string]func() *Batch{
		"result of a call that is not before it": later,
		"argument 0 is a float64":                kind,
		"lacks the system call":                  lacking,
		"do not fit a slot":                      big,
		"no free slot":                           slots,
	} {
		err := r.RunOne(r.stub, make())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	b := r.arena.NewBatch()
	b.Call(b.Sys().Getpid)
	r.run(t, r.stub, b)
	if err := r.RunOne(r.stub, b); err == nil {
		t.Error("a batch ran twice")
	}
}

// inheritable is this process's descriptors that are not close-on-exec.
func inheritable(t *testing.T) []int {
	t.Helper()
	all, err := procfs.Descriptors(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, fd := range all {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			out = append(out, fd)
		}
	}
	return out
}

func TestSpawnState(t *testing.T) {
	pool, err := unix.FcntlInt(2, unix.F_DUPFD, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pool)
	r := newRig(t, 2)
	want := inheritable(t)
	got, err := procfs.Descriptors(r.stub.Tid)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) || !slices.Contains(got, pool) {
		t.Errorf("descriptors of the first task: %v, want %v", got, want)
	}

	b := r.arena.NewBatch()
	r.stub.Wipe(b)
	r.run(t, r.stub, b)
	maps, err := os.ReadFile("/proc/" + itoa(r.stub.Tid) + "/maps")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(maps)), "\n")
	var perms []string
	for _, l := range lines {
		if !strings.Contains(l, "vsyscall") {
			perms = append(perms, strings.Fields(l)[1])
			if !strings.Contains(l, "crpipe-arena") {
				t.Errorf("left after Wipe: %s", l)
			}
		}
	}
	if strings.Join(perms, " ") != "r-xs rw-s" {
		t.Errorf("arena mapped as %v", perms)
	}

	// The arena elsewhere, and everything still works.
	if err := r.Move([]*Task{r.stub}, 0x300000000); err != nil {
		t.Fatal(err)
	}
	b = r.arena.NewBatch()
	pid := b.Call(b.Sys().Getpid)
	r.run(t, r.stub, b)
	if pid.Int() != r.stub.Tid {
		t.Errorf("getpid = %d after the move", pid.Int())
	}
	maps, _ = os.ReadFile("/proc/" + itoa(r.stub.Tid) + "/maps")
	if !strings.HasPrefix(string(maps), "300000000-") {
		t.Errorf("maps after the move:\n%s", maps)
	}
	// To a place that is taken: an error, and the task lives.
	if err := r.Move([]*Task{r.stub}, 0x300000000+4096); !errors.Is(err, unix.EEXIST) {
		t.Errorf("moving onto itself: %v, want EEXIST", err)
	}
}

func TestSignalsAreKept(t *testing.T) {
	r := newRig(t, 2)
	if err := sys.Kill(r.stub.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Also one that is taken for the breakpoint's at first sight.
	if err := sys.Kill(r.stub.Pid, unix.SIGTRAP); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b := r.arena.NewBatch()
		pid := b.Call(b.Sys().Getpid)
		r.run(t, r.stub, b)
		if pid.Int() != r.stub.Tid {
			t.Fatalf("getpid = %d", pid.Int())
		}
	}
	var got []int
	for _, info := range r.stub.Kept {
		got = append(got, int(hostOrder.Uint32(info[:])))
	}
	if len(got) != 2 || got[0]+got[1] != int(unix.SIGSTOP)+int(unix.SIGTRAP) {
		t.Errorf("kept signals %v, want SIGSTOP and SIGTRAP", got)
	}
	if err := sys.Kill(r.stub.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b := r.arena.NewBatch()
	b.Call(b.Sys().Getpid)
	err := r.RunOne(r.stub, b)
	if !errors.Is(err, unix.ESRCH) {
		t.Errorf("running in a killed task: %v", err)
	}
}

func TestCrashIsNamed(t *testing.T) {
	r := newRig(t, 2)
	b := r.arena.NewBatch()
	b.Call(b.Sys().Munmap, r.stub.Base, r.arch.PageSize)
	err := r.RunOne(r.stub, b)
	if err == nil || !strings.Contains(err.Error(), "SIGSEGV") || !strings.Contains(err.Error(), itoa(r.stub.Tid)) {
		t.Errorf("unmapping the routine: %v", err)
	}
}

// A call that this kernel does not know says since when there is one that does, and that this one lacks it.
func TestSince(t *testing.T) {
	r := newRig(t, 2)
	for _, c := range []struct {
		version string
		status  int
	}{{"99.1", 5}, {"", 1}} {
		b := r.arena.NewBatch()
		b.Call(b.Sys().Prctl, 0x7ffffff0, 0, 0, 0, 0).Note("a prctl of the future").Since(c.version)
		err := r.RunOne(r.stub, b)
		var call *CallError
		if !errors.As(err, &call) || !errors.Is(err, unix.EINVAL) {
			t.Fatalf("%v", err)
		}
		status := 1
		var coded interface{ ExitCode() int }
		if errors.As(err, &coded) {
			status = coded.ExitCode()
		}
		if status != c.status || strings.Contains(err.Error(), "needs Linux 99.1") != (c.version != "") {
			t.Errorf("since %q: status %d, %v", c.version, status, err)
		}
	}
}
