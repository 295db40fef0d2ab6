package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/internal/nethold"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/stream"
)

// A TCP socket is made in three steps. First, before any task, without an address: those of a dump that ends the processes when all
// has been read have them still. ConnectTCP binds and connects it, in repair mode, which is silent, and fills its queues. ReleaseTCP,
// which is the last step before the tree runs, takes it out of repair mode. Packets are held back from before the first connection
// exists until the tree runs, or until all that has been made is gone again.
type tcpMade struct {
	s             *tcpState
	fd            int
	local, remote netip.AddrPort
	own           *sys.FD // owns fd
	content       []byte  // both queues
	reset         bool    // it comes back as one that the peer has reset
}

// tcpRestore is what a restore has made of TCP sockets.
type tcpRestore struct {
	all   []*tcpMade
	bound *nethold.Hold
	mark  uint32
	late  []*lastingHold        // holds that are to be lifted
	lost  map[nethold.Conn]bool // those that wait for accept(2) and do not go on
}

// tcpKey is where a Restorer remembers it: no object has this number.
var tcpKey = stream.Ref{}

func tcpOf(r *object.Restorer) *tcpRestore {
	t, err := object.Recall[tcpRestore](r, tcpKey)
	if err != nil {
		t = &tcpRestore{}
		r.Remember(tcpKey, t)
	}
	return t
}

func restoreTCP(r *object.Restorer, ref stream.Ref, s *tcpState) (int, error) {
	if err := s.check(); err != nil {
		return -1, err
	}
	m := &tcpMade{s: s, reset: isConnection(s.State) && (!s.Kept || r.DropTCP)}
	var err error
	if m.local, err = parseAddr(s.Local, s.Family); err != nil {
		return -1, err
	}
	if m.remote, err = parseAddr(s.Remote, s.Family); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(int(s.Family), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, int(s.Protocol))
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return -1, &object.Lacking{What: fmt.Sprintf("this kernel has no protocol %d of TCP sockets (262 is MPTCP)", s.Protocol), Err: err,
			Do: "enable it (net.mptcp.enabled)"}
	}
	if err != nil {
		return -1, fmt.Errorf("making a TCP socket: %w", err)
	}
	if err := m.early(fd); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	want := int(s.Unread) + int(s.Sent) + int(s.Unsent)
	r.OnContent(ref, func(meta *object.Data, data []byte) error {
		if meta.Offset != uint64(len(m.content)) || meta.Extend != 0 || len(meta.Packets) != 0 || len(data) > want-len(m.content) {
			return object.BadImagef("contents of a TCP socket at byte %d do not follow byte %d of %d", meta.Offset, len(m.content), want)
		}
		m.content = append(m.content, data...)
		return nil
	})
	t := tcpOf(r)
	t.all = append(t.all, m)
	r.Remember(ref, m)
	return fd, nil
}

// early sets what a socket must have before it is bound.
func (m *tcpMade) early(fd int) error {
	if err := m.s.Common.setEarly(fd); err != nil {
		return err
	}
	if err := m.s.IP.set(fd); err != nil {
		return err
	}
	return setOptions(fd, m.s.TCP, tcpOptions, func(name string) bool { return lateTCP[name] })
}

// ConnectTCP gives all TCP sockets their addresses, and connections their other end and their queues.
func ConnectTCP(r *object.Restorer) error {
	t := tcpOf(r)
	var held nethold.Packets
	var was []nethold.Conn
	for _, f := range object.All[tcpState](r.Plan) {
		m, err := object.Recall[tcpMade](r, f.Ref)
		if err != nil {
			return err
		}
		fd, err := r.File(f.Ref)
		if err != nil {
			return err
		}
		// One of its own: the pool may be closed before this is done.
		if m.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return fmt.Errorf("duplicating a descriptor: %w", err)
		}
		m.own = sys.NewFD(m.fd)
		if want := int(m.s.Unread) + int(m.s.Sent) + int(m.s.Unsent); len(m.content) != want {
			return object.BadImagef("a TCP socket with %d of %d bytes", len(m.content), want)
		}
	}
	name := ""
	for _, f := range object.All[lastingHold](r.Plan) {
		if err := f.State.check(); err != nil {
			return err
		}
		name = f.State.Name
		t.late = append(t.late, f.State)
		passed, err := f.State.passed()
		if err != nil {
			return err
		}
		if n := t.resetOutside(passed); n > 0 {
			r.Warn("%d TCP connections are reset: nothing holds them any more for the processes that have been dumped by a ticket (see cr-thaw(1))", n)
		}
	}
	for _, m := range t.all {
		for i := range m.s.Waiting {
			if c := m.s.Waiting[i].conn(m.s.Family); !r.DropTCP && !t.lost[c] {
				held.Conns = append(held.Conns, c)
				was = append(was, c)
			}
		}
		if !isConnection(m.s.State) {
			continue
		}
		if was = append(was, m.conn()); !m.reset {
			held.Conns = append(held.Conns, m.conn())
		}
	}
	t.mark = markOf(name)
	var err error
	if t.bound, err = nethold.Bind(held, t.mark); err != nil {
		return err
	}
	clearRemains(was)
	for _, m := range t.all {
		if err := m.connect(t); err != nil {
			return m.named(err)
		}
	}
	return nil
}

func (m *tcpMade) conn() nethold.Conn {
	return nethold.Conn{Local: plain(m.local), Remote: plain(m.remote)}
}

// connection says whether it goes on.
func (m *tcpMade) connection() bool { return isConnection(m.s.State) && !m.reset }

// named puts the socket's addresses before an error.
func (m *tcpMade) named(err error) error {
	switch {
	case m.s.Remote != "":
		return fmt.Errorf("TCP connection from %s to %s: %w", m.s.Local, m.s.Remote, err)
	case m.s.Local != "":
		return fmt.Errorf("TCP socket of %s: %w", m.s.Local, err)
	}
	return fmt.Errorf("TCP socket: %w", err)
}

func (m *tcpMade) connect(t *tcpRestore) error {
	switch s := m.s; {
	case m.connection():
		return m.repair(t)
	case m.reset:
		return m.remakeEnded(unix.ECONNRESET)
	case s.Ended:
		return m.remakeEnded(unix.Errno(s.Err))
	case s.Local == "":
		return nil
	}
	if m.s.State == kernelview.SocketSynSent {
		if err := m.bindAsConnecting(); !errors.Is(err, unix.EPERM) { // without CAP_NET_ADMIN as any other
			return err
		}
	}
	if err := m.share(); err != nil {
		return err
	}
	return m.bind()
}

// share lets those of one port be bound in any order, until release.
func (m *tcpMade) share() error {
	if err := sys.Setsockopt(m.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, number(1)); err != nil {
		return fmt.Errorf("setting SO_REUSEADDR: %w", err)
	}
	return nil
}

// bindAsConnecting binds a socket to the port that connect(2) has chosen for it, which it may share with connections to others, also with one
// of which only TIME_WAIT is left. bind(2) would refuse that; a socket in repair may (SK_FORCE_REUSE, inet_csk_get_port).
func (m *tcpMade) bindAsConnecting() error {
	const offWithoutProbe = -1 // TCP_REPAIR_OFF_NO_WP
	if err := m.setTCP(tcpRepair, 1); err != nil {
		return err
	}
	if err := m.bind(); err != nil {
		return err
	}
	if err := m.setTCP(tcpRepair, offWithoutProbe); err != nil { // which takes SO_REUSEADDR away
		return err
	}
	return m.share()
}

// closingTime is how long the sockets of a tree that is being ended may keep their addresses.
const closingTime = 10 * time.Second

// bind binds it to its address. The processes that the image is of may be dying still.
func (m *tcpMade) bind() error {
	err := patiently(func() error { return unix.Bind(m.fd, tcpSockaddr(m.local)) }, unix.EADDRINUSE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return m.taken(err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return &object.Lacking{What: fmt.Sprintf("address %s is not one of this machine", m.local.Addr()), Err: err,
			Do: fmt.Sprintf("add it (ip address add %s dev ...), or change it in the image with cr-filter jq; connections can be given up with --tcp drop", m.local.Addr())}
	case errors.Is(err, unix.EACCES):
		return &object.Lacking{What: fmt.Sprintf("binding to port %d", m.local.Port()), Err: err, Do: "give cr-restore CAP_NET_BIND_SERVICE"}
	}
	return fmt.Errorf("binding to %s: %w", m.local, err)
}

// patiently repeats f for some time while it gives an error that passes.
func patiently(f func() error, passing unix.Errno) error {
	for deadline, pause := time.Now().Add(closingTime), time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := f()
		if !errors.Is(err, passing) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pause)
	}
}

// taken says who has the port.
func (m *tcpMade) taken(err error) error {
	e := &object.Lacking{What: fmt.Sprintf("port %d is in use", m.local.Port()), Err: err, Do: "end who uses it, or let the dump end the processes of the image first"}
	if who := holders(m.local.Port()); len(who) > 0 {
		e.What += " by " + strings.Join(who, ", ")
	}
	return e
}

// repair makes a connection without a packet (TCP_REPAIR, tcp_repair in net/ipv4/tcp.c).
func (m *tcpMade) repair(t *tcpRestore) error {
	s := m.s
	// The window that it offers depends on the size of its buffer from the beginning on, and is never taken back.
	if err := m.setBuffers(); err != nil {
		return err
	}
	if err := m.setTCP(tcpRepair, 1); err != nil {
		if errors.Is(err, unix.EPERM) {
			return &object.Lacking{What: "making a TCP connection anew (TCP_REPAIR)", Err: err, Do: "give cr-restore CAP_NET_ADMIN, or give the connections up with --tcp drop"}
		}
		return err
	}
	got, sent := finReceived(s.State), finSent(s.State)
	received := s.RcvNxt - s.Unread - got
	first := s.SndUna
	if s.State == kernelview.SocketFinWait2 { // its FIN has been acknowledged: the number before SndUna
		first--
	}
	for _, q := range []struct {
		queue int
		seq   uint32
	}{{sendQueue, first}, {recvQueue, received}} {
		if err := errors.Join(m.setTCP(tcpRepairQueue, q.queue), m.setTCP(tcpQueueSeq, int(int32(q.seq)))); err != nil {
			return err
		}
	}
	if err := m.setTCP(tcpRepairQueue, noQueue); err != nil {
		return err
	}
	if err := m.bind(); err != nil {
		return err
	}
	if err := patiently(func() error { return unix.Connect(m.fd, tcpSockaddr(m.remote)) }, unix.EADDRNOTAVAIL); err != nil {
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return &object.Lacking{What: "the same connection exists on this machine", Err: err, Do: "end the processes that have it first"}
		}
		return fmt.Errorf("connecting it (is there a route?): %w", err)
	}
	if err := m.agree(); err != nil {
		return err
	}
	widen(m.fd)
	if err := m.fillReceive(t); err != nil {
		return fmt.Errorf("filling its receive queue: %w", err)
	}
	if err := m.fillSend(0, s.Sent); err != nil {
		return fmt.Errorf("filling its send queue: %w", err)
	}
	if sent {
		// The unsent part comes before the FIN, which can be made only in repair mode: both count as sent, and are sent again.
		if err := m.fillSend(s.Sent, s.Sent+s.Unsent); err != nil {
			return fmt.Errorf("filling its send queue: %w", err)
		}
	}
	if err := m.end(t); err != nil {
		return err
	}
	if err := m.setBuffers(); err != nil {
		return err
	}
	if err := setOptions(m.fd, s.TCP, tcpOptions, func(name string) bool { return name != "TCP_WINDOW_CLAMP" }); err != nil {
		return err
	}
	return m.window()
}

// setBuffers gives it buffers of the size that it had. That of what is still to be written may need more room until the end.
func (m *tcpMade) setBuffers() error {
	return setOptions(m.fd, m.s.Options, socketOptions, func(name string) bool { return name != "SO_RCVBUF" && name != "SO_SNDBUF" })
}

// The queues of TCP_REPAIR_QUEUE (linux/tcp.h).
const (
	noQueue = iota
	recvQueue
	sendQueue
)

func (m *tcpMade) setTCP(opt, value int) error {
	if err := unix.SetsockoptInt(m.fd, unix.IPPROTO_TCP, opt, value); err != nil {
		return fmt.Errorf("repairing it (TCP option %d): %w", opt, err)
	}
	return nil
}

// finReceived is 1 in the states that a FIN of the peer has led to, else 0. finSent says whether there has been an own one.
func finReceived(state uint8) uint32 {
	switch state {
	case kernelview.SocketCloseWait, kernelview.SocketLastAck, kernelview.SocketClosing:
		return 1
	}
	return 0
}

func finSent(state uint8) bool {
	switch state {
	case kernelview.SocketFinWait1, kernelview.SocketFinWait2, kernelview.SocketLastAck, kernelview.SocketClosing:
		return true
	}
	return false
}

// agree sets what both ends have told each other when the connection was made.
func (m *tcpMade) agree() error {
	s := m.s
	var b []byte
	add := func(code, value uint32) {
		b = binary.NativeEndian.AppendUint32(b, code)
		b = binary.NativeEndian.AppendUint32(b, value)
	}
	const mss, scale, sack, stamp = 2, 3, 4, 8 // TCPOPT_* of net/tcp.h
	add(mss, uint32(s.MSS))
	if s.Scaling {
		add(scale, uint32(s.SndScale)|uint32(s.RcvScale)<<16)
	}
	if s.SACK {
		add(sack, 0)
	}
	if s.Stamps {
		add(stamp, 0)
	}
	if err := sys.Setsockopt(m.fd, unix.IPPROTO_TCP, tcpRepairOptions, b); err != nil {
		return fmt.Errorf("repairing its options: %w", err)
	}
	if s.Stamps {
		return m.setTCP(tcpTimestamp, int(int32(s.Stamp)))
	}
	return nil
}

// window sets what both ends may send.
func (m *tcpMade) window() error {
	s := m.s
	if s.MaxWindow == 0 && s.RcvWnd == 0 && s.SndWnd == 0 {
		return nil // nothing is known of it
	}
	return m.setWindows(s.SndWl1, s.SndWnd, s.MaxWindow, s.RcvWnd, s.RcvWup)
}

// setWindows takes the fields of struct tcp_repair_window.
func (m *tcpMade) setWindows(sndWl1, sndWnd, maxWindow, rcvWnd, rcvWup uint32) error {
	var b []byte
	for _, n := range []uint32{sndWl1, sndWnd, maxWindow, rcvWnd, rcvWup} {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	err := sys.Setsockopt(m.fd, unix.IPPROTO_TCP, tcpRepairWindow, b)
	if errors.Is(err, unix.EINVAL) {
		return object.BadImagef("windows %d of %d, %d of %d do not fit to number %d", sndWnd, sndWl1, rcvWnd, rcvWup, m.s.RcvNxt)
	}
	if err != nil {
		return fmt.Errorf("repairing its windows: %w", err)
	}
	return nil
}

// fill puts bytes into a queue.
func (m *tcpMade) fill(queue int, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if err := m.setTCP(tcpRepairQueue, queue); err != nil {
		return err
	}
	if err := send(m.fd, data, 0); err != nil {
		return err
	}
	return m.setTCP(tcpRepairQueue, noQueue)
}

// fillSend puts a part of the bytes to be sent into the send queue.
func (m *tcpMade) fillSend(from, to uint32) error {
	if from == to {
		return nil
	}
	if err := m.setTCP(tcpRepairQueue, sendQueue); err != nil {
		return err
	}
	if err := m.write(from, to); err != nil {
		return err
	}
	return m.setTCP(tcpRepairQueue, noQueue)
}

// send writes all of it, in smaller pieces where there is not enough room for large ones.
func send(fd int, data []byte, flags int) error {
	for piece := 64 << 10; len(data) > 0; {
		n, err := unix.SendmsgN(fd, data[:min(piece, len(data))], nil, nil, flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
		case (errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EAGAIN)) && piece > 1:
			piece /= 2
		case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			return &object.Lacking{What: fmt.Sprintf("%d bytes do not fit into the buffers of a socket", len(data)), Err: err,
				Do: "raise net.core.rmem_max and net.core.wmem_max, or give cr-restore CAP_NET_ADMIN"}
		case err != nil:
			return os.NewSyscallError("send", err)
		default:
			data = data[n:]
		}
	}
	return nil
}

// end brings a connection into a state in which one of its ends, or both, has no more to say.
func (m *tcpMade) end(t *tcpRestore) error {
	s := m.s
	segment := segment{from: plain(m.remote), to: plain(m.local), seq: s.RcvNxt - finReceived(s.State), ack: s.SndUna, window: uint16(min(s.SndWnd>>s.SndScale, 1<<16-1))}
	fin := segment
	fin.fin = true
	// In these states the FIN of the peer came after the own one.
	late := s.State == kernelview.SocketClosing
	if finReceived(s.State) == 1 && !late {
		if err := m.inject(t, fin, kernelview.SocketCloseWait); err != nil {
			return err
		}
	}
	if finSent(s.State) {
		if err := m.setTCP(tcpRepairQueue, sendQueue); err != nil {
			return err
		}
		if err := unix.Shutdown(m.fd, unix.SHUT_WR); err != nil {
			return fmt.Errorf("closing it for writing: %w", err)
		}
		if err := m.setTCP(tcpRepairQueue, noQueue); err != nil {
			return err
		}
	}
	switch {
	case late:
		if err := m.inject(t, fin, kernelview.SocketClosing); err != nil {
			return err
		}
	case s.State == kernelview.SocketFinWait2:
		if err := m.inject(t, segment, kernelview.SocketFinWait2); err != nil {
			return err
		}
	}
	if state, err := stateOf(m.fd); err != nil || state != s.State {
		return errors.Join(err, fmt.Errorf("it came into state %d instead of %d", state, s.State))
	}
	if s.Shutdown&kernelview.ShutRead != 0 && finReceived(s.State) == 0 {
		if err := unix.Shutdown(m.fd, unix.SHUT_RD); err != nil {
			return fmt.Errorf("closing it for reading: %w", err)
		}
	}
	return nil
}

// stateOf asks for the state of a TCP socket: the first byte of struct tcp_info.
func stateOf(fd int) (uint8, error) {
	b := make([]byte, 8)
	if _, err := sys.Getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b); err != nil {
		return 0, err
	}
	return b[0], nil
}

// ReleaseTCP makes connections and listening sockets alive. Packets are still held back.
func ReleaseTCP(r *object.Restorer) error {
	t := tcpOf(r)
	// Listening is refused where a connection has the port already, unless both may share it: before that ends (release).
	for _, step := range []func(*tcpMade) error{(*tcpMade).listen, (*tcpMade).release} {
		for _, m := range t.all {
			if err := step(m); err != nil {
				return m.named(err)
			}
		}
	}
	if r.DropTCP {
		return nil
	}
	return t.admitAll()
}

func (m *tcpMade) listen() error {
	if m.s.State != kernelview.SocketListening {
		return nil
	}
	err := unix.Listen(m.fd, int(min(m.s.Backlog, 1<<31-1)))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return m.taken(err)
	case err != nil:
		return fmt.Errorf("listening: %w", err)
	}
	return nil
}

func (m *tcpMade) release() error {
	s := m.s
	if m.connection() {
		const offWithoutProbe = -1 // TCP_REPAIR_OFF_NO_WP
		if err := m.setTCP(tcpRepair, offWithoutProbe); err != nil {
			return err
		}
		if !finSent(s.State) {
			// It can go nowhere yet: it waits in the queue.
			_ = sys.Setsockopt(m.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, number(1<<29)) // else what does not fit says so
			if err := m.write(s.Sent, s.Sent+s.Unsent); err != nil {
				return fmt.Errorf("filling its send queue: %w", err)
			}
		}
	}
	if s.State != kernelview.SocketListening { // else those that wait need it still
		m.content = nil
	}
	if find(s.Options, "SO_REUSEADDR") == nil {
		if err := sys.Setsockopt(m.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, number(0)); err != nil {
			return fmt.Errorf("setting SO_REUSEADDR: %w", err)
		}
	}
	switch s.State {
	case kernelview.SocketSynSent:
		if err := m.connectAgain(); err != nil {
			return err
		}
	case kernelview.SocketClosed:
		if s.Shutdown != 0 && !s.Ended {
			// It is noted, and then refused because there is no connection (inet_shutdown in net/ipv4/af_inet.c).
			if err := unix.Shutdown(m.fd, int(s.Shutdown)-1); err != nil && !errors.Is(err, unix.ENOTCONN) {
				return fmt.Errorf("closing it: %w", err)
			}
		}
	}
	if err := setOptions(m.fd, s.TCP, tcpOptions, func(name string) bool { return !lateTCP[name] }); err != nil {
		return err
	}
	return s.Common.finish(m.fd)
}

// connectAgain begins a connect that was under way, from the same port. Its first segment is sent again until packets pass.
func (m *tcpMade) connectAgain() error {
	if _, err := unix.FcntlInt(uintptr(m.fd), unix.F_SETFL, unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("setting status flags: %w", err)
	}
	err := unix.Connect(m.fd, tcpSockaddr(m.remote))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connecting it: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(m.fd), unix.F_SETFL, 0); err != nil { // Common.finish sets those that it had
		return fmt.Errorf("setting status flags: %w", err)
	}
	return nil
}

// ReleasedTCP lets the packets of the connections pass, which are alive and whose tree runs.
func ReleasedTCP(r *object.Restorer) error {
	t := tcpOf(r)
	t.close()
	var errs []error
	for _, s := range t.late {
		errs = append(errs, s.lift())
	}
	_ = nethold.Sweep() // whoever may not do so has left none
	return errors.Join(append(errs, t.bound.Close())...)
}

// UndoneTCP is for a restore that came to nothing: nobody has the sockets any more.
func UndoneTCP(r *object.Restorer) {
	if t, err := object.Recall[tcpRestore](r, tcpKey); err == nil {
		t.close()
		_ = t.bound.Close() // it goes with this process
	}
}

// close gives up the own descriptors: the tasks have theirs.
func (t *tcpRestore) close() {
	for _, m := range t.all {
		_ = m.own.Close()
	}
}
