package tracee

import (
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

func itoa(n int) string { return strconv.Itoa(n) }

const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM

// makeTree makes threads of the stub, children of it, and threads of these.
func makeTree(tr *Tracer, ar *Arena, stub *Task) ([]*Task, error) {
	var made []*Task
	b := ar.NewBatch()
	var calls []*Call
	for range 5 {
		calls = append(calls, b.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0))
	}
	for range 5 {
		calls = append(calls, b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0))
	}
	if err := tr.RunOne(stub, b); err != nil {
		return nil, err
	}
	var parents []*Task
	var batches []*Batch
	for _, c := range calls {
		made = append(made, c.Child())
		parents = append(parents, c.Child())
		nb := ar.NewBatch()
		nb.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
		nb.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
		batches = append(batches, nb)
	}
	if err := tr.Run(parents, batches); err != nil {
		return nil, err
	}
	for _, nb := range batches {
		for _, c := range nb.calls {
			made = append(made, c.Child())
		}
	}
	return made, nil
}

func TestThreads(t *testing.T) {
	const n = 100
	r := newRig(t, n+1)
	b := r.arena.NewBatch()
	var clones []*Call
	for range n {
		clones = append(clones, b.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0))
	}
	r.run(t, r.stub, b)
	tasks := []*Task{}
	batches := []*Batch{}
	var tids, pids []*Call
	for _, c := range clones {
		tasks = append(tasks, c.Child())
		b := r.arena.NewBatch()
		tids = append(tids, b.Call(b.Sys().Gettid))
		pids = append(pids, b.Call(b.Sys().Getpid))
		batches = append(batches, b)
	}
	if err := r.Run(tasks, batches); err != nil {
		t.Fatal(err)
	}
	for i, k := range tasks {
		if tids[i].Int() != k.Tid || pids[i].Int() != r.stub.Tid || k.Pid != r.stub.Tid {
			t.Errorf("thread %d: gettid %d, getpid %d, Pid %d", k.Tid, tids[i].Int(), pids[i].Int(), k.Pid)
		}
	}
	threads, err := procfs.Threads(r.stub.Pid)
	if err != nil || len(threads) != n+1 {
		t.Errorf("%d threads, %v", len(threads), err)
	}
	if got := r.Tasks(); got != n+1 {
		t.Errorf("the tracer counts %d tasks", got)
	}
	// Threads end; the last slot is free again.
	for i := range batches {
		batches[i] = r.arena.NewBatch()
		batches[i].Call(r.arch.Sys.Exit, 0)
	}
	if err := r.Run(tasks, batches); err != nil {
		t.Fatal(err)
	}
	if got := r.Tasks(); got != 1 {
		t.Errorf("the tracer counts %d tasks after the exits", got)
	}
	if got := len(r.arena.unused); got != n {
		t.Errorf("%d free slots, want %d", got, n)
	}
}

// freePids finds pids that nobody uses, from a random place.
func freePids(t *testing.T, n int) []int {
	t.Helper()
	var out []int
	for pid := 20000 + int(time.Now().UnixNano()%8000); len(out) < n; pid++ {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			out = append(out, pid)
		}
	}
	return out
}

func TestProcessesWithChosenPids(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("set_tid needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE")
	}
	const n = 30
	r := newRig(t, n+2)
	pids := freePids(t, n)
	b := r.arena.NewBatch()
	var clones []*Call
	for _, pid := range pids {
		clones = append(clones, b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, []int32{int32(pid)}, 0))
	}
	r.run(t, r.stub, b)
	for i, c := range clones {
		if c.Child().Tid != pids[i] || c.Int() != pids[i] {
			t.Errorf("child %d has pid %d, clone3 returned %d", i, c.Child().Tid, c.Int())
		}
		if st, err := procfs.ReadStat(pids[i]); err != nil || st.PPID != r.stub.Tid {
			t.Errorf("child %d: parent %d, %v", pids[i], st.PPID, err)
		}
	}
	// A pid that is taken: the error names the call, and the children before it are known.
	free := len(r.arena.unused)
	b = r.arena.NewBatch()
	b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, []int32{int32(pids[0])}, 0)
	err := r.RunOne(r.stub, b)
	if !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "clone3: EEXIST") {
		t.Errorf("clone3 with a pid in use: %v", err)
	}
	if got := len(r.arena.unused); got != free {
		t.Errorf("%d free slots after a failed clone, want %d", got, free)
	}
	// A zombie: waited for by the tracer it remains one for its parent.
	z := clones[0].Child()
	b = r.arena.NewBatch()
	b.Call(b.Sys().ExitGroup, 7)
	r.run(t, z, b)
	if ws, dead := z.Dead(); !dead || ws.ExitCode() != 7 {
		t.Errorf("zombie: %v, %v", ws, dead)
	}
	if st, err := procfs.ReadStat(z.Tid); err != nil || st.State != 'Z' {
		t.Errorf("zombie's state %c, %v", st.State, err)
	}
}

func TestGenerationsAndSessions(t *testing.T) {
	r := newRig(t, 8)
	b := r.arena.NewBatch()
	a := b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
	r.run(t, r.stub, b)
	// A sibling by CLONE_PARENT, a child of the old session, and setsid between the two children.
	b = r.arena.NewBatch()
	sibling := b.Clone(sys.CloneArgs{Flags: unix.CLONE_PARENT}, nil, 0)
	old := b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
	sid := b.Call(b.Sys().Setsid)
	young := b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
	r.run(t, a.Child(), b)
	if sid.Int() != a.Child().Tid {
		t.Errorf("setsid = %d", sid.Int())
	}
	own, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name         string
		k            *Task
		ppid, wanted int
	}{
		{"sibling", sibling.Child(), r.stub.Tid, own},
		{"old", old.Child(), a.Child().Tid, own},
		{"young", young.Child(), a.Child().Tid, a.Child().Tid},
	} {
		st, err := procfs.ReadStat(c.k.Tid)
		if err != nil || st.PPID != c.ppid || st.Session != c.wanted {
			t.Errorf("%s: parent %d session %d, want %d and %d (%v)", c.name, st.PPID, st.Session, c.ppid, c.wanted, err)
		}
	}
}

func TestPidNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a pid namespace needs CAP_SYS_ADMIN")
	}
	r := newRig(t, 16)
	b := r.arena.NewBatch()
	outer := freePids(t, 1)[0]
	in := b.Clone(sys.CloneArgs{Flags: unix.CLONE_NEWPID, ExitSignal: uint64(unix.SIGCHLD)}, []int32{1, int32(outer)}, 0)
	r.run(t, r.stub, b)
	if in.Child().Tid != outer {
		t.Errorf("init has pid %d outside, want %d", in.Child().Tid, outer)
	}
	// Children and threads with pids chosen inside only: their outer ones have to be found.
	b = r.arena.NewBatch()
	var kids []*Call
	for i := range 5 {
		kids = append(kids, b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, []int32{int32(70 + i)}, 0))
		kids = append(kids, b.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0))
	}
	r.run(t, in.Child(), b)
	for i, c := range kids {
		k := c.Child()
		b := r.arena.NewBatch()
		tid := b.Call(b.Sys().Gettid)
		r.run(t, k, b)
		if tid.Int() != c.Int() || i%2 == 0 && tid.Int() != 70+i/2 {
			t.Errorf("child %d is %d inside, clone3 said %d", k.Tid, tid.Int(), c.Int())
		}
		st, err := procfs.ReadThreadStatus(k.Pid, k.Tid)
		if err != nil || len(st.NSpid) != 2 || st.NSpid[0] != k.Tid || st.NSpid[1] != c.Int() {
			t.Errorf("child %d: NSpid %v, %v", k.Tid, st.NSpid, err)
		}
	}
	// The cleanup's KillAll would hang if it waited for init first.
}

func TestDeadLeader(t *testing.T) {
	r := newRig(t, 4)
	b := r.arena.NewBatch()
	c := b.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
	r.run(t, r.stub, b)
	b = r.arena.NewBatch()
	b.Call(b.Sys().Exit, 3)
	r.run(t, r.stub, b)
	if st, err := procfs.ReadThreadStat(r.stub.Pid, r.stub.Tid); err != nil || st.State != 'Z' {
		t.Errorf("leader's state %c, %v", st.State, err)
	}
	b = r.arena.NewBatch()
	pid := b.Call(b.Sys().Getpid)
	r.run(t, c.Child(), b)
	if pid.Int() != r.stub.Pid {
		t.Errorf("getpid of the thread = %d", pid.Int())
	}
}

// TestProcessExits: the leader ends its process, whose other threads nobody waits for by name.
func TestProcessExits(t *testing.T) {
	r := newRig(t, 8)
	b := r.arena.NewBatch()
	c := b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
	r.run(t, r.stub, b)
	b = r.arena.NewBatch()
	for range 3 {
		b.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
	}
	r.run(t, c.Child(), b)
	b = r.arena.NewBatch()
	out := b.Space(64)
	b.Call(b.Sys().Getcpu, out, At{out, 8})
	b.Call(b.Sys().Getresuid, At{out, 16}, At{out, 20}, At{out, 24})
	hostOrder.PutUint32(out.Bytes()[24:], 12345)
	b.Call(b.Sys().ExitGroup, 5)
	r.run(t, c.Child(), b)
	if ws, dead := c.Child().Dead(); !dead || ws.ExitCode() != 5 {
		t.Errorf("the process: %v, %v", ws, dead)
	}
	if got := hostOrder.Uint32(out.Bytes()[24:]); int(got) != os.Getuid() {
		t.Errorf("the call before the exit wrote %d", got)
	}
	if got := r.Tasks(); got != 1 {
		t.Errorf("the tracer counts %d tasks", got)
	}
	// A failed call before the exit: the task does not exit.
	b = r.arena.NewBatch()
	b.Call(b.Sys().Close, 99)
	b.Call(b.Sys().ExitGroup, 5)
	if err := r.RunOne(r.stub, b); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want EBADF", err)
	}
	if !alive(r.stub.Tid) {
		t.Error("the task has exited after a failed call")
	}
}

// TestKilledFromOutside: a process dies in the middle of a batch while its threads are stopped;
// waiting for the leader alone would never end.
func TestKilledFromOutside(t *testing.T) {
	r := newRig(t, 8)
	b := r.arena.NewBatch()
	for range 3 {
		b.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
	}
	r.run(t, r.stub, b)
	go func() {
		time.Sleep(30 * time.Millisecond)
		_ = unix.Kill(r.stub.Pid, unix.SIGKILL) // > 0: Spawn gave it
	}()
	b = r.arena.NewBatch()
	b.Call(b.Sys().Getpid)
	b.Call(b.Sys().Pause)
	err := r.RunOne(r.stub, b)
	if !errors.Is(err, unix.ESRCH) || !strings.Contains(err.Error(), "killed by SIGKILL in call 1 of a batch, pause") {
		t.Errorf("error %v", err)
	}
}

// TestMakerDies: nothing of what a restorer has made survives its kill -9.
func TestMakerDies(t *testing.T) {
	native(t)
	for round := range 3 {
		cmd, line, _ := helper(t, "maker")
		var tids []int
		for _, w := range strings.Fields(line) {
			tid, err := strconv.Atoi(w)
			if err != nil || tid <= 0 {
				t.Fatalf("helper said %q", line)
			}
			if !alive(tid) {
				t.Errorf("round %d: task %d was not made", round, tid)
			}
			tids = append(tids, tid)
		}
		if len(tids) != 31 {
			t.Fatalf("%d tasks made", len(tids))
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for _, tid := range tids {
			for alive(tid) {
				if time.Now().After(deadline) {
					t.Fatalf("round %d: task %d lives on", round, tid)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// TestMakerDiesAnywhere kills the maker at any moment, the start of the first task included.
func TestMakerDiesAnywhere(t *testing.T) {
	native(t)
	for round := range 12 {
		cmd, _, _ := helper(t, "makers")
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		// helper gave it a session of its own, which nothing that it makes leaves.
		var left []int
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if left = session(t, cmd.Process.Pid); len(left) == 0 {
				break
			}
		}
		if len(left) > 0 {
			t.Fatalf("round %d: tasks %v live on", round, left)
		}
	}
}

// session returns the processes of a session that are not zombies.
func session(t *testing.T, sid int) []int {
	t.Helper()
	pids, err := procfs.Processes()
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, pid := range pids {
		if st, err := procfs.ReadStat(pid); err == nil && st.Session == sid && st.State != 'Z' && st.State != 'X' {
			out = append(out, pid)
		}
	}
	return out
}

// TestKillAllFindsUnknown: children of a batch that was never waited for.
func TestKillAllFindsUnknown(t *testing.T) {
	r := newRig(t, 32)
	made, err := makeTree(r.Tracer, r.arena, r.stub)
	if err != nil {
		t.Fatal(err)
	}
	b := r.arena.NewBatch()
	b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
	if err := r.Do(func() error {
		p, err := b.split(DefaultSlot)
		if err != nil {
			return err
		}
		return r.begin(&job{task: made[7], batch: b, parts: p})
	}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	var kids []int
	for len(kids) < 2 {
		if time.Now().After(deadline) {
			t.Fatal("the child did not appear")
		}
		if kids, err = procfs.ReadChildren(made[7].Pid, made[7].Tid); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.KillAll(); err != nil {
		t.Fatal(err)
	}
	for _, k := range made {
		if alive(k.Tid) {
			t.Errorf("task %d lives", k.Tid)
		}
	}
	for _, tid := range kids {
		if alive(tid) {
			t.Errorf("child %d lives", tid)
		}
	}
}

// TestKillAllBut: the task that is spared goes on running batches, and makes tasks again in the slots that have become free.
func TestKillAllBut(t *testing.T) {
	r := newRig(t, 32)
	for range 3 {
		var made []*Task
		b := r.arena.NewBatch()
		var calls []*Call
		for range 5 { // as roots are made
			calls = append(calls, b.Clone(sys.CloneArgs{Flags: unix.CLONE_PARENT}, nil, 0))
		}
		if err := r.RunOne(r.stub, b); err != nil {
			t.Fatal(err)
		}
		for _, c := range calls {
			nb := r.arena.NewBatch()
			kid := nb.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
			mate := nb.Clone(sys.CloneArgs{Flags: threadFlags}, nil, 0)
			if err := r.RunOne(c.Child(), nb); err != nil {
				t.Fatal(err)
			}
			made = append(made, c.Child(), kid.Child(), mate.Child())
		}
		if err := r.KillAllBut(r.stub); err != nil {
			t.Fatal(err)
		}
		for _, k := range made {
			if _, dead := k.Dead(); !dead {
				t.Errorf("task %d lives", k.Tid)
			}
		}
		if n := r.Tasks(); n != 1 {
			t.Errorf("%d tasks are left", n)
		}
		b = r.arena.NewBatch()
		b.Call(b.Sys().Getpid).Expect(uint64(r.stub.Pid))
		if err := r.RunOne(r.stub, b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSmallSlots: tasks with small slots run batches that are longer than these, do not disturb each other, and find their slots
// again when others have died.
func TestSmallSlots(t *testing.T) {
	const n = 9
	a := native(t)
	arena, err := NewMixedArena(a, 1, 0, n)
	if err != nil {
		t.Fatal(err)
	}
	defer arena.Close()
	tr := NewTracer()
	defer tr.Close()
	k, err := tr.Spawn(arena, testBase)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // the second finds the slots of the first given back
		b := arena.NewBatch()
		for range n {
			b.CloneSmall(sys.CloneArgs{Flags: threadFlags}, nil, 0)
		}
		if err := tr.RunOne(k, b); err != nil {
			t.Fatal(err)
		}
		more := arena.NewBatch()
		more.CloneSmall(sys.CloneArgs{Flags: threadFlags}, nil, 0)
		if err := tr.RunOne(k, more); !errors.Is(err, errNoSlot) {
			t.Fatalf("one more than there are slots: %v", err)
		}
		var tasks []*Task
		var batches []*Batch
		for _, c := range b.calls {
			child := arena.NewBatch()
			for range 100 { // several parts
				child.Call(a.Sys.Gettid)
			}
			tasks, batches = append(tasks, c.Child()), append(batches, child)
		}
		if err := tr.Run(tasks, batches); err != nil {
			t.Fatal(err)
		}
		for i, b := range batches {
			for j, c := range b.calls {
				if c.Int() != tasks[i].Tid {
					t.Fatalf("round %d: call %d of task %d returned %d", round, j, tasks[i].Tid, c.Int())
				}
			}
		}
		big := arena.NewBatch()
		big.Call(a.Sys.Setgroups, 1<<10, make([]byte, 4<<10))
		if err := tr.RunOne(tasks[0], big); !errors.Is(err, unix.E2BIG) {
			t.Fatalf("a call with more data than a small slot holds: %v", err)
		}
		for i := range tasks {
			end := arena.NewBatch()
			end.Call(a.Sys.Exit, 0)
			if err := tr.RunOne(tasks[i], end); err != nil {
				t.Fatal(err)
			}
		}
	}
}
