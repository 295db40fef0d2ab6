package tracee

import (
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
)

// TestVfork: a task waits in vfork for a child that is ready for batches, and goes on from its own call when that is undone.
func TestVfork(t *testing.T) {
	r := newRig(t, 3)
	b := r.arena.NewBatch()
	parent := b.Clone(sys.CloneArgs{ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
	r.run(t, r.stub, b)
	k := parent.Child()
	make := func() *Call {
		t.Helper()
		b := r.arena.NewBatch()
		clone := b.Clone(sys.CloneArgs{Flags: unix.CLONE_VM | unix.CLONE_VFORK, ExitSignal: uint64(unix.SIGCHLD)}, nil, 0)
		if err := r.Vfork(k, b); err != nil {
			t.Fatal(err)
		}
		child := clone.Child()
		b = r.arena.NewBatch()
		ppid, pid := b.Call(b.Sys().Getppid), b.Call(b.Sys().Getpid)
		r.run(t, child, b)
		if ppid.Int() != k.Tid || pid.Int() != child.Tid {
			t.Errorf("the child says that it is %d of %d, not %d of %d", pid.Int(), ppid.Int(), child.Tid, k.Tid)
		}
		return clone
	}
	for range 3 {
		clone := make()
		if err := r.UndoVfork(k, clone); err != nil {
			t.Fatal(err)
		}
		b := r.arena.NewBatch()
		wait := b.Call(b.Sys().Wait4, clone.Child().Tid, 0, unix.WALL, 0)
		r.run(t, k, b)
		if wait.Int() != clone.Child().Tid {
			t.Errorf("waiting for the child gave %d", wait.Int())
		}
	}
	child := make().Child()
	if err := r.Commit([]*Task{k}, nil); err != nil {
		t.Fatal(err)
	}
	for { // now it waits by itself
		st, err := procfs.ReadStat(k.Tid)
		if err != nil {
			t.Fatal(err)
		}
		if st.State == 'D' {
			break
		}
	}
	b = r.arena.NewBatch()
	b.Call(b.Sys().Getpid)
	r.run(t, child, b)
	if err := sys.Kill(k.Tid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
