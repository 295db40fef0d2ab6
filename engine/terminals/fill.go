package terminals

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// How a new pair is filled. N_TTY forgets where lines end when ICANON or EXTPROC change, so both are as they shall be from the
// beginning; all else that would act on a byte is off. In canonical mode every byte that ends no line is written behind a VLNEXT,
// which makes it one like any other; those that end lines are written as such. A worker of the kernel takes the bytes over some time
// later: of each the slave's echo says that it has, and is thrown away. In the other modes FIONREAD tells.

// fillTime is how long the kernel may take for that.
const fillTime = 20 * time.Second

// check refuses what could not be made.
func (s *pairState) check() error {
	if err := s.Modes.check(); err != nil {
		return err
	}
	if s.Index >= 1<<20 { // NR_UNIX98_PTY_MAX
		return object.BadImagef("a pseudo-terminal with the number %d", s.Index)
	}
	if s.HungUp {
		return nil
	}
	if len(s.Input) > maxInput || len(s.Unread) > maxUnread || len(s.Unprocessed) > maxUnread || max(s.Column, s.LineColumn) > 1<<16 {
		return object.BadImagef("a terminal that holds more than it can")
	}
	if len(s.Ends) > 0 && !s.Modes.canonical() || s.Literal && !s.Modes.canonical() {
		return object.BadImagef("lines in a terminal that does not read lines")
	}
	for i, end := range s.Ends {
		if uint64(end) >= uint64(len(s.Input)) || i > 0 && end <= s.Ends[i-1] {
			return object.BadImagef("the end of a line at byte %d of %d", end, len(s.Input))
		}
	}
	if n := len(s.Ends); n > 0 && len(s.Input) == maxInput && s.Ends[n-1] == maxInput-1 && s.Input[maxInput-1] == 0 {
		return object.BadImagef("a full input buffer that ends in an end of file")
	}
	if len(s.lineEnds()) > 2 {
		return object.BadImagef("lines that end in more than two bytes other than newline")
	}
	if s.Held && !s.Stopped {
		return object.BadImagef("output that is held and not stopped")
	}
	if s.Stopped && !s.Held {
		switch stop := s.Modes.Characters[unix.VSTOP]; {
		case s.Modes.Input&unix.IXON == 0 || stop == 0 || s.Modes.Local&unix.EXTPROC != 0 || s.Literal:
			return object.BadImagef("output that is stopped by a character which does not")
		case len(s.Unread) > maxInput:
			return object.BadImagef("output that is stopped by a character, and much of it unread")
		case len(s.Input) >= maxInput-1 || len(s.Unprocessed) > 0:
			return object.BadImagef("output that is stopped by a character, and no room for another") // which would stay there
		}
	}
	// The kernel looks ahead for these and does at once what they mean (n_tty_lookahead_flow_ctrl), once.
	for _, i := range []int{unix.VSTOP, unix.VSTART} {
		if c := s.Modes.Characters[i]; c != 0 && s.Modes.Input&unix.IXON != 0 && slices.Contains(s.Unprocessed, c) {
			return object.BadImagef("unprocessed input that stops or starts output")
		}
	}
	if s.Unopened && (len(s.Input)+len(s.Unprocessed)+len(s.Unread) > 0 || s.Column|s.LineColumn != 0 || s.Stopped || s.Literal || s.Session != 0 || s.Exclusive || s.Status != 0) {
		return object.BadImagef("a terminal that was in use before its slave was open for the first time")
	}
	if s.Session < 0 || s.Group < 0 || s.Session == 0 && (s.Group != 0 || len(s.Without) > 0) {
		return object.BadImagef("a terminal of session %d with group %d", s.Session, s.Group)
	}
	if s.Mode&^0o7777 != 0 {
		return object.BadImagef("a terminal with mode %#o", s.Mode)
	}
	return s.checkStatus()
}

// lineEnds are the bytes that end lines, but newline and the end of file.
func (s *pairState) lineEnds() []byte {
	var ends []byte
	for _, at := range s.Ends {
		if c := s.Input[at]; c != '\n' && c != 0 && !slices.Contains(ends, c) {
			ends = append(ends, c)
		}
	}
	return ends
}

// fill gives the pair its contents and the modes.
func (p *pair) fill() error {
	s := p.state
	if s.Unopened {
		return p.setModes(p.master)
	}
	quiet := s.Modes.kernel()
	quiet.Iflag, quiet.Oflag = 0, 0
	quiet.Lflag &= unix.ICANON | unix.EXTPROC
	for i := range quiet.Cc {
		quiet.Cc[i] = 0
	}
	quiet.Cc[unix.VMIN] = 1
	var err error
	if s.Modes.canonical() {
		err = p.fillLines(quiet)
	} else {
		err = p.fillBytes(quiet)
	}
	if err != nil {
		return fmt.Errorf("filling terminal %d: %w", s.Index, err)
	}
	if err := p.moveColumn(quiet); err != nil {
		return fmt.Errorf("filling terminal %d: %w", s.Index, err)
	}
	if err := setModes(p.slave.Int(), quiet); err != nil {
		return err
	}
	first := min(len(s.Unread), maxInput)
	if err := p.write(p.slave, s.Unread[:first]); err != nil {
		return err
	}
	if err := p.awaitUnread(p.master, first); err != nil {
		return err
	}
	if err := p.write(p.slave, s.Unread[first:]); err != nil {
		return err
	}
	return p.setModes(p.slave)
}

// setModes gives the slave its modes, through either side.
func (p *pair) setModes(fd *sys.FD) error {
	want := p.state.Modes.kernel()
	if err := setModes(fd.Int(), want); err != nil {
		return err
	}
	now, err := readTermios(fd.Int())
	if err != nil {
		return err
	}
	if *now.kernel() != *want {
		return object.BadImagef("the modes of terminal %d cannot be had", p.state.Index)
	}
	return nil
}

// fillBytes fills in the modes in which input is bytes.
func (p *pair) fillBytes(quiet *unix.Termios) error {
	if err := setModes(p.slave.Int(), quiet); err != nil {
		return err
	}
	if err := p.write(p.master, p.state.Input); err != nil {
		return err
	}
	return p.awaitUnread(p.slave, len(p.state.Input))
}

// fillLines fills in the mode in which input is lines.
func (p *pair) fillLines(quiet *unix.Termios) error {
	s := p.state
	special := s.lineEnds()
	spare := func(from byte) byte { // a byte that has no meaning yet
		for slices.Contains(special, from) || from == '\n' {
			from++
		}
		special = append(special, from)
		return from
	}
	k := *quiet
	k.Cc[unix.VMIN] = 0 // VEOF or VEOL on some architectures
	k.Lflag |= unix.IEXTEN | unix.ECHO | unix.ECHOCTL
	for i, c := range special {
		k.Cc[[]int{unix.VEOL, unix.VEOL2}[i]] = c
	}
	next, eof, erase := spare(1), spare(1), spare(1)
	k.Cc[unix.VLNEXT], k.Cc[unix.VEOF], k.Cc[unix.VERASE] = next, eof, erase
	if err := setModes(p.slave.Int(), &k); err != nil {
		return err
	}
	var out []byte
	echo := 0
	flush := func() error {
		if err := p.write(p.master, out); err != nil {
			return err
		}
		if err := p.awaitUnread(p.master, echo); err != nil {
			return err
		}
		out, echo = out[:0], 0
		return p.dropUnread()
	}
	literal := func(c byte) {
		out, echo = append(out, next, c), echo+2+echoed(c) // "^\b" and the byte
	}
	ends := s.Ends
	for i, c := range s.Input {
		ended := len(ends) > 0 && ends[0] == uint32(i)
		if ended {
			ends = ends[1:]
		}
		switch {
		case !ended:
			literal(c)
		case c == '\n':
			out, echo = append(out, c), echo+1
		case c == 0:
			out = append(out, eof) // not echoed; so behind it comes a byte that is, and that is erased
			if i < maxInput-1 {
				literal('x')
				out, echo = append(out, erase), echo+echoed(erase)
			}
		default:
			out, echo = append(out, c), echo+echoed(c)
		}
		if echo > 1024 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if s.Literal {
		out, echo = append(out, next), echo+2
	}
	return flush()
}

// echoed is how many bytes ECHOCTL makes of one: ^X for a control character (echo_char in drivers/tty/n_tty.c).
func echoed(c byte) int {
	if c < ' ' && c != '\t' || c == 0x7f {
		return 2
	}
	return 1
}

// moveColumn has N_TTY count the columns up to where they were: first to where the line begins that is being edited.
func (p *pair) moveColumn(quiet *unix.Termios) error {
	k := *quiet
	k.Oflag = unix.OPOST
	if err := setModes(p.slave.Int(), &k); err != nil {
		return err
	}
	move := func(from, to uint32) []byte {
		b := make([]byte, 0, max(from, to))
		for ; from < to; from++ {
			b = append(b, ' ')
		}
		for ; from > to; from-- {
			b = append(b, '\b')
		}
		return b
	}
	s := p.state
	text := append([]byte{'\r'}, move(0, s.LineColumn)...)
	text = append(text, '\n') // which OPOST alone leaves as it is, and the column too
	text = append(text, move(s.LineColumn, s.Column)...)
	for part := range slices.Chunk(text, 1024) {
		if err := p.write(p.slave, part); err != nil {
			return err
		}
		if err := p.awaitUnread(p.master, len(part)); err != nil {
			return err
		}
		if err := p.dropUnread(); err != nil {
			return err
		}
	}
	return nil
}

// flipPage is how much the kernel puts into one buffer between the sides (TTY_BUFFER_PAGE in drivers/tty/tty_buffer.c, with pages of
// 4 KiB): writes of that length waste the least of the room that there is for them.
const flipPage = 1792

// write writes all of b, without waiting for room: there is, or the image is wrong.
func (p *pair) write(fd *sys.FD, b []byte) error {
	for most := flipPage; len(b) > 0; {
		n, err := unix.Write(fd.Int(), b[:min(len(b), most)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && most > 1:
			most /= 2
			continue
		case errors.Is(err, unix.EAGAIN):
			return object.BadImagef("terminal %d does not take its contents", p.state.Index)
		case err != nil:
			return fmt.Errorf("writing to a terminal: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// dropUnread throws away what the master could read.
func (p *pair) dropUnread() error {
	if err := unix.IoctlSetInt(p.master.Int(), unix.TCFLSH, unix.TCIFLUSH); err != nil {
		return fmt.Errorf("emptying a terminal: %w", err)
	}
	return nil
}

// awaitUnread waits until n bytes can be read from fd.
func (p *pair) awaitUnread(fd *sys.FD, n int) error {
	return p.await(fmt.Sprintf("%d bytes to arrive", n), func() (bool, error) {
		have, err := unix.IoctlGetUint32(fd.Int(), unix.TIOCINQ)
		if err == nil && have > uint32(n) {
			err = object.BadImagef("terminal %d has %d bytes instead of %d", p.state.Index, have, n)
		}
		return have == uint32(n), err
	})
}

// await waits for what the kernel's worker does.
func (p *pair) await(what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(fillTime); ; time.Sleep(200 * time.Microsecond) {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("waiting for a terminal: %w", err)
		}
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("terminal %d: waiting for %s: %w", p.state.Index, what, unix.ETIMEDOUT)
		}
	}
}
