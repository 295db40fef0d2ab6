package sockets

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A unix(7) socket: of streams, datagrams or sequenced packets; unnamed, abstract (autobound ones are), or with a path, whose text
// is kept as it was given to bind(2), also when the file has been moved, unlinked or replaced since. A socket is an object of its
// own beside its open file: there are such without one, which accept(2) has not given yet, and which are closed but still the sender of
// a message or the other end of somebody. Who is connected to whom, and what waits, is in "link" records behind all objects
// (unix_links.go), since sockets refer to each other, and to each other's descriptors in flight, in every way.
//
// The kernel tells: struct unix_sock, unix_address, unix_skb_parms and scm_fp_list (net/unix/af_unix.c, net/core/scm.c).
//
// Refused by name: a peer outside of the tree, unless a datagram socket has found it by its name; timestamps of messages (SO_TIMESTAMP);
// SO_PEERCRED of a process that lives outside of the tree; a stream or pair that was given a path behind connect or socketpair.
//
// Lost: that a process at the other end is the one that is meant by SO_PEERPIDFD (its number is right, the pidfd fails as for a
// process that has ended), and how the sender of a message has ended, which the pidfd of SO_PASSPIDFD tells since Linux 6.16; security
// labels of messages (SO_PASSSEC) and peers (SO_PEERSEC); the inode number of a socket's file.
type unixState struct {
	Type      uint16    `msgpack:"type"`              // SOCK_*
	Address   []byte    `msgpack:"address,omitempty"` // what bind(2) was given behind the family: a path with its zero byte, or an abstract name with one before it
	Bound     bool      `msgpack:"bound,omitempty"`   // it is found by the address; else it has it from who accepted it
	File      *unixPath `msgpack:"file,omitempty"`    // where its path leads to it; absent: that is gone
	Listening bool      `msgpack:"listening,omitempty"`
	Backlog   uint32    `msgpack:"backlog,omitempty"`
	Shutdown  uint8     `msgpack:"shutdown,omitempty"` // 1: reads, 2: writes
	Reset     bool      `msgpack:"reset,omitempty"`    // the next call says ECONNRESET
	Closed    bool      `msgpack:"closed,omitempty"`   // has no file any more
	Cred      *unixCred `msgpack:"cred,omitempty"`     // SO_PEERCRED
	Remote    []byte    `msgpack:"remote,omitempty"`   // the address, outside of the tree, that a datagram socket is connected to
	Inq       bool      `msgpack:"inq,omitempty"`      // SO_INQ
}

// unixCred is who made a connection.
type unixCred struct {
	PID    int32    `msgpack:"pid,omitempty"` // in the pid namespace of the tree; 0: outside of it
	UID    uint32   `msgpack:"uid"`
	GID    uint32   `msgpack:"gid"`
	Groups []uint32 `msgpack:"groups,omitempty"`
}

// unixPath is the file of a socket.
type unixPath struct {
	Path   string `msgpack:"path"`
	Mode   uint32 `msgpack:"mode"` // permission bits
	UID    uint32 `msgpack:"uid"`
	GID    uint32 `msgpack:"gid"`
	Access int64  `msgpack:"atime"` // ns since 1970
	Modify int64  `msgpack:"mtime"`
}

// unixFileState is the open file of a unix socket.
type unixFileState struct {
	Socket stream.Ref `msgpack:"socket"`
	Common
}

const (
	unixType      stream.Type = "socket.unix"
	unixLinkType  stream.Type = "link.unix"
	unixQueueType stream.Type = "link.unix.queue"
)

var claimsUnix = claims(func(s *kernelview.Socket) bool { return s.Family == unix.AF_UNIX })

func dumpUnix(d *object.Dumper, f *object.OpenFile) (*unixFileState, error) {
	t, err := unixTreeOf(d)
	if err != nil {
		return nil, err
	}
	u, err := t.byFile(f.View.ID)
	if err != nil {
		return nil, err
	}
	if err := t.refuseOutside(d, f, u); err != nil {
		return nil, err
	}
	c, err := dumpCommon(f, &u.Socket)
	if err != nil {
		return nil, err
	}
	if u.Err != 0 && (unix.Errno(u.Err) != unix.ECONNRESET || u.Type == unix.SOCK_DGRAM) {
		return nil, object.Unsupportedf("an error waits to be told (SO_ERROR: %v), which cannot be checkpointed", unix.Errno(u.Err))
	}
	ref, err := t.add(d, f.Process, u)
	if err != nil {
		return nil, err
	}
	return &unixFileState{Socket: ref, Common: *c}, nil
}

// add adds the record of a socket, once, and before it those of what it will give to accept(2).
func (t *unixTree) add(d *object.Dumper, p *object.Process, u *kernelview.Unix) (stream.Ref, error) {
	if ref, ok := t.refs[u.ID]; ok {
		return ref, nil
	}
	s := &unixState{Type: u.Type, Address: u.Address, Bound: u.Bound, Shutdown: u.Shutdown, Inq: u.Inq,
		Reset: unix.Errno(u.Err) == unix.ECONNRESET}
	if u.Dead {
		s = &unixState{Type: u.Type, Address: u.Address, Closed: true}
	}
	if t.waiting[u.ID] != 0 && u.Err != 0 {
		return stream.Ref{}, object.Unsupportedf("a connection that waits for accept(2) has failed, which cannot be checkpointed")
	}
	if u.State == kernelview.SocketListening {
		s.Listening, s.Backlog = true, u.MaxBacklog
		if uint32(len(u.Pending)) > u.MaxBacklog+1 {
			return stream.Ref{}, object.Unsupportedf("%d connections wait for accept(2), more than its backlog of %d allows, which cannot be checkpointed", len(u.Pending), u.MaxBacklog)
		}
	}
	var err error
	if s.Cred, err = t.cred(d, u); err != nil {
		return stream.Ref{}, err
	}
	if !u.Dead && u.Bound && len(u.Address) > 0 && u.Address[0] != 0 {
		if s.File, err = socketFileOf(p, u); err != nil {
			return stream.Ref{}, err
		}
	}
	peer, err := t.peerOf(u)
	if err != nil {
		return stream.Ref{}, err
	}
	if peer != nil && !peer.Dead && !t.inTree(d, peer) {
		s.Remote = peer.Address // refuseOutside has allowed it
	}
	if t.namedPair(u, peer) {
		return stream.Ref{}, object.Unsupportedf("it was made by socketpair(2) and bound to a path afterwards, which cannot be checkpointed")
	}
	for i := range u.Pending {
		e := &u.Pending[i]
		t.sockets[e.ID], t.waiting[e.ID] = e, u.ID
		if _, err := t.add(d, p, e); err != nil {
			return stream.Ref{}, err
		}
	}
	ref := d.Add(unixType, s)
	t.refs[u.ID] = ref
	t.todo = append(t.todo, unixTodo{u, p})
	return ref, nil
}

// namedPair says whether a socket with a path was made by socketpair(2), not connected to one that listens: nothing makes such a pair again
// with the credentials of who has made it.
func (t *unixTree) namedPair(u, peer *kernelview.Unix) bool {
	switch {
	case u.Dead || !u.Bound || len(u.Address) == 0 || u.Address[0] == 0:
		return false
	case u.Type == unix.SOCK_DGRAM:
		return u.PeerCred != nil // only socketpair(2) notes them
	case peer == nil:
		return false
	}
	accepted := t.waiting[peer.ID] != 0 || len(peer.Address) > 0 && (peer.Dead || !peer.Bound)
	return !accepted
}

// cred describes SO_PEERCRED.
func (t *unixTree) cred(d *object.Dumper, u *kernelview.Unix) (*unixCred, error) {
	c := u.PeerCred
	if c == nil || u.Dead {
		return nil, nil
	}
	pid, err := treeNumber(d, c.PID, c.Numbers)
	if err != nil {
		return nil, fmt.Errorf("who it is connected to, or who listens (SO_PEERCRED), is %w", err)
	}
	return &unixCred{PID: pid, UID: c.UID, GID: c.GID, Groups: c.Groups}, nil
}

// treeNumber returns the number that the tree knows a process by: pid in the namespace of the caller, numbers in that and those
// within. One that has ended keeps its number; one that lives outside of the tree is refused, unless it is outside of the
// tree's pid namespace, where it has none: 0.
func treeNumber(d *object.Dumper, pid int, numbers []int) (int32, error) {
	level := len(d.Root.Status.NSpid) - 1
	for _, p := range d.Processes {
		if p.PID == pid && pid > 0 {
			return int32(p.ID), nil
		}
	}
	if level > 0 {
		if level >= len(numbers) {
			return 0, nil
		}
		return int32(numbers[level]), nil
	}
	if pid <= 0 {
		return 0, object.Unsupportedf("a process of another pid namespace, which cannot be checkpointed")
	}
	if st, err := procfs.ReadStat(pid); err == nil {
		return 0, &livesOutside{pid, st.Starttime, object.Unsupported{What: fmt.Sprintf("pid %d (%s), which lives outside of the tree, which cannot be checkpointed", pid, st.Comm),
			Do: "dump that process too, or end it before the dump"}}
	}
	return int32(pid), nil
}

// livesOutside is a process that lives outside of the tree, in the pid namespace of both.
type livesOutside struct {
	pid     int
	began   uint64 // clock ticks since boot
	refusal object.Unsupported
}

func (e *livesOutside) Error() string { return e.refusal.Error() }
func (e *livesOutside) Unwrap() error { return &e.refusal }

// socketFileOf finds the file by which a bound socket is found, nil where it has no name any more.
func socketFileOf(p *object.Process, u *kernelview.Unix) (*unixPath, error) {
	if u.Links == 0 {
		return nil, nil
	}
	text, _, _ := strings.Cut(string(u.Address), "\x00")
	var places []string
	if strings.HasPrefix(text, "/") {
		places = append(places, text)
	}
	if u.Mount != 0 {
		if mounted, err := mountPoint(p, int(u.Mount)); err == nil {
			places = append(places, path.Join(mounted, u.Name))
		}
	}
	for _, name := range places {
		st, err := files.Lookup(p, name)
		if err == nil && st.Ino == u.Ino && st.Mode&unix.S_IFMT == unix.S_IFSOCK && (uint64(st.Dev) == u.Dev || len(places) == 1) {
			return pathState(name, &st), nil
		}
	}
	// Its own name is gone, and another one may be beside it: some programs bind a temporary name and link(2) it.
	for _, name := range places {
		dir := path.Dir(name)
		at, err := files.Reach(p, dir)
		if err != nil {
			continue
		}
		entries, err := os.ReadDir(at)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.Type() != os.ModeSocket {
				continue
			}
			other := path.Join(dir, e.Name())
			if st, err := files.Lookup(p, other); err == nil && st.Ino == u.Ino && uint64(st.Dev) == u.Dev {
				return pathState(other, &st), nil
			}
		}
	}
	return nil, &object.Unsupported{What: fmt.Sprintf("it is bound to %q, and the %d names that this has now are not to be found", text, u.Links),
		Do: "remove its other hard links, or what was mounted over it"}
}

func pathState(name string, st *unix.Stat_t) *unixPath {
	return &unixPath{Path: name, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Access: st.Atim.Nano(), Modify: st.Mtim.Nano()}
}

// mountPoint returns where a process has a mount.
func mountPoint(p *object.Process, id int) (string, error) {
	b, err := os.ReadFile(procfs.Path(p.Leader().TID, "mountinfo"))
	if err != nil {
		return "", err
	}
	all, err := procfs.ParseMountinfo(b)
	if err != nil {
		return "", err
	}
	for i := range all {
		if all[i].ID == id {
			return all[i].Point, nil
		}
	}
	return "", errors.New("the mount is not there")
}

// addressText is an address as a person writes it.
func addressText(a []byte) string {
	if len(a) == 0 {
		return "no address"
	}
	if a[0] == 0 {
		return "@" + string(bytes.ReplaceAll(a[1:], []byte{0}, []byte{'@'}))
	}
	text, _, _ := strings.Cut(string(a), "\x00")
	return text
}

// UnixKind is the kind of open files that are unix sockets.
var UnixKind = object.NewFileKind("file.unix", claimsUnix, dumpUnix, restoreUnixFile)

// UnixObject is the record of a unix socket itself.
var UnixObject = object.NewKind(unixType, restoreUnix)

// UnixLink is the record of who is connected to whom.
var UnixLink = object.NewKind(unixLinkType, restoreUnixLink)

// UnixQueue is the record of what waits in a unix socket.
var UnixQueue = object.NewKind(unixQueueType, restoreUnixQueue)
