package namespaces

import (
	"os"
	"strconv"

	"crpipe/engine/object"
)

// PID is the record of a pid namespace of the tree's own, whose init is the root of the tree (pid_namespaces(7)).
// Numbers of tasks in the image are those inside. Outer numbers are not kept: nobody inside can see them.
type PID struct{}

// PIDKind is the kind of record "ns.pid".
var PIDKind = object.NewKind[PID]("ns.pid", nil)

// DumpPID adds the record where the root is the init of another pid namespace than the caller's.
func DumpPID(d *object.Dumper) error {
	mine, theirs, err := compare(d.Root.Leader().TID, "pid")
	if err != nil || mine == theirs {
		return err
	}
	if d.Root.ID != 1 {
		return d.Root.Error("", &object.Unsupported{
			What: "is in a pid namespace of its own, whose init is not part of the tree",
			Do:   "dump the namespace's init (pid 1 inside), or run cr-dump inside the namespace",
		})
	}
	if len(d.Root.Status.NSpid) != 2 {
		return d.Root.Error("", object.Unsupportedf("its pid namespace is nested %d levels below this one", len(d.Root.Status.NSpid)-1))
	}
	d.AddPlain(PIDKind.Type, &PID{})
	return nil
}

// compare returns the identities of one namespace of the caller and of pid.
func compare(pid int, name string) (mine, theirs string, err error) {
	if mine, err = os.Readlink("/proc/self/ns/" + name); err != nil {
		return "", "", err
	}
	theirs, err = os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
	return mine, theirs, err
}
