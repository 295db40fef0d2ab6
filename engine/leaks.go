package engine

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/engine/sockets"
)

// A container shares nothing with the outside. What it does share would be torn apart by a restore: the restored half has
// a new pipe, a new offset, a new piece of shared memory, and the half outside keeps the old one. linux-cr found such leaks by
// comparing, for every object, the references that it had met in the tree with the object's own count; so does this. It
// catches what no file of /proc shows, such as a descriptor in flight in a socket.
//
// Counted are open files (descriptors in distinct tables, mappings, executables), the openings of what has no name (pipes,
// memfds, shared anonymous memory, deleted files: somebody may have opened it anew through /proc), descriptor tables and
// address spaces. A file that has a name is outside anyway; of it only the open file description matters.

// leakTries is how often counts that are too high are looked at again: a task outside that was just ending may have held on.
const leakTries = 3

// checkContainer refuses every leak that the user has not declared external. Nothing of the tree may have been duplicated by
// this process yet.
func checkContainer(d *object.Dumper) error {
	view, ok := d.View.(kernelview.LeakView)
	if !ok {
		return &object.Lacking{What: "finding what a container shares with the outside (--container) needs the counts in the kernel's memory",
			Do: "run as root on a kernel with BTF, or leave --container out"}
	}
	if err := refuseStrangers(d); err != nil {
		return err
	}
	var leaks []*leak
	for try := range leakTries {
		if try > 0 {
			time.Sleep(2 * time.Millisecond)
		}
		h, err := countHoldings(d, try == leakTries-1)
		if err != nil {
			return err
		}
		if leaks, err = h.leaks(d, view); err != nil {
			return err
		}
		if len(leaks) == 0 && !h.shared {
			return nil
		}
	}
	if len(leaks) > 0 {
		if err := nameHolders(d, view, leaks); err != nil {
			return err
		}
	}
	for _, l := range leaks {
		d.Leaks[l.file.ID] = true
		d.Refuse(l.refusal())
	}
	return nil
}

// refuseStrangers refuses tasks of the container's pid namespace that do not descend from its first process (nsenter(1)).
func refuseStrangers(d *object.Dumper) error {
	if len(d.Root.Status.NSpid) < 2 {
		return nil
	}
	ns, err := procfs.Namespace(d.Root.PID, "pid")
	if err != nil {
		return err
	}
	pids, err := procfs.Processes()
	if err != nil {
		return err
	}
	in := pidsOf(d)
	for _, pid := range pids {
		if in[pid] {
			continue
		}
		if other, err := procfs.Namespace(pid, "pid"); err != nil || other != ns {
			continue // gone, or a zombie, which is in none any more
		}
		st, _ := procfs.ReadStat(pid)
		d.Refuse(&object.Error{PID: pid, Comm: st.Comm, FD: -1, Err: &object.Unsupported{
			What: fmt.Sprintf("is in the container's pid namespace but does not descend from its first process, pid %d", d.Root.PID),
			Do:   "end it before the dump; nsenter(1) makes such processes"}})
	}
	return nil
}

func pidsOf(d *object.Dumper) map[int]bool {
	in := make(map[int]bool, len(d.Processes))
	for _, p := range d.Processes {
		in[p.PID] = true
	}
	return in
}

// A holding is where the tree holds an open file.
type holding struct {
	p    *object.Process
	fd   int    // -1: a mapping or the executable
	path string // of the /proc link to it
}

// holdings is what a tree holds, in the order in which it is met.
type holdings struct {
	order  []kernelview.ID
	count  map[kernelview.ID]int64
	first  map[kernelview.ID]holding
	rings  map[kernelview.ID]bool // those that are io_uring instances
	shared bool                   // a table or an address space is used outside, too
}

func (h *holdings) add(id kernelview.ID, at holding) {
	if h.count[id]++; h.count[id] == 1 {
		h.order = append(h.order, id)
		h.first[id] = at
	}
}

// countHoldings counts what the tree holds. With refuse it refuses the tables and address spaces that tasks outside use.
func countHoldings(d *object.Dumper, refuse bool) (*holdings, error) {
	h := &holdings{count: map[kernelview.ID]int64{}, first: map[kernelview.ID]holding{}, rings: map[kernelview.ID]bool{}}
	var threads []*object.Thread
	var tids []int
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			threads, tids = append(threads, t), append(tids, t.TID)
		}
	}
	users := map[kernelview.ID]int32{} // of tables and address spaces: threads of the tree
	for _, t := range threads {
		for _, id := range []kernelview.Maybe[kernelview.ID]{t.View.Files, t.View.MM} {
			if id.Known && id.V != 0 {
				users[id.V]++
				if t == t.Process.Leader() {
					users[id.V] += int32(t.Process.IOWorkers)
				}
			}
		}
	}
	check := func(p *object.Process, what string, id kernelview.ID, all kernelview.Maybe[int32]) {
		n, known := all.Get()
		if !known || n <= users[id] {
			return
		}
		h.shared = true
		if refuse {
			d.Refuse(p.Error("", &object.Unsupported{
				What: fmt.Sprintf("%s is used by %d tasks, %d of them in the container", what, n, users[id]),
				Do:   "look for a process outside that was made with CLONE_FILES or CLONE_VM, or that has /proc/PID/mem of it open"}))
		}
	}
	tables, err := d.View.Files(tids)
	if err != nil {
		return nil, fmt.Errorf("counting references: %w", err)
	}
	seen := map[kernelview.ID]bool{}
	for i := range tables {
		t, p := &tables[i], threads[i].Process
		id, ok := t.ID.Get()
		if !ok || id == 0 || seen[id] {
			continue
		}
		seen[id] = true
		check(p, "its descriptor table", id, t.Users)
		for _, fd := range t.FDs {
			h.add(fd.File.ID, holding{p, fd.FD, fmt.Sprintf("/proc/%d/fd/%d", threads[i].TID, fd.FD)})
			h.rings[fd.File.ID] = fd.File.Kind == kernelview.KindIOUring
		}
	}
	flights, err := sockets.Flights(d)
	if err != nil {
		return nil, fmt.Errorf("counting references: %w", err)
	}
	for _, f := range flights { // messages hold them
		h.add(f.File, holding{f.Process, f.FD, fmt.Sprintf("/proc/%d/fd/%d", f.Process.Leader().TID, f.FD)})
	}
	if err := h.addRings(d, tids); err != nil {
		return nil, fmt.Errorf("counting references: %w", err)
	}
	for _, t := range threads {
		p := t.Process
		as, ok := p.View.MM.Get()
		if !ok || as.ID == 0 || seen[as.ID] {
			continue
		}
		seen[as.ID] = true
		check(p, "its memory", as.ID, as.Users)
		areas, err := d.View.Areas(t.TID)
		if err != nil {
			return nil, fmt.Errorf("counting references: %w", err)
		}
		list, ok := areas.Get()
		if !ok {
			return nil, p.Error("", &object.Lacking{What: "the kernel view cannot list its mappings"})
		}
		for _, a := range list {
			if a.File != 0 {
				h.add(a.File, holding{p, -1, fmt.Sprintf("/proc/%d/map_files/%x-%x", t.TID, uint64(a.Start), uint64(a.End))})
			}
		}
		if exe, ok := as.ExeFile.Get(); ok && exe != 0 {
			h.add(exe, holding{p, -1, fmt.Sprintf("/proc/%d/exe", t.TID)})
		}
	}
	return h, nil
}

// addRings counts what io_uring instances hold: threads have them registered, and they have files registered.
func (h *holdings) addRings(d *object.Dumper, tids []int) error {
	view, ok := d.View.(kernelview.IOUringView)
	if !ok {
		return nil
	}
	for _, id := range slices.Clone(h.order) {
		if !h.rings[id] {
			continue
		}
		u, err := view.IOUring(id, tids)
		if err != nil {
			return err
		}
		for range u.Registered {
			h.add(id, h.first[id])
		}
		for _, f := range u.Holds() {
			if h.count[f] > 0 { // one that nobody has open otherwise is refused with the instance
				h.add(f, h.first[f])
			}
		}
	}
	return nil
}

// A leak is an open file that the outside holds, too.
type leak struct {
	holding
	file    kernelview.OpenFile
	link    string // what /proc shows of it
	anew    bool   // the outside has opened the same inode by itself
	holders []string
}

func (l *leak) refusal() error {
	by := "by something that /proc does not show: a descriptor in flight in a socket of others, or the kernel itself"
	if len(l.holders) > 0 {
		by = "by " + l.holders[0]
		if n := len(l.holders) - 1; n > 0 {
			by += fmt.Sprintf(" and %d more", n)
		}
	}
	return &object.Error{PID: l.p.PID, Comm: l.p.Comm(), FD: l.fd, What: l.link, Err: &object.Unsupported{
		What: "is also held outside of the container, " + by,
		Do:   fmt.Sprintf("close it on one side, or pass --external '%s' and give it back at restore with --inherit", l.link)}}
}

// leaks finds the files whose counts are higher than what the tree holds of them.
func (h *holdings) leaks(d *object.Dumper, view kernelview.LeakView) ([]*leak, error) {
	open, err := view.OpenFiles(h.order)
	if err != nil {
		return nil, fmt.Errorf("counting references: %w", err)
	}
	openings := map[kernelview.ID]int32{} // by inode: open files of the tree
	for i := range open {
		if ino, ok := open[i].Inode.Get(); ok {
			openings[ino]++
		}
	}
	var out []*leak
	for i := range open {
		f := &open[i]
		if harmless(f) {
			continue
		}
		refs, ok := f.Refs.Get()
		if !ok {
			return nil, &object.Lacking{What: "this kernel does not let the references to open files be counted", Do: "leave --container out"}
		}
		l := &leak{holding: h.first[f.ID], file: *f}
		if refs <= h.count[f.ID] {
			n, ok := f.Openings.Get()
			if ino, known := f.Inode.Get(); !ok || !known || !nameless(f) || n <= openings[ino] {
				continue
			}
			l.anew = true
		}
		if declaredLeak(d, l) {
			continue
		}
		out = append(out, l)
	}
	return out, nil
}

// harmless says whether it does not matter who else holds a file: it keeps nothing that could be shared.
func harmless(f *kernelview.OpenFile) bool {
	rdev, _ := f.Rdev.Get()
	const memory = 1 // /dev/null, zero, full, random, urandom, kmsg: Documentation/admin-guide/devices.txt
	return f.Kind == kernelview.KindPath || f.Kind == kernelview.KindCharDevice && unix.Major(rdev) == memory
}

// nameless says whether whoever opens the file must know it from one who has it open, and shares its contents then. A slave
// of a pseudo-terminal counts as such: its name is that of a terminal, which both sides would use.
func nameless(f *kernelview.OpenFile) bool {
	const firstSlave, lastSlave = 136, 143 // UNIX98_PTY_SLAVE_MAJOR
	nlink, _ := f.Nlink.Get()
	rdev, _ := f.Rdev.Get()
	switch f.Kind {
	case kernelview.KindPipe:
		return true
	case kernelview.KindTTY:
		major := unix.Major(rdev)
		return firstSlave <= major && major <= lastSlave
	case kernelview.KindRegular:
		return f.Nlink.Known && nlink == 0
	}
	return false
}

// declaredLeak fills in what /proc shows of the file and says whether the user has named that.
func declaredLeak(d *object.Dumper, l *leak) bool {
	meet := func() (*object.OpenFile, error) { return object.Meet(l.p, l.fd, &l.file.File) }
	if l.fd < 0 {
		meet = func() (*object.OpenFile, error) { return object.MeetMapped(l.p, l.path, &l.file.File) }
	}
	f, err := meet()
	if err != nil {
		l.link = l.path
		return false
	}
	l.link = f.Link
	return files.Declared(d, f)
}

// nameHolders looks through all other processes for who holds the files.
func nameHolders(d *object.Dumper, view kernelview.LeakView, leaks []*leak) error {
	pids, err := procfs.Processes()
	if err != nil {
		return err
	}
	in := pidsOf(d)
	for _, pid := range pids {
		if in[pid] {
			continue
		}
		st, err := procfs.ReadStat(pid)
		if err != nil {
			continue // gone
		}
		who := fmt.Sprintf("pid %d (%s)", pid, st.Comm)
		if tables, err := d.View.Files([]int{pid}); err == nil && len(tables) == 1 {
			for _, fd := range tables[0].FDs {
				for _, l := range leaks {
					if l.is(fd.File) {
						l.holders = append(l.holders, fmt.Sprintf("%s, fd %d", who, fd.FD))
					}
				}
			}
		}
		for _, f := range mappedBy(d.View, view, pid) {
			for _, l := range leaks {
				if l.is(&f.File) && !slices.Contains(l.holders, who+", which maps it") {
					l.holders = append(l.holders, who+", which maps it")
				}
			}
		}
	}
	return nil
}

func (l *leak) is(f *kernelview.File) bool {
	return f.ID == l.file.ID || l.anew && f.Inode.Known && f.Inode == l.file.Inode
}

// mappedBy returns the files that a process maps, none where it cannot be seen: it is not held still.
func mappedBy(view kernelview.View, counts kernelview.LeakView, pid int) []kernelview.OpenFile {
	areas, err := view.Areas(pid)
	list, ok := areas.Get()
	if err != nil || !ok {
		return nil
	}
	var ids []kernelview.ID
	for _, a := range list {
		if a.File != 0 && !slices.Contains(ids, a.File) {
			ids = append(ids, a.File)
		}
	}
	open, err := counts.OpenFiles(ids)
	if err != nil {
		return nil
	}
	return open
}
