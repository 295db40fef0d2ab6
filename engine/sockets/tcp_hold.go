package sockets

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/nethold"
	"crpipe/engine/internal/sys"
	"crpipe/engine/namespaces"
	"crpipe/engine/object"
)

// What becomes of TCP connections (--tcp of cr-dump).
const (
	PolicyKeep   = "keep"
	PolicyDrop   = "drop"
	PolicyListen = "listen-only"
)

// Before the first socket is looked at, the packets of all connections of the tree are held back (package nethold): what is read of
// one connection, and of both ends of one inside the tree, is of one moment then. A dump after which the processes go on lets the
// packets pass as soon as everything has been read: they lose some time, and nothing else.
//
// A dump that ends the processes (--kill) holds the packets on. The sockets end without a word, because the dump keeps a descriptor
// of each, which it puts into repair mode when the processes are dead (tcp_close in net/ipv4/tcp.c says nothing then). Connections
// with the outside are held even longer, so that this machine does not answer "no such connection" before the restore, and so are the
// ports of listening sockets: that hold outlives cr-dump, and the record "hold.tcp" tells cr-restore its name.
//
// A dump by a ticket does not know what is to become of the processes: its hold lasts too, and belongs to the ticket (tcp_ticket.go).
type tcpHold struct {
	bound   *nethold.Hold
	policy  string
	kill    bool
	ticket  string                // the name of the ticket's hold; empty: there is no ticket
	ownNet  bool                  // the tree has a network namespace of its own, which it does not find again: its peers there are lost
	inside  map[nethold.Conn]bool // connections whose other end is in the tree too
	clients map[uint16]bool       // ports that other connections of the tree lead to
	waiting uint32                // connections from outside that wait for accept(2) and go on here
	waits   map[nethold.Conn]bool // connections that wait for accept(2) and are kept (tcp_waiting.go)
	inQueue map[kernelview.ID]bool
	// connecting are the connections of the tree, as each end sees them.
	connecting map[nethold.Conn]bool
	alsoBound  []*nethold.Hold
	lasting    nethold.Packets // what is held after the end
	silent     []*sys.FD
	contents   map[*tcpState][]byte
	usual      usualTCP
}

// How long a hold lasts that nobody has lifted: the connections as long as anybody may come back to them, the ports of listening
// sockets, whose clients would hear that nobody listens, as long as a restore on the same machine may take to come to them. ticketTime is
// that of a tree that stands still: longer than anybody waits, and short enough for one that has been ended in some other way.
const (
	holdTime   = time.Hour
	portsTime  = time.Minute
	ticketTime = 24 * time.Hour
)

func holdOf(d *object.Dumper) *tcpHold {
	h, ok := d.Sockets.(*tcpHold)
	if !ok {
		h = &tcpHold{policy: d.TCP, kill: d.Kill, ticket: d.Hold, inside: map[nethold.Conn]bool{}, waits: map[nethold.Conn]bool{}, inQueue: map[kernelview.ID]bool{}, clients: map[uint16]bool{}, contents: map[*tcpState][]byte{}, usual: usualTCP{}}
		d.Sockets = h
	}
	return h
}

// PendingError says that connections of a listening socket are being made or wait for accept(2). Mostly that passes within moments.
type PendingError struct {
	Local string
	Count uint32
}

func (e *PendingError) Error() string {
	return fmt.Sprintf("%d connections to %s are being made", e.Count, e.Local)
}

// HoldTCP holds the packets of all TCP connections of the tree back, until Unhold. Nothing of the sockets has been read before. A
// *PendingError: it would be better to try again.
func HoldTCP(d *object.Dumper) error {
	h := holdOf(d)
	ends, err := tcpEnds(d)
	if err != nil {
		return err
	}
	if len(ends) > 0 {
		_ = nethold.Sweep() // whoever may not do so has left none
	}
	var p nethold.Packets
	var listens []uint16
	for _, e := range ends {
		switch {
		case isConnection(e.State) || e.State == kernelview.SocketSynSent:
			p.Conns = append(p.Conns, connOf(&e.TCPEnds))
		case e.State == kernelview.SocketListening:
			listens = append(listens, e.Local.Port())
		}
	}
	all := map[nethold.Conn]bool{}
	h.connecting = all
	for _, c := range p.Conns {
		all[c] = true
	}
	for _, e := range ends {
		c := connOf(&e.TCPEnds)
		if !isConnection(e.State) {
			continue
		}
		if all[nethold.Conn{Local: c.Remote, Remote: c.Local}] {
			h.inside[c] = true
		} else {
			h.lasting.Conns = append(h.lasting.Conns, c)
			h.clients[c.Remote.Port()] = true
		}
	}
	slices.Sort(listens)
	listens = slices.Compact(listens)
	if h.moves() && d.TCP != PolicyDrop {
		p.Ports = listens
		h.lasting.Ports = listens
	}
	bind := func() (err error) { h.bound, err = nethold.Bind(p, markOf(h.name())); return err }
	if h.ownNet, err = namespaces.HasNet(d); err != nil {
		return err
	}
	if h.ownNet {
		err = namespaces.InNet(d.Root.Leader().TID, bind)
	} else {
		err = bind()
	}
	var missing *nethold.MissingError
	switch {
	case err == nil:
	case errors.As(err, &missing) && (len(p.Conns) == 0 || d.TCP == PolicyDrop):
		h.lasting = nethold.Packets{}
		return nil // it has no connection that would be harmed
	default:
		return err
	}
	if d.TCP == PolicyDrop {
		return nil
	}
	// What was on its way when the hold began is there now.
	if ends, err = tcpEnds(d); err != nil {
		return err
	}
	if ends, err = h.holdWaiting(d, ends); err != nil {
		return err
	}
	for _, e := range ends {
		if e.State != kernelview.SocketListening {
			continue
		}
		n := h.mustAccept(&e)
		if !h.inQueue[e.file] || !h.moves() {
			h.waiting += e.Backlog - n
		}
		if d.Kill { // else they go on here
			n += e.Half
		}
		if n > 0 {
			return h.closePorts(d, &PendingError{e.Local.String(), n}, listens)
		}
	}
	return nil
}

// mustAccept is how many connections a listening socket has to give to accept(2) before it can be dumped. Without Kill those from outside go
// on here like all others; a restored image has them as connections that were reset before anybody had accepted them: not at all.
func (h *tcpHold) mustAccept(e *tcpEnd) uint32 {
	if h.inQueue[e.file] || h.policy == PolicyDrop || !h.kill && !h.clients[e.Local.Port()] {
		return 0
	}
	return e.Backlog
}

// closePorts keeps further connections away from listening sockets until OpenPorts, so that the program can come to an end with those
// that are there. Who connects tries again by himself, a second later.
func (h *tcpHold) closePorts(d *object.Dumper, pending *PendingError, ports []uint16) error {
	if d.Ports != nil || !d.Patient || h.ownNet {
		return pending
	}
	hold, err := nethold.Bind(nethold.Packets{Ports: ports}, markOf(h.name()))
	var missing *nethold.MissingError
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	if err == nil {
		d.Ports = hold
	}
	return pending
}

// OpenPorts lets connections be made again; ports is what a Dumper has. It can be nil.
func OpenPorts(ports any) error {
	if h, ok := ports.(*nethold.Hold); ok {
		return h.Close()
	}
	return nil
}

// tcpEnd is a socket, and the open file that has it.
type tcpEnd struct {
	kernelview.TCPEnds
	file kernelview.ID
}

// tcpEnds asks for all TCP sockets of the tree.
func tcpEnds(d *object.Dumper) ([]tcpEnd, error) {
	var ends []tcpEnd
	err := files.EachFile(d, func(h files.Holder) error {
		if h.File.Kind != kernelview.KindSocket {
			return nil
		}
		e, err := d.View.TCPEnds(h.File.ID)
		var missing *kernelview.MissingError
		if errors.Is(err, kernelview.ErrKind) || errors.As(err, &missing) {
			return nil // of another kind, or it is refused when it is looked at
		}
		if err == nil {
			ends = append(ends, tcpEnd{e, h.File.ID})
		}
		return err
	})
	return ends, err
}

func connOf(e *kernelview.TCPEnds) nethold.Conn {
	return nethold.Conn{Local: plain(e.Local), Remote: plain(e.Remote)}
}

// moves says whether the connections may be going to go on elsewhere, so that nobody may go on with them here.
func (h *tcpHold) moves() bool { return h.kill || h.ticket != "" }

// keeps says whether a connection can go on after a restore.
func (h *tcpHold) keeps(e *kernelview.TCPEnds) bool {
	if h.policy == PolicyDrop {
		return false
	}
	return h.moves() && !h.ownNet || h.inside[connOf(e)]
}

// closeSilently keeps a descriptor of a connection until EndTCP.
func (h *tcpHold) closeSilently(fd int) error {
	if !h.kill {
		return nil
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicating a descriptor: %w", err)
	}
	h.silent = append(h.silent, sys.NewFD(n))
	return nil
}

// name is that of the hold that lasts: the same for the same connections, or for the same ticket.
func (h *tcpHold) name() string {
	if h.ticket != "" {
		return h.ticket
	}
	var lines []string
	for _, c := range h.lasting.Conns {
		lines = append(lines, c.Local.String()+" "+c.Remote.String())
	}
	slices.Sort(lines)
	for _, n := range h.lasting.Ports {
		lines = append(lines, strconv.Itoa(int(n)))
	}
	return HoldName([]byte(strings.Join(lines, "\n")))
}

// HoldName names a hold that lasts after what it belongs to.
func HoldName(of []byte) string {
	sum := sha256.Sum256(of)
	return nethold.Prefix + hex.EncodeToString(sum[:8])
}

// markOf is the mark of packets that a hold of that name lets pass (SO_MARK).
func markOf(name string) uint32 {
	sum := sha256.Sum256([]byte(name))
	return binary.BigEndian.Uint32(sum[:]) | 1
}

// LooksDone is called when everything has been read: it says what will last, and lets the packets pass again where the processes go
// on. It returns the name of the hold that is to be made by KeepHeld, "" for none.
func LooksDone(d *object.Dumper) (string, error) {
	h := holdOf(d)
	outside := len(h.lasting.Conns)
	switch {
	case h.policy == PolicyDrop: // peers of what is dropped are to hear of the end
		return "", Unhold(d)
	case !h.moves():
		if n := outside + int(h.waiting); n > 0 {
			d.Warn("%d TCP connections end outside of what is dumped: here they go on, and in a restored image they are reset (cr-dump --kill keeps them)", n)
		}
		return "", Unhold(d)
	case h.waiting > 0:
		d.Warn("%d TCP connections wait for accept(2): they go on only here, and the image has none of them", h.waiting)
	}
	if outside+len(h.lasting.Ports) == 0 || h.ownNet {
		return "", nil
	}
	s, err := h.record()
	if err != nil {
		return "", err
	}
	d.AddPlain(holdType, s)
	return s.Name, nil
}

// KeepHeld makes the hold that lasts, on top of the other.
func KeepHeld(d *object.Dumper) error {
	h := holdOf(d)
	o := nethold.Lasting{Mark: markOf(h.name()), Conns: holdTime, Ports: portsTime, Note: noteEnded}
	if !h.kill {
		o.Conns, o.Ports, o.Note = ticketTime, ticketTime, noteTicket
	}
	return nethold.Leave(h.name(), h.lasting, o)
}

// DropHeld undoes KeepHeld.
func DropHeld(name string) error {
	if !nethold.IsLasting(name) {
		return fmt.Errorf("%q is no hold", clip(name))
	}
	return nethold.Remove(name)
}

// EndTCP ends the sockets of processes that are dead, without a packet.
func EndTCP(d *object.Dumper) error {
	h := holdOf(d)
	err := endSilently(h.silent)
	h.silent = nil
	return err
}

func endSilently(sockets []*sys.FD) error {
	var errs []error
	for _, fd := range sockets {
		if err := unix.SetsockoptInt(fd.Int(), unix.IPPROTO_TCP, tcpRepair, 1); err != nil {
			errs = append(errs, fmt.Errorf("ending a TCP socket silently: %w", err))
		}
		errs = append(errs, fd.Close())
	}
	return errors.Join(errs...)
}

// Unhold lets the packets pass that HoldTCP holds back. It can be called again.
func Unhold(d *object.Dumper) error {
	h, ok := d.Sockets.(*tcpHold)
	if !ok {
		return nil
	}
	for _, fd := range h.silent {
		_ = fd.Close() // the processes have it too
	}
	h.silent = nil
	errs := []error{h.bound.Close()}
	for _, b := range h.alsoBound {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}
