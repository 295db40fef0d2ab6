package engine

import (
	"io"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/memory"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// What a program does for the first time takes several times as long as the second time: its code and its memory are page faults, its caches are
// empty. A small process would stand still mostly for that. So a look at one process of the tree is rehearsed while it still runs.

// crowd is from how many tasks on a dump needs so much memory that it is worth some preparation.
const crowd = 64

// prepare gets ready for a tree, which still runs.
func prepare(view kernelview.View, a *arch.Arch, pid int) {
	if st, err := procfs.ReadStatus(pid); err == nil {
		children, _ := procfs.ReadChildren(pid, pid) // without them: a guess that is too low
		if st.Threads+len(children) >= crowd {
			sys.HugeHeap(32 << 20)
		}
	}
	rehearse(view, a, pid)
}

// rehearse looks at a running process as a dump does, and forgets what it sees: it may be wrong in any way, errors included. Nothing is changed
// in the process, since the view reads the kernel's memory.
func rehearse(view kernelview.View, a *arch.Arch, pid int) {
	rv, ok := view.(kernelview.RegisterView)
	if !ok {
		return
	}
	p := &object.Process{PID: pid}
	d := &object.Dumper{Rehearsal: true, View: view, Arch: a, Kinds: fileKinds(), Root: p, Processes: []*object.Process{p}, Warn: func(string, ...any) {}}
	defer d.Close()
	var err error
	if p.Stat, err = procfs.ReadStat(pid); err != nil || p.Stat.State == 'Z' {
		return
	}
	if p.Status, err = procfs.ReadStatus(pid); err != nil || len(p.Status.NSpid) == 0 {
		return
	}
	t := &object.Thread{Process: p, TID: pid, Status: p.Status, Stat: p.Stat}
	p.Threads = []*object.Thread{t}
	if numberTree(d) != nil {
		return
	}
	threads, err := view.Threads([]int{pid})
	if err != nil {
		return
	}
	processes, err := view.Processes([]int{pid})
	if err != nil {
		return
	}
	t.View, p.View = &threads[0], &processes[0]
	if _, err := rv.Registers([]int{pid}); err != nil {
		return
	}
	for _, step := range []func(*object.Dumper) error{namespaces.Check, tasks.CheckLabels, tasks.CheckCookies, tasks.DumpKeyrings} {
		_ = step(d)
	}
	for _, step := range []func(*object.Dumper, *object.Process) error{files.DumpTable, files.DumpFS, signals.DumpActions, memory.Dump} {
		_ = step(d, p)
	}
	s := &tasks.Thread{Comm: t.Status.Name}
	s.Creds, _ = tasks.DumpCredentials(t)
	if online, err := tasks.Online(); err == nil {
		s.Sched, _ = tasks.DumpScheduling(t, online)
	}
	_ = tasks.DumpSeccomp(d, t, s)
	s.Prctls = tasks.DumpPrctls(d, t)
	d.AddPlain(tasks.ThreadKind.Type, s)
	w, err := stream.NewWriter(io.Discard, stream.Header{Content: "image", Arch: a.Name, PageSize: unix.Getpagesize()})
	if err != nil {
		return
	}
	_ = d.WriteRecords(w)
}
