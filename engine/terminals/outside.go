package terminals

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// The controlling terminal of a job whose master is outside: that of a shell, in an emulator or by ssh. Its open files are external
// (engine/files/external.go). Of the terminal itself this keeps what belongs to the job that is in its foreground: its modes, and which
// group that is; and of a session whose leader is in the tree, that it is the controlling one.
//
// At restore the terminal that stands in for it gets the modes, and the group in its foreground, if cr-restore itself is in the
// foreground there, and gets it back from cr-restore --wait when the job stops or ends. The job gets SIGWINCH, as from a window that has
// changed: what stood on its screen is not there.
//
// Lost: what was typed and not read, what was written and not shown, the window size.
type outsideState struct {
	Name    string  `msgpack:"name"` // as the file.external that leads to it
	Modes   Termios `msgpack:"modes"`
	Group   int32   `msgpack:"group,omitempty"`   // in the foreground, and in the tree; 0: it is not
	Session int32   `msgpack:"session,omitempty"` // that it controls, and whose leader is in the tree; 0: not in the tree
	Without []int32 `msgpack:"without,omitempty"` // processes of that session that have no controlling terminal
}

const outsideType stream.Type = "terminal"

type sessionKey struct{ session int32 }

// DumpOutside adds the terminals that control jobs of the tree and whose master is outside. It comes behind all files.
func DumpOutside(d *object.Dumper) error {
	done := map[int]bool{}
	for _, p := range d.Processes {
		if p.Zombie || p.Stat.TTYNr == 0 || done[p.Stat.Session] {
			continue
		}
		done[p.Stat.Session] = true
		if err := dumpOutside(d, p); err != nil {
			d.Refuse(p.Error("", err))
		}
	}
	return nil
}

// dumpOutside adds the terminal of the session of p.
func dumpOutside(d *object.Dumper, p *object.Process) error {
	s := &outsideState{}
	foreground := false
	for _, q := range d.Processes {
		if q.PID == p.Stat.Session && !q.Zombie {
			s.Session = int32(q.ID)
		}
		foreground = foreground || q.Stat.Session == p.Stat.Session && q.Stat.Pgrp == p.Stat.Tpgid
	}
	if s.Session != 0 {
		ref, err := d.Once(sessionKey{s.Session}, func() (stream.Ref, error) { return stream.Ref{}, nil })
		if err != nil || !ref.IsZero() {
			return err
		}
	}
	if s.Session == 0 && !foreground {
		return nil
	}
	all, err := files.Terminals(d)
	if err != nil {
		return err
	}
	var f *object.OpenFile
	for _, h := range all {
		one, err := object.Meet(h.Process, h.FD, h.File)
		if err != nil {
			return err
		}
		rdev := uint64(one.Stat.Rdev)
		if rdev == ttyDevice {
			rdev = uint64(uint32(h.Process.Stat.TTYNr))
		}
		if rdev == uint64(uint32(p.Stat.TTYNr)) && !files.OwnTerminal(d, one) && (f == nil || uint64(f.Stat.Rdev) == ttyDevice) {
			f = one
		}
	}
	if f == nil {
		if s.Session == 0 {
			return nil
		}
		return &object.Unsupported{
			What: fmt.Sprintf("it leads a session whose controlling terminal %d:%d has its master outside of the tree, and no process of the tree has it open",
				unix.Major(uint64(uint32(p.Stat.TTYNr))), unix.Minor(uint64(uint32(p.Stat.TTYNr)))),
			Do: "dump the program that has the master too: a terminal emulator, sshd, script, tmux"}
	}
	defer f.Close()
	fd, err := f.Descriptor()
	if err != nil {
		return err
	}
	modes, err := readTermios(fd)
	if errors.Is(err, unix.EIO) { // it has hung up since
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the modes of a terminal: %w", err)
	}
	s.Name, s.Modes = f.Link, *modes
	if s.Session != 0 {
		for _, q := range d.Processes {
			if !q.Zombie && q.Stat.Session == p.Stat.Session && q.Stat.TTYNr == 0 {
				s.Without = append(s.Without, int32(q.ID))
			}
		}
	}
	if s.Group, err = groupNumber(d, &kernelview.Terminal{Group: p.Stat.Tpgid, GroupNumbers: []int{p.Stat.Tpgid}}); err != nil {
		return err
	}
	d.AddPlain(outsideType, s)
	return nil
}

// Outside is a terminal of the caller's that stands in for one that was outside.
type Outside struct {
	Session, Group int32
	Without        []int32
	FD             *sys.FD // of the caller's own
	pooled         int
	name           string
	modes          *unix.Termios
	before         *unix.Termios
}

// OutsideTerminals returns those of an image that something stands in for.
func OutsideTerminals(r *object.Restorer) ([]*Outside, error) {
	var all []*Outside
	for _, f := range object.All[outsideState](r.Plan) {
		s := f.State
		if err := s.Modes.check(); err != nil {
			return nil, err
		}
		if s.Session < 0 || s.Group < 0 || s.Session == 0 && (s.Group == 0 || len(s.Without) > 0) {
			return nil, object.BadImagef("a terminal of session %d with group %d", s.Session, s.Group)
		}
		fd, ok := files.ExternalTerminal(r, s.Name)
		if !ok {
			if s.Session != 0 {
				return nil, &noTerminal{s.Session, s.Name}
			}
			continue
		}
		n, err := dup(fd)
		if err != nil {
			return nil, err
		}
		o := &Outside{Session: s.Session, Group: s.Group, Without: s.Without, FD: sys.NewFD(n), pooled: fd, name: s.Name, modes: s.Modes.kernel()}
		all = append(all, o)
		if s.Session != 0 {
			if err := o.giveUp(); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

type noTerminal struct {
	session int32
	name    string
}

func (e *noTerminal) Error() string {
	return fmt.Sprintf("session %d had the controlling terminal %s, and no terminal was given in its place", e.session, e.name)
}

func (e *noTerminal) Hint() string {
	return fmt.Sprintf("give one that controls no session: --inherit '%s=FD', or --wait in a terminal that runs cr-restore itself, as xterm -e does", e.name)
}

// giveUp gives the terminal up if this process leads the session that it controls, so that another may take it. That sends SIGHUP and
// SIGCONT to the foreground, which is this process and whoever is in its group (disassociate_ctty in drivers/tty/tty_jobctrl.c).
func (o *Outside) giveUp() error {
	sid, err := unix.Getsid(0)
	if err != nil || sid != os.Getpid() {
		return nil // whether another session has it, taking it will tell
	}
	if now, err := unix.IoctlGetUint32(o.FD.Int(), unix.TIOCGSID); err != nil || now != uint32(sid) {
		return nil
	}
	ignoreHangup()
	if err := unix.IoctlSetInt(o.FD.Int(), unix.TIOCNOTTY, 0); err != nil {
		return fmt.Errorf("giving up the terminal: %w", err)
	}
	return nil
}

// Controlled is the terminal of a session whose leader is in the tree.
func (o *Outside) Controlled() *Controlled {
	return &Controlled{Session: o.Session, Group: o.Group, Without: o.Without, fd: o.pooled, name: o.name + " (if it is another session's it cannot be taken)"}
}

// InForeground says whether this process may act for the terminal: it is in its foreground, or the terminal is a session's that is
// being restored.
func (o *Outside) InForeground() bool {
	if o.Session != 0 {
		return true
	}
	group, err := unix.IoctlGetUint32(o.FD.Int(), unix.TIOCGPGRP)
	return err == nil && int(group) == unix.Getpgrp()
}

// SetModes gives the terminal the modes of the image.
func (o *Outside) SetModes() error {
	before, err := unix.IoctlGetTermios(o.FD.Int(), getTermios)
	if err != nil {
		return fmt.Errorf("reading the modes of a terminal: %w", err)
	}
	// Speed and character size belong to the line, not to the job.
	const line = unix.CBAUD | unix.CSIZE | unix.PARENB | unix.PARODD | unix.CSTOPB | unix.CLOCAL | unix.CRTSCTS
	k := *o.modes
	k.Cflag = k.Cflag&^line | before.Cflag&line
	k.Ispeed, k.Ospeed, k.Line = before.Ispeed, before.Ospeed, before.Line
	if err := setModes(o.FD.Int(), &k); err != nil {
		return err
	}
	o.before = before
	return nil
}

// Undo gives it those back that it had.
func (o *Outside) Undo() {
	if o.before != nil {
		_ = setModes(o.FD.Int(), o.before) // another error is under way
		o.before = nil
	}
}

// PutForeground puts a group of the caller's session in the foreground of its terminal.
func PutForeground(fd *sys.FD, group int) error {
	if err := unix.IoctlSetPointerInt(fd.Int(), unix.TIOCSPGRP, group); err != nil {
		return fmt.Errorf("putting process group %d in the foreground: %w", group, err)
	}
	return nil
}

// OutsideObject is the record of a terminal that is outside.
var OutsideObject = object.NewKind[outsideState](outsideType, nil)
