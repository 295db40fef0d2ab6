package terminals

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// Termios is struct termios2 (ioctl_tty(2)), in the numbers of the architecture.
type Termios struct {
	Input       uint32 `msgpack:"iflag,omitempty"`
	Output      uint32 `msgpack:"oflag,omitempty"`
	Control     uint32 `msgpack:"cflag,omitempty"`
	Local       uint32 `msgpack:"lflag,omitempty"`
	Discipline  uint8  `msgpack:"line,omitempty"`
	Characters  []byte `msgpack:"cc"` // c_cc
	InputSpeed  uint32 `msgpack:"ispeed,omitempty"`
	OutputSpeed uint32 `msgpack:"ospeed,omitempty"`
}

func readTermios(fd int) (*Termios, error) {
	t, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	return &Termios{Input: t.Iflag, Output: t.Oflag, Control: t.Cflag, Local: t.Lflag, Discipline: t.Line, Characters: t.Cc[:],
		InputSpeed: t.Ispeed, OutputSpeed: t.Ospeed}, nil
}

func (t *Termios) check() error {
	if len(t.Characters) != len(unix.Termios{}.Cc) {
		return object.BadImagef("a terminal with %d special characters", len(t.Characters))
	}
	return nil
}

func (t *Termios) kernel() *unix.Termios {
	k := &unix.Termios{Iflag: t.Input, Oflag: t.Output, Cflag: t.Control, Lflag: t.Local, Line: t.Discipline, Ispeed: t.InputSpeed, Ospeed: t.OutputSpeed}
	copy(k.Cc[:], t.Characters)
	return k
}

// setModes sets the modes of the terminal that fd, master or slave, is open on.
func setModes(fd int, k *unix.Termios) error {
	if err := unix.IoctlSetTermios(fd, setTermios, k); err != nil {
		return fmt.Errorf("setting the modes of a terminal: %w", err)
	}
	return nil
}

// canonical: input is read by lines. With EXTPROC somebody else makes them (n_tty_read in drivers/tty/n_tty.c).
func (t *Termios) canonical() bool { return t.Local&unix.ICANON != 0 && t.Local&unix.EXTPROC == 0 }

// flow: what packet mode calls DOSTOP (pty_set_termios in drivers/tty/pty.c).
func (t *Termios) flow() bool {
	return t.Input&unix.IXON != 0 && t.Characters[unix.VSTOP] == 'S'&0x1f && t.Characters[unix.VSTART] == 'Q'&0x1f
}
