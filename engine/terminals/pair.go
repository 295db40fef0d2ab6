package terminals

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A pseudo-terminal of devpts. The getters of ioctl_tty(2) tell its modes, window size and locks; struct tty_struct and struct
// n_tty_data of the kernel (linux/tty.h, drivers/tty/n_tty.c) the rest: what neither side has read yet, with the ends of lines, the
// line that is being edited, whether the next byte is taken literally, the column of the output, what stopped it, the packet status
// that the master has not read, and the session that it controls.
//
// Its number is kept, since programs know it by that (ttyname(3), utmp): it must be free at restore. A pair whose master is closed
// while somebody has the slave open is hung up: nothing of it is left but that, and it gets another number where its own is in use.
//
// Lost: of the column, beyond 4096, all but its place between two tab stops; the exclusive mode (TIOCEXCL) of a slave that nobody has
// open; the foreground group of a session whose terminal has hung up, which gets SIGHUP once more when the session's leader ends.
// Refused by name: line disciplines other than N_TTY, echo that could not be written yet, ECHOPRT in the middle of erasing, locked
// modes (TIOCSLCKTRMIOS), a side that is open outside of the tree, and states that only arise when a few of these things coincide
// (refuse in this file and in packet.go).
type pairState struct {
	Path   string `msgpack:"path"`            // by which a master is opened
	Index  uint32 `msgpack:"index,omitempty"` // N of /dev/pts/N
	HungUp bool   `msgpack:"hung_up,omitempty"`

	Modes   Termios `msgpack:"modes"`
	Rows    uint16  `msgpack:"rows,omitempty"`
	Columns uint16  `msgpack:"columns,omitempty"`
	XPixels uint16  `msgpack:"xpixels,omitempty"`
	YPixels uint16  `msgpack:"ypixels,omitempty"`

	Locked    bool `msgpack:"locked,omitempty"`    // TIOCGPTLCK
	Exclusive bool `msgpack:"exclusive,omitempty"` // TIOCGEXCL of the slave
	Alone     bool `msgpack:"alone,omitempty"`     // and of the master
	Unopened  bool `msgpack:"unopened,omitempty"`  // nobody has ever had the slave open: the master need not wait for its end

	Packet bool  `msgpack:"packet,omitempty"` // TIOCGPKT
	Status uint8 `msgpack:"status,omitempty"` // TIOCPKT_* bits that the master has not read

	Stopped bool `msgpack:"stopped,omitempty"` // output of the slave, by a character or as Held
	Held    bool `msgpack:"held,omitempty"`    // tcflow(3)
	Choked  bool `msgpack:"choked,omitempty"`  // output of the master, by tcflow(3)

	Input       []byte   `msgpack:"input,omitempty"`       // that the slave can read, or edit
	Ends        []uint32 `msgpack:"ends,omitempty"`        // in it, the last bytes of lines, ascending; 0 there: end of file
	Literal     bool     `msgpack:"literal,omitempty"`     // the next byte is one without a special meaning
	Unprocessed []byte   `msgpack:"unprocessed,omitempty"` // input for which there was no room, as it was written
	Unread      []byte   `msgpack:"unread,omitempty"`      // output that the master can read
	Column      uint32   `msgpack:"column,omitempty"`
	LineColumn  uint32   `msgpack:"line_column,omitempty"` // where the line that is being edited begins

	Mode   uint32 `msgpack:"mode,omitempty"` // permission bits of the slave
	UID    uint32 `msgpack:"uid,omitempty"`
	GID    uint32 `msgpack:"gid,omitempty"`
	Access int64  `msgpack:"atime,omitempty"` // ns since 1970
	Modify int64  `msgpack:"mtime,omitempty"`

	Session int32   `msgpack:"session,omitempty"` // that it controls
	Group   int32   `msgpack:"group,omitempty"`   // in the foreground
	Without []int32 `msgpack:"without,omitempty"` // processes of the session that have no controlling terminal
}

type pairKey struct{ slave kernelview.ID }

// maxInput is how much N_TTY_BUF_SIZE has room for.
const maxInput = 4095

// maxUnread bounds what lies before one side: N_TTY's buffer and that of the driver, whose limit is 8 KiB and one write more.
const maxUnread = 64 << 10

// dumpPair adds the record of the pair whose side t is, of an open file f.
func dumpPair(d *object.Dumper, f *object.OpenFile, t *kernelview.Terminal) (stream.Ref, error) {
	slave := t.ID
	if t.Master {
		slave = t.Peer
	}
	return d.Once(pairKey{slave}, func() (stream.Ref, error) {
		s, err := look(d, f, t)
		if err != nil {
			return stream.Ref{}, err
		}
		ref := d.Add(pairType, s)
		if s.Session != 0 {
			_, _ = d.Once(sessionKey{s.Session}, func() (stream.Ref, error) { return ref, nil })
		}
		return ref, nil
	})
}

func look(d *object.Dumper, f *object.OpenFile, t *kernelview.Terminal) (*pairState, error) {
	if t.Slave && t.PeerOpenings == 0 {
		return &pairState{Path: masterPath(f.Link), Index: uint32(t.Index), HungUp: true, Modes: Termios{Characters: make([]byte, len(unix.Termios{}.Cc))}}, nil
	}
	masterID := t.ID
	if t.Slave {
		masterID = t.Peer
	}
	h, ours, err := files.MasterOf(d, masterID)
	if err != nil {
		return nil, err
	}
	if !ours {
		return nil, &object.Unsupported{What: "the master of the pseudo-terminal is outside of the tree",
			Do: "dump the program that has it too: a terminal emulator, sshd, script, tmux"}
	}
	m, err := object.Meet(h.Process, h.FD, h.File)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	fd, err := m.Descriptor()
	if err != nil {
		return nil, err
	}
	s := &pairState{Path: m.Link, Index: uint32(t.Index)}
	open, err := slaveOf(d, t, masterID)
	if err != nil {
		return nil, err
	}
	if open != nil {
		defer open.Close()
	}
	if err := s.getters(fd, m, open); err != nil {
		return nil, err
	}
	view := d.View.(kernelview.TerminalView)
	// The slave's side first: what it takes may echo into the other.
	in, err := view.PeerTerminal(m.View.ID)
	if err != nil {
		return nil, err
	}
	out, err := view.Terminal(m.View.ID)
	if err != nil {
		return nil, err
	}
	if err := s.contents(&in, &out); err != nil {
		return nil, err
	}
	if err := s.refuse(&in, &out); err != nil {
		return nil, err
	}
	return s, s.control(d, &in)
}

// masterPath is the path of the masters of the devpts in which a slave has, or had, a name.
func masterPath(slave string) string {
	if dir := path.Dir(slave); dir != "/dev/pts" && path.IsAbs(dir) {
		return path.Join(dir, "ptmx")
	}
	return "/dev/ptmx"
}

// slaveOf returns an open file of the slave, nil when there is none, having made sure that nobody else has one.
func slaveOf(d *object.Dumper, t *kernelview.Terminal, master kernelview.ID) (*object.OpenFile, error) {
	want := t.Openings
	if t.Master {
		want = t.PeerOpenings
	}
	view := d.View.(kernelview.TerminalView)
	all, err := files.Terminals(d)
	if err != nil {
		return nil, err
	}
	var first *object.OpenFile
	have := int32(0)
	for _, h := range all {
		if h.File.Kind != kernelview.KindTTY {
			continue
		}
		one, err := view.Terminal(h.File.ID)
		if err != nil {
			return nil, err
		}
		if one.Peer != master {
			continue
		}
		have++
		if first == nil {
			if first, err = object.Meet(h.Process, h.FD, h.File); err != nil {
				return nil, err
			}
		}
	}
	if have != want {
		return nil, &object.Unsupported{What: fmt.Sprintf("the terminal /dev/pts/%d, whose master it is or has, is open outside of the tree too", t.Index),
			Do: "dump the whole job that runs on it"}
	}
	return first, nil
}

// getters asks what can be asked. open may be nil.
func (s *pairState) getters(master int, m, open *object.OpenFile) error {
	fail := func(what string, err error) error { return fmt.Errorf("reading the %s of a terminal: %w", what, err) }
	modes, err := readTermios(master) // both sides tell the slave's
	if err != nil {
		return fail("modes", err)
	}
	s.Modes = *modes
	size, err := unix.IoctlGetWinsize(master, unix.TIOCGWINSZ)
	if err != nil {
		return fail("window size", err)
	}
	s.Rows, s.Columns, s.XPixels, s.YPixels = size.Row, size.Col, size.Xpixel, size.Ypixel
	is := func(fd int, request uint, what string) bool {
		n, failed := unix.IoctlGetUint32(fd, request)
		if failed != nil && err == nil {
			err = fail(what, failed)
		}
		return n != 0
	}
	s.Locked = is(master, unix.TIOCGPTLCK, "lock")
	s.Alone = is(master, unix.TIOCGEXCL, "exclusive mode")
	s.Packet = is(master, unix.TIOCGPKT, "packet mode")
	if err != nil {
		return err
	}
	locked, err := unix.IoctlGetTermios(master, unix.TIOCGLCKTRMIOS)
	if err != nil {
		return fail("locked modes", err)
	}
	if locked.Iflag|locked.Oflag|locked.Cflag|locked.Lflag != 0 || locked.Line != 0 || slices.Max(locked.Cc[:]) != 0 {
		return object.Unsupportedf("modes of the terminal are locked (TIOCSLCKTRMIOS), which cannot be checkpointed")
	}
	var st unix.Stat_t
	if open != nil {
		fd, err := open.Descriptor()
		if err != nil {
			return err
		}
		exclusive, err := unix.IoctlGetUint32(fd, unix.TIOCGEXCL)
		if err != nil {
			return fail("exclusive mode", err)
		}
		s.Exclusive = exclusive != 0
		st = open.Stat
		if st.Rdev == ttyDevice { // the inode is that of /dev/tty
			st = unix.Stat_t{}
		}
	} else {
		fds := []unix.PollFd{{Fd: int32(master)}}
		if _, err := unix.Poll(fds, 0); err != nil {
			return fail("state", err)
		}
		s.Unopened = fds[0].Revents&unix.POLLHUP == 0 // TTY_OTHER_CLOSED
	}
	if st.Mode == 0 {
		name := fmt.Sprintf("/proc/%d/root%s", m.Process.Leader().TID, slavePath(s.Path, s.Index))
		if err := unix.Stat(name, &st); err != nil || uint64(st.Rdev) != unix.Mkdev(slaveMajor, s.Index) {
			return object.Unsupportedf("its slave has no name by which its owner could be found (%s)", slavePath(s.Path, s.Index))
		}
	}
	s.Mode, s.UID, s.GID, s.Access, s.Modify = st.Mode&0o7777, st.Uid, st.Gid, st.Atim.Nano(), st.Mtim.Nano()
	return nil
}

// slavePath is the usual path of a slave by that of its master.
func slavePath(master string, index uint32) string {
	dir := path.Dir(master)
	if dir == "/dev" {
		dir = "/dev/pts"
	}
	return path.Join(dir, fmt.Sprint(index))
}

// contents takes over what the kernel tells of the slave's side (in) and the master's.
func (s *pairState) contents(in, out *kernelview.Terminal) error {
	if in.Discipline != 0 || out.Discipline != 0 {
		return object.Unsupportedf("its line discipline (%d, %d) is not N_TTY, which cannot be checkpointed", in.Discipline, out.Discipline)
	}
	s.Status, s.Stopped, s.Held, s.Choked = in.Status, in.Stopped, in.Held, out.Stopped
	s.Input, s.Literal, s.Unprocessed = in.Input, in.Literal, in.Unprocessed
	s.Unread = append(slices.Clone(out.Input), out.Unprocessed...)
	if s.Modes.canonical() {
		for _, end := range in.Ends {
			s.Ends = append(s.Ends, uint32(end))
		}
	}
	s.Column, s.LineColumn = column(in.Column), column(in.CanonColumn)
	if !s.Packet {
		s.Status = 0 // it is cleared when the mode is set
	}
	return nil
}

// column keeps a column within bounds: full-screen programs never return the carriage.
func column(n uint32) uint32 {
	const most = 4096
	if n <= most {
		return n
	}
	return most + n%8
}

// refuse refuses what restore could not make again, by the same rules as check.
func (s *pairState) refuse(in, out *kernelview.Terminal) error {
	cannot := func(what string) error {
		return &object.Unsupported{What: what + ", which cannot be checkpointed", Do: "dump it at another moment"}
	}
	switch {
	case in.Echo != 0:
		return cannot("its terminal has echo that could not be written yet, because output is stopped or the master does not read")
	case in.Erasing:
		return cannot("its terminal is in the middle of an erasure (ECHOPRT)")
	case out.Stopped && !out.Held || out.Literal || out.Erasing || out.Echo != 0 || len(out.Ends) > 0:
		return cannot("the line discipline of the master does more than pass bytes")
	case s.Modes.canonical() && in.Complete > 0 && (len(in.Ends) == 0 || in.Ends[len(in.Ends)-1] != in.Complete-1):
		return cannot("the lines in its terminal have no ends")
	}
	var bad *object.BadImage
	if err := s.check(); errors.As(err, &bad) {
		return cannot("in its terminal there is " + bad.Err.Error())
	}
	return nil
}

// control finds out what the terminal controls.
func (s *pairState) control(d *object.Dumper, t *kernelview.Terminal) error {
	if t.Session == 0 {
		return nil
	}
	for _, p := range d.Processes {
		switch {
		case p.Zombie || p.Stat.Session != t.Session:
		case p.PID == t.Session:
			s.Session = int32(p.ID)
		case p.Stat.TTYNr == 0:
			s.Without = append(s.Without, int32(p.ID))
		}
	}
	if s.Session == 0 {
		return &object.Unsupported{What: fmt.Sprintf("it is the controlling terminal of session %d, whose leader is outside of the tree", t.Session),
			Do: "dump the whole session"}
	}
	var err error
	s.Group, err = groupNumber(d, t)
	return err
}

// groupNumber returns the number of a foreground process group in the pid namespace of the tree. One that has died is a number still.
func groupNumber(d *object.Dumper, t *kernelview.Terminal) (int32, error) {
	group := t.Group
	if group == 0 {
		return 0, nil
	}
	for _, p := range d.Processes {
		if p.Stat.Pgrp == group {
			if n := len(p.Status.NSpid); len(p.Status.NSpgid) >= n && n > 0 {
				return int32(p.Status.NSpgid[n-1]), nil
			}
			return int32(group), nil
		}
	}
	if n := len(d.Root.Status.NSpid); group > 0 && n > 0 && n == len(t.GroupNumbers) && errors.Is(unix.Kill(-group, 0), unix.ESRCH) {
		return int32(t.GroupNumbers[n-1]), nil
	}
	return 0, &object.Unsupported{What: fmt.Sprintf("the foreground process group of its terminal, %d, is not in the tree", group),
		Do: "dump the whole session, or dump it at another moment"}
}
