package kernelview

import (
	"bytes"
	"fmt"
	"time"
)

var (
	fTtyPrivate = want("tty_file_private.tty")

	fTtyIndex   = want("tty_struct.index")
	fTtyDriver  = want("tty_struct.driver")
	fTtyPort    = want("tty_struct.port")
	fTtyLdisc   = want("tty_struct.ldisc")
	fTtyCount   = want("tty_struct.count")
	fTtyStopped = want("tty_struct.flow.stopped")
	fTtyHeld    = want("tty_struct.flow.tco_stopped")
	fTtyGroup   = want("tty_struct.ctrl.pgrp")
	fTtySession = want("tty_struct.ctrl.session")
	fTtyStatus  = want("tty_struct.ctrl.pktstatus")
	fTtyPacket  = want("tty_struct.ctrl.packet")
	fTtyLink    = want("tty_struct.link")
	fTtyData    = want("tty_struct.disc_data")

	fDriverMajor = want("tty_driver.major")
	fLdiscOps    = want("tty_ldisc.ops")
	fLdiscNum    = want("tty_ldisc_ops.num")

	fNHead      = want("n_tty_data.read_head")
	fNCanonHead = want("n_tty_data.canon_head")
	fNTail      = want("n_tty_data.read_tail")
	fNEchoHead  = want("n_tty_data.echo_head")
	fNEchoTail  = want("n_tty_data.echo_tail")
	fNLnext     = want("n_tty_data.lnext")
	fNErasing   = want("n_tty_data.erasing")
	fNIcanon    = want("n_tty_data.icanon")
	fNBuf       = want("n_tty_data.read_buf")
	fNFlags     = want("n_tty_data.read_flags")
	fNColumn    = want("n_tty_data.column")
	fNCanonCol  = want("n_tty_data.canon_column")

	fPortHead = want("tty_port.buf.head")
	fPortLock = want("tty_port.buf.lock.owner")

	fFlipNext = want("tty_buffer.next")
	fFlipUsed = want("tty_buffer.used")
	fFlipRead = want("tty_buffer.read")
	fFlipData = want("tty_buffer.data")
)

const (
	ptyMasterMajor = 128 // UNIX98_PTY_MASTER_MAJOR of linux/major.h
	ptySlaveMajor  = 136 // UNIX98_PTY_SLAVE_MAJOR
)

// maxFlip bounds what lies between the sides: the kernel's limit for a pty is 8 KiB and one write more.
const maxFlip = 1 << 20

// Bytes move while nobody runs that uses the terminal: a worker of the kernel takes them from the one buffer to the other. It has
// taken what it could within this time, or waits for room.
const (
	flipTries  = 500
	flipPause  = time.Millisecond
	flipStands = 20 // tries after which bytes that stand still are taken to wait for something
)

// Terminal is documented with TerminalView.
func (v *bpfView) Terminal(file ID) (Terminal, error) { return v.terminalBehind(file, false) }

// PeerTerminal is documented with TerminalView.
func (v *bpfView) PeerTerminal(file ID) (Terminal, error) { return v.terminalBehind(file, true) }

func (v *bpfView) terminalBehind(file ID, other bool) (Terminal, error) {
	l := v.l
	private, _, err := v.content(file, KindTTY, "tty_file_private")
	if err != nil {
		return Terminal{}, err
	}
	for f := fTtyPrivate; f <= fFlipData; f++ {
		if !l.has(f) {
			return Terminal{}, missingField(KindTTY)
		}
	}
	addr, _ := l.uint(private, fTtyPrivate)
	if other {
		b, err := v.mem.peek(addr, l.span["tty_struct"])
		if err != nil {
			return Terminal{}, fmt.Errorf("reading a terminal: %w", err)
		}
		addr, _ = l.uint(b, fTtyLink)
	}
	for try := 0; ; try++ {
		t, settled, err := v.terminal(addr, try > flipStands)
		if err != nil {
			return Terminal{}, fmt.Errorf("reading a terminal: %w", err)
		}
		if settled {
			return t, nil
		}
		if try == flipTries {
			return Terminal{}, fmt.Errorf("reading a terminal: %w", errFault)
		}
		time.Sleep(flipPause)
	}
}

// terminal reads all of it. settled: no byte was on its way meanwhile, or, with waiting, those that were did not move.
func (v *bpfView) terminal(addr uint64, waiting bool) (t Terminal, settled bool, err error) {
	l := v.l
	b, err := v.mem.peek(addr, l.span["tty_struct"])
	if err != nil {
		return t, false, err
	}
	t.ID = v.id(addr)
	t.Index = num[int32](l, b, fTtyIndex).V
	t.Openings = num[int32](l, b, fTtyCount).V
	t.Stopped = flag(l, b, fTtyStopped).V
	t.Held = flag(l, b, fTtyHeld).V
	t.Status = num[uint8](l, b, fTtyStatus).V
	t.Packet = flag(l, b, fTtyPacket).V
	major := uint64(0)
	if driver, _ := l.uint(b, fTtyDriver); driver != 0 {
		d, err := v.mem.peek(driver, l.span["tty_driver"])
		if err != nil {
			return t, false, err
		}
		major, _ = l.uint(d, fDriverMajor)
	}
	if link, _ := l.uint(b, fTtyLink); link != 0 {
		peer, err := v.mem.peek(link, l.span["tty_struct"])
		if err != nil {
			return t, false, err
		}
		t.Peer = v.id(link)
		t.PeerOpenings = num[int32](l, peer, fTtyCount).V
		t.Master, t.Slave = major == ptyMasterMajor, major == ptySlaveMajor
		// A master counts as one opening of its slave (pty_common_install).
		if t.Slave && t.PeerOpenings > 0 {
			t.Openings--
		}
		if t.Master && t.Openings > 0 {
			t.PeerOpenings--
		}
	}
	if t.Session, t.Group, err = v.terminalOwners(b); err != nil {
		return t, false, err
	}
	if t.Group > 0 {
		group, _ := l.uint(b, fTtyGroup)
		if t.GroupNumbers, err = v.allNumbers(group); err != nil {
			return t, false, err
		}
	}
	ldisc, _ := l.uint(b, fTtyLdisc)
	if ldisc == 0 { // hung up
		t.Discipline = -1
		return t, true, nil
	}
	lb, err := v.mem.peek(ldisc, l.span["tty_ldisc"])
	if err != nil {
		return t, false, err
	}
	ops, _ := l.uint(lb, fLdiscOps)
	ob, err := v.mem.peek(ops, l.span["tty_ldisc_ops"])
	if err != nil {
		return t, false, err
	}
	t.Discipline = num[int32](l, ob, fLdiscNum).V
	data, _ := l.uint(b, fTtyData)
	port, _ := l.uint(b, fTtyPort)
	if t.Discipline != 0 || data == 0 || port == 0 {
		return t, true, nil
	}
	before, idle, err := v.flip(port)
	if err != nil {
		return t, false, err
	}
	room, err := v.lineDiscipline(&t, data)
	if err != nil {
		return t, false, err
	}
	after, still, err := v.flip(port)
	if err != nil {
		return t, false, err
	}
	t.Unprocessed = after
	return t, idle && still && bytes.Equal(before, after) && (len(after) == 0 || !room || waiting), nil
}

// terminalOwners reads the numbers of the session and of the foreground group.
func (v *bpfView) terminalOwners(b []byte) (session, group int, err error) {
	s, _ := v.l.uint(b, fTtySession)
	g, _ := v.l.uint(b, fTtyGroup)
	numbers, err := v.numbers([]uint64{s, g})
	if err != nil {
		return 0, 0, err
	}
	number := func(pid uint64) int {
		switch n := numbers[pid]; {
		case pid == 0:
			return 0
		case n == 0:
			return -1
		default:
			return n
		}
	}
	return number(s), number(g), nil
}

// allNumbers reads the numbers of a struct pid from the caller's level down; it has one there.
func (v *bpfView) allNumbers(pid uint64) ([]int, error) {
	head, err := v.mem.peek(pid, v.l.span["pid"])
	if err != nil {
		return nil, err
	}
	level, _ := v.l.uint(head, fPidLevel)
	if level < v.pidLevel || level > 32 { // MAX_PID_NS_LEVEL
		return nil, errFault
	}
	size := uint64(v.l.fields[fUpidSize].size)
	b, err := v.mem.peek(pid+v.l.off(fPidNumbers)+v.pidLevel*size, int((level-v.pidLevel+1)*size))
	if err != nil {
		return nil, err
	}
	var all []int
	for ; len(b) > 0; b = b[size:] {
		nr, _ := v.l.uint(b[:size], fUpidNr)
		all = append(all, int(int32(nr)))
	}
	return all, nil
}

// lineDiscipline reads N_TTY's part. room: it would take another byte.
func (v *bpfView) lineDiscipline(t *Terminal, addr uint64) (room bool, err error) {
	l := v.l
	n, err := v.mem.peek(addr, l.span["n_tty_data"])
	if err != nil {
		return false, err
	}
	buf, _ := l.bytes(n, fNBuf)
	ends, _ := l.bytes(n, fNFlags)
	head, _ := l.uint(n, fNHead)
	canon, _ := l.uint(n, fNCanonHead)
	tail, _ := l.uint(n, fNTail)
	echoHead, _ := l.uint(n, fNEchoHead)
	echoTail, _ := l.uint(n, fNEchoTail)
	size := uint64(len(buf))
	if size == 0 || size&(size-1) != 0 || head-tail > size || len(ends)*8 < len(buf) {
		return false, errFault
	}
	count := head - tail
	t.Input, t.Ends = make([]byte, count), nil
	for i := range count {
		at := (tail + i) & (size - 1)
		t.Input[i] = buf[at]
		if canon-tail <= count && i < canon-tail && bitAt(ends, int(at)) {
			t.Ends = append(t.Ends, int(i))
		}
	}
	t.Complete = 0
	if canon-tail <= count {
		t.Complete = int(canon - tail)
	}
	t.Literal = flag(l, n, fNLnext).V
	t.Erasing = flag(l, n, fNErasing).V
	t.Echo = int(uint32(echoHead - echoTail))
	t.Column = num[uint32](l, n, fNColumn).V
	t.CanonColumn = num[uint32](l, n, fNCanonCol).V
	canonical := flag(l, n, fNIcanon).V
	return count+1 < size || canonical && t.Complete == 0, nil // as n_tty_receive_buf_common counts
}

// flip reads what has been written from the other side and not taken. idle: nobody is taking it at this moment.
func (v *bpfView) flip(port uint64) (data []byte, idle bool, err error) {
	l := v.l
	p, err := v.mem.peek(port, l.span["tty_port"])
	if err != nil {
		return nil, false, err
	}
	lock, _ := l.bytes(p, fPortLock)
	idle = len(bytes.Trim(lock, "\x00")) == 0
	at, _ := l.uint(p, fPortHead)
	for n := 0; at != 0; n++ {
		b, err := v.mem.peek(at, l.span["tty_buffer"])
		if err != nil {
			return nil, false, err
		}
		used, _ := l.uint(b, fFlipUsed)
		read, _ := l.uint(b, fFlipRead)
		if read > used || used > maxFlip || n > maxFlip {
			return nil, false, errFault
		}
		if used > read {
			part, err := v.mem.peek(at+l.off(fFlipData)+read, int(used-read))
			if err != nil {
				return nil, false, err
			}
			data = append(data, part...)
		}
		at, _ = l.uint(b, fFlipNext)
	}
	if len(data) > maxFlip {
		return nil, false, errFault
	}
	return data, idle, nil
}
