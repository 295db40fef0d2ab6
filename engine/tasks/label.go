package tasks

import (
	"bytes"
	"os"
	"strconv"

	"crpipe/engine/object"
)

// CheckLabels refuses threads whose label of a security module (SELinux context, AppArmor profile, Smack label) differs from
// the caller's: a restore would give them cr-restore's, and with that perhaps more rights than they had.
func CheckLabels(d *object.Dumper) error {
	mine, err := label("self")
	if err != nil {
		return nil // no security module labels processes here
	}
	for _, p := range d.Processes {
		for _, t := range p.Threads {
			theirs, err := label(strconv.Itoa(t.TID))
			if err != nil {
				return p.Error("", err)
			}
			if !bytes.Equal(mine, theirs) {
				d.Refuse(p.Error("", object.Unsupportedf("thread %d has the security label %q, cr-dump %q; labels are not kept", t.TID, theirs, mine)))
			}
		}
	}
	return nil
}

// label reads /proc/PID/attr/current (proc_pid_attr(5)).
func label(pid string) ([]byte, error) {
	b, err := os.ReadFile("/proc/" + pid + "/attr/current")
	return bytes.TrimRight(b, "\x00\n"), err
}
