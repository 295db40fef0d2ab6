package kernelview

// TerminalView is what a View may offer beside: what a terminal holds that nobody has read yet. Any call that would tell it takes it
// away.
type TerminalView interface {
	// Terminal tells what is behind an open file of the kind tty. Where the kernel
	// is passing bytes on at this moment it waits until that is over.
	Terminal(file ID) (Terminal, error)

	// PeerTerminal is Terminal for the other side of a pseudo-terminal.
	PeerTerminal(file ID) (Terminal, error)
}

// Terminal is one terminal, or one side of a pseudo-terminal (pty(7)).
type Terminal struct {
	ID   ID // the same for all open files of it
	Peer ID // the other side of a pseudo-terminal, 0: it has none

	// Master and Slave: it is that side of a pseudo-terminal of devpts. Index is the
	// N of /dev/pts/N.
	Master, Slave bool
	Index         int32
	// Openings are the open files of it, PeerOpenings those of the other side.
	Openings, PeerOpenings int32

	// Session is the session that it controls and Group its foreground process
	// group, as numbers in the caller's pid namespace: 0 for none, -1 for one that
	// has no number there.
	Session, Group int
	// GroupNumbers are those of the group from the caller's pid namespace down to
	// its own.
	GroupNumbers []int

	Packet  bool  // of a master: TIOCPKT
	Status  uint8 // of a slave: TIOCPKT_* bits that the master has not read
	Stopped bool  // output is stopped, by Ctrl-S or by
	Held    bool  // tcflow(3) TCOOFF

	Discipline int32 // as TIOCGETD; what follows is of N_TTY (0) only

	// Input is what can be read, or edited, on this side. In canonical mode its
	// first Complete bytes are whole lines, and Ends are the places of their last
	// bytes; one that is 0 there is an end of file (Ctrl-D).
	Input    []byte
	Complete int
	Ends     []int
	Literal  bool // the next byte is taken literally (Ctrl-V)
	Erasing  bool // between the marks of ECHOPRT
	Echo     int  // bytes of echo that could not be written so far
	// Column is where output has got to, CanonColumn where the line that is being
	// edited began.
	Column, CanonColumn uint32

	// Unprocessed is what the other side has written and the line discipline has
	// not taken, for want of room.
	Unprocessed []byte
}
