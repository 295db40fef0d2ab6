package namespaces

import (
	"errors"
	"os"
	"strconv"

	"crpipe/engine/object"
)

// others are the namespaces that a tree must share with the caller of cr-dump; each is named as in /proc/PID/ns.
// Those of all other types it may have of its own.
var others = []struct{ file, name string }{
	{"user", "user"},
}

// Check refuses every namespace that is neither the caller's nor kept, and every task that is in another one than the
// root of its tree.
func Check(d *object.Dumper) error {
	for _, ns := range others {
		mine, theirs, err := compare(d.Root.Leader().TID, ns.file)
		if errors.Is(err, os.ErrNotExist) {
			continue // this kernel has none of that type
		}
		if err != nil {
			return err
		}
		if mine != theirs {
			d.Refuse(d.Root.Error("", &object.Unsupported{
				What: "is in a " + ns.name + " namespace of its own",
				Do:   "run cr-dump inside it (nsenter -t " + strconv.Itoa(d.Root.PID) + ")",
			}))
		}
	}
	for _, name := range []string{"user", "net", "uts", "ipc", "cgroup", "time", "mnt", "pid", "pid_for_children", "time_for_children"} {
		if err := checkSame(d, name); err != nil {
			return err
		}
	}
	return nil
}

// checkSame compares one namespace of every thread with the root's.
func checkSame(d *object.Dumper, name string) error {
	base := name
	switch name { // a task whose children would be born elsewhere counts as being there
	case "pid_for_children":
		base = "pid"
	case "time_for_children":
		base = "time"
	}
	want, err := os.Readlink("/proc/" + strconv.Itoa(d.Root.Leader().TID) + "/ns/" + base)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			if sameAsRoot(d, t, name) {
				continue
			}
			have, err := os.Readlink("/proc/" + strconv.Itoa(t.TID) + "/ns/" + name)
			if errors.Is(err, os.ErrNotExist) && name == "pid_for_children" {
				d.Refuse(p.Error("", object.Unsupportedf("thread %d has called unshare(CLONE_NEWPID): its children are born in a pid namespace that has no init", t.TID)))
				continue
			}
			if err != nil {
				return p.Error("", err)
			}
			if have != want {
				d.Refuse(p.Error("", object.Unsupportedf("thread %d is in another namespace (%s, the root of its tree in %s)", t.TID, have, want)))
			}
		}
	}
	return nil
}

// sameAsRoot says whether the kernel view shows that a thread shares a namespace with the root, so that a thousand links need not be
// read. The set of namespaces that tasks share holds all but that of users and the one of pids that a task is in itself, which is its
// whole process's.
func sameAsRoot(d *object.Dumper, t *object.Thread, name string) bool {
	root := d.Root.Leader().View
	if t.View == nil || root == nil || t == d.Root.Leader() { // of the root itself the links are compared with each other
		return false
	}
	switch name {
	case "user":
		return root.UserNS.Known && root.UserNS == t.View.UserNS
	case "pid":
		return t != t.Process.Leader()
	}
	return root.Namespaces.Known && root.Namespaces == t.View.Namespaces
}
