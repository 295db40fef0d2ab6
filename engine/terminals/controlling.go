package terminals

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// The controlling terminal of a session (credentials(7), tty_ioctl(4)) is taken by the session's leader as soon as it leads one, before
// it has children: they inherit it as once they did (signal_struct.tty), and those that did not, because they are older or gave it up
// (TIOCNOTTY), give it up. The leader puts the foreground group in its place when all are in their groups: while its own is in the
// foreground, that sends nobody a signal (tiocspgrp in drivers/tty/tty_jobctrl.c).

type sessionKey struct{ session int32 }

// CheckSessions refuses sessions of the tree whose controlling terminal no object of the image is. It comes behind all files.
func CheckSessions(d *object.Dumper) error {
	for _, p := range d.Processes {
		if p.Zombie || p.Stat.TTYNr == 0 || p.PID != p.Stat.Session {
			continue
		}
		ref, err := d.Once(sessionKey{int32(p.ID)}, func() (stream.Ref, error) { return stream.Ref{}, nil })
		if err != nil {
			return err
		}
		if ref.IsZero() {
			d.Refuse(p.Error("", &object.Unsupported{
				What: fmt.Sprintf("it leads a session whose controlling terminal %d:%d has its master outside of the tree",
					unix.Major(uint64(uint32(p.Stat.TTYNr))), unix.Minor(uint64(uint32(p.Stat.TTYNr)))),
				Do: "dump the program that has the master too (a terminal emulator, sshd, script, tmux), or only the job that runs on the terminal"}))
		}
	}
	return nil
}

// A Controlled is the terminal of a session, at restore.
type Controlled struct {
	Session, Group int32
	Without        []int32
	fd             int // of the pool
	index          uint32
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
		all = append(all, Controlled{Session: s.Session, Group: s.Group, Without: s.Without, fd: p.pooled, index: s.Index})
	}
	return all, nil
}

// Take appends the call by which the leader of the session makes the terminal its own.
func (c *Controlled) Take(b *tracee.Batch) {
	b.Call(b.Sys().Ioctl, c.fd, unix.TIOCSCTTY, 0).Note("the controlling terminal %d of session %d", c.index, c.Session)
}

// GiveUp appends the call by which another process of the session gives it up.
func (c *Controlled) GiveUp(b *tracee.Batch) {
	b.Call(b.Sys().Ioctl, c.fd, unix.TIOCNOTTY, 0).Note("the controlling terminal %d of session %d", c.index, c.Session)
}

// Foreground appends the call by which the leader puts the group, which must exist, in the foreground.
func (c *Controlled) Foreground(b *tracee.Batch) {
	b.Call(b.Sys().Ioctl, c.fd, unix.TIOCSPGRP, binary.NativeEndian.AppendUint32(nil, uint32(c.Group))).Note("the foreground group %d of terminal %d", c.Group, c.index)
}
