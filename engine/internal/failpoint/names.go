package failpoint

// Names are all failpoints, in about the order in which a dump and a restore come by them.
var Names = []string{
	// Any freeze.
	"freeze.begin",     // nothing has been changed
	"freeze.made",      // the transient cgroup is there
	"freeze.moved",     // a process is in it
	"freeze.told",      // the guard knows that the tree is going to be frozen
	"freeze.asked",     // the kernel does
	"freeze.caught",    // a tree that forks too fast has been seized
	"freeze.frozen",    // all stand still
	"freeze.signalled", // SIGSTOP has been sent to one
	"freeze.stopped",   // all that were told to have stopped
	"freeze.done",
	"ticket.begun",
	"ticket.written",
	"freeze.committed", // the ticket is in its place, the guard not called off

	// A hold, for a dump or a thaw.
	"hold.locked",
	"hold.watched",
	"hold.seized",
	"hold.thawed",
	"hold.stopped",
	"hold.noted",

	// A dump.
	"dump.opened",
	"look.tree",
	"look.checks",
	"look.network", // packets of TCP connections are held back
	"look.leaks",
	"look.peek", // SO_PEEK_OFF of a socket leads over what is before a descriptor in flight
	"look.whole",
	"look.process",
	"look.shared",
	"look.ipc",
	"look.locks",
	"look.thread",
	"dump.looked",
	"dump.object",
	"dump.process",
	"dump.thread",
	"dump.link",
	"dump.records",
	"dump.pages",
	"dump.ahead",
	"dump.contents",
	"dump.proved",
	"dump.kept",
	"dump.written",
	"dump.committed",
	"dump.left", // TCP connections of a ticket's tree are held until its thaw
	"dump.held", // or beyond the end of the processes

	// System calls in the tree, by the classical source.
	"remote.loosened",  // what version 2 had frozen is thawed, and in ptrace stops
	"visit.prepared",   // the code and the way home are in place
	"visit.sent",       // the registers lead there
	"visit.blocked",    // and signals are blocked
	"visit.mapped",     // the task has made its room
	"visit.asked",      // the calls are in it
	"visit.done",       // and executed
	"visit.unmapped",   // the room is gone
	"visit.back",       // the task is where it was
	"remote.tightened", // frozen again

	// The end of a hold: by letting go,
	"thaw.lifted", // of TCP connections first
	"release.begin",
	"release.refrozen",
	"release.held",    // those whose calls would return EINTR
	"release.setback", // those calls are going to be made again
	"release.unfrozen",
	"release.movedback", // all are in their own cgroup again, the transient one is there
	"release.thawed",
	"release.detached",
	// or by the end of the tree.
	"thaw.kept", // TCP connections are held beyond it
	"kill.told",
	"kill.sent",
	"kill.thawed",
	"kill.reaped",
	"kill.dissolved",

	// A restore.
	"restore.header",
	"restore.planned",
	"restore.numbers",
	"restore.object",
	"restore.named", // a FIFO that is going to have no name has one
	"restore.objects",
	"restore.namespaces", // the first task has made those of the tree that are made from inside
	"restore.spawned",
	"restore.bank",
	"restore.born",
	"restore.tree",
	"restore.held", // the numbers of those who are made last
	"restore.groups",
	"restore.terminals", // those that control sessions have them
	"restore.leaders",
	"restore.ipc", // a System V object is made
	"restore.mapped",
	"restore.pidfds",
	"restore.locks",
	"restore.pages",
	"restore.data",
	"restore.filled",
	"restore.connected", // TCP sockets have their addresses and queues
	// The end of a restore is the table of ending.go.
	"restore.rings",
	"restore.sysv",
	"restore.zombies",
	"restore.processes",
	"restore.tables",
	"restore.owners",
	"restore.notified",
	"restore.outside",
	"restore.threads",
	"restore.stopped",
	"restore.signals",
	"restore.sleepers",
	"restore.signalled",
	"restore.vfork", // a child is made for which its parent waits
	"restore.last",
	"restore.traces",
	"restore.timers",
	"restore.final",
	"restore.ready",
	"restore.released", // and are alive, but held back
	"restore.watches",
	"restore.told",      // the guard, of a tree that is left frozen
	"restore.noted",     // or of one that is not, until all are untied
	"restore.described", // the ticket is ready
	"restore.untied",    // a thread does not die with this process any more
	"restore.detached",  // a thread is let go
	"restore.awaited",   // all have reached the freezer
	"restore.committed", // ticket and pid are written
}
