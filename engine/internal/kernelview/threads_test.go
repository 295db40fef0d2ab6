//go:build amd64

package kernelview

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"crpipe/arch"

	"golang.org/x/sys/unix"
)

func prctlOf(c *child, option int, args ...uint64) int64 {
	c.t.Helper()
	p := prctl(option, args...)
	return c.must(uintptr(p[0]), p[1:]...)
}

func TestThreadDefaults(t *testing.T) {
	v, c := view(t), newChild(t)
	got := oneThread(t, v, c.pid())
	if got.Tid != c.pid() || got.Tgid != c.pid() {
		t.Errorf("tid %d, tgid %d, want %d", got.Tid, got.Tgid, c.pid())
	}
	same(t, "exit signal", got.ExitSignal, int32(unix.SIGCHLD))
	same(t, "parent death signal", got.PdeathSignal, int32(unix.SIGKILL)) // startHelper's
	same(t, "altstack", got.Altstack, Altstack{})
	same(t, "mempolicy set", Is(got.Mempolicy.Known && got.Mempolicy.V.Set), false)
	same(t, "rseq", Is(got.Rseq.V.Addr), 0)
	same(t, "securebits", got.Securebits, 0)
	same(t, "no new privileges", got.NoNewPrivs, false)
	same(t, "TSC", got.TSCFaults, false)
	same(t, "MCE kill", got.MCEKill, MCEKill{})
	same(t, "dispatch", got.SyscallDispatch, SyscallDispatch{})
	same(t, "reset on fork", got.ResetOnFork, false)
	same(t, "breakpoints", got.Breakpoints, false)
	same(t, "io permission", got.IOPermitted, false)
	same(t, "TLS entries", got.TLS, [3]uint64{})
	same(t, "vfork child", got.State.VforkChild, false)
	same(t, "zombie", got.State.Zombie, false)
	if !got.UserAffinity.Known || got.UserAffinity.V != nil {
		t.Errorf("user affinity %v before any call", got.UserAffinity)
	}
	flusher := prctl(unix.PR_GET_IO_FLUSHER)
	if r, err := c.call(uintptr(flusher[0]), flusher[1:]...); err == nil {
		same(t, "I/O flusher", got.IOFlusher, r == 1)
	} else {
		same(t, "I/O flusher", got.IOFlusher, false)
	}
}

// TestThreadState sets everything that a thread can set and compares.
func TestThreadState(t *testing.T) {
	v, c := view(t), newChild(t)
	pid := c.pid()

	// struct stack_t {ss_sp, ss_flags, ss_size}, with SS_AUTODISARM.
	stack := c.putWords(0, c.page+0x2000, 1<<31, 0x1800)
	c.must(unix.SYS_SIGALTSTACK, stack, 0)
	c.must(unix.SYS_SIGALTSTACK, 0, c.page+0x100)
	altstack := c.get(0x100, 3)

	mask := uint64(1<<(unix.SIGUSR1-1) | 1<<(40-1) | 1<<(64-1))
	c.must(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, c.putWords(0x140, mask), 0, 8)
	prctlOf(c, unix.PR_SET_PDEATHSIG, uint64(unix.SIGUSR2))
	c.must(unix.SYS_SET_TID_ADDRESS, c.page+0x200)
	c.must(unix.SYS_SET_ROBUST_LIST, c.page+0x240, 24)
	c.must(unix.SYS_RSEQ, c.page+0x400, 32, 0, 0x53053053)
	prctlOf(c, unix.PR_SET_TIMERSLACK, 123456)
	prctlOf(c, unix.PR_SET_KEEPCAPS, 1)
	prctlOf(c, unix.PR_SET_NO_NEW_PRIVS, 1)
	c.must(unix.SYS_PERSONALITY, 0x0040000) // ADDR_NO_RANDOMIZE
	const ioprio = 2<<13 | 5                // best effort
	c.must(unix.SYS_IOPRIO_SET, 1, 0, ioprio)
	prctlOf(c, unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, unix.PR_MCE_KILL_EARLY)
	prctlOf(c, unix.PR_SET_TSC, unix.PR_TSC_SIGSEGV)
	selector := c.page + 0x500
	prctlOf(c, unix.PR_SET_SYSCALL_USER_DISPATCH, unix.PR_SYS_DISPATCH_ON, 0x1000, 0x7ffffffff000, selector)
	c.must(unix.SYS_SCHED_SETAFFINITY, 0, 8, c.putWords(0x600, 1))
	// struct sched_attr: size, policy, flags (RESET_ON_FORK), nice, priority, runtime (slice).
	c.must(unix.SYS_SCHED_SETATTR, 0, c.putWords(0x640, 56, 1, 0, 3000000, 0, 0, 0), 0)

	got := oneThread(t, v, pid)
	same(t, "altstack", got.Altstack, Altstack{SP: arch.Addr(altstack[0]), Flags: uint32(altstack[1]), Size: altstack[2]})
	if altstack[1] != 1<<31 || altstack[2] != 0x1800 {
		t.Errorf("the child's own sigaltstack says %x", altstack)
	}
	same(t, "blocked", got.Blocked, mask)
	if s := procStatus(t, pid, "SigBlk"); s != fmt.Sprintf("%016x", got.Blocked.V) {
		t.Errorf("blocked %x, /proc says %s", got.Blocked.V, s)
	}
	same(t, "saved mask in use", got.HasSavedMask, false)
	if got.SavedMask.Known {
		t.Errorf("saved mask %v without one", got.SavedMask)
	}
	prctlOf(c, unix.PR_GET_PDEATHSIG, c.page+0x700)
	same(t, "parent death signal", got.PdeathSignal, int32(c.get(0x700, 1)[0]))
	same(t, "parent death signal", got.PdeathSignal, int32(unix.SIGUSR2))
	prctlOf(c, unix.PR_GET_TID_ADDRESS, c.page+0x700)
	same(t, "clear_child_tid", got.ClearChildTid, arch.Addr(c.get(0x700, 1)[0]))
	same(t, "clear_child_tid", got.ClearChildTid, arch.Addr(c.page+0x200))
	c.must(unix.SYS_GET_ROBUST_LIST, 0, c.page+0x700, c.page+0x708)
	same(t, "robust list", got.RobustList, arch.Addr(c.get(0x700, 1)[0]))
	same(t, "robust list", got.RobustList, arch.Addr(c.page+0x240))
	rseq := Rseq{Addr: arch.Addr(c.page + 0x400), Len: Is(uint32(32)), Sig: 0x53053053}
	if !v.l.has(fTRseqLen) { // before 6.3
		rseq.Len = Maybe[uint32]{}
	}
	same(t, "rseq", got.Rseq, rseq)
	same(t, "timer slack", got.TimerSlack, uint64(prctlOf(c, unix.PR_GET_TIMERSLACK)))
	same(t, "timer slack", got.TimerSlack, 123456)
	prctlOf(c, unix.PR_SET_TIMERSLACK, 0)
	same(t, "default timer slack", got.DefaultTimerSlack, uint64(prctlOf(c, unix.PR_GET_TIMERSLACK)))
	same(t, "securebits", got.Securebits, uint32(prctlOf(c, unix.PR_GET_SECUREBITS)))
	same(t, "securebits", got.Securebits, 1<<4)
	same(t, "no new privileges", got.NoNewPrivs, prctlOf(c, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
	same(t, "no new privileges", got.NoNewPrivs, true)
	same(t, "personality", got.Personality, uint32(c.must(unix.SYS_PERSONALITY, 0xffffffff)))
	same(t, "personality", got.Personality, 0x0040000)
	same(t, "I/O priority", got.Ioprio, uint16(c.must(unix.SYS_IOPRIO_GET, 1, 0)))
	same(t, "I/O priority", got.Ioprio, ioprio)
	if prctlOf(c, unix.PR_MCE_KILL_GET) != unix.PR_MCE_KILL_EARLY {
		t.Error("the child's own PR_MCE_KILL_GET does not say early")
	}
	same(t, "MCE kill", got.MCEKill, MCEKill{Set: true, Early: true})
	prctlOf(c, unix.PR_GET_TSC, c.page+0x700)
	same(t, "TSC", got.TSCFaults, c.get(0x700, 1)[0]&0xffffffff == unix.PR_TSC_SIGSEGV)
	same(t, "TSC", got.TSCFaults, true)
	same(t, "dispatch", got.SyscallDispatch, SyscallDispatch{On: true, Selector: arch.Addr(selector), Offset: 0x1000, Len: 0x7ffffffff000})
	c.must(unix.SYS_SCHED_GETATTR, 0, c.page+0x700, 56, 0)
	attr := c.get(0x700, 7)
	same(t, "reset on fork", got.ResetOnFork, attr[1]&1 != 0)
	same(t, "reset on fork", got.ResetOnFork, true)
	if !v.l.has(fTCustomSlice) { // before 6.12: no slice; and 6.1 keeps no affinity
		return
	}
	if !slices.Equal(trimZero(got.UserAffinity.V), []uint64{1}) {
		t.Errorf("user affinity %v, want CPU 0", got.UserAffinity)
	}
	same(t, "slice", got.SchedSlice, attr[3])
	same(t, "custom slice", got.CustomSlice, true)
	same(t, "slice", got.SchedSlice, 3000000)
}

func trimZero(w []uint64) []uint64 {
	for len(w) > 0 && w[len(w)-1] == 0 {
		w = w[:len(w)-1]
	}
	return w
}

func TestMempolicy(t *testing.T) {
	v, c := view(t), newChild(t)
	const static, bind, local = 1 << 15, 2, 4
	for _, x := range []struct{ mode, nodes uint64 }{{bind, 1}, {bind | static, 1}, {local, 0}} {
		c.must(unix.SYS_SET_MEMPOLICY, x.mode, c.putWords(0, x.nodes), 64)
		c.must(unix.SYS_GET_MEMPOLICY, c.page+0x100, c.page+0x200, 1024, 0, 0)
		mode := c.get(0x100, 1)[0] & 0xffffffff
		nodes := trimZero(c.get(0x200, 16))
		got := oneThread(t, v, c.pid()).Mempolicy
		if !got.Known || !got.V.Set || uint64(got.V.Mode)|uint64(got.V.Flags) != mode || !slices.Equal(got.V.Nodes, nodes) {
			t.Errorf("mempolicy %+v, the child's own call says mode %x nodes %x", got, mode, nodes)
		}
	}
	c.must(unix.SYS_SET_MEMPOLICY, 0, 0, 0)
	if got := oneThread(t, v, c.pid()).Mempolicy; !got.Known || got.V.Set {
		t.Errorf("mempolicy %+v after going back to the default", got)
	}
}

func TestSeccomp(t *testing.T) {
	v := view(t)
	t.Run("filter", func(t *testing.T) {
		c := newChild(t)
		filter := c.putWords(0, 0x7fff0000_00000006) // BPF_RET ALLOW
		program := c.putWords(0x100, 1, filter)      // struct sock_fprog
		prctlOf(c, unix.PR_SET_NO_NEW_PRIVS, 1)
		prctlOf(c, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, program)
		got := oneThread(t, v, c.pid())
		same(t, "seccomp mode", got.SeccompMode, unix.SECCOMP_MODE_FILTER)
		same(t, "seccomp filters", got.SeccompFilters, 1)
		if s := procStatus(t, c.pid(), "Seccomp_filters"); s != "1" {
			t.Errorf("/proc says %s filters", s)
		}
		if f, ok := got.Seccomp.Get(); !ok || len(f) != 1 || f[0].Log || f[0].Listener || !bytes.Equal(f[0].Code, binary.NativeEndian.AppendUint64(nil, 0x7fff0000_00000006)) {
			t.Errorf("filters %+v", got.Seccomp)
		}
		// A second one, logged, is behind the first, which stays the same object.
		c.must(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_LOG, program)
		first := got.Seccomp.V[0].ID
		if f := oneThread(t, v, c.pid()).Seccomp.V; len(f) != 2 || f[0].ID != first || f[1].ID == first || !f[1].Log {
			t.Errorf("filters %+v after a second one", f)
		}
		const listener = 8 // SECCOMP_FILTER_FLAG_NEW_LISTENER
		c.must(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, listener, program)
		if f := oneThread(t, v, c.pid()).Seccomp.V; len(f) != 3 || !f[2].Listener {
			t.Errorf("filters %+v after one with a listener", f)
		}
	})
	t.Run("strict", func(t *testing.T) {
		c := newChild(t)
		prctlOf(c, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_STRICT)
		same(t, "seccomp mode", oneThread(t, v, c.pid()).SeccompMode, unix.SECCOMP_MODE_STRICT)
	})
}

func TestBreakpoints(t *testing.T) {
	v, c := view(t), newChild(t)
	if err := unix.PtraceSeize(c.pid()); err != nil {
		t.Skipf("needs ptrace: %v", err)
	}
	if err := unix.PtraceInterrupt(c.pid()); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(c.pid(), &status, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	same(t, "breakpoints", oneThread(t, v, c.pid()).Breakpoints, false)
	const debug0, debug7 = 848, 848 + 7*8 // offsets of u_debugreg in struct user
	for _, r := range []struct{ at, value uint64 }{{debug0, c.page}, {debug7, 0xd0001}} {
		if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_POKEUSR, uintptr(c.pid()), uintptr(r.at), uintptr(r.value), 0, 0); e != 0 {
			t.Skipf("needs debug registers: %v", e)
		}
	}
	same(t, "breakpoints", oneThread(t, v, c.pid()).Breakpoints, true)
}

// TestSharing compares identities with kcmp for every way to share.
func TestSharing(t *testing.T) {
	v := view(t)
	c := newChild(t)
	c.must(unix.SYS_IOPRIO_SET, 1, 0, 2<<13|4)        // makes an io_context
	sops := c.put(0x100, []byte{0, 0, 1, 0, 0, 0x10}) // struct sembuf {0, 1, SEM_UNDO}
	semid := c.must(unix.SYS_SEMGET, 0, 1, 0o600)
	t.Cleanup(func() { _, _, _ = unix.Syscall(unix.SYS_SEMCTL, uintptr(semid), 0, unix.IPC_RMID) })
	same(t, "semaphore adjustments", oneThread(t, v, c.pid()).SemUndo, false)
	c.must(unix.SYS_SEMOP, uint64(semid), sops, 1)
	same(t, "semaphore adjustments", oneThread(t, v, c.pid()).SemUndo, true)

	const stack = 0x8000
	pids := []int{c.pid()}
	for i, flags := range []uint64{
		uint64(unix.SIGUSR1),
		unix.CLONE_VM,
		unix.CLONE_FILES,
		unix.CLONE_FS,
		unix.CLONE_SIGHAND | unix.CLONE_VM,
		unix.CLONE_IO,
		unix.CLONE_SYSVSEM,
		unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_FS | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_IO,
	} {
		at := uint64(stack + i*0x200)
		if flags&unix.CLONE_VM == 0 {
			// A copy of the parent's stack goes on where the parent was.
			pids = append(pids, c.cloneCopy(flags))
			continue
		}
		pids = append(pids, c.clone(flags, at))
	}
	threads, err := v.Threads(pids)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "exit signal", threads[1].ExitSignal, int32(unix.SIGUSR1))
	same(t, "exit signal", threads[2].ExitSignal, 0)
	kinds := []struct {
		name string
		kcmp uintptr
		of   func(*Thread) Maybe[ID]
	}{
		{"address space", 1, func(t *Thread) Maybe[ID] { return t.MM }},
		{"descriptor table", 2, func(t *Thread) Maybe[ID] { return t.Files }},
		{"fs", 3, func(t *Thread) Maybe[ID] { return t.FS }},
		{"signal actions", 4, func(t *Thread) Maybe[ID] { return t.Sighand }},
		{"io context", 5, func(t *Thread) Maybe[ID] { return t.IOContext }},
		{"semaphore undo", 6, func(t *Thread) Maybe[ID] { return t.SysVSem }},
	}
	pairsShared := make(map[string]int)
	for i := range threads {
		for j := range threads[:i] {
			for _, k := range kinds {
				r, _, e := unix.Syscall6(unix.SYS_KCMP, uintptr(pids[i]), uintptr(pids[j]), k.kcmp, 0, 0, 0)
				if e != 0 {
					t.Skipf("needs kcmp: %v", e)
				}
				a, b := k.of(&threads[i]), k.of(&threads[j])
				if !a.Known || !b.Known || (a.V == b.V) != (r == 0) {
					t.Errorf("%s of %d and %d: IDs %v and %v, kcmp %d", k.name, i, j, a, b, r)
				}
				if r == 0 {
					pairsShared[k.name]++
				}
			}
			if threads[i].Signal.V == threads[j].Signal.V {
				t.Errorf("processes %d and %d have the same ID", i, j)
			}
		}
	}
	for _, k := range kinds {
		if pairsShared[k.name] == 0 || pairsShared[k.name] == len(pids)*(len(pids)-1)/2 {
			t.Errorf("%s: %d pairs share it, so nothing was tested", k.name, pairsShared[k.name])
		}
	}
}

// cloneCopy clones without a stack of its own.
func (c *child) cloneCopy(flags uint64) int {
	c.t.Helper()
	page := c.page
	c.page = 0
	defer func() { c.page = page }()
	return c.clone(flags, 0)
}

func TestThreadsOfOneProcess(t *testing.T) {
	v, c := view(t), newChild(t)
	const flags = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND | unix.CLONE_FILES | unix.CLONE_FS
	tids := []int{c.pid()}
	for i := range 3 {
		tids = append(tids, c.clone(flags, 0x8000+uint64(i)*0x200))
	}
	threads, err := v.Threads(tids)
	if err != nil {
		t.Fatal(err)
	}
	for i := range threads {
		k := &threads[i]
		if k.Tid != tids[i] || k.Tgid != c.pid() {
			t.Errorf("thread %d: tid %d tgid %d", i, k.Tid, k.Tgid)
		}
		want := int32(-1)
		if i == 0 {
			want = int32(unix.SIGCHLD)
		}
		same(t, "exit signal", k.ExitSignal, want)
		if k.Signal != threads[0].Signal || k.MM != threads[0].MM || k.Sighand != threads[0].Sighand || k.Files != threads[0].Files || k.FS != threads[0].FS {
			t.Errorf("thread %d does not share with its leader: %+v", i, k)
		}
	}
	p := oneProcess(t, v, tids[2])
	same(t, "threads", p.NThreads, 4)
	if p.MM.V.ID != threads[0].MM.V || p.Signal != threads[0].Signal {
		t.Error("a thread's process is not its leader's")
	}
	n, _ := strconv.Atoi(procStatus(t, c.pid(), "Threads"))
	same(t, "threads", p.NThreads, int32(n))
}

func TestMissingThread(t *testing.T) {
	v := view(t)
	pidMax := 4194304
	for _, tid := range []int{0, -1, -1 << 40, pidMax + 1, 1 << 40, 1<<63 - 1} {
		if _, err := v.Threads([]int{os.Getpid(), tid}); !errors.Is(err, unix.ESRCH) {
			t.Errorf("thread %d: %v, want ESRCH", tid, err)
		}
	}
	c := newChild(t)
	pid := c.pid()
	c.helper.close()
	if _, err := v.Threads([]int{pid}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("ended thread %d: %v, want ESRCH", pid, err)
	}
	if got, err := v.Threads(nil); err != nil || len(got) != 0 {
		t.Errorf("no threads: %v %v", got, err)
	}
}

func TestEveryTask(t *testing.T) {
	// All tasks of the machine, kernel threads too, are found, and none is an
	// error.
	v := view(t)
	newChild(t) // in a pid namespace of its own the test is alone
	dir, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range dir {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		threads, err := v.Threads([]int{pid})
		if errors.Is(err, unix.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			t.Errorf("process %d: %v", pid, err)
			continue
		}
		if _, err := os.Stat("/proc/" + e.Name()); err != nil {
			continue // ended meanwhile: its number may have been taken from it already
		}
		if threads[0].Tgid != pid {
			t.Errorf("process %d has tgid %d", pid, threads[0].Tgid)
		}
		found++
	}
	if found < 2 {
		t.Errorf("found %d tasks", found)
	}
}
