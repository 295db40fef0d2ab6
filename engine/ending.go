package engine

import (
	"fmt"

	"crpipe/engine/events"
	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/sockets"
)

// step is a step of the end of a restore. A command may die after each: the failpoint of its name is there.
type step struct {
	name string
	do   func(rs *restoration) error
}

func phase(name string, do func(rs *restoration) error) step { return step{name, do} }

// ending is what is done, in this order, once the image has been read to its verified end and all memory and files have their
// contents, before anything of the tree runs. What has to be where, and why:
var ending = []step{
	// Every task has the pool open and all privileges of cr-restore.
	phase("restore.rings", (*restoration).settleRings),
	phase("restore.sysv", (*restoration).finishSysV),
	phase("restore.zombies", (*restoration).endZombies), // before their parents may ignore SIGCHLD
	// The executable, roots and directories are taken from the pool; then every table of descriptors gets its own, and the pool is
	// gone from all tasks.
	phase("restore.processes", (*restoration).finishProcesses),
	phase("restore.tables", func(rs *restoration) error { return rs.takeLocks(files.TableLockCalls) }),
	// Here the own pool is closed where somebody could be told of that, but for what is Late.
	phase("restore.owners", (*restoration).setOwners),
	phase("restore.notified", (*restoration).notifyOfMessages),
	// From here on tasks have their own credentials.
	phase("restore.threads", (*restoration).finishThreads),
	phase("restore.signalled", (*restoration).finishSignals), // time begins to count: late
	phase("restore.last", (*restoration).bearLast),           // children of vfork(2): nothing can be done in their parents any more
	// From here on no task executes anything of ours.
	phase("restore.traces", func(rs *restoration) error {
		return rs.removeTraces(func(p *process) bool { return p.state.StopSignal == 0 && !p.clean })
	}),
	phase("restore.timers", func(rs *restoration) error { return events.StartTimers(rs.r) }),
	phase("restore.ready", (*restoration).setAllFinal),
	phase("restore.released", func(rs *restoration) error { return sockets.ReleaseTCP(rs.r) }), // alive, but no packet passes before the commit
	// Last of all that needs the pool, which it closes: a close is an event too.
	phase("restore.watches", func(rs *restoration) error { return events.StartWatches(rs.r) }),
}

// finish does the steps of the end.
func (rs *restoration) finish() error {
	for _, s := range ending {
		if err := failpoint.After(s.name, s.do(rs)); err != nil {
			return err
		}
	}
	return nil
}

// setOwners says who gets SIGIO of open files. A pipe without the other end would tell its owner when the last descriptor of that is
// closed, which therefore comes before. What the steps after this one need tells nobody.
func (rs *restoration) setOwners() error {
	if !files.HasOwners(rs.plan) {
		return nil
	}
	rs.r.CloseEarly()
	return rs.tables(func(_ *process, t *files.TableState, b *tracee.Batch) error {
		return files.OwnerCalls(rs.r, b, t, rs.hasTask)
	})
}

// setAllFinal gives all threads the registers that they go on with, in one visit to the tracer's thread.
func (rs *restoration) setAllFinal() error {
	return rs.tracer.Do(func() error {
		for _, p := range rs.procs {
			if err := failpoint.After("restore.final", rs.setFinal(p)); err != nil {
				return fmt.Errorf("process %d: %w", p.state.PID, err)
			}
		}
		return rs.passOn(rs.threads())
	})
}

// threads are the tasks of all threads.
func (rs *restoration) threads() []*tracee.Task {
	var all []*tracee.Task
	for _, p := range rs.procs {
		for _, t := range p.threads {
			all = append(all, t.task)
		}
	}
	return all
}
