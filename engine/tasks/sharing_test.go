package tasks

import (
	"math/rand"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/stream"
)

// has is what a task has of each of the resources: equal numbers are the same object.
type has [6]uint32

// histTask is a task of a history.
type histTask struct {
	tid    int32
	proc   *histProc
	parent *histTask // real_parent of a leader
	has    has
	dead   bool // a leader that has left its threads
}

type histProc struct {
	pid     int32
	exitSig int32
	threads []*histTask // live ones, and a dead leader, in the order of their births
}

// history is a kernel with one process tree.
type history struct {
	r     *rand.Rand
	next  int32
	obj   uint32
	procs []*histProc
}

func (h *history) fresh() uint32 { h.obj++; return h.obj }

func (h *history) id() int32 { h.next++; return h.next }

const (
	hSighand = iota
	hMM
	hFiles
	hFS
	hIO
	hSem
)

func newHistory(seed int64) *history {
	h := &history{r: rand.New(rand.NewSource(seed))}
	p := &histProc{pid: h.id(), exitSig: 17}
	t := &histTask{tid: p.pid, proc: p}
	for i := range t.has {
		t.has[i] = h.fresh()
	}
	p.threads = []*histTask{t}
	h.procs = []*histProc{p}
	return h
}

// clone is clone(2).
func (h *history) clone(by *histTask, flags uint64) {
	t := &histTask{has: by.has, tid: h.id()}
	for i, r := range resources {
		if flags&r.flag == 0 {
			t.has[i] = h.fresh()
		}
	}
	if flags&unix.CLONE_THREAD != 0 {
		t.proc = by.proc
		by.proc.threads = append(by.proc.threads, t)
		return
	}
	t.proc = &histProc{pid: t.tid, exitSig: 17, threads: []*histTask{t}}
	t.parent = by
	if flags&unix.CLONE_PARENT != 0 && by.proc.lead().parent != nil {
		t.parent = by.proc.lead().parent
		t.proc.exitSig = by.proc.exitSig
	}
	h.procs = append(h.procs, t.proc)
}

func (p *histProc) lead() *histTask { return p.threads[0] }

func (p *histProc) alive() []*histTask {
	if p.lead().dead {
		return p.threads[1:]
	}
	return p.threads
}

// exit ends a thread, or with its last one a process.
func (h *history) exit(t *histTask) {
	p := t.proc
	if len(p.alive()) == 1 {
		if p == h.procs[0] {
			return
		}
		for i := range h.procs {
			if h.procs[i] == p {
				h.procs = append(h.procs[:i:i], h.procs[i+1:]...)
				break
			}
		}
		init := h.procs[0].alive()[0]
		for _, q := range h.procs {
			if up := q.lead().parent; up != nil && up.proc == p {
				q.lead().parent, q.exitSig = init, 17
			}
		}
		return
	}
	if t == p.lead() {
		t.dead = true
	} else {
		for i := range p.threads {
			if p.threads[i] == t {
				p.threads = append(p.threads[:i:i], p.threads[i+1:]...)
				break
			}
		}
	}
	for _, q := range h.procs {
		if q.lead().parent == t {
			q.lead().parent = p.alive()[0]
		}
	}
}

func (h *history) step() {
	p := h.procs[h.r.Intn(len(h.procs))]
	t := p.alive()[h.r.Intn(len(p.alive()))]
	flags := func() uint64 {
		f := uint64(0)
		for _, r := range resources {
			if h.r.Intn(2) == 0 {
				f |= r.flag
			}
		}
		if f&unix.CLONE_VM == 0 {
			f &^= unix.CLONE_SIGHAND
		}
		return f
	}
	switch h.r.Intn(12) {
	case 0, 1, 2:
		h.clone(t, flags())
	case 3:
		if h.r.Intn(2) == 0 {
			h.clone(t, flags()|unix.CLONE_PARENT)
		}
	case 4, 5, 6:
		h.clone(t, flags()|unix.CLONE_THREAD|unix.CLONE_VM|unix.CLONE_SIGHAND)
	case 7, 8:
		for i, r := range resources {
			if r.late && h.r.Intn(3) == 0 {
				t.has[i] = h.fresh()
			}
		}
	case 9, 10:
		h.exit(t)
	case 11: // exec
		if len(p.threads) == 1 && h.r.Intn(2) == 0 {
			t.has[hMM], t.has[hSighand], t.has[hFiles] = h.fresh(), h.fresh(), h.fresh()
			p.exitSig = 17
		}
	}
}

func (h *history) families() []Family {
	ref := func(n uint32) stream.Ref { return stream.Ref{ID: n} }
	users := map[uint32]int{}
	for _, p := range h.procs {
		for _, t := range p.alive() {
			users[t.has[hIO]]++
			users[t.has[hSem]]++
		}
	}
	shared := func(n uint32) uint32 {
		if users[n] > 1 {
			return n
		}
		return 0
	}
	var out []Family
	for _, p := range h.procs {
		first := p.alive()[0]
		s := &Process{PID: p.pid, Session: 1, Group: 1, ExitSignal: p.exitSig, LeaderDead: p.lead().dead, Subreaper: p == h.procs[0],
			MM: ref(first.has[hMM]), Sighand: ref(first.has[hSighand]), Files: ref(first.has[hFiles]), FS: ref(first.has[hFS])}
		if up := p.lead().parent; up != nil {
			s.Parent = up.proc.pid
			if up != up.proc.lead() {
				s.ParentThread = up.tid
			}
		}
		fam := Family{Process: s}
		for _, t := range p.alive() {
			x := &Thread{TID: t.tid, IOContext: shared(t.has[hIO]), SysVSem: shared(t.has[hSem])}
			if t.has[hFiles] != first.has[hFiles] {
				x.Files = ref(t.has[hFiles])
			}
			if t.has[hFS] != first.has[hFS] {
				x.FS = ref(t.has[hFS])
			}
			fam.Threads = append(fam.Threads, x)
		}
		out = append(out, fam)
	}
	return out
}

// replay carries out a plan as the kernel would and returns what every task has at the end.
func replay(t *testing.T, f *Forest) map[*Birth]has {
	t.Helper()
	next := uint32(1 << 20)
	fresh := func() uint32 { next++; return next }
	var stub has
	for i := range stub {
		stub[i] = fresh()
	}
	out := map[*Birth]has{nil: stub}
	for _, b := range f.All {
		from, ok := out[b.Creator]
		if !ok {
			t.Fatalf("task %d is made before its creator", b.PID)
		}
		for i, r := range resources {
			if b.Share&r.flag == 0 {
				from[i] = fresh()
			}
		}
		if b.Thread != (b.Share&unix.CLONE_THREAD != 0) || b.Share&unix.CLONE_SIGHAND != 0 && b.Share&unix.CLONE_VM == 0 {
			t.Fatalf("task %d: flags %#x", b.PID, b.Share)
		}
		if b.Thread && b.Creator != b.leader && b.Creator.leader != b.leader {
			t.Fatalf("thread %d is made by a task of another process", b.PID)
		}
		out[b] = from
	}
	for b, x := range out {
		if b == nil || b.Unshare == 0 {
			continue
		}
		for i, r := range resources {
			if b.Unshare&r.flag != 0 {
				if !r.late {
					t.Fatalf("task %d: unshares %s", b.PID, r.what)
				}
				x[i] = fresh()
			}
		}
		out[b] = x
	}
	return out
}

func (h *history) compare(t *testing.T, f *Forest) {
	t.Helper()
	end := replay(t, f)
	birth := func(x *histTask) *Birth {
		if x == x.proc.lead() {
			return f.Of(x.tid)
		}
		return f.OfThread(x.tid)
	}
	same := map[[2]uint32]uint32{} // resource and object of the history -> object of the replay
	back := map[uint32]uint32{}
	for _, p := range h.procs {
		for _, x := range p.alive() {
			got := end[birth(x)]
			for i := range resources {
				k := [2]uint32{uint32(i), x.has[i]}
				if old, ok := same[k]; ok && old != got[i] {
					t.Errorf("task %d does not share %s with the others that had it", x.tid, resources[i].what)
				}
				if old, ok := back[got[i]]; ok && old != x.has[i] {
					t.Errorf("task %d shares %s with one that it did not share it with", x.tid, resources[i].what)
				}
				same[k], back[got[i]] = got[i], x.has[i]
			}
		}
		if up := p.lead().parent; up != nil {
			if got := f.born(f.Of(p.pid)); got.leaderPID() != up.proc.pid {
				t.Errorf("process %d is a child of process %d, was of %d", p.pid, got.leaderPID(), up.proc.pid)
			}
		}
	}
}

func (b *Birth) leaderPID() int32 {
	if b.Thread {
		return b.leader.PID
	}
	return b.PID
}

// TestSharingRandom runs random histories of clone(2), unshare(2), exec and exit of threads and asks for their outcome: it
// is either planned exactly or refused, and refused seldom.
func TestSharingRandom(t *testing.T) {
	refused, wrongThread, children, runs := 0, 0, 0, 4000
	for seed := int64(0); seed < int64(runs); seed++ {
		h := newHistory(seed)
		for range 4 + h.r.Intn(14) {
			h.step()
		}
		f, err := PlanForest(h.families(), 0)
		if err != nil {
			if !strings.Contains(err.Error(), "share") && !strings.Contains(err.Error(), "exit signal") {
				t.Fatalf("seed %d: %v", seed, err)
			}
			refused++
			continue
		}
		h.compare(t, f)
		for _, p := range h.procs {
			if up := p.lead().parent; up != nil {
				children++
				b := f.born(f.Of(p.pid))
				if b.PID != up.tid {
					wrongThread++
				}
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d of %d histories refused; %d of %d children have another thread of their parent", refused, runs, wrongThread, children)
	if refused > runs/10 || wrongThread > children/50 {
		t.Errorf("too many")
	}
}

func TestSharingShapes(t *testing.T) {
	type proc struct {
		pid, parent int32
		mm, files   uint32
		sig         int32
	}
	for name, c := range map[string]struct {
		procs []proc
		want  string // part of the error
	}{
		"nothing shared":              {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}}, ""},
		"all with their creator":      {[]proc{{10, 0, 1, 1, 17}, {11, 10, 1, 1, 17}, {12, 11, 1, 1, 17}}, ""},
		"brothers over their father":  {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}, {12, 10, 3, 2, 17}}, ""},
		"grandfather and grandson":    {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}, {12, 11, 3, 1, 17}}, ""},
		"brothers share memory":       {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}, {12, 10, 2, 3, 17}}, ""},
		"unlike brothers":             {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}, {12, 10, 2, 3, 10}}, "processes 11 and 12 share an address space"},
		"grandson shares memory":      {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}, {12, 11, 1, 3, 17}}, "processes 10 and 12 share an address space"},
		"roots share memory and file": {[]proc{{10, 0, 1, 1, 17}, {11, 0, 1, 1, 17}}, ""},
		"two pairs over one father": {[]proc{{10, 0, 1, 1, 17}, {11, 10, 2, 2, 17}, {12, 10, 3, 2, 18}, {13, 10, 4, 4, 10}, {14, 10, 5, 4, 12}},
			"processes 13 and 14 share a descriptor table"},
	} {
		var families []Family
		for _, p := range c.procs {
			families = append(families, Family{Process: &Process{PID: p.pid, Parent: p.parent, Session: 10, Group: 10, ExitSignal: p.sig,
				MM: stream.Ref{ID: p.mm}, Sighand: stream.Ref{ID: 100 + uint32(p.pid)}, Files: stream.Ref{ID: 200 + p.files}, FS: stream.Ref{ID: 300 + uint32(p.pid)}},
				Threads: []*Thread{{TID: p.pid}}})
		}
		f, err := PlanForest(families, 0)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
			continue
		}
		if err == nil {
			replay(t, f)
		}
	}
}

// A child that wants a signal at the death of a thread of its parent that cannot make it again is refused.
func TestParentDeathThread(t *testing.T) {
	share := Process{MM: stream.Ref{ID: 1}, Sighand: stream.Ref{ID: 2}, Files: stream.Ref{ID: 3}, FS: stream.Ref{ID: 4}}
	parent := share
	parent.PID, parent.Session, parent.Group, parent.ExitSignal = 10, 10, 10, 17
	child := Process{PID: 12, Parent: 10, ParentThread: 11, Session: 10, Group: 10, ExitSignal: 17,
		MM: stream.Ref{ID: 5}, Sighand: stream.Ref{ID: 6}, Files: stream.Ref{ID: 7}, FS: stream.Ref{ID: 8}}
	families := []Family{{&parent, []*Thread{{TID: 10}, {TID: 11}}}, {&child, []*Thread{{TID: 12, Prctls: Prctls{PdeathSignal: 9}}}}}
	f, err := PlanForest(families, 0)
	if err != nil {
		t.Fatal(err)
	}
	if b := f.Of(12); b.Creator != f.OfThread(11) {
		t.Errorf("made by %d", b.Creator.PID)
	}
	// Born in a session that its parent has left since, before the thread could be there.
	parent.OutsideSession, parent.OutsideGroup = true, true
	root := Process{PID: 9, Session: 1, Group: 1, OutsideSession: true, OutsideGroup: true, ExitSignal: 17,
		MM: stream.Ref{ID: 9}, Sighand: stream.Ref{ID: 20}, Files: stream.Ref{ID: 21}, FS: stream.Ref{ID: 22}}
	parent.Parent, parent.OutsideSession, parent.OutsideGroup = 9, false, false
	child.Session, child.Group, child.OutsideSession, child.OutsideGroup = 1, 1, true, true
	families = append([]Family{{&root, []*Thread{{TID: 9}}}}, families...)
	if _, err := PlanForest(families, 0); err == nil || !strings.Contains(err.Error(), "PR_SET_PDEATHSIG") {
		t.Errorf("%v, want a refusal", err)
	}
	families[2].Threads[0].Prctls.PdeathSignal = 0
	if _, err := PlanForest(families, 0); err != nil {
		t.Error(err)
	}
}
