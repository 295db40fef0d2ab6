package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/nethold"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A tree that is dumped by a ticket stays frozen, and cr-thaw decides later whether it goes on or ends. Until then its connections must
// stand as still as its processes: what the kernel took in for them after the dump, and acknowledged, would be in no image. So cr-dump
// leaves a hold whose name both know from the ticket. cr-thaw lifts it before the processes run; cr-thaw --kill has it last as after
// cr-dump --kill, and ends the sockets without a word, while cr-restore may have made them elsewhere already.
//
// The image cannot know which of it came to be. On the same machine the hold tells: when it is gone, the connections have gone on
// without the image, in which they are reset then. On another machine that is the user's to know (--tcp drop).

// The notes of holds that last.
const (
	noteTicket = "cr-thaw lifts it, or has it last until cr-restore"
	noteEnded  = "cr-restore lifts it"
)

// lastingHold is the record of a hold that outlives cr-dump.
type lastingHold struct {
	Name string `msgpack:"name"` // of the table of nf_tables
	// Ticket: it belongs to a ticket. Then Boot (/proc/sys/kernel/random/boot_id) and Net (SO_NETNS_COOKIE, 0: not known) say where it is.
	Ticket bool   `msgpack:"ticket,omitempty"`
	Boot   string `msgpack:"boot,omitempty"`
	Net    uint64 `msgpack:"net,omitempty"`
}

const holdType stream.Type = "hold.tcp"

// HoldObject is the record of a hold that outlives cr-dump. A restore lifts it when the connections are alive.
var HoldObject = object.NewKind[lastingHold](holdType, nil)

// record is what the image says of the hold.
func (h *tcpHold) record() (*lastingHold, error) {
	s := &lastingHold{Name: h.name(), Ticket: !h.kill}
	if !s.Ticket {
		return s, nil
	}
	var err error
	s.Boot, s.Net, err = here()
	return s, err
}

// here identifies this machine since its last boot, and the network namespace of this thread.
func here() (boot string, net uint64, err error) {
	if boot, err = procfs.BootID(); err != nil {
		return "", 0, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", 0, fmt.Errorf("making a socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only asked
	net, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) { // before Linux 5.14
		return boot, 0, nil
	}
	return boot, net, err
}

func (s *lastingHold) check() error {
	if !nethold.IsLasting(s.Name) {
		return object.BadImagef("%q is no hold", clip(s.Name))
	}
	return nil
}

// passed says whether the connections have gone on without the image, or have been forgotten here.
func (s *lastingHold) passed() (bool, error) {
	if !s.Ticket || s.Net == 0 {
		return false, nil
	}
	boot, net, err := here()
	if err != nil || boot != s.Boot || net != s.Net {
		return false, err
	}
	found, err := nethold.Find(s.Name)
	if isMissing(err) { // whoever may not ask can make no connection either
		return false, nil
	}
	return err == nil && found == nil, err
}

// lift lets the packets pass, unless the processes of a ticket are still there to have them.
func (s *lastingHold) lift() error {
	if s.Ticket {
		if found, err := nethold.Find(s.Name); err != nil || found == nil || found.Note == noteTicket {
			return err
		}
	}
	return DropHeld(s.Name)
}

// resetOutside has the connections whose other end is not in the image come back reset, and says how many these are.
func (t *tcpRestore) resetOutside(passed bool) int {
	if !passed {
		return 0
	}
	all := map[nethold.Conn]bool{}
	for _, m := range t.all {
		if m.connection() {
			all[m.conn()] = true
		}
	}
	n := 0
	t.lost = map[nethold.Conn]bool{}
	for _, m := range t.all {
		for i := range m.s.Waiting {
			if c := m.s.Waiting[i].conn(m.s.Family); !all[nethold.Conn{Local: c.Remote, Remote: c.Local}] {
				t.lost[c] = true
				n++
			}
		}
		if c := m.conn(); m.connection() && !all[nethold.Conn{Local: c.Remote, Remote: c.Local}] {
			m.reset = true
			n++
		}
	}
	return n
}

func isMissing(err error) bool {
	var missing *nethold.MissingError
	return errors.As(err, &missing)
}

// Holds says whether a hold that lasts holds anything.
func Holds(name string) (bool, error) {
	found, err := nethold.Find(name)
	return found != nil, err
}

// LiftTicket lifts the hold of a ticket, if there is one: the processes are about to go on.
func LiftTicket(name string) error {
	err := DropHeld(name)
	if isMissing(err) {
		return nil // whoever may not ask has left none
	}
	_ = nethold.Sweep()
	return err
}

// LiftStale lifts the hold of a ticket whose processes no longer stand still, unless it waits for a restore.
func LiftStale(name string) error {
	found, err := nethold.Find(name)
	if isMissing(err) {
		return nil
	}
	if err != nil || found == nil || found.Note != noteTicket {
		return err
	}
	return LiftTicket(name)
}

// Ending is a tree whose processes are about to be ended, and whose connections go on elsewhere.
type Ending struct{ silent []*sys.FD }

// EndTicket has the hold of a ticket, if there is one, last beyond the end of the processes.
func EndTicket(name string, pids []int) (*Ending, error) {
	found, err := nethold.Find(name)
	if isMissing(err) || err == nil && found == nil {
		return &Ending{}, nil
	}
	if err != nil {
		return nil, err
	}
	o := nethold.Lasting{Mark: markOf(name), Conns: holdTime, Ports: portsTime, Note: noteEnded}
	if err := nethold.Leave(name, found.Packets, o); err != nil {
		return nil, err
	}
	_ = nethold.Sweep()
	e := &Ending{}
	held := map[nethold.Conn]bool{}
	for _, c := range found.Conns {
		held[c], held[nethold.Conn{Local: c.Remote, Remote: c.Local}] = true, true
	}
	for _, pid := range pids {
		if err := e.collect(pid, held); err != nil && !procfs.IsGone(err) {
			e.Forget()
			return nil, err
		}
	}
	return e, nil
}

// collect takes a descriptor of each held connection of a process. What it misses (in flight in a socket, in a table of a thread's own)
// says a word at its end that the hold keeps to itself.
func (e *Ending) collect(pid int, held map[nethold.Conn]bool) error {
	fds, err := os.ReadDir(procfs.Path(pid, "fd"))
	if err != nil {
		return err
	}
	pidfd, err := sys.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("opening pidfd: %w", err)
	}
	defer pidfd.Close()
	for _, entry := range fds {
		n, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink(procfs.Path(pid, "fd/"+entry.Name()))
		if err != nil || len(target) < 7 || target[:7] != "socket:" {
			continue
		}
		fd, err := sys.PidfdGetfd(pidfd, n)
		if err != nil {
			return fmt.Errorf("duplicating descriptor %d of pid %d: %w", n, pid, err)
		}
		if c, ok := connOfSocket(fd.Int()); ok && held[c] {
			e.silent = append(e.silent, fd)
			continue
		}
		_ = fd.Close() // the process has it
	}
	return nil
}

// connOfSocket asks a socket for its connection, if it is one of TCP and has one.
func connOfSocket(fd int) (nethold.Conn, bool) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP {
		return nethold.Conn{}, false
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return nethold.Conn{}, false
	}
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return nethold.Conn{}, false
	}
	return nethold.Conn{Local: plain(addrPortOf(local)), Remote: plain(addrPortOf(remote))}, true
}

// End ends the sockets, whose processes are dead, without a packet. It can be nil.
func (e *Ending) End() error {
	if e == nil {
		return nil
	}
	err := endSilently(e.silent)
	e.silent = nil
	return err
}

// Forget leaves the sockets as they are. It can be nil.
func (e *Ending) Forget() {
	if e == nil {
		return
	}
	for _, fd := range e.silent {
		_ = fd.Close()
	}
	e.silent = nil
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
