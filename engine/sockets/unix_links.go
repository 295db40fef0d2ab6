package sockets

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/files"
	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/stream"
)

// unixLinkState says whom a socket is connected to. Two that are connected to each other have a record each. Those that wait for
// accept(2) come in the order in which it will give them.
type unixLinkState struct {
	Socket   stream.Ref `msgpack:"socket"`
	Peer     stream.Ref `msgpack:"peer"`
	Listener stream.Ref `msgpack:"listener,omitempty"` // in whose queue Socket waits
}

// unixQueueState is some of what waits in a socket; the bytes come as "data", one message behind the other.
type unixQueueState struct {
	Socket   stream.Ref    `msgpack:"socket"`
	Messages []unixMessage `msgpack:"messages"`
}

type unixMessage struct {
	Length uint32       `msgpack:"length"`           // bytes
	Sender stream.Ref   `msgpack:"sender,omitempty"` // absent: the peer
	Files  []stream.Ref `msgpack:"files,omitempty"`  // SCM_RIGHTS
	Cred   *unixSender  `msgpack:"cred,omitempty"`   // SCM_CREDENTIALS
	// OOB is of the one byte that was sent with MSG_OOB last, or whose place is marked still although MSG_OOB has read it already: then Length
	// is 0. One that another such byte has followed is a byte like others.
	OOB bool `msgpack:"oob,omitempty"`
}

// unixSender is who has sent a message.
type unixSender struct {
	PID   int32  `msgpack:"pid,omitempty"` // in the pid namespace of the tree; 0: outside of it. It may have ended
	UID   uint32 `msgpack:"uid"`
	GID   uint32 `msgpack:"gid"`
	Began uint64 `msgpack:"began,omitempty"` // of one that lives outside of the tree: clock ticks since boot
}

// queueWeight bounds a record of messages: one message has the weight of its descriptors and a bit.
const queueWeight = 16384

// DumpUnix adds who is connected to whom, and what waits in unix sockets. It comes behind all descriptor tables.
func DumpUnix(d *object.Dumper) error {
	if _, ok := d.View.(kernelview.UnixView); !ok {
		return nil
	}
	t, err := unixTreeOf(d)
	if err != nil {
		return err
	}
	var all []unixTodo
	for len(t.todo) > 0 { // a queue may have sockets in flight
		one := t.todo[0]
		t.todo = t.todo[1:]
		all = append(all, one)
		if err := t.addPeer(d, one); err != nil {
			return err
		}
		if err := t.addQueue(d, one); err != nil {
			d.Refuse(t.errorAt(d, one, err))
		}
	}
	for _, one := range all {
		peer, err := t.peerOf(one.u)
		if err != nil {
			return err
		}
		if peer == nil {
			continue
		}
		ref, ok := t.refs[peer.ID]
		if !ok {
			if t.inTree(d, peer) {
				d.Refuse(t.errorAt(d, one, object.Unsupportedf("the other end of the connection was not saved")))
			}
			continue
		}
		d.AddLink(unixLinkType, &unixLinkState{Socket: t.refs[one.u.ID], Peer: ref, Listener: t.refs[t.waiting[one.u.ID]]})
	}
	return nil
}

// addPeer adds the record of a peer that is closed.
func (t *unixTree) addPeer(d *object.Dumper, one unixTodo) error {
	peer, err := t.peerOf(one.u)
	if err != nil || peer == nil || !peer.Dead {
		return err
	}
	_, err = t.add(d, one.p, peer)
	return err
}

// errorAt names a socket by the descriptor that leads to it.
func (t *unixTree) errorAt(d *object.Dumper, one unixTodo, err error) error {
	holders, e := files.Holders(d, one.u.File)
	if e != nil || len(holders) == 0 {
		return one.p.Error("a unix socket ("+addressText(one.u.Address)+")", err)
	}
	f, e := object.Meet(holders[0].Process, holders[0].FD, holders[0].File)
	if e != nil {
		return one.p.Error("a unix socket", err)
	}
	return f.Error(err)
}

// addQueue adds what waits in a socket.
func (t *unixTree) addQueue(d *object.Dumper, one unixTodo) error {
	if one.u.Dead || len(one.u.Messages) == 0 {
		return nil
	}
	ref := t.refs[one.u.ID]
	s := &unixQueueState{Socket: ref}
	weight := 0
	for i := range one.u.Messages {
		v := &one.u.Messages[i]
		m, err := t.message(d, one, v)
		if err != nil {
			return err
		}
		s.Messages = append(s.Messages, *m)
		if weight += 4 + len(v.Files); weight > queueWeight {
			d.AddLink(unixQueueType, s)
			s, weight = &unixQueueState{Socket: ref}, 0
		}
	}
	if len(s.Messages) > 0 {
		d.AddLink(unixQueueType, s)
	}
	messages := one.u.Messages
	d.AddBulk(ref, func(w *stream.Writer) error {
		var offset uint64
		for i := range messages {
			for data := messages[i].Data; len(data) > 0; {
				n := min(len(data), stream.MaxPayload)
				if err := w.Put(object.TypeData, 0, &object.Data{Of: ref, Offset: offset}, data[:n]); err != nil {
					return err
				}
				offset += uint64(n)
				data = data[n:]
			}
		}
		return nil
	})
	return nil
}

// message describes one message.
func (t *unixTree) message(d *object.Dumper, one unixTodo, v *kernelview.UnixMessage) (*unixMessage, error) {
	if v.Time != 0 {
		return nil, object.Unsupportedf("messages with the time of their arrival (SO_TIMESTAMP) wait in it, which cannot be checkpointed")
	}
	m := &unixMessage{Length: uint32(len(v.Data))}
	if one.u.Type == unix.SOCK_STREAM { // what has been read lies in the queue only where it was sent with MSG_OOB (manage_oob in net/unix/af_unix.c)
		if m.OOB = v.OOB || m.Length == 0; m.OOB && m.Length > 1 {
			return nil, object.Unsupportedf("%d bytes that were sent with MSG_OOB wait in it, which cannot be checkpointed", m.Length)
		}
	}
	if v.Sender != one.u.Peer {
		sender, err := t.byID(v.Sender)
		if err != nil {
			return nil, err
		}
		if !t.inTree(d, sender) && !sender.Dead { // its place is taken by one that has its name
			gone := *sender
			gone.Dead = true
			sender = &gone
		}
		if m.Sender, err = t.add(d, one.p, sender); err != nil {
			return nil, err
		}
	}
	for _, id := range v.Files {
		ref, err := t.file(d, id)
		if err != nil {
			return nil, err
		}
		m.Files = append(m.Files, ref)
	}
	if v.Credentials {
		var err error
		if m.Cred, err = messageCred(d, v); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// messageCred describes who has sent a message. That it has ended since, or lives elsewhere, takes nothing away from what it has sent.
func messageCred(d *object.Dumper, v *kernelview.UnixMessage) (*unixSender, error) {
	c := &unixSender{UID: v.UID, GID: v.GID}
	pid, err := treeNumber(d, v.PID, v.Numbers)
	var lives *livesOutside
	switch {
	case errors.As(err, &lives):
		c.PID, c.Began = int32(lives.pid), lives.began
	case err != nil:
		return nil, fmt.Errorf("the sender of a message (SCM_CREDENTIALS) is %w", err)
	default:
		c.PID = pid
	}
	return c, nil
}

// file dumps an open file that is in flight.
func (t *unixTree) file(d *object.Dumper, id kernelview.ID) (stream.Ref, error) {
	holders, err := files.Holders(d, id)
	if err != nil {
		return stream.Ref{}, err
	}
	if len(holders) == 0 { // which has been refused
		return stream.Ref{}, nil
	}
	f, err := object.Meet(holders[0].Process, holders[0].FD, holders[0].File)
	if err != nil {
		return stream.Ref{}, err
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Statfs(f.Path, &fs); err != nil {
		return stream.Ref{}, fmt.Errorf("looking at a descriptor in flight: %w", err)
	}
	if f.View.Kind == kernelview.KindPidfd || fs.Type == unix.PROC_SUPER_MAGIC {
		return stream.Ref{}, object.Unsupportedf("a descriptor of a process, or of a file of /proc (%s), is in flight in it, which cannot be checkpointed", f.Link)
	}
	return d.File(f)
}

// Outside says whether the other end of a socket is outside of the tree, of which a standard descriptor is taken for a way out. known
// is false for a family of which it cannot be told.
func Outside(d *object.Dumper, f *object.OpenFile) (outside, known bool) {
	if _, ok := d.View.(kernelview.UnixView); !ok {
		return false, false
	}
	t, err := unixTreeOf(d)
	if err != nil {
		return false, false
	}
	u := t.sockets[t.files[f.View.ID]]
	if u == nil {
		return false, false
	}
	peer, err := t.peerOf(u)
	return err == nil && peer != nil && !peer.Dead && !t.inTree(d, peer) && u.Type != unix.SOCK_DGRAM, err == nil
}
