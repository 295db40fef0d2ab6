package engine

import (
	"context"
	"reflect"
	"testing"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
)

// What the view says of the threads of a process is what their status files say, wherever a dump looks at it.
func TestSiblingsAreThoseOfProc(t *testing.T) {
	pid, _ := python(t, `
import threading
def run(i):
    libc.prctl(15, b'thread %d' % i, 0, 0, 0) # PR_SET_NAME
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, 34 + i})
    signal.pthread_kill(threading.get_ident(), 34 + i)
    if i == 3: libc.prctl(38, 1, 0, 0, 0) # PR_SET_NO_NEW_PRIVS
    if i == 5: libc.syscall(117, -1, 1, -1) # setresuid, of this thread alone
    if i == 6: libc.unshare(0x200) # CLONE_FS
    time.sleep(1000)
for i in range(9): threading.Thread(target=run, args=(i,), daemon=True).start()
time.sleep(1)
up('all')`)
	view, err := kernelview.Open(kernelview.Options{})
	if err != nil {
		t.Skip(err)
	}
	defer view.Close()
	h, err := takeHold(context.Background(), []int{pid}, nil, FreezeOptions{view: view}, func(s string) { t.Error(s) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Release(); err != nil {
			t.Error(err)
		}
	}()
	if !h.Detached() {
		t.Skip("needs cgroup version 2, and a view that knows registers")
	}
	p := &object.Process{PID: pid}
	if p.Stat, err = procfs.ReadStat(pid); err != nil {
		t.Fatal(err)
	}
	if p.Status, err = procfs.ReadStatus(pid); err != nil {
		t.Fatal(err)
	}
	tids, err := procfs.Threads(pid)
	if err != nil {
		t.Fatal(err)
	}
	if own, err := h.TIDs(pid); err != nil || len(own) != len(tids) || len(tids) != 10 {
		t.Errorf("the freeze has noted threads %v (%v), there are %v", own, err, tids)
	}
	got, err := h.siblings(&object.Dumper{View: view}, p, tids)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(tids)-3 { // not the leader, nor those that the view leaves to /proc
		t.Errorf("%d of %d threads", len(got), len(tids))
	}
	for tid, s := range got {
		want, err := procfs.ReadThreadStatus(pid, tid)
		if err != nil {
			t.Fatal(err)
		}
		// What a dump does not look at.
		for _, st := range []*procfs.Status{s, want} {
			st.State, st.VoluntarySw, st.NonvoluntarySw = 0, 0, 0
			st.Threads, st.NStgid, st.SigQ = 0, nil, 0
		}
		if !reflect.DeepEqual(s, want) {
			t.Errorf("thread %d:\n%+v\nwant\n%+v", tid, s, want)
		}
	}
}
