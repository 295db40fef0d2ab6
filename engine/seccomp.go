package engine

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// A threadStep is what a thread does on the way to its own seccomp filters: take the next one, or make another thread,
// which so has the same ones up to there. Sharing comes from nowhere else, and SECCOMP_FILTER_FLAG_TSYNC asks for it.
type threadStep struct {
	filter *tasks.Filter
	make   *thread
}

// seccomp says, for every thread of p, what it does. It starts with the leader, all of whose filters are its own.
func (rs *restoration) seccomp(p *process) (map[*thread][]threadStep, error) {
	own := map[*thread][]*tasks.Filter{}
	for _, t := range p.threads {
		var err error
		if own[t], err = tasks.Filters(rs.plan, t.state.Seccomp); err != nil {
			return nil, fmt.Errorf("thread %d: %w", t.state.TID, err)
		}
	}
	steps := map[*thread][]threadStep{}
	var grow func(t *thread, depth int, rest []*thread)
	grow = func(t *thread, depth int, rest []*thread) {
		chain := t.state.Seccomp
		for ; ; depth++ {
			// Those who part ways here: who has no more than these, and for each other filter those who have it next.
			var on []*thread
			var order []stream.Ref
			parting := map[stream.Ref][]*thread{}
			for _, x := range rest {
				var next stream.Ref
				if depth < len(x.state.Seccomp) {
					next = x.state.Seccomp[depth]
				}
				switch {
				case next.IsZero():
					steps[t] = append(steps[t], threadStep{make: x})
				case depth < len(chain) && chain[depth] == next:
					on = append(on, x)
				default:
					if parting[next] == nil {
						order = append(order, next)
					}
					parting[next] = append(parting[next], x)
				}
			}
			for _, ref := range order {
				first := parting[ref][0]
				steps[t] = append(steps[t], threadStep{make: first})
				grow(first, depth, parting[ref][1:])
			}
			if depth == len(chain) {
				return
			}
			steps[t] = append(steps[t], threadStep{filter: own[t][depth]})
			rest = on
		}
	}
	grow(p.threads[0], 0, p.threads[1:])
	return steps, nil
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

// makeThreads has every process make its threads besides the leader, which is the process's task already.
func (rs *restoration) makeThreads() error {
	steps := map[*thread][]threadStep{}
	var ready []*thread
	for _, p := range rs.procs {
		if p.state.Zombie {
			continue
		}
		p.threads[0].task = p.task
		ready = append(ready, p.threads[0])
		of, err := rs.seccomp(p)
		if err != nil {
			return err
		}
		for t, list := range of {
			steps[t] = list
		}
	}
	for len(ready) > 0 {
		var err error
		if ready, err = rs.takeSteps(ready, steps); err != nil {
			return err
		}
	}
	return nil
}

// takeSteps has each of the threads take all its steps, and returns those who were made by that.
func (rs *restoration) takeSteps(ready []*thread, steps map[*thread][]threadStep) ([]*thread, error) {
	var who []*tracee.Task
	var batches []*tracee.Batch
	var calls []*tracee.Call
	var made []*thread
	for _, t := range ready {
		b := rs.arena.NewBatch()
		for _, s := range steps[t] {
			if s.filter != nil {
				s.filter.Calls(b)
				continue
			}
			passSlack(b, s.make)
			calls = append(calls, rs.cloneThread(b, s.make))
			made = append(made, s.make)
		}
		if t.state.SeccompStrict {
			tasks.StrictCalls(b, rs.arch)
		}
		if b.Len() > 0 {
			who, batches = append(who, t.task), append(batches, b)
		}
	}
	if len(batches) == 0 {
		return nil, nil
	}
	if err := rs.tracer.Run(who, batches); err != nil {
		return nil, rs.explainTaken(err)
	}
	for i, t := range made {
		t.task = calls[i].Child()
	}
	return made, nil
}

// cloneThread adds the call that makes another thread.
func (rs *restoration) cloneThread(b *tracee.Batch, t *thread) *tracee.Call {
	const flags = unix.CLONE_THREAD | unix.CLONE_SIGHAND | unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SYSVSEM
	tid := int(t.state.TID)
	if rs.ownPIDs {
		tid = 0
	}
	return b.Clone(sys.CloneArgs{Flags: flags}, []int32{t.state.TID}, tid).Note("thread %d", t.state.TID)
}
