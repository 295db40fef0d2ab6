package terminals

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// The open file of a master. There is one for each: every open of /dev/ptmx makes a new pair.
type masterState struct {
	Pair  stream.Ref `msgpack:"pty"`
	Flags uint32     `msgpack:"flags"` // as F_GETFL
}

// An open file of a slave. It is opened by TIOCGPTPEER of the master (ioctl_tty(2)), which cannot lead to another terminal; under a path
// of its own where it was not opened in the devpts beside the master's path; and one that was opened as /dev/tty, by a helper of which
// the terminal is made the controlling one for a moment.
type slaveState struct {
	Pair    stream.Ref `msgpack:"pty"`
	Path    string     `msgpack:"path,omitempty"`    // where it is not the usual one
	Current bool       `msgpack:"current,omitempty"` // opened as Path, /dev/tty: the controlling terminal
	Flags   uint32     `msgpack:"flags"`             // as F_GETFL
}

// Device numbers (Documentation/admin-guide/devices.txt).
var (
	ptmxDevice = unix.Mkdev(5, 2)
	ttyDevice  = unix.Mkdev(5, 0)
)

// slaveMajor is that of slaves with the numbers that 20 bits have room for.
const slaveMajor = 136

const deletedSuffix = " (deleted)"

func claimsMaster(_ *object.Dumper, f *object.OpenFile) bool {
	return f.FD >= 0 && f.Stat.Mode&unix.S_IFMT == unix.S_IFCHR && uint64(f.Stat.Rdev) == ptmxDevice && f.View.Kind != kernelview.KindPath
}

func claimsSlave(d *object.Dumper, f *object.OpenFile) bool {
	return f.FD >= 0 && f.View.Kind == kernelview.KindTTY && files.OwnTerminal(d, f)
}

// terminal looks at the terminal of an open file.
func terminal(d *object.Dumper, f *object.OpenFile) (*kernelview.Terminal, error) {
	t, known, err := files.TerminalOf(d, f)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, &object.Unsupported{What: "a pseudo-terminal whose contents nobody knows but the kernel cannot be checkpointed",
			Do: "dump it as root on a kernel with BTF (--source bpf)"}
	}
	return &t, nil
}

func dumpMaster(d *object.Dumper, f *object.OpenFile) (*masterState, error) {
	t, err := terminal(d, f)
	if err != nil {
		return nil, err
	}
	if !t.Master {
		return nil, object.Unsupportedf("a terminal that is no master of devpts cannot be checkpointed")
	}
	flags, err := files.DumpFlags(f)
	if err != nil {
		return nil, err
	}
	ref, err := dumpPair(d, f, t)
	if err != nil {
		return nil, err
	}
	return &masterState{Pair: ref, Flags: flags}, nil
}

func dumpSlave(d *object.Dumper, f *object.OpenFile) (*slaveState, error) {
	t, err := terminal(d, f)
	if err != nil {
		return nil, err
	}
	flags, err := files.DumpFlags(f)
	if err != nil {
		return nil, err
	}
	s := &slaveState{Flags: flags, Current: uint64(f.Stat.Rdev) == ttyDevice}
	gone := t.PeerOpenings == 0
	if !gone {
		fd, err := f.Descriptor()
		if err != nil {
			return nil, err
		}
		if _, err := readTermios(fd); err != nil {
			return nil, &object.Unsupported{What: "its terminal was hung up (vhangup(2)) while the master is open, which cannot be checkpointed", Do: "close it before the dump"}
		}
	}
	if s.Current && gone {
		return nil, &object.Unsupported{What: "it was opened as /dev/tty, and that terminal has hung up, which cannot be checkpointed", Do: "close it before the dump"}
	}
	if s.Pair, err = dumpPair(d, f, t); err != nil || s.Pair.IsZero() {
		return nil, err
	}
	link := strings.TrimSuffix(f.Link, deletedSuffix)
	usual := masterPath(link) // of one that has hung up
	if !gone {
		if h, ours, err := files.MasterOf(d, t.Peer); err == nil && ours {
			if m, err := object.Meet(h.Process, h.FD, h.File); err == nil {
				usual = m.Link
			}
		}
	}
	if s.Current || link != slavePath(usual, uint32(t.Index)) {
		s.Path = link
	}
	return s, nil
}

func restoreMaster(r *object.Restorer, _ stream.Ref, s *masterState) (int, error) {
	if err := files.CheckDeviceFlags(s.Flags); err != nil {
		return -1, err
	}
	p, err := object.Recall[pair](r, s.Pair)
	if err != nil {
		return -1, err
	}
	if p.given || p.state.HungUp {
		return -1, object.BadImagef("the master of terminal %d is open twice, or closed", p.state.Index)
	}
	if s.Flags&unix.O_ACCMODE != unix.O_RDWR {
		return -1, object.BadImagef("the master of a terminal with flags %#o", s.Flags)
	}
	p.given, p.flags = true, s.Flags
	return dup(p.master.Int())
}

func restoreSlave(r *object.Restorer, ref stream.Ref, s *slaveState) (int, error) {
	if err := files.CheckDeviceFlags(s.Flags); err != nil {
		return -1, err
	}
	p, err := object.Recall[pair](r, s.Pair)
	if err != nil {
		return -1, err
	}
	if p.state.Unopened {
		return -1, object.BadImagef("a slave of terminal %d, which nobody has opened", p.state.Index)
	}
	if s.Current {
		return p.keepPlace(r, ref, s)
	}
	if s.Path != "" {
		return p.openAt(s)
	}
	// Not with O_CLOEXEC, which would stay among the flags of the file: unlike open(2) this takes them as they are.
	fd, err := sys.OpenSlave(p.master.Int(), int(s.Flags)|unix.O_NOCTTY)
	if err != nil {
		return -1, fmt.Errorf("opening the slave of terminal %d: %w", p.state.Index, err)
	}
	unix.CloseOnExec(fd.Int())
	return fd.Disown(), nil
}

// openAt opens the slave by a path that must lead to it.
func (p *pair) openAt(s *slaveState) (int, error) {
	pinned, _, err := files.PinDevice(s.Path)
	if err != nil {
		return -1, err
	}
	at := sys.NewFD(pinned)
	defer at.Close()
	var there, here unix.Stat_t
	if err := unix.Fstat(pinned, &there); err != nil {
		return -1, err
	}
	if err := unix.Fstat(p.slave.Int(), &here); err != nil {
		return -1, err
	}
	if there.Dev != here.Dev || there.Ino != here.Ino {
		return -1, fmt.Errorf("%s is another terminal now", s.Path)
	}
	return files.Reopen(pinned, s.Flags)
}

// keepPlace keeps the place of an open file of /dev/tty, which Open of current.go makes inside a task.
func (p *pair) keepPlace(r *object.Restorer, ref stream.Ref, s *slaveState) (int, error) {
	if p.state.HungUp {
		return -1, object.BadImagef("a terminal that has hung up cannot be the current one")
	}
	pinned, rdev, err := files.PinDevice(s.Path)
	if err != nil {
		return -1, err
	}
	if rdev != ttyDevice {
		_ = unix.Close(pinned)
		return -1, fmt.Errorf("%s is character device %d:%d, and not the controlling terminal", s.Path, unix.Major(rdev), unix.Minor(rdev))
	}
	if p.pooled < 0 {
		n, err := dup(p.slave.Int())
		if err == nil {
			p.pooled, err = r.Pool(n)
		}
		if err != nil {
			_ = unix.Close(pinned)
			return -1, err
		}
	}
	p.current = append(p.current, currentFile{ref: ref, state: s})
	return pinned, nil
}

// currentFile is an open file of /dev/tty.
type currentFile struct {
	ref   stream.Ref
	state *slaveState
}

// OpenCurrent returns, for every terminal that is open as /dev/tty, the calls with which a helper opens it so: a task that leads no
// process group, has no controlling terminal, and whose descriptor table is that of the pool. They end it.
func OpenCurrent(r *object.Restorer) ([]func(b *tracee.Batch), error) {
	var all []func(b *tracee.Batch)
	for _, f := range object.All[pairState](r.Plan) {
		p, err := object.Recall[pair](r, f.Ref)
		if err != nil {
			return nil, err
		}
		if len(p.current) == 0 {
			continue
		}
		var places []int
		for _, c := range p.current {
			place, err := r.File(c.ref)
			if err != nil {
				return nil, err
			}
			places = append(places, place)
		}
		all = append(all, func(b *tracee.Batch) {
			n := b.Sys()
			b.Call(n.Setsid)
			b.Call(n.Ioctl, p.pooled, unix.TIOCSCTTY, 0).Note("terminal %d for a moment", p.state.Index)
			for i, c := range p.current {
				fd := b.Call(n.Openat, unix.AT_FDCWD, c.state.Path, c.state.Flags, 0).Note("opening %s", c.state.Path)
				b.Call(n.Dup3, fd, places[i], 0)
				b.Call(n.Close, fd)
			}
			b.Call(n.ExitGroup, 0)
		})
	}
	return all, nil
}

// MasterKind is the kind of masters of pseudo-terminals.
var MasterKind = object.NewFileKind(masterType, claimsMaster, dumpMaster, restoreMaster)

// SlaveKind is the kind of their slaves.
var SlaveKind = object.NewFileKind(slaveType, claimsSlave, dumpSlave, restoreSlave)
