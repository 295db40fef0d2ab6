package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
)

// Common is what every socket has: status flags, owner, permissions and times of its inode (fchown(2) of a socket works, and is
// whose it is for routing and quotas), the options of SOL_SOCKET (socket(7)), and the filter that decides what it receives
// (SO_ATTACH_FILTER). getsockopt(2) tells all of it, through a duplicate of the descriptor, and nothing is changed by that; what it
// does not tell comes from the kernel's memory.
//
// Refused by name: an error that SO_ERROR has not told yet (unless a family keeps it) and messages in the error queue; a filter or
// a chooser of ports that is an eBPF program, and whatever else in the kernel has hung itself on the socket (sockmaps, kTLS, BPF
// storage); SOF_TIMESTAMPING_OPT_ID and clocks of timestamps other than the usual one.
//
// Lost: the cookie (SO_COOKIE), the inode number, how often packets were dropped (SO_RXQ_OVFL counts from 0 again), the CPU and
// NAPI of the last packet.
type Common struct {
	Flags   uint32   `msgpack:"flags"` // as F_GETFL
	Mode    uint32   `msgpack:"mode"`  // permission bits
	UID     uint32   `msgpack:"uid"`
	GID     uint32   `msgpack:"gid"`
	Access  int64    `msgpack:"atime"` // ns since 1970
	Modify  int64    `msgpack:"mtime"`
	Options []Option `msgpack:"options,omitempty"`
	Budget  uint32   `msgpack:"budget,omitempty"` // SO_BUSY_POLL_BUDGET, 0: never set
	TxTime  []byte   `msgpack:"txtime,omitempty"` // SO_TXTIME: struct sock_txtime, absent: never set
	Filter  []byte   `msgpack:"filter,omitempty"` // instructions of SO_ATTACH_FILTER: struct sock_filter, in the machine's byte order
	Locked  bool     `msgpack:"locked,omitempty"` // SO_LOCK_FILTER
}

// keptFlags are what F_GETFL can show of a socket that is kept: O_ASYNC is not.
const keptFlags = unix.O_ACCMODE | unix.O_NONBLOCK | unix.O_APPEND | unix.O_NOATIME

// maxFilter is BPF_MAXINSNS, and sizeofFilter the size of struct sock_filter (linux/bpf_common.h, linux/filter.h).
const (
	maxFilter    = 4096
	sizeofFilter = 8
)

// claims returns a function that claims the sockets of some families.
func claims(of func(s *kernelview.Socket) bool) func(*object.Dumper, *object.OpenFile) bool {
	return func(d *object.Dumper, f *object.OpenFile) bool {
		if f.View.Kind != kernelview.KindSocket || f.FD < 0 {
			return false
		}
		s, err := socketOf(d, f)
		return err == nil && of(s)
	}
}

type socketKey struct{ file kernelview.ID }

// socketOf looks at the socket behind an open file, once.
func socketOf(d *object.Dumper, f *object.OpenFile) (*kernelview.Socket, error) {
	return object.Memo(d, socketKey{f.View.ID}, func() (*kernelview.Socket, error) {
		s, err := d.View.Socket(f.View.ID)
		if err != nil {
			return nil, fmt.Errorf("looking at the socket: %w", err)
		}
		return &s, nil
	})
}

// dumpCommon looks at what all sockets have, and refuses what cannot be kept of it. Families refuse, or keep, s.Err themselves.
func dumpCommon(f *object.OpenFile, s *kernelview.Socket) (*Common, error) {
	flags, err := files.Flags(f)
	if err != nil {
		return nil, err
	}
	flags &^= unix.O_ASYNC // files/owner.go
	if odd := flags &^ keptFlags; odd != 0 {
		return nil, object.Unsupportedf("it is open with flags (%#o) that cannot be restored", odd)
	}
	if err := refuseAttached(s); err != nil {
		return nil, err
	}
	fd, err := f.Descriptor()
	if err != nil {
		return nil, err
	}
	c := &Common{Flags: flags, Mode: f.Stat.Mode & 0o7777, UID: f.Stat.Uid, GID: f.Stat.Gid, Access: f.Stat.Atim.Nano(), Modify: f.Stat.Mtim.Nano()}
	if c.Options, err = readOptions(fd, socketOptions); err != nil {
		return nil, err
	}
	if err := c.checkStamps(); err != nil {
		return nil, err
	}
	if budget, ok := s.BusyPollBudget.Get(); ok {
		c.Budget = uint32(budget)
	}
	if set, ok := s.TxTime.Get(); ok && set {
		c.TxTime = make([]byte, sizeofTxTime)
		if _, err := sys.Getsockopt(fd, unix.SOL_SOCKET, unix.SO_TXTIME, c.TxTime); err != nil {
			return nil, fmt.Errorf("asking for SO_TXTIME: %w", err)
		}
	}
	if c.Filter, err = readFilter(fd); err != nil {
		return nil, err
	}
	locked := make([]byte, 4)
	if _, err := sys.Getsockopt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, locked); err != nil {
		return nil, fmt.Errorf("asking for SO_LOCK_FILTER: %w", err)
	}
	c.Locked = numberOf(locked) != 0
	return c, nil
}

// sizeofTxTime is that of struct sock_txtime: a clock and flags (linux/net_tstamp.h).
const sizeofTxTime = 8

// refuseAttached refuses a socket on which something hangs that no call tells or gives back.
func refuseAttached(s *kernelview.Socket) error {
	for _, x := range []struct {
		has  kernelview.Maybe[bool]
		what string
	}{
		{s.UserData, "something in the kernel uses it (a sockmap, a tunnel, a protocol on top of it)"},
		{s.Storage, "BPF programs keep something with it"},
		{s.ReuseportProgram, "a program chooses among the sockets that share its port (SO_ATTACH_REUSEPORT_CBPF)"},
	} {
		if has, ok := x.has.Get(); ok && has {
			return object.Unsupportedf("%s, which cannot be checkpointed", x.what)
		}
	}
	if len(s.Errors) > 0 {
		return object.Unsupportedf("%d messages wait in its error queue (MSG_ERRQUEUE), which cannot be checkpointed", len(s.Errors))
	}
	return nil
}

// optTimestampID is SOF_TIMESTAMPING_OPT_ID of linux/net_tstamp.h.
const optTimestampID = 1 << 7

// checkStamps refuses what cannot be kept of SO_TIMESTAMPING: struct so_timestamping has flags and a clock.
func (c *Common) checkStamps() error {
	for _, name := range []string{"SO_TIMESTAMPING", "SO_TIMESTAMPING_NEW"} {
		b := find(c.Options, name)
		if len(b) < 8 {
			continue
		}
		if binary.NativeEndian.Uint32(b)&optTimestampID != 0 || binary.NativeEndian.Uint32(b[4:]) != 0 {
			return object.Unsupportedf("its timestamps are numbered, or are of a clock of a network card (SO_TIMESTAMPING), which cannot be checkpointed")
		}
	}
	return nil
}

// readFilter returns the filter of a socket. SO_GET_FILTER, which is SO_ATTACH_FILTER, counts instructions, not bytes.
func readFilter(fd int) ([]byte, error) {
	n, err := sys.Getsockopt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, nil)
	switch {
	case errors.Is(err, unix.EACCES):
		return nil, object.Unsupportedf("an eBPF program filters what it receives (SO_ATTACH_BPF), which cannot be checkpointed")
	case err != nil:
		return nil, fmt.Errorf("asking for the filter: %w", err)
	case n == 0:
		return nil, nil
	case n > maxFilter:
		return nil, fmt.Errorf("asking for the filter: it has %d instructions", n)
	}
	b, err := getFilter(fd, n)
	if err != nil {
		return nil, fmt.Errorf("asking for the filter: %w", err)
	}
	return b, nil
}

// check refuses what no socket can have.
func (c *Common) check() error {
	if odd := c.Flags &^ keptFlags; odd != 0 || c.Flags&unix.O_ACCMODE != unix.O_RDWR {
		return object.BadImagef("open flags %#o do not belong here", c.Flags)
	}
	if c.Mode&^0o7777 != 0 || c.UID == ^uint32(0) || c.GID == ^uint32(0) {
		return object.BadImagef("mode %#o and owner %d:%d of a socket are impossible", c.Mode, c.UID, c.GID)
	}
	if len(c.Filter)%sizeofFilter != 0 || len(c.Filter) > maxFilter*sizeofFilter || c.Budget > 1<<16-1 || len(c.TxTime) != 0 && len(c.TxTime) != sizeofTxTime {
		return object.BadImagef("a socket with a filter of %d bytes, a budget of %d and a clock of %d bytes is impossible", len(c.Filter), c.Budget, len(c.TxTime))
	}
	return checkOptions(c.Options, socketOptions)
}

// widen gives a socket all the room that its queues may need until finish; without the right to it it keeps what it has.
func widen(fd int) {
	for _, force := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		_ = sys.Setsockopt(fd, unix.SOL_SOCKET, force, number(1<<29)) // else what does not fit says so
	}
}

// setEarly sets the options that matter before a socket is bound or connected.
func (c *Common) setEarly(fd int) error {
	early := map[string]bool{"SO_REUSEADDR": true, "SO_REUSEPORT": true, "SO_BINDTODEVICE": true, "SO_MARK": true, "SO_DONTROUTE": true, "SO_PRIORITY": true}
	return setOptions(fd, c.Options, socketOptions, func(name string) bool { return !early[name] })
}

// finish sets everything else, once the queues of the socket are full: what is set here would change how they fill.
func (c *Common) finish(fd int) error {
	if err := c.ownInode(fd); err != nil {
		return err
	}
	if c.Budget != 0 {
		if err := sys.Setsockopt(fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL_BUDGET, number(int32(c.Budget))); err != nil {
			return fmt.Errorf("setting SO_BUSY_POLL_BUDGET of a socket: %w", err)
		}
	}
	if len(c.TxTime) > 0 {
		if err := sys.Setsockopt(fd, unix.SOL_SOCKET, unix.SO_TXTIME, c.TxTime); err != nil {
			return fmt.Errorf("setting SO_TXTIME of a socket: %w", err)
		}
	}
	if len(c.Filter) > 0 {
		if err := attachFilter(fd, c.Filter); err != nil {
			return fmt.Errorf("attaching the filter of a socket: %w", err)
		}
	}
	if err := usualOptions(fd, c.Options, socketOptions); err != nil {
		return err
	}
	if err := setOptions(fd, c.Options, socketOptions, nil); err != nil {
		return err
	}
	if find(c.Options, "SO_BUF_LOCK") == nil { // setting the sizes has locked them
		if err := sys.Setsockopt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, number(0)); err != nil && !errors.Is(err, unix.ENOPROTOOPT) && !errors.Is(err, unix.EOPNOTSUPP) { // MPTCP has it not
			return fmt.Errorf("setting SO_BUF_LOCK of a socket: %w", err)
		}
	}
	if c.Locked {
		if err := sys.Setsockopt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, number(1)); err != nil {
			return fmt.Errorf("setting SO_LOCK_FILTER of a socket: %w", err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, int(c.Flags&^unix.O_ACCMODE)); err != nil {
		return fmt.Errorf("setting status flags %#o: %w", c.Flags, err)
	}
	return nil
}

// ownInode gives the inode its owner, permissions and times.
func (c *Common) ownInode(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Uid != c.UID || st.Gid != c.GID {
		if err := unix.Fchown(fd, int(c.UID), int(c.GID)); err != nil {
			return fmt.Errorf("setting owner %d:%d of a socket: %w", c.UID, c.GID, err)
		}
	}
	if st.Mode&0o7777 != c.Mode {
		if err := unix.Fchmod(fd, c.Mode); err != nil {
			return fmt.Errorf("setting mode %#o of a socket: %w", c.Mode, err)
		}
	}
	return files.SetTimes(fd, c.Access, c.Modify)
}
