package sockets

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// madeUnix is a unix socket at restore.
type madeUnix struct {
	*unixState
	ref    stream.Ref
	file   stream.Ref // its open file; zero: none
	common *Common
	n      int // its number in the pool; -1: it waits for accept(2), or none yet

	peer     *madeUnix
	listener *madeUnix   // in whose queue it waits
	pending  []*madeUnix // who wait in its own
	inherits bool        // it was accepted: its address is that of who listened
	paired   *madeUnix   // with whom socketpair(2) has made it
	place    *namedFile  // of one with a path
	messages []*unixWaiting
	next     int // the first message that has not been sent
	fill     uint64

	listening object.Actor // whom those who connect now are told
	listens   bool
}

type unixWaiting struct {
	unixMessage
	data []byte
}

// unixWorld is all unix sockets of an image.
type unixWorld struct {
	r   *object.Restorer
	all []*madeUnix
}

func restoreUnix(r *object.Restorer, ref stream.Ref, s *unixState) error {
	if err := s.check(); err != nil {
		return err
	}
	m := &madeUnix{unixState: s, ref: ref, n: -1}
	r.Remember(ref, m)
	r.OnContent(ref, func(meta *object.Data, data []byte) error { return m.content(r, meta, data) })
	if first := object.All[unixState](r.Plan)[0].Ref; first == ref {
		w := &unixWorld{r: r}
		r.AfterObjects(w.make)
		r.AfterContents(w.finish)
	}
	return nil
}

// check refuses what no socket can be.
func (s *unixState) check() error {
	const longest = 108 + 1 // sun_path, and the zero byte behind a path that fills it
	switch {
	case s.Type != unix.SOCK_STREAM && s.Type != unix.SOCK_DGRAM && s.Type != unix.SOCK_SEQPACKET:
		return object.BadImagef("a unix socket of type %d", s.Type)
	case len(s.Address) > longest || s.Bound && len(s.Address) == 0 || len(s.Address) > 0 && s.Address[0] != 0 && s.Address[len(s.Address)-1] != 0:
		return object.BadImagef("%q is no address of a unix socket", clip(string(s.Address)))
	case s.Shutdown > 3, s.Listening && (s.Type == unix.SOCK_DGRAM || !s.Bound || s.Closed), s.Backlog > 1<<31-1:
		return object.BadImagef("a unix socket of type %d with shutdown %d and backlog %d is impossible", s.Type, s.Shutdown, s.Backlog)
	case len(s.Remote) > longest || len(s.Remote) > 0 && s.Type != unix.SOCK_DGRAM:
		return object.BadImagef("%q is no address to be connected to", clip(string(s.Remote)))
	case s.File != nil && (!s.Bound || s.Address[0] == 0):
		return object.BadImagef("a unix socket without a path has a file")
	}
	if c := s.Cred; c != nil && (c.PID < 0 || c.UID == ^uint32(0) || c.GID == ^uint32(0) || len(c.Groups) > 65536) {
		return object.BadImagef("process %d of user %d:%d is impossible", c.PID, c.UID, c.GID)
	}
	if s.Bound && s.Address[0] != 0 {
		if _, err := placeOf(string(s.Address[:len(s.Address)-1])); err != nil {
			return err
		}
	}
	return s.File.check()
}

func restoreUnixFile(r *object.Restorer, ref stream.Ref, s *unixFileState) (int, error) {
	if err := s.Common.check(); err != nil {
		return -1, err
	}
	m, err := object.Recall[madeUnix](r, s.Socket)
	if err != nil {
		return -1, err
	}
	if !m.file.IsZero() || m.Closed {
		return -1, object.BadImagef("two open files are the same unix socket, or it is closed")
	}
	m.file, m.common = ref, &s.Common
	// What takes its place is made later, when all is known of who is connected to whom.
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/", Err: err}
	}
	return fd, nil
}

func restoreUnixLink(r *object.Restorer, _ stream.Ref, s *unixLinkState) error {
	m, err := object.Recall[madeUnix](r, s.Socket)
	if err != nil {
		return err
	}
	peer, err := object.Recall[madeUnix](r, s.Peer)
	if err != nil {
		return err
	}
	if m.peer != nil || m.Closed || m.Listening || peer.Listening || m.Type != peer.Type || len(m.Remote) > 0 || m == peer && m.Type != unix.SOCK_DGRAM {
		return object.BadImagef("unix socket %s cannot be connected to %s", s.Socket, s.Peer)
	}
	m.peer = peer
	if s.Listener.IsZero() {
		return nil
	}
	l, err := object.Recall[madeUnix](r, s.Listener)
	if err != nil {
		return err
	}
	if !l.Listening || m.Reset || !m.file.IsZero() || m.Bound || m.Type != l.Type || m.Cred == nil {
		return object.BadImagef("unix socket %s cannot wait to be accepted", s.Socket)
	}
	m.listener, l.pending = l, append(l.pending, m)
	return nil
}

func restoreUnixQueue(r *object.Restorer, _ stream.Ref, s *unixQueueState) error {
	m, err := object.Recall[madeUnix](r, s.Socket)
	if err != nil {
		return err
	}
	if m.Closed || m.Listening {
		return object.BadImagef("messages in unix socket %s, which can have none", s.Socket)
	}
	for i := range s.Messages {
		x := &s.Messages[i]
		const most = 253 // SCM_MAX_FD
		if x.OOB && (m.Type != unix.SOCK_STREAM || x.Length > 1 || x.Length == 0 && len(x.Files) > 0) {
			return object.BadImagef("a message of %d bytes sent with MSG_OOB is impossible", x.Length)
		}
		if len(x.Files) > most || x.Length == 0 && m.Type == unix.SOCK_STREAM && !x.OOB {
			return object.BadImagef("a message of %d bytes with %d descriptors is impossible", x.Length, len(x.Files))
		}
		if c := x.Cred; c != nil {
			if c.PID < 0 || c.UID == ^uint32(0) || c.GID == ^uint32(0) {
				return object.BadImagef("a message of process %d, user %d:%d", c.PID, c.UID, c.GID)
			}
			r.NeedEnded(object.EndedProcess{ID: c.PID, Began: c.Began})
		}
		m.messages = append(m.messages, &unixWaiting{unixMessage: *x})
	}
	return nil
}

// make makes all sockets that need nobody else, and asks for the rest: who makes a connection, or lets others make them, is noted in
// the socket, and so must be the same process.
func (w *unixWorld) make() error {
	for _, f := range object.All[unixState](w.r.Plan) {
		m, err := object.Recall[madeUnix](w.r, f.Ref)
		if err != nil {
			return err
		}
		w.all = append(w.all, m)
	}
	for _, m := range w.all {
		if m.Closed && m.Type == unix.SOCK_DGRAM {
			m.Bound = len(m.Address) > 0
		}
	}
	for _, m := range w.all {
		if err := w.place(m); err != nil {
			return err
		}
	}
	for _, m := range w.all {
		if err := w.checkPeer(m); err != nil {
			return err
		}
	}
	for _, m := range w.all {
		if m.inherits || m.paired != nil {
			continue
		}
		if err := w.single(m); err != nil {
			return err
		}
	}
	if err := w.connections(); err != nil {
		return err
	}
	return w.pairs()
}

// place finds a number in the pool for a socket.
func (w *unixWorld) place(m *madeUnix) error {
	if m.listener != nil {
		m.inherits = true
		return nil
	}
	var err error
	if !m.file.IsZero() {
		m.n, err = w.r.File(m.file)
		return err
	}
	if !m.Closed {
		return object.BadImagef("unix socket %s has no file", m.ref)
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/", Err: err}
	}
	m.n, err = w.r.Pool(fd)
	return err
}

// checkPeer finds out how a connected socket is to be made: by socketpair(2), or by connect(2) and accept(2), where one of the two
// has an address that it was not bound to.
func (w *unixWorld) checkPeer(m *madeUnix) error {
	p := m.peer
	if m.Type == unix.SOCK_DGRAM {
		if m.Cred == nil || m.paired != nil {
			return nil
		}
		// Only socketpair(2) notes credentials in datagram sockets. Who was made with it may be gone, or be connected to others now.
		if p == nil || p == m || p.paired != nil || !p.Closed && (p.Cred == nil || !p.Cred.actor().Same(m.Cred.actor())) {
			p = &madeUnix{unixState: &unixState{Type: m.Type, Closed: true}, n: -1}
			if err := w.place(p); err != nil {
				return err
			}
			w.all = append(w.all, p)
		}
		m.paired, p.paired = p, m
		return m.checkPaired()
	}
	if m.Listening {
		if m.Cred == nil {
			return object.BadImagef("nobody listens at unix socket %s", m.ref)
		}
		return nil
	}
	if p == nil {
		if m.Cred != nil || len(m.messages) > 0 || m.listener != nil || len(m.Address) > 0 && !m.Bound && !m.Closed {
			return object.BadImagef("unix socket %s was connected to nobody", m.ref)
		}
		return nil
	}
	if p.peer == nil && p.Closed {
		p.peer = m
		p.Bound = len(p.Address) > 0 && inherits(m)
	}
	if p.peer != m || m.Cred == nil && !m.Closed {
		return object.BadImagef("unix sockets %s and %s are not connected to each other", m.ref, p.ref)
	}
	switch {
	case inherits(m) && inherits(p):
		return object.BadImagef("two unix sockets, connected to each other, were both accepted")
	case inherits(m):
		m.inherits = true
	case inherits(p):
		p.inherits = true
	default:
		m.paired, p.paired = p, m
		return m.checkPaired()
	}
	return nil
}

// inherits says whether a connected socket has its address from who listened.
func inherits(m *madeUnix) bool { return m.listener != nil || len(m.Address) > 0 && !m.Bound }

func (m *madeUnix) checkPaired() error {
	p := m.paired
	if m.Bound && m.Address[0] != 0 || p.Bound && p.Address[0] != 0 && !p.Closed {
		return object.BadImagef("a pair of unix sockets with a path")
	}
	if !m.Closed && !p.Closed && !m.Cred.actor().Same(p.Cred.actor()) {
		return object.BadImagef("a pair of unix sockets that two processes have made")
	}
	return nil
}

func (c *unixCred) actor() *object.Actor {
	if c == nil {
		return &object.Actor{}
	}
	return &object.Actor{PID: c.PID, UID: c.UID, GID: c.GID, Groups: c.Groups}
}

// single makes a socket that nobody else need make, and binds it. None of them blocks before finish.
func (w *unixWorld) single(m *madeUnix) error {
	fd, err := unix.Socket(unix.AF_UNIX, int(m.Type)|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("making a unix socket: %w", err)
	}
	defer unix.Close(fd)
	if m.Bound {
		if err := w.bind(m, fd, m.File); err != nil {
			return err
		}
	}
	if m.Listening { // what it accepts takes these over
		if err := setOptions(fd, m.options(), socketOptions, func(name string) bool { return !passing[name] }); err != nil {
			return err
		}
	}
	if err := unix.Dup3(fd, m.n, 0); err != nil { // as inherited as the rest of the pool
		return os.NewSyscallError("dup3", err)
	}
	if len(m.Remote) > 0 && len(m.messages) == 0 {
		return m.connectRemote()
	}
	return nil
}

// passing are the options that ask for more to be told with a message, and that decide what is noted with it when it is sent.
var passing = map[string]bool{"SO_PASSCRED": true, "SO_PASSPIDFD": true, "SO_PASSSEC": true, "SO_PASSRIGHTS": true}

func (m *madeUnix) options() []Option {
	if m.common == nil {
		return nil
	}
	return m.common.Options
}

func (m *madeUnix) connectRemote() error {
	if err := sys.Connect(m.n, unixSockaddr(m.Remote)); err != nil { // in the mount namespace of the tree
		return &object.Lacking{What: fmt.Sprintf("connecting a socket to %s, outside of the tree", addressText(m.Remote)), Err: err,
			Do: "start what is to be there"}
	}
	return nil
}

// unixSockaddr is struct sockaddr_un.
func unixSockaddr(address []byte) []byte {
	return append(binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX), address...)
}

// connections asks for what is accepted: first what has a file, or had one, then what waits. Who listens may have changed in between, or be gone.
func (w *unixWorld) connections() error {
	for _, waits := range []bool{false, true} {
		for _, l := range w.all {
			for _, e := range l.pending {
				if waits {
					if err := w.connect(e, l); err != nil {
						return err
					}
				}
			}
		}
		if waits {
			break
		}
		for _, m := range w.all {
			if !m.inherits || m.listener != nil {
				continue
			}
			l, err := w.listenerFor(m)
			if err != nil {
				return err
			}
			if err := w.connect(m, l); err != nil {
				return err
			}
		}
	}
	for _, l := range w.all {
		if l.Listening {
			w.listen(l, l.Cred.actor())
		}
	}
	return nil
}

// listenerFor returns the socket that accepts m: the one that is bound to the address of m or, where none is, one that is closed
// behind that.
func (w *unixWorld) listenerFor(m *madeUnix) (*madeUnix, error) {
	for _, l := range w.all {
		if l.Bound && l.Type == m.Type && string(l.Address) == string(m.Address) && (l.Listening || l.Closed && l.paired == nil && l.peer == nil) {
			return l, nil
		}
	}
	l := &madeUnix{unixState: &unixState{Type: m.Type, Address: m.Address, Bound: true, Closed: true}, n: -1}
	if err := w.place(l); err != nil {
		return nil, err
	}
	if err := w.single(l); err != nil {
		return nil, err
	}
	w.all = append(w.all, l)
	return l, nil
}

// connect asks for the peer of m to be connected to l, and for m to be accepted unless it waits.
func (w *unixWorld) connect(m, l *madeUnix) error {
	p := m.peer
	if p == nil || p.n < 0 || p.inherits || p.paired != nil {
		return object.BadImagef("unix socket %s is accepted from nobody", m.ref)
	}
	heard, by := p.Cred, m.Cred
	if p.Closed {
		heard = m.Cred
	}
	if m.Closed {
		by = p.Cred
	}
	w.listen(l, heard.actor())
	address, dir := unixSockaddr(l.Address), -1
	if l.place != nil {
		address, dir = unixSockaddr(append([]byte(l.place.base), 0)), l.place.dir
	}
	act := object.Act{By: *by.actor(), Calls: func(b *tracee.Batch) error {
		n := b.Sys()
		if dir >= 0 {
			b.Call(n.Fchdir, dir).Note("the directory of %s", addressText(l.Address))
		}
		b.Call(n.Connect, p.n, address, len(address)).Note("connecting to %s", addressText(l.Address))
		if m.listener == nil {
			got := b.Call(n.Accept4, l.n, 0, 0, unix.SOCK_NONBLOCK).Note("accepting at %s", addressText(l.Address))
			b.Call(n.Dup3, got, m.n, 0)
			b.Call(n.Close, got)
		}
		return nil
	}}
	if m.listener == nil {
		act.Makes = []int{m.n}
	}
	w.r.Act(act)
	return nil
}

// listen asks for a socket to listen, by somebody of whom those are told who connect from then on.
func (w *unixWorld) listen(l *madeUnix, by *object.Actor) {
	if l.listens && l.listening.Same(by) {
		return
	}
	l.listens, l.listening = true, *by
	backlog := l.Backlog
	w.r.Act(object.Act{By: *by, Calls: func(b *tracee.Batch) error {
		b.Call(unix.SYS_LISTEN, l.n, backlog).Note("listening at %s", addressText(l.Address))
		return nil
	}})
}

// pairs asks for what socketpair(2) has made.
func (w *unixWorld) pairs() error {
	done := map[*madeUnix]bool{}
	for _, m := range w.all {
		p := m.paired
		if p == nil || done[m] {
			continue
		}
		done[m], done[p] = true, true
		cred := m.Cred
		if m.Closed {
			cred = p.Cred
		}
		w.r.Act(object.Act{By: *cred.actor(), Makes: []int{m.n, p.n}, Calls: func(b *tracee.Batch) error {
			n := b.Sys()
			// The two numbers begin at byte 4. An argument is a word whose lower half counts.
			const at = 4
			made := b.Space(16)
			b.Call(n.Socketpair, unix.AF_UNIX, int(m.Type)|unix.SOCK_NONBLOCK, 0, tracee.At{Buf: made, Offset: at}).Note("a pair of unix sockets")
			for i, to := range []int{m.n, p.n} {
				offset := at + 4*i
				if unixBigEndian {
					offset -= 4
				}
				fd := tracee.Word{Buf: made, Offset: offset}
				b.Call(n.Dup3, fd, to, 0)
				b.Call(n.Close, fd)
			}
			return nil
		}})
	}
	return nil
}

var unixBigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// Writable says whether epoll sees the socket as writable, or hung up, while all queues are still empty: all but those that listen.
func (s *unixFileState) Writable(r *object.Restorer) bool {
	m, err := object.Recall[madeUnix](r, s.Socket)
	return err == nil && !m.Listening
}
