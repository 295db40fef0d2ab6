package tasks

import (
	"fmt"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// A thread that waits in vfork(2), or clone(2) with CLONE_VFORK, can do nothing before its child has called exec or has ended
// (wait_for_vfork_done in kernel/fork.c). It is made wait again by making the child last of all, when the thread has all that it is
// to have: the tracer sets its final registers in the stop on the way into the wait (PTRACE_EVENT_VFORK), and the kernel puts the
// result of the call there. So the child begins with what the thread has for good, its credentials too, and must come from there
// to what it had by calls that need no privilege, as it once did.

// bearLast takes the births of those children out of the plan, into Last.
func (f *Forest) bearLast(families []Family) error {
	for _, fam := range families {
		for _, t := range fam.Threads {
			if t.Vfork == 0 {
				continue
			}
			if err := f.postpone(t, families); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *Forest) postpone(waiter *Thread, families []Family) error {
	b, w := f.byPID[waiter.Vfork], f.thread[waiter.TID]
	if w == nil {
		w = f.byPID[waiter.TID]
	}
	if b == nil || w == nil || b.Process == nil || b.Process.Zombie || len(b.members) != 1 || b.members[0] != b || f.vforkParent(b) != w || w.Last {
		return object.BadImagef("thread %d waits in vfork for process %d, which is no child of it with one thread", waiter.TID, waiter.Vfork)
	}
	refuse := func(why string, args ...any) error {
		return object.BadImagef("process %d, for which thread %d waits in vfork, %s", b.PID, waiter.TID, fmt.Sprintf(why, args...))
	}
	child, parent := b.state, w.Process
	switch {
	case b.Process.MM != parent.MM:
		return refuse("has an address space of its own")
	case b.Sibling, b.Adopted, contains(w.Before, b), b.Creator != w && b.Creator != b.Parent:
		return refuse("could be made by another task only")
	case len(b.Before)+len(b.After) > 0, b.Unshare != 0:
		return refuse("has children, or leads a process group or a session of others")
	case b.Process.StopSignal != 0, parent.StopSignal != 0, b.Process.Continued, parent.Continued:
		return refuse("or its parent, has been stopped or continued by job control")
	case !reflect.DeepEqual(child.Creds, waiter.Creds), child.Keys != waiter.Keys, b.Process.Keyring != parent.Keyring, b.Process.LoginUID != parent.LoginUID:
		return refuse("has other credentials or keyrings than that")
	case !slices.Equal(child.Seccomp, waiter.Seccomp), child.SeccompStrict, waiter.SeccompStrict:
		return refuse("has other seccomp filters than that")
	case b.Process.Subreaper, child.Prctls.DefaultSlack != waiter.Prctls.TimerSlack, child.Vfork != 0,
		child.Signals.StackSize != 0 != (waiter.Signals.StackSize != 0):
		return refuse("has changed what it has from that")
	}
	for _, fam := range families {
		if p := fam.Process; p != b.Process && (p.Group == b.PID && !p.OutsideGroup || p.Session == b.PID && !p.OutsideSession) {
			return refuse("leads a process group or a session of others")
		}
	}
	b.Creator.After = remove(b.Creator.After, b)
	for _, steps := range []*[]Step{&b.Creator.Steps, &w.Steps} {
		*steps = slices.DeleteFunc(*steps, func(s Step) bool { return s.Make == b })
	}
	f.All, f.Movers = remove(f.All, b), remove(f.Movers, b)
	b.Creator, b.Last = w, true
	b.Share |= unix.CLONE_VM | unix.CLONE_VFORK
	f.Last = append(f.Last, b)
	return nil
}

// vforkParent is whose child a process is; nil of a root.
func (f *Forest) vforkParent(b *Birth) *Birth {
	if b.Parent == nil {
		return nil
	}
	return f.parentThread(b)
}

// Privileged says whether a task with these credentials may choose the number of a child (clone3(2), set_tid).
func (c *Credentials) Privileged() bool {
	return c.Effective&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_CHECKPOINT_RESTORE) != 0
}
