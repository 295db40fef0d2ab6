package terminals

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
)

// The controlling terminal of a session (credentials(7), tty_ioctl(4)) is taken by the session's leader as soon as it leads one, before
// it has children: they inherit it as once they did (signal_struct.tty), and those that did not, because they are older or gave it up
// (TIOCNOTTY), give it up. The leader puts the foreground group in its place when all are in their groups: while its own is in the
// foreground, that sends nobody a signal (tiocspgrp in drivers/tty/tty_jobctrl.c).

// A Controlled is the terminal of a session, at restore.
type Controlled struct {
	Session, Group int32
	Without        []int32
	fd             int // of the pool
	name           string
}

// Sessions returns the terminals that control sessions.
func Sessions(r *object.Restorer) ([]Controlled, error) {
	var all []Controlled
	seen := map[int32]bool{}
	for _, f := range object.All[pairState](r.Plan) {
		s := f.State
		if s.HungUp || s.Session == 0 {
			continue
		}
		if seen[s.Session] {
			return nil, object.BadImagef("session %d with two controlling terminals", s.Session)
		}
		seen[s.Session] = true
		p, err := object.Recall[pair](r, f.Ref)
		if err != nil {
			return nil, err
		}
		all = append(all, Controlled{Session: s.Session, Group: s.Group, Without: s.Without, fd: p.pooled, name: fmt.Sprintf("/dev/pts/%d", s.Index)})
	}
	return all, nil
}

// Take appends the call by which the leader of the session makes the terminal its own.
func (c *Controlled) Take(b *tracee.Batch) {
	b.Call(b.Sys().Ioctl, c.fd, unix.TIOCSCTTY, 0).Note("the controlling terminal %s of session %d", c.name, c.Session)
}

// GiveUp appends the call by which another process of the session gives it up.
func (c *Controlled) GiveUp(b *tracee.Batch) {
	b.Call(b.Sys().Ioctl, c.fd, unix.TIOCNOTTY, 0).Note("the controlling terminal %s of session %d", c.name, c.Session)
}

// Foreground appends the call by which the leader puts the group, which must exist, in the foreground.
func (c *Controlled) Foreground(b *tracee.Batch) {
	b.Call(b.Sys().Ioctl, c.fd, unix.TIOCSPGRP, binary.NativeEndian.AppendUint32(nil, uint32(c.Group))).Note("the foreground group %d of terminal %s", c.Group, c.name)
}
