package terminals

import (
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/object"
)

// What the master of a terminal in packet mode (TIOCPKT, ioctl_tty(2)) has not been told yet is made again by doing what it is about:
// flushing an empty buffer, stopping output, changing modes and changing them back. None of that may undo what has been restored, so a
// few coincidences, in which it would, do not exist in an image.

// checkStatus refuses those.
func (s *pairState) checkStatus() error {
	has := func(bits uint8) bool { return s.Status&bits != 0 }
	external := s.Modes.Local&unix.EXTPROC != 0
	why := ""
	switch {
	case s.Status != 0 && !s.Packet:
		why = "without packet mode"
	case has(unix.TIOCPKT_FLUSHREAD) && len(s.Input)+len(s.Unprocessed) > 0:
		why = "of a flush, and new input"
	case has(unix.TIOCPKT_FLUSHWRITE) && len(s.Unread) > maxInput:
		why = "of a flush, and much output"
	case has(unix.TIOCPKT_IOCTL) && s.Modes.canonical() && len(s.Input) > 0:
		why = "of EXTPROC, and unread lines"
	case has(unix.TIOCPKT_STOP) && (!s.Stopped || has(unix.TIOCPKT_START)) || has(unix.TIOCPKT_START) && s.Stopped:
		why = "of a stop, which does not fit"
	case has(unix.TIOCPKT_DOSTOP) && (!s.Modes.flow() || has(unix.TIOCPKT_NOSTOP)) || has(unix.TIOCPKT_NOSTOP) && s.Modes.flow():
		why = "of flow control, which does not fit"
	case has(unix.TIOCPKT_DOSTOP|unix.TIOCPKT_NOSTOP) && external && !has(unix.TIOCPKT_IOCTL):
		why = "of flow control, with EXTPROC"
	case s.Status&^(unix.TIOCPKT_FLUSHREAD|unix.TIOCPKT_FLUSHWRITE|unix.TIOCPKT_STOP|unix.TIOCPKT_START|unix.TIOCPKT_NOSTOP|unix.TIOCPKT_DOSTOP|unix.TIOCPKT_IOCTL) != 0:
		why = "that this kernel does not know"
	}
	if why != "" {
		return object.BadImagef("packet status %#x %s", s.Status, why)
	}
	return nil
}

// setPacket turns packet mode on, with the status, and stops output.
func (p *pair) setPacket() error {
	s := p.state
	has := func(bits uint8) bool { return s.Status&bits != 0 }
	if s.Stopped && !has(unix.TIOCPKT_STOP) {
		if err := p.stop(); err != nil {
			return err
		}
	}
	if !s.Packet {
		return nil
	}
	// Of one whose slave was never open there is no status (check).
	if err := unix.IoctlSetPointerInt(p.master.Int(), unix.TIOCPKT, 1); err != nil {
		return fmt.Errorf("setting packet mode: %w", err)
	}
	final := s.Modes.kernel()
	if has(unix.TIOCPKT_IOCTL) {
		k := *final
		k.Lflag |= unix.EXTPROC
		if err := setModes(p.slave.Int(), &k); err != nil {
			return err
		}
		if err := setModes(p.slave.Int(), final); err != nil {
			return err
		}
	}
	if has(unix.TIOCPKT_DOSTOP | unix.TIOCPKT_NOSTOP) {
		k := *final
		if s.Modes.flow() {
			k.Iflag &^= unix.IXON
		} else {
			k.Iflag |= unix.IXON
			k.Cc[unix.VSTOP], k.Cc[unix.VSTART] = 'S'&0x1f, 'Q'&0x1f
		}
		if err := setModes(p.slave.Int(), &k); err != nil {
			return err
		}
		if err := setModes(p.slave.Int(), final); err != nil {
			return err
		}
	}
	type step struct {
		bit     uint8
		request uint
		arg     int
	}
	for _, one := range []step{
		{unix.TIOCPKT_FLUSHREAD, unix.TCFLSH, unix.TCIFLUSH},
		{unix.TIOCPKT_FLUSHWRITE, unix.TCFLSH, unix.TCOFLUSH},
		{unix.TIOCPKT_START, unix.TCXONC, unix.TCOOFF},
		{unix.TIOCPKT_START, unix.TCXONC, tcoon},
	} {
		if !has(one.bit) {
			continue
		}
		if err := unix.IoctlSetInt(p.slave.Int(), one.request, one.arg); err != nil {
			return fmt.Errorf("making the packet status of a terminal: %w", err)
		}
	}
	if has(unix.TIOCPKT_STOP) {
		return p.stop()
	}
	return nil
}

// tcoon is TCOON of termios(3), which x/sys lacks.
const tcoon = 1

// stop stops the output of the slave the way it was stopped.
func (p *pair) stop() error {
	if p.state.Held {
		if err := unix.IoctlSetInt(p.slave.Int(), unix.TCXONC, unix.TCOOFF); err != nil {
			return fmt.Errorf("stopping the output of a terminal: %w", err)
		}
		return nil
	}
	if err := p.write(p.master, []byte{p.state.Modes.Characters[unix.VSTOP]}); err != nil {
		return err
	}
	return p.await("its output to stop", func() (bool, error) {
		fds := []unix.PollFd{{Fd: int32(p.slave.Int()), Events: unix.POLLOUT}}
		_, err := unix.Poll(fds, 0)
		return fds[0].Revents&unix.POLLOUT == 0, err
	})
}
