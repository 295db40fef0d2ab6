package sockets

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/failpoint"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// unixTree is what is known of the unix sockets of a tree: those that its descriptors lead to, those in flight, those that wait for
// accept(2), and those that are closed and somebody still remembers.
type unixTree struct {
	view    kernelview.UnixView
	sockets map[kernelview.ID]*kernelview.Unix // by socket
	files   map[kernelview.ID]kernelview.ID    // sockets by open file
	waiting map[kernelview.ID]kernelview.ID    // sockets in the queue of a listening one: that
	flights []Flight

	refs map[kernelview.ID]stream.Ref // sockets that have a record
	todo []unixTodo                   // of which the links have not been added
}

type unixTodo struct {
	u *kernelview.Unix
	p *object.Process
}

// Flight is a reference to an open file that a message in a unix socket holds (SCM_RIGHTS).
type Flight struct {
	File kernelview.ID
	// Process and FD are a descriptor of the socket in whose queue, or in that of what it will accept, the message is; FD is
	// negative where that is in flight itself.
	Process *object.Process
	FD      int

	to    kernelview.ID // the socket
	index int           // of the message in its queue
	place int           // of the file in the message
}

type unixTreeKey struct{}

// unixTreeOf looks at all unix sockets of the tree, once.
func unixTreeOf(d *object.Dumper) (*unixTree, error) {
	return object.Memo(d, unixTreeKey{}, func() (*unixTree, error) {
		view, ok := d.View.(kernelview.UnixView)
		if !ok {
			return nil, &object.Lacking{What: "what waits in unix sockets is only in the kernel's memory", Do: "run as root on a kernel with BTF"}
		}
		t := &unixTree{view: view, sockets: map[kernelview.ID]*kernelview.Unix{}, files: map[kernelview.ID]kernelview.ID{},
			waiting: map[kernelview.ID]kernelview.ID{}, refs: map[kernelview.ID]stream.Ref{}}
		return t, t.collect(d)
	})
}

// collect finds them, and all open files in flight, however deep: a socket in flight has a queue, too.
func (t *unixTree) collect(d *object.Dumper) error {
	var next []Flight
	if err := files.EachFile(d, func(h files.Holder) error {
		if h.File.Kind != kernelview.KindSocket {
			return nil
		}
		found, err := t.enter(h.File.ID, h.Process, h.FD)
		next = append(next, found...)
		return err
	}); err != nil {
		return err
	}
	for len(next) > 0 {
		t.flights = append(t.flights, next...)
		var ids []kernelview.ID
		by := map[kernelview.ID]*object.Process{}
		for _, f := range next {
			if _, known := t.files[f.File]; !known {
				ids = append(ids, f.File)
				by[f.File] = f.Process
			}
		}
		next = nil
		open, err := t.view.OpenFiles(kernelview.SortIDs(ids))
		if err != nil {
			return fmt.Errorf("looking at descriptors in flight: %w", err)
		}
		for i := range open {
			if open[i].Kind != kernelview.KindSocket {
				continue
			}
			found, err := t.enter(open[i].ID, by[open[i].ID], -1)
			if err != nil {
				return err
			}
			next = append(next, found...)
		}
	}
	return nil
}

// enter notes the socket behind an open file, if it is a unix socket, and returns what is in flight to it.
func (t *unixTree) enter(file kernelview.ID, p *object.Process, fd int) ([]Flight, error) {
	if _, known := t.files[file]; known {
		return nil, nil
	}
	u, err := t.view.Unix(file)
	if errors.Is(err, kernelview.ErrKind) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t.files[file], t.sockets[u.ID] = u.ID, &u
	return t.inFlight(&u, p, fd), nil
}

func (t *unixTree) inFlight(u *kernelview.Unix, p *object.Process, fd int) []Flight {
	var out []Flight
	for i := range u.Messages {
		for place, file := range u.Messages[i].Files {
			out = append(out, Flight{File: file, Process: p, FD: fd, to: u.ID, index: i, place: place})
		}
	}
	for i := range u.Pending {
		e := &u.Pending[i]
		t.sockets[e.ID], t.waiting[e.ID] = e, u.ID
		out = append(out, t.inFlight(e, p, fd)...)
	}
	return out
}

// Flights returns the references that messages in the tree's unix sockets hold to open files. Without a look at the kernel's memory
// there are none to be seen.
func Flights(d *object.Dumper) ([]Flight, error) {
	if _, ok := d.View.(kernelview.UnixView); !ok {
		return nil, nil
	}
	t, err := unixTreeOf(d)
	if err != nil {
		return nil, err
	}
	return t.flights, nil
}

func (t *unixTree) byFile(file kernelview.ID) (*kernelview.Unix, error) {
	u := t.sockets[t.files[file]]
	if u == nil {
		return nil, errors.New("internal error: a unix socket that was not met before")
	}
	return u, nil
}

// byID returns a socket that an answer has named.
func (t *unixTree) byID(id kernelview.ID) (*kernelview.Unix, error) {
	if u := t.sockets[id]; u != nil {
		return u, nil
	}
	u, err := t.view.UnixOf(id)
	if err != nil {
		return nil, err
	}
	t.sockets[id] = &u
	return &u, nil
}

// peerOf returns whom a socket is connected to, nil for nobody.
func (t *unixTree) peerOf(u *kernelview.Unix) (*kernelview.Unix, error) {
	if u.Peer == 0 || u.Dead {
		return nil, nil
	}
	return t.byID(u.Peer)
}

// inTree says whether the tree has a socket that is not closed.
func (t *unixTree) inTree(d *object.Dumper, u *kernelview.Unix) bool {
	if u.File == 0 {
		return t.waiting[u.ID] != 0
	}
	_, has := t.files[u.File]
	return has
}

// refuseOutside refuses a socket that is connected to one outside of the tree, which a restore could not connect it to again.
func (t *unixTree) refuseOutside(d *object.Dumper, f *object.OpenFile, u *kernelview.Unix) error {
	all := []*kernelview.Unix{u}
	for i := range u.Pending {
		all = append(all, &u.Pending[i])
	}
	for _, one := range all {
		peer, err := t.peerOf(one)
		if err != nil {
			return err
		}
		if peer == nil || peer.Dead || t.inTree(d, peer) {
			continue
		}
		if one.Type == unix.SOCK_DGRAM && peer.Bound && len(peer.Address) > 0 && (peer.Address[0] == 0 || peer.Address[0] == '/') && peer.Peer == 0 && one.PeerCred == nil {
			continue // as everybody who writes to the system log
		}
		who := t.holderOf(peer)
		if one != u {
			return &object.Unsupported{What: fmt.Sprintf("a connection that waits for accept(2) comes from outside of the tree (%s)", who),
				Do: "wait until it has been accepted and closed, or dump that process too"}
		}
		return &object.Unsupported{What: fmt.Sprintf("the other end of the connection is outside of the tree (%s)", who),
			Do: fmt.Sprintf("dump that process too, or pass --external '%s' and give something in its place at restore with --inherit", f.Link)}
	}
	return nil
}

// holderOf names who has a socket.
func (t *unixTree) holderOf(u *kernelview.Unix) string {
	if u.File == 0 {
		return "not accepted yet by who listens at " + addressText(u.Address)
	}
	pids, err := procfs.Processes()
	if err != nil {
		return "of a process that cannot be found"
	}
	for _, pid := range pids {
		tables, err := t.view.(kernelview.View).Files([]int{pid})
		if err != nil || len(tables) != 1 {
			continue
		}
		for _, fd := range tables[0].FDs {
			if fd.File.ID == u.File {
				st, _ := procfs.ReadStat(pid)
				return fmt.Sprintf("pid %d (%s), fd %d", pid, st.Comm, fd.FD)
			}
		}
	}
	return "of no process that can be seen"
}

// Enter has every open file that is in flight, and that no descriptor of the tree leads to, be looked at like any other. It comes
// after leaks have been counted: for that it duplicates them.
func Enter(d *object.Dumper) error {
	if _, ok := d.View.(kernelview.UnixView); !ok {
		return nil
	}
	t, err := unixTreeOf(d)
	if err != nil {
		return err
	}
	references := map[kernelview.ID]int{}
	for _, f := range t.flights {
		references[f.File]++
	}
	for _, f := range t.flights { // who counts references is to find these, too
		known, err := files.Holders(d, f.File)
		if err != nil {
			return err
		}
		if len(known) > 0 {
			if err := files.Enter(d, known[0]); err != nil {
				return err
			}
		}
	}
	for left := t.flights; len(left) > 0; {
		var later []Flight
		for _, f := range left {
			known, err := files.Holders(d, f.File)
			if err != nil {
				return err
			}
			if len(known) > 0 {
				continue
			}
			done, err := t.peek(d, &f, references)
			if err != nil {
				d.Refuse(t.flightError(f, err))
				continue
			}
			if !done {
				later = append(later, f)
			}
		}
		if len(later) == len(left) {
			for _, f := range later {
				d.Refuse(t.flightError(f, object.Unsupportedf("a descriptor is in flight in a unix socket that nobody can receive from any more, which cannot be checkpointed")))
			}
			return nil
		}
		left = later
	}
	return nil
}

func (t *unixTree) flightError(f Flight, err error) error {
	return &object.Error{PID: f.Process.PID, Comm: f.Process.Comm(), FD: f.FD, Err: err}
}

// peek takes a duplicate of a file in flight, by a look at the message (MSG_PEEK), which leaves it where it is. done is false where
// the socket that it is in cannot be got at yet.
func (t *unixTree) peek(d *object.Dumper, f *Flight, references map[kernelview.ID]int) (done bool, err error) {
	u := t.sockets[f.to]
	if t.waiting[f.to] != 0 {
		return false, object.Unsupportedf("a descriptor is in flight in a connection that has not been accepted, and its sender has closed it, which cannot be checkpointed")
	}
	holders, err := files.Holders(d, u.File)
	if err != nil || len(holders) == 0 {
		return false, err
	}
	at, err := object.Meet(holders[0].Process, holders[0].FD, holders[0].File)
	if err != nil {
		return false, err
	}
	defer at.Close()
	fd, err := at.Descriptor()
	if err != nil {
		return false, err
	}
	m := &u.Messages[f.index]
	undo := func(was *int) error {
		if d.Undo == nil {
			return nil
		}
		if was == nil {
			return d.Undo(nil)
		}
		return d.Undo(&object.PeekOff{PID: holders[0].Process.Leader().TID, FD: holders[0].FD, Ino: at.Stat.Ino, Was: *was})
	}
	got, err := peekRights(fd, u, f.index, undo)
	if err != nil {
		return false, err
	}
	own := make([]*sys.FD, len(got))
	for i, n := range got {
		own[i] = sys.NewFD(n)
		d.Keep(own[i])
	}
	if len(got) != len(m.Files) {
		return false, object.Unsupportedf("%d descriptors are in flight in one message, of which %d can be looked at, which cannot be checkpointed", len(m.Files), len(got))
	}
	tables, err := t.view.(kernelview.View).Files([]int{os.Getpid()})
	if err != nil {
		return false, err
	}
	// Who looks at them looks at this process, and hears of the one to which they are in flight.
	self := *holders[0].Process
	self.Threads = []*object.Thread{{Process: &self, TID: os.Getpid()}}
	for i, n := range got {
		j := slices.IndexFunc(tables[0].FDs, func(fd kernelview.FD) bool { return fd.FD == n })
		if j < 0 || tables[0].FDs[j].File.ID != m.Files[i] {
			return false, errors.New("looking at descriptors in flight: they are others; somebody uses the socket")
		}
		if known, err := files.Holders(d, m.Files[i]); err != nil || len(known) > 0 {
			if err != nil {
				return false, err
			}
			continue
		}
		file := tables[0].FDs[j].File
		if err := refuseAlone(file); err != nil {
			return false, err
		}
		count := references[file.ID]
		for _, fd := range tables[0].FDs {
			if fd.File.ID == file.ID { // the duplicates, which count as well
				count++
			}
		}
		for range count {
			if err := files.Enter(d, files.Holder{Process: &self, FD: n, File: file}); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// refuseAlone refuses what is kept for descriptor tables only.
func refuseAlone(f *kernelview.File) error {
	if owner, ok := f.Owner.Get(); !ok || owner != (kernelview.Owner{}) {
		return object.Unsupportedf("a descriptor in flight has a receiver of SIGIO (fcntl(2) F_SETOWN), which cannot be checkpointed")
	}
	if locks, ok := f.Locks.Get(); !ok || locks {
		return object.Unsupportedf("a descriptor in flight, which nobody has open, may hold a lock, which cannot be checkpointed")
	}
	return nil
}

// peekRights looks at the message of a number in the queue of a socket and returns duplicates of what it carries. Where there is
// something before it SO_PEEK_OFF leads over that, and is as before when this returns; undo is told the value before, and then nil.
func peekRights(fd int, u *kernelview.Unix, index int, undo func(was *int) error) (out []int, err error) {
	before := 0
	for i := range index {
		before += len(u.Messages[i].Data)
	}
	old, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	for i := range index {
		if len(u.Messages[i].Data) == 0 {
			return nil, object.Unsupportedf("a descriptor is in flight behind a message without bytes, and its sender has closed it, which cannot be checkpointed")
		}
	}
	if before > 0 || old >= 0 {
		if err := undo(&old); err != nil {
			return nil, err
		}
		defer func() {
			back := os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, old))
			if err = errors.Join(err, back); back == nil {
				err = errors.Join(err, undo(nil))
			}
		}()
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, before); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
		if err := failpoint.Hit("look.peek"); err != nil {
			return nil, err
		}
	}
	const most = 253 // SCM_MAX_FD
	control := make([]byte, unix.CmsgSpace(4*most)+unix.CmsgSpace(unix.SizeofUcred)+1024)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 1), control, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("looking at a message: %w", err)
	}
	all, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return nil, fmt.Errorf("looking at a message: %w", err)
	}
	for i := range all {
		switch {
		case all[i].Header.Level == unix.SOL_SOCKET && all[i].Header.Type == unix.SCM_RIGHTS:
			rights, err := unix.ParseUnixRights(&all[i])
			if err != nil {
				return nil, fmt.Errorf("looking at a message: %w", err)
			}
			out = append(out, rights...)
		case all[i].Header.Level == unix.SOL_SOCKET && all[i].Header.Type == scmPidfd && len(all[i].Data) == 4:
			_ = unix.Close(int(numberOf(all[i].Data))) // SO_PASSPIDFD has made it for us
		}
	}
	return out, nil
}

// SetBack sets SO_PEEK_OFF of a socket back, if it is still there.
func SetBack(p *object.PeekOff) error {
	pidfd, err := sys.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening a pidfd of pid %d: %w", p.PID, err)
	}
	defer pidfd.Close() //nolint:errcheck // only used for the descriptor
	s, err := sys.PidfdGetfd(pidfd, p.FD)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("setting SO_PEEK_OFF of fd %d of pid %d back: %w", p.FD, p.PID, err)
	}
	defer s.Close() //nolint:errcheck // a duplicate
	var st unix.Stat_t
	if err := unix.Fstat(s.Int(), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK || st.Ino != p.Ino {
		return os.NewSyscallError("fstat", err) // another process has the number by now
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(s.Int(), unix.SOL_SOCKET, unix.SO_PEEK_OFF, p.Was))
}

// scmPidfd is SCM_PIDFD of linux/socket.h.
const scmPidfd = 4
