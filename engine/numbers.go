package engine

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
)

// zombieTime is how long a number may be held by a zombie that its parent is about to reap: init takes up to 2 s here.
const zombieTime = 10 * time.Second

// checkPIDs makes sure that every number that the tree needs is free, and names who holds one that is not.
func (rs *restoration) checkPIDs(ctx context.Context) error {
	if rs.ownPIDs {
		return nil // inside its own namespace every number is free
	}
	if err := rs.checkHighest(); err != nil {
		return err
	}
	need := map[int]bool{}
	for _, b := range rs.forest.All {
		for b.Helper && unix.Kill(int(b.PID), 0) != unix.ESRCH { // signal 0 only asks
			if !rs.forest.Renumber(b) {
				break
			}
		}
		need[int(b.PID)] = true
	}
	for _, p := range rs.procs {
		for _, t := range p.threads {
			need[int(t.state.TID)] = true
		}
	}
	for deadline := time.Now().Add(zombieTime); ; {
		free := true
		for id := range need {
			free = free && !numberUsed(id)
		}
		if free {
			return nil
		}
		taken, err := takenIDs(need)
		if err != nil || taken == nil {
			return err
		}
		if !taken.zombie || time.Now().After(deadline) {
			return taken
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(5 * time.Millisecond):
		return nil
	}
}

// numberUsed says cheaply whether a number belongs to a task or a process group. Whether it belongs to a session, or of
// whom, it cannot say.
func numberUsed(id int) bool {
	if unix.Kill(id, 0) != unix.ESRCH { // signal 0 only asks
		return true
	}
	_, err := unix.Getpriority(unix.PRIO_PGRP, id)
	return err == nil
}

// checkHighest refuses numbers that this system gives to no task.
func (rs *restoration) checkHighest() error {
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("reading pid_max: %w", err)
	}
	check := func(id int32) error {
		if int(id) < limit {
			return nil
		}
		return &object.Lacking{What: fmt.Sprintf("pid %d, which the image needs, is above what this system allows (kernel.pid_max is %d)", id, limit),
			Do: fmt.Sprintf("sysctl kernel.pid_max=%d", tasks.MaxPID)}
	}
	for _, b := range rs.forest.All {
		if b.Helper {
			continue
		}
		if err := check(b.PID); err != nil {
			return err
		}
	}
	for _, p := range rs.procs {
		for _, t := range p.threads {
			if err := check(t.state.TID); err != nil {
				return err
			}
		}
	}
	return nil
}

// takenIDs looks for a task that holds one of the numbers: as its own, or as that of its process group or session, for
// the kernel does not give such a number out again either (alloc_pid in kernel/pid.c). One that is about to go, a zombie,
// is only reported where no other is.
func takenIDs(need map[int]bool) (*PIDTakenError, error) {
	pids, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	var zombie *PIDTakenError
	for _, pid := range pids {
		st, err := procfs.ReadStat(pid)
		if procfs.IsGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var taken *PIDTakenError
		switch {
		case need[pid]:
			taken = pidTaken(pid, &st)
		case need[st.Pgrp] || need[st.Session]:
			id := st.Pgrp
			if !need[id] {
				id = st.Session
			}
			taken = &PIDTakenError{PID: id, Holder: fmt.Sprintf("the process group or session of %s (pid %d, child of %d)", st.Comm, pid, st.PPID),
				zombie: st.State == 'Z' || st.State == 'X'}
		case st.NumThreads > 1:
			tids, err := procfs.Threads(pid)
			if err != nil {
				continue // it has just ended
			}
			for _, tid := range tids {
				if need[tid] {
					taken = pidTaken(tid, &st)
				}
			}
		}
		if taken != nil && !taken.zombie {
			return taken, nil
		}
		if taken != nil {
			zombie = taken
		}
	}
	return zombie, nil
}

// PIDTakenError says that a number that the tree needs belongs to somebody else.
type PIDTakenError struct {
	PID    int
	Holder string // e.g. "sleep (pid 4711, child of 1)"
	zombie bool
	own    bool
}

func (e *PIDTakenError) Error() string {
	return fmt.Sprintf("pid %d, which the image needs, is in use by %s", e.PID, e.Holder)
}

// Hint says what to do about it.
func (e *PIDTakenError) Hint() string {
	switch {
	case e.own:
		return "run cr-restore again: it will have other numbers itself"
	case e.zombie:
		return "it has ended, but its parent has not waited for it yet"
	}
	return "end that process, or restore into a pid namespace of its own (unshare -pf --mount-proc cr-restore ...)"
}

func pidTaken(id int, st *procfs.Stat) *PIDTakenError {
	e := &PIDTakenError{PID: id, zombie: st.State == 'Z' || st.State == 'X'}
	status, err := procfs.ReadStatus(id)
	switch {
	case err == nil && status.Tgid == os.Getpid():
		e.own, e.Holder = true, "cr-restore itself"
	case err == nil && status.Tgid != id:
		e.Holder = fmt.Sprintf("a thread of %s (pid %d)", st.Comm, status.Tgid)
	default:
		e.Holder = fmt.Sprintf("%s (pid %d, child of %d)", st.Comm, id, st.PPID)
	}
	if e.zombie {
		e.Holder = "the zombie of " + e.Holder
	}
	return e
}
