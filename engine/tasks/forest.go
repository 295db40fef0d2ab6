package tasks

import (
	"fmt"
	"sort"

	"crpipe/engine/object"
)

// A Birth says how one task is made: by which other task, before or after that one has left its session, and as its
// child or as its sibling. A forest of Births is a pure value, planned from numbers alone.
//
// The rules are those of fork(2) and setsid(2): a child is born into its creator's session; only its own setsid moves
// it out, into one that carries its pid. So a task in a session that its parent has left by setsid must be born before
// that setsid; one whose session was made by a task that is not its ancestor was once re-parented, and is made again
// the same way, by a helper that leaves. A group or session whose leader has died gets a stand-in ("ghost") with the
// leader's number, which leaves once everybody has joined. Threads are born too: for children of theirs, and because what
// tasks share they get by birth (see sharing.go).
type Birth struct {
	PID      int32
	Process  *Process // nil: a stand-in that leaves
	Thread   bool     // a thread of Process that is not its leader
	Creator  *Birth   // nil: the stub
	Sibling  bool     // made with CLONE_PARENT: a child of the creator's parent
	Parent   *Birth   // whose child it is once all stand-ins have left; nil: of nobody in the tree
	Reaper   *Birth   // who must wait for a stand-in; nil: cr-restore
	Setsid   bool
	Group    int32    // joined by setpgid once everybody lives; 0: the one it was born into
	Leads    bool     // a group carries its number, whichever it is in itself
	Helper   bool     // a stand-in that may as well have another number, see Renumber
	Depth    int      // number of creators above it
	Adopted  bool     // gets its parent by the death of a stand-in
	Last     bool     // its creator waits for it in vfork: see vfork.go
	Before   []*Birth // made before its own setsid, in this order
	After    []*Birth
	Steps    []Step   // of a thread, the leader too: after all that, its seccomp filters and the threads that have some of them
	Share    uint64   // CLONE_* flags: what it shares with its creator at birth
	Unshare  uint64   // and what it gives up once all are born, to have it alone
	filtered bool     // of a process: threads of it have seccomp filters
	leader   *Birth   // of a thread: that of its process
	state    *Thread  // of a live thread, the leader too
	members  []*Birth // of a process: its live threads, the leader first unless it is dead
	session  int32    // the session it ends in; 0: cr-restore's
	born     *int32   // the session it is born into, once that is settled
	creating bool
}

// Ghost says whether b stands in for a dead leader or a dead parent.
func (b *Birth) Ghost() bool { return b.Process == nil }

// Forest is the plan of all births.
type Forest struct {
	Roots []*Birth // made by the stub
	All   []*Birth // creators before what they create
	// Movers are the leaders that are in another group than their own (setpgid(2) by a leader leaves the others behind), in
	// the order in which they must go there: a group must not be left by its last member before another joins it.
	Movers []*Birth
	Last   []*Birth         // made when all others have all that they are to have; not in All
	byPID  map[int32]*Birth // processes and stand-ins
	thread map[int32]*Birth // threads that are not leaders
	next   int32
	used   map[int32]bool
}

// MaxPID is the highest number of a task on any 64-bit kernel (PID_MAX_LIMIT in linux/threads.h).
const MaxPID = 4 << 20

// A Family is a process with its live threads: the leader first unless it is dead; none of a zombie.
type Family struct {
	*Process
	Threads []*Thread
}

// PlanForest plans the births of all processes of an image and of their threads. init is the pid of the process that
// inherits orphans: 1 in a pid namespace of its own, else 0.
func PlanForest(families []Family, init int32) (*Forest, error) {
	f := &Forest{byPID: map[int32]*Birth{}, thread: map[int32]*Birth{}, used: map[int32]bool{}}
	procs := make([]*Process, len(families))
	threads := map[int32]bool{}
	for i, fam := range families {
		procs[i] = fam.Process
		for _, t := range fam.Threads {
			f.used[t.TID], threads[t.TID] = true, true
		}
	}
	for _, p := range procs {
		threads[p.PID] = false
	}
	for _, p := range procs {
		if threads[p.Group] && !p.OutsideGroup || threads[p.Session] && !p.OutsideSession {
			return nil, object.BadImagef("process %d: its group %d or session %d is the number of a thread", p.PID, p.Group, p.Session)
		}
	}
	for _, p := range procs {
		if p.PID <= 0 || p.Parent < 0 || p.Group < 0 || p.Session < 0 || max(p.PID, p.Group, p.Session) > MaxPID {
			return nil, object.BadImagef("process %d: a number that no task can have", p.PID)
		}
		if p.Session == 0 && !p.OutsideSession || p.OutsideGroup && !p.OutsideSession || !p.OutsideSession && p.Session == p.PID && p.Group != p.PID {
			return nil, object.BadImagef("process %d: its group %d cannot be in its session %d", p.PID, p.Group, p.Session)
		}
		if f.byPID[p.PID] != nil {
			return nil, object.BadImagef("two processes with pid %d", p.PID)
		}
		f.used[p.PID], f.used[p.Group], f.used[p.Session] = true, true, true
		b := &Birth{PID: p.PID, Process: p, Setsid: !p.OutsideSession && p.Session == p.PID}
		if !p.OutsideSession {
			b.session = p.Session
		}
		f.byPID[p.PID] = b
	}
	for _, p := range procs {
		b := f.byPID[p.PID]
		if p.Parent == 0 {
			continue
		}
		if b.Parent = f.byPID[p.Parent]; b.Parent == nil {
			return nil, object.BadImagef("process %d: its parent %d is not in the image", p.PID, p.Parent)
		}
		if b.Parent.Process.Zombie {
			return nil, object.BadImagef("process %d: its parent %d is a zombie", p.PID, p.Parent)
		}
	}
	if err := f.checkCycles(procs); err != nil {
		return nil, err
	}
	for _, p := range procs {
		if err := f.place(f.byPID[p.PID], init); err != nil {
			return nil, err
		}
	}
	if err := f.bearThreads(families); err != nil {
		return nil, err
	}
	if err := f.groups(procs); err != nil {
		return nil, err
	}
	if err := f.order(); err != nil {
		return nil, err
	}
	if err := f.share(); err != nil {
		return nil, err
	}
	if err := f.checkKeyrings(); err != nil {
		return nil, err
	}
	return f, f.bearLast(families)
}

// MaxDepth is how many generations a tree may have. Real ones have tens; every step down costs a round of system calls
// and a level of recursion.
const MaxDepth = 10000

// checkCycles proves that every process has finitely many ancestors, visiting each once.
func (f *Forest) checkCycles(procs []*Process) error {
	const under = -1 // its ancestors are being visited
	depth := make(map[*Birth]int, len(procs))
	var path []*Birth
	for _, p := range procs {
		path = path[:0]
		b := f.byPID[p.PID]
		for ; b != nil && depth[b] == 0; b = b.Parent {
			depth[b] = under
			path = append(path, b)
		}
		if b != nil && depth[b] == under {
			return object.BadImagef("process %d is its own ancestor", b.PID)
		}
		above := 0
		if b != nil {
			above = depth[b]
		}
		for i := len(path) - 1; i >= 0; i-- {
			above++
			depth[path[i]] = above
		}
		if above > MaxDepth {
			return object.BadImagef("process %d has more than %d ancestors", p.PID, MaxDepth)
		}
	}
	return nil
}

// place decides who makes b.
func (f *Forest) place(b *Birth, init int32) error {
	if b.born != nil || b.creating {
		return nil
	}
	b.creating = true
	defer func() { b.creating = false }()
	if b.Parent != nil {
		if err := f.place(b.Parent, init); err != nil {
			return err
		}
	}
	switch {
	case b.Setsid:
		// Any session will do to be born into: the parent's last one, unless somebody below asks for another.
		if b.Parent != nil {
			return f.bear(b, b.Parent, false, b.Parent.session)
		}
		return f.bear(b, nil, false, 0)
	case b.Parent == nil && b.session == 0:
		return f.bear(b, nil, false, 0)
	case b.Parent != nil && b.session == b.Parent.session:
		return f.bear(b, b.Parent, false, b.session)
	case b.Parent != nil && f.inherits(b.Parent, b.session):
		return f.bearBefore(b, b.Parent)
	}
	if err := f.placeOrphan(b, b.session, init); err == nil {
		return nil
	} else if b.Parent == nil || !b.Parent.Setsid || len(b.Parent.Before) > 0 {
		return err
	}
	// The parent itself was an orphan of that session before its own setsid.
	p := b.Parent
	old := p.Creator
	if err := f.placeOrphan(p, b.session, init); err != nil {
		return err
	}
	if old == nil {
		f.Roots = remove(f.Roots, p)
	} else {
		old.After = remove(old.After, p)
	}
	return f.bearBefore(b, p)
}

// inherits says whether p can be born into session s, so that it could bear children there before its own setsid.
func (f *Forest) inherits(p *Birth, s int32) bool {
	if !p.Setsid || p.Ghost() {
		return false
	}
	if p.born != nil && *p.born == s {
		return true
	}
	if len(p.Before) > 0 || p.Adopted || p.Sibling && p.Creator != nil {
		return false
	}
	if p.Parent == nil {
		return s == 0
	}
	return p.Parent.session == s || f.inherits(p.Parent, s)
}

// bearBefore has b made by its parent before the parent's setsid, and the parent, if need be, by its own likewise.
func (f *Forest) bearBefore(b, parent *Birth) error {
	if *parent.born != b.session {
		if len(parent.Before) > 0 {
			return object.BadImagef("process %d: its parent %d would have to be born into two sessions, %d and %d",
				b.PID, parent.PID, *parent.born, b.session)
		}
		// Move the parent's own birth to before its parent's setsid.
		grand := parent.Parent
		grand.After = remove(grand.After, parent)
		if err := f.bearBeforeInto(parent, grand, b.session); err != nil {
			return err
		}
	}
	s := b.session
	b.born, b.Creator = &s, parent
	parent.Before = append(parent.Before, b)
	return nil
}

func (f *Forest) bearBeforeInto(b, parent *Birth, s int32) error {
	saved := b.session
	b.session = s
	err := f.bearBefore(b, parent)
	b.session = saved
	return err
}

func (f *Forest) bear(b, creator *Birth, sibling bool, s int32) error {
	b.born, b.Creator, b.Sibling = &s, creator, sibling
	if creator == nil {
		f.Roots = append(f.Roots, b)
		b.Sibling = true // the stub's children are cr-restore's own
		return nil
	}
	creator.After = append(creator.After, b)
	return nil
}

// placeOrphan has b born into session s, which was made by neither its parent nor an ancestor of that.
func (f *Forest) placeOrphan(b *Birth, s int32, init int32) error {
	if s == 0 {
		return object.BadImagef("process %d is in a session outside of the tree, but its parent %d never was", b.PID, b.Process.Parent)
	}
	leader := f.byPID[s]
	if leader == nil {
		// The leader has died: its stand-in is made where this first member needs it.
		leader = &Birth{PID: s, Setsid: true, session: s, Parent: b.Parent, Reaper: b.Parent}
		f.byPID[s] = leader
		born := int32(0)
		if b.Parent != nil {
			born = b.Parent.session
		}
		if err := f.bear(leader, b.Parent, false, born); err != nil {
			return err
		}
	} else if err := f.place(leader, init); err != nil {
		return err
	}
	if !leader.Setsid || leader.session != s {
		return object.BadImagef("process %d: session %d is led by a process that is not in it", b.PID, s)
	}
	if leader.Parent == b.Parent && !leader.Adopted && leader != b {
		return f.bear(b, leader, true, s)
	}
	if !adopts(b.Parent, leader, init) {
		return object.BadImagef("process %d: neither its parent %d nor a stand-in can make it in session %d", b.PID, b.Process.Parent, s)
	}
	pid := f.unused()
	if pid <= 0 {
		return object.BadImagef("process %d: no number is left for the stand-in that makes it", b.PID)
	}
	helper := &Birth{PID: pid, Helper: true, session: s, Parent: leader, Reaper: leader}
	f.byPID[helper.PID] = helper
	if err := f.bear(helper, leader, false, s); err != nil {
		return err
	}
	b.Adopted = true
	return f.bear(b, helper, false, s)
}

// adopts says whether the children of a dead child of leader become parent's (prctl(2) PR_SET_CHILD_SUBREAPER).
func adopts(parent, leader *Birth, init int32) bool {
	for a := leader; a != nil; a = a.Parent {
		if a.Process != nil && (a.Process.Subreaper || a.PID == init) {
			return a == parent
		}
	}
	return parent == nil
}

// unused returns a number that no task of the image has, 0 when there is none. Numbers near the top are the least likely
// to be taken by others; Renumber tries another when one is.
func (f *Forest) unused() int32 {
	if f.next == 0 {
		f.next = 32000
	}
	for f.next > 0 && f.used[f.next] {
		f.next--
	}
	if f.next <= 0 {
		return 0
	}
	f.used[f.next] = true
	return f.next
}

// Spare returns a number that no task of the image has, for a task that will not stay; 0 when there is none.
func (f *Forest) Spare() int32 { return f.unused() }

// Renumber gives a Helper whose number somebody else has another one. It returns false when none is left.
func (f *Forest) Renumber(b *Birth) bool {
	pid := f.unused()
	if pid <= 0 {
		return false
	}
	delete(f.byPID, b.PID)
	b.PID = pid
	f.byPID[pid] = b
	return true
}

// groups decides who joins which process group, with a stand-in for each dead leader.
func (f *Forest) groups(procs []*Process) error {
	for _, p := range procs {
		b := f.byPID[p.PID]
		if p.OutsideGroup {
			continue
		}
		if p.Group == 0 {
			return object.BadImagef("process %d has no process group", p.PID)
		}
		leader := f.byPID[p.Group]
		if leader == nil {
			if b.Process.Zombie {
				continue // a later member that lives may make it; see below
			}
			leader = &Birth{PID: p.Group, session: b.session, Parent: b, Reaper: b}
			f.byPID[p.Group] = leader
			if err := f.bear(leader, b, false, b.session); err != nil {
				return err
			}
		}
		if leader.session != b.session {
			return object.BadImagef("process %d: its group %d is in session %d, itself in %d", p.PID, p.Group, leader.session, b.session)
		}
		// A leader may have gone into another group of its session and left the others to theirs (setpgid(2)).
		b.Group, leader.Leads = p.Group, true
		if leader.Ghost() {
			leader.Group = p.Group
		}
	}
	for _, p := range procs {
		b := f.byPID[p.PID]
		if p.OutsideGroup || b.Group != 0 {
			continue
		}
		if f.byPID[p.Group] == nil { // only zombies are left in the group
			leader := &Birth{PID: p.Group, session: b.session, Parent: b, Reaper: b, Group: p.Group, Leads: true}
			f.byPID[p.Group] = leader
			if err := f.bear(leader, b, false, b.session); err != nil {
				return err
			}
		}
		b.Group = p.Group
	}
	return f.orderMovers(procs)
}

func (f *Forest) orderMovers(procs []*Process) error {
	hops := map[*Birth]int{} // from group to group, until somebody is in his own
	for _, p := range procs {
		b := f.byPID[p.PID]
		if !b.Leads || b.Group == b.PID {
			continue
		}
		f.Movers = append(f.Movers, b)
		for x := b; x.Leads && x.Group != x.PID; {
			if hops[b]++; hops[b] > len(procs) {
				return object.BadImagef("processes %d and %d are each in the group that the other leads", b.PID, x.PID)
			}
			if x.Group == 0 {
				break
			}
			x = f.byPID[x.Group]
		}
	}
	sort.SliceStable(f.Movers, func(i, j int) bool { return hops[f.Movers[i]] > hops[f.Movers[j]] })
	return nil
}

// order lists all births, creators first, and proves that everybody is made.
func (f *Forest) order() error {
	seen := map[*Birth]bool{}
	queue := append([]*Birth(nil), f.Roots...)
	for len(queue) > 0 {
		b := queue[0]
		queue = queue[1:]
		if seen[b] {
			return fmt.Errorf("internal error: task %d is made twice", b.PID)
		}
		seen[b] = true
		if b.Creator != nil {
			b.Depth = b.Creator.Depth + 1
			if b.Sibling && !b.Thread && b.Process.ExitSignal != exitSignal(b.Creator) {
				return object.BadImagef("process %d has the exit signal %d, but the only task that can make it has %d",
					b.PID, b.Process.ExitSignal, exitSignal(b.Creator))
			}
		}
		f.All = append(f.All, b)
		queue = append(queue, b.Before...)
		queue = append(queue, b.After...)
		for _, s := range b.Steps {
			if s.Make != nil {
				queue = append(queue, s.Make)
			}
		}
	}
	for _, all := range []map[int32]*Birth{f.byPID, f.thread} {
		for _, b := range all {
			if !seen[b] {
				return object.BadImagef("task %d cannot be made by any other", b.PID)
			}
		}
	}
	sort.SliceStable(f.All, func(i, j int) bool { return f.All[i].Depth < f.All[j].Depth })
	return nil
}

// exitSignal is what a sibling of b takes over from it.
func exitSignal(b *Birth) int32 {
	const sigchld = 17
	if b.Thread {
		b = b.leader
	}
	switch {
	case b.Ghost() || b.Creator == nil:
		return sigchld
	case b.Sibling:
		return exitSignal(b.Creator)
	}
	return b.Process.ExitSignal
}

// OfThread returns the birth of a thread that is not its process's leader.
func (f *Forest) OfThread(tid int32) *Birth { return f.thread[tid] }

// Of returns the birth of process pid, nil if there is none.
func (f *Forest) Of(pid int32) *Birth { return f.byPID[pid] }

func remove(list []*Birth, b *Birth) []*Birth {
	for i := range list {
		if list[i] == b {
			return append(list[:i:i], list[i+1:]...)
		}
	}
	return list
}
