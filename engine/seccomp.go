package engine

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

// checkSeccomp checks the filters of all threads of p.
func (rs *restoration) checkSeccomp(p *process) error {
	for _, t := range p.threads {
		if _, err := tasks.Filters(rs.plan, t.state.Seccomp); err != nil {
			return fmt.Errorf("thread %d: %w", t.state.TID, err)
		}
	}
	return nil
}

// suspendSeccomp has no filter looked at in the first task and whoever is made from it, until all are let go: a restore
// needs calls that filters may forbid (PTRACE_O_SUSPEND_SECCOMP of ptrace(2)).
func (rs *restoration) suspendSeccomp() error {
	for _, p := range rs.procs {
		for _, t := range p.threads {
			if len(t.state.Seccomp) == 0 && !t.state.SeccompStrict {
				continue
			}
			err := rs.tracer.SuspendSeccomp(rs.stub)
			if err == nil {
				return nil
			}
			return &object.Error{PID: int(p.state.PID), Comm: p.threads[0].state.Comm, FD: -1,
				Err: &object.Lacking{What: "suspending its seccomp filters while it is made (PTRACE_O_SUSPEND_SECCOMP)", Err: err,
					Do: "run cr-restore with CAP_SYS_ADMIN, outside of any seccomp filter, on a kernel with CONFIG_CHECKPOINT_RESTORE"}}
		}
	}
	return nil
}

// checkOwnSeccomp warns of tasks that will be under the filters of cr-restore, which nobody can take off again.
func (rs *restoration) checkOwnSeccomp() error {
	status, err := procfs.ReadThreadStatus(unix.Getpid(), rs.tracer.Tid())
	if err != nil {
		return err
	}
	if status.Seccomp != unix.SECCOMP_MODE_DISABLED {
		rs.o.Warn("cr-restore runs under a seccomp filter (prctl(2)), and so will the new processes")
	}
	return nil
}

// takeSteps has a thread take its seccomp filters, and make the threads that share them in between, with bear.
func (rs *restoration) takeSteps(b *tracee.Batch, x *tasks.Birth, bear func([]*tasks.Birth)) error {
	for _, s := range x.Steps {
		if s.Make != nil {
			bear([]*tasks.Birth{s.Make})
			continue
		}
		f, err := object.State[tasks.Filter](rs.plan, s.Filter)
		if err != nil {
			return err
		}
		f.Calls(b)
	}
	if t := x.State(); t != nil && t.SeccompStrict {
		tasks.StrictCalls(b, rs.arch)
	}
	return nil
}
