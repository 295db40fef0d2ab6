package tasks

import (
	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// What tasks share they get by birth: CLONE_VM, CLONE_SIGHAND, CLONE_FILES, CLONE_FS, CLONE_SYSVSEM and CLONE_IO of
// clone(2) give a task what its creator has at that moment. Descriptor table, directories and undo list can be left again
// (unshare(2)), the others only by exec. So the plan is: everybody who shares something with others is born, directly or
// over others, from one of them. Who stands between them and will have the thing alone (or is a stand-in, that leaves)
// has theirs for the time of the births: it is lent. Siblings that share what their parent has not are made one by the
// other (CLONE_PARENT).

// resource is a thing that tasks can share.
type resource struct {
	what  string
	flag  uint64
	class func(b *Birth) uint64 // equal values of two tasks, not 0: they share it
	late  bool                  // can be given up by unshare(2)
}

// The order is that in which siblings look for a creator: what cannot be given up first.
var resources = []resource{
	{"a table of signal actions (CLONE_SIGHAND)", unix.CLONE_SIGHAND, func(b *Birth) uint64 { return uint64(b.Process.Sighand.ID) }, false},
	{"an address space (CLONE_VM)", unix.CLONE_VM, func(b *Birth) uint64 { return uint64(b.Process.MM.ID) }, false},
	{"a descriptor table (CLONE_FILES)", unix.CLONE_FILES, func(b *Birth) uint64 {
		if b.state != nil && !b.state.Files.IsZero() {
			return uint64(b.state.Files.ID)
		}
		return uint64(b.Process.Files.ID)
	}, true},
	{"a working directory, root and umask (CLONE_FS)", unix.CLONE_FS, func(b *Birth) uint64 {
		if b.state != nil && !b.state.FS.IsZero() {
			return uint64(b.state.FS.ID)
		}
		return uint64(b.Process.FS.ID)
	}, true},
	{"an I/O context (CLONE_IO)", unix.CLONE_IO, func(b *Birth) uint64 {
		if b.state == nil {
			return 0
		}
		return uint64(b.state.IOContext)
	}, false},
	{"a list of semaphore adjustments (CLONE_SYSVSEM)", unix.CLONE_SYSVSEM, func(b *Birth) uint64 {
		if b.state == nil {
			return 0
		}
		return uint64(b.state.SysVSem)
	}, true},
}

// of returns what b has of r for good; 0: nothing, or nobody can see it. A dead leader is in the address space until it
// leaves, but nothing else of it will be left.
func (r *resource) of(b *Birth) uint64 {
	switch {
	case b.Ghost() || b.Process.Zombie:
		return 0
	case b.Process.LeaderDead && !b.Thread && r.flag != unix.CLONE_VM && r.flag != unix.CLONE_SIGHAND:
		return 0
	}
	return r.class(b)
}

// lendable says whether b can have somebody else's r for the time of the births. nil is the stub. A zombie could, but not
// an address space: a signal that ends it, as it must to leave the right status, ends all that share it on old kernels
// (zap_threads in fs/coredump.c).
func (r *resource) lendable(b *Birth, members map[uint64]int) bool {
	switch {
	case b == nil: // it must keep its own memory
		return r.late
	case b.Ghost():
		return true
	case b.Process.Zombie:
		return r.late
	case b.Process.LeaderDead && !b.Thread:
		return r.flag != unix.CLONE_VM && r.flag != unix.CLONE_SIGHAND
	}
	return r.late && members[r.of(b)] <= 1
}

// bearThreads has the threads of all processes born, and changes who makes whom so that parents are the right threads and
// what is shared can be.
func (f *Forest) bearThreads(families []Family) error {
	for _, fam := range families {
		lead := f.byPID[fam.PID]
		if len(fam.Threads) > 0 && (fam.Threads[0].TID != fam.PID) != fam.LeaderDead {
			return object.BadImagef("process %d: its leader is not its first thread", fam.PID)
		}
		if fam.LeaderDead && len(fam.Threads) == 0 {
			return object.BadImagef("process %d: neither its leader nor another thread lives", fam.PID)
		}
		// Who has something that the leader has not is made by one who has it, if there is one.
		type holding struct {
			r     int
			class uint64
		}
		first := map[holding]*Birth{}
		var made []*Birth
		for _, t := range fam.Threads {
			b := lead
			if t.TID != fam.PID {
				s := lead.session
				b = &Birth{PID: t.TID, Process: fam.Process, Thread: true, leader: lead, session: s, born: &s, Creator: lead, Parent: lead.Parent}
				f.thread[t.TID] = b
			}
			b.state = t
			for i := range resources {
				h := holding{i, resources[i].of(b)}
				if other := first[h]; other == nil {
					first[h] = b
				} else if b.Thread && h.class != 0 && common(b, other) > common(b, b.Creator) {
					b.Creator = other
				}
			}
			lead.members = append(lead.members, b)
		}
		others := lead.members
		if fam.HasSeccomp() {
			// Filters are shared with whoever makes a thread after taking them, which decides everything.
			lead.filtered = true
			filterSteps(lead.members[0], lead.members[1:])
			others = lead.members[:1]
			if others[0].Thread {
				others[0].Creator = lead
			}
		}
		for _, b := range others {
			if b.Thread && b.Creator == lead {
				made = append(made, b)
			} else if b.Thread {
				b.Creator.After = append(b.Creator.After, b)
			}
		}
		lead.After = append(made, lead.After...)
	}
	if err := f.findParents(families); err != nil {
		return err
	}
	f.findSiblings(families)
	return f.checkParents(families)
}

// common is how many things two tasks share.
func common(a, b *Birth) int {
	n := 0
	for i := range resources {
		if c := resources[i].of(a); c != 0 && c == resources[i].of(b) {
			n++
		}
	}
	return n
}

// findParents has children made by the right thread of their parent.
func (f *Forest) findParents(families []Family) error {
	for _, fam := range families {
		if fam.ParentThread == 0 {
			continue
		}
		b, t := f.byPID[fam.PID], f.thread[fam.ParentThread]
		if t == nil || t.leader != b.Parent {
			return object.BadImagef("process %d: its parent %d has no thread %d", fam.PID, fam.Parent, fam.ParentThread)
		}
		// A thread under a seccomp filter would hand it down.
		if !b.Sibling && b.Creator == b.Parent && !contains(b.Creator.Before, b) && !b.Parent.filtered {
			b.move(t)
		}
	}
	return nil
}

// move has b made by another task, after that one has left its session.
func (b *Birth) move(to *Birth) {
	b.Creator.After = remove(b.Creator.After, b)
	b.Creator = to
	to.After = append(to.After, b)
}

func contains(list []*Birth, b *Birth) bool {
	for _, x := range list {
		if x == b {
			return true
		}
	}
	return false
}

// findSiblings has processes that share with a brother what their creator has not made by that one.
func (f *Forest) findSiblings(families []Family) {
	for i := range resources {
		r := &resources[i]
		first := map[uint64][]*Birth{}
		for _, fam := range families {
			for _, b := range f.all(fam) {
				class := r.of(b)
				if class == 0 || b.Thread {
					first[class] = append(first[class], b)
					continue
				}
				if b.Creator != nil && r.of(b.Creator) == class || b.Sibling && b.Creator != nil || len(first[class]) == 0 {
					first[class] = append(first[class], b)
					continue
				}
				for _, brother := range first[class] {
					if f.canBear(brother, b, i) {
						if b.Creator == nil {
							f.Roots = remove(f.Roots, b)
						} else {
							b.Creator.After = remove(b.Creator.After, b)
						}
						s := brother.session
						b.Creator, b.Sibling, b.born = brother, true, &s
						brother.After = append(brother.After, b)
						break
					}
				}
				// A few will do: more only cost time when an image is hostile.
				if len(first[class]) < 8 {
					first[class] = append(first[class], b)
				}
			}
		}
	}
}

// all are the births of a family: the leader, dead or not, and the other threads.
func (f *Forest) all(fam Family) []*Birth {
	lead := f.byPID[fam.PID]
	if fam.LeaderDead || len(lead.members) == 0 {
		return append([]*Birth{lead}, lead.members...)
	}
	return lead.members
}

// canBear says whether brother can make b as its sibling, and b loses nothing by it that it shares with its creator now
// and that stands before resources[upTo].
func (f *Forest) canBear(brother, b *Birth, upTo int) bool {
	lead := brother
	if brother.Thread {
		lead = brother.leader
	}
	switch {
	case brother.Thread && lead.filtered:
		return false
	case lead == b, lead.Parent != b.Parent, lead.Process.ParentThread != b.Process.ParentThread,
		!b.Setsid && brother.session != b.session, b.Adopted || lead.Adopted,
		b.Creator != nil && contains(b.Creator.Before, b), b.Creator != b.Parent && (b.Creator == nil || b.Creator.leader != b.Parent),
		len(b.Before) > 0, b.Process.ExitSignal != exitSignal(lead) && !(b.Creator == nil && b.Parent == nil):
		return false
	}
	for a := brother; a != nil; a = a.Creator {
		if a == b {
			return false
		}
	}
	if b.Creator != nil {
		for i := range resources[:upTo] {
			r := &resources[i]
			if class := r.of(b); class != 0 && class == r.of(b.Creator) && class != r.of(brother) {
				return false
			}
		}
	}
	return true
}

// checkParents refuses a process that wants a signal at the death of the thread that made it, if another one would have to
// make it.
func (f *Forest) checkParents(families []Family) error {
	for _, fam := range families {
		b := f.byPID[fam.PID]
		if b.Parent == nil {
			continue
		}
		wants := false
		for _, t := range fam.Threads {
			wants = wants || t.Prctls.PdeathSignal != 0
		}
		if want := f.parentThread(b); wants && f.born(b) != want {
			return object.BadImagef("process %d wants a signal when thread %d, its parent, ends (PR_SET_PDEATHSIG), but only another thread of process %d could make it again",
				b.PID, want.PID, b.Parent.PID)
		}
	}
	return nil
}

// parentThread is whose child b is.
func (f *Forest) parentThread(b *Birth) *Birth {
	if t := f.thread[b.Process.ParentThread]; t != nil {
		return t
	}
	return b.Parent.heir()
}

// heir is the thread that gets what a leader leaves: itself while it lives (find_alive_thread in kernel/exit.c).
func (b *Birth) heir() *Birth {
	if !b.Ghost() && b.Process.LeaderDead && !b.Thread && len(b.members) > 0 {
		return b.members[0]
	}
	return b
}

// born is whose child b will be according to the plan.
func (f *Forest) born(b *Birth) *Birth {
	for x := b; ; {
		switch {
		case x.Adopted || x.Creator == nil:
			if b.Parent == nil {
				return nil
			}
			return b.Parent.heir()
		case !x.Sibling:
			return x.Creator.heir()
		}
		if x = x.Creator; x.Thread {
			x = x.leader
		}
	}
}

// share decides with which flags everybody is born, and what is unshared after that. All creators come before what they
// create in f.All.
func (f *Forest) share() error {
	for i := range resources {
		if err := f.shareOne(&resources[i]); err != nil {
			return err
		}
	}
	for _, b := range f.All {
		if b.Share&unix.CLONE_SIGHAND != 0 && b.Share&unix.CLONE_VM == 0 {
			return object.BadImagef("process %d shares a table of signal actions, but not an address space, with its creator", b.PID)
		}
		if b.Thread {
			const must = unix.CLONE_SIGHAND | unix.CLONE_VM
			if b.Share&must != must {
				return object.BadImagef("thread %d does not share the address space of its process", b.PID)
			}
			b.Share |= unix.CLONE_THREAD
		}
	}
	return nil
}

func (f *Forest) shareOne(r *resource) error {
	members := map[uint64]int{}
	for _, b := range f.All {
		if c := r.of(b); c != 0 {
			members[c]++
		}
	}
	held := make(map[*Birth]uint64, len(f.All)) // what a task has while others are born; the stub is nil
	for _, b := range f.All {
		if c := r.of(b); members[c] > 1 {
			held[b] = c
		}
	}
	// lend walks from b's creator up to the first who has the class, or to until, over those who can carry it.
	walk := func(b *Birth, class uint64, visit func(a *Birth) (done bool)) bool {
		for b != nil {
			b = b.Creator
			if held[b] == class {
				return true
			}
			if held[b] != 0 || !r.lendable(b, members) {
				return false
			}
			if visit(b) {
				return false
			}
		}
		return false
	}
	tops := map[uint64][]*Birth{}
	for _, b := range f.All {
		class := held[b]
		if class == 0 || r.of(b) != class {
			continue
		}
		var path []*Birth
		if walk(b, class, func(a *Birth) bool { path = append(path, a); return false }) {
			for _, a := range path {
				held[a] = class
			}
			continue
		}
		others := tops[class]
		if len(others) == 0 {
			tops[class] = append(others, b)
			continue
		}
		// Nobody above has it. If the one who was there first has an ancestor who can carry it to both, all is well.
		mine := map[*Birth]bool{}
		for _, a := range path {
			mine[a] = true
		}
		var meet *Birth
		var up []*Birth
		found := false
		walk(others[0], class, func(a *Birth) bool {
			up = append(up, a)
			if mine[a] {
				meet, found = a, true
			}
			return found
		})
		if !found {
			return object.BadImagef("processes %d and %d share %s, but neither can be made by the other", others[0].PID, b.PID, r.what)
		}
		for _, a := range up {
			held[a] = class
		}
		for _, a := range path {
			held[a] = class
			if a == meet {
				break
			}
		}
	}
	for _, b := range f.All {
		if c := held[b]; c != 0 && c == held[b.Creator] {
			b.Share |= r.flag
			if r.of(b) != c {
				b.unshareLater(r)
			}
		} else if c != 0 && r.of(b) != c {
			b.unshareLater(r)
		}
	}
	return nil
}

// unshareLater notes that b only carries r. Stand-ins, zombies and dead leaders leave anyway.
func (b *Birth) unshareLater(r *resource) {
	if r.late && !b.Ghost() && !b.Process.Zombie && (b.Thread || !b.Process.LeaderDead) {
		b.Unshare |= r.flag
	}
}

// State is the record of the live thread that b becomes; nil of a zombie, a dead leader, a stand-in.
func (b *Birth) State() *Thread { return b.state }
