package ipc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/internal/tracee"
	"crpipe/engine/object"
	"crpipe/stream"
)

// MsgQueue is the record of a System V message queue (msgget(2)). The messages are copied and stay where they are (MSG_COPY of
// msgrcv(2), CONFIG_CHECKPOINT_RESTORE). Their contents follow as "data", one behind the other in the order of the queue. Who waits for
// it is not here: the call is interrupted and made again like every other.
//
// Lost: the process that sent or received last, if it is not in the tree, or if messages were sent and none was ever received.
type MsgQueue struct {
	Perm     Perm     `msgpack:"perm"`
	MaxBytes uint64   `msgpack:"qbytes"`             // msg_qbytes
	Types    []int64  `msgpack:"types,omitempty"`    // of the messages, oldest first
	Sizes    []uint32 `msgpack:"sizes,omitempty"`    // bytes
	Sent     bool     `msgpack:"sent,omitempty"`     // msgsnd(2) was called: msg_stime is not 0
	Received bool     `msgpack:"received,omitempty"` // and msgrcv(2)
	Sender   int32    `msgpack:"lspid,omitempty"`    // processes of the tree that did so last; 0: another or nobody
	Receiver int32    `msgpack:"lrpid,omitempty"`
}

// MsgKind is the kind of record "ipc.msg".
var MsgKind = object.NewKind[MsgQueue]("ipc.msg", nil)

const (
	maxMessages     = 64 << 10 // keeps a record under the limit of metadata; the kernel's own default is 16,384
	maxMessageBytes = 64 << 20 // of all messages of a queue, which a dump holds in memory
	maxType         = 1<<63 - 1
)

// dumpMsg adds the record of a queue and its contents.
func (l *Look) dumpMsg(d *object.Dumper, q *procfs.SysVMsg) error {
	if q.Count > maxMessages || q.Bytes > maxMessageBytes {
		refuse(d, Msg, q.ID, "", "a queue of %d messages with %d bytes cannot be checkpointed", q.Count, q.Bytes)
		return nil
	}
	s := &MsgQueue{Perm: PermOf(&q.IPCPerm), Sent: q.STime != 0, Received: q.RTime != 0, Sender: l.PID(q.LSPID), Receiver: l.PID(q.LRPID)}
	var contents []byte
	if err := l.Do(func() (err error) {
		if s.MaxBytes, err = sys.MsgBytes(q.ID); err != nil {
			return fmt.Errorf("reading its limit: %w", err)
		}
		buf := make([]byte, sys.MsgWord+int(q.Bytes))
		for i := range int(q.Count) {
			typ, n, err := sys.MsgPeek(q.ID, i, buf)
			if errors.Is(err, unix.ENOSYS) {
				return &object.Lacking{What: "copying messages (MSG_COPY, CONFIG_CHECKPOINT_RESTORE)", Err: err}
			}
			if err != nil {
				return fmt.Errorf("reading message %d of %d: %w", i+1, q.Count, err)
			}
			s.Types, s.Sizes = append(s.Types, typ), append(s.Sizes, uint32(n))
			contents = append(contents, buf[sys.MsgWord:sys.MsgWord+n]...)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("%s %d: %w", Msg.What(), q.ID, err)
	}
	if uint64(len(contents)) != q.Bytes {
		return fmt.Errorf("%s %d: its messages have %d bytes, not %d; somebody uses it", Msg.What(), q.ID, len(contents), q.Bytes)
	}
	ref := d.Add(MsgKind.Type, s)
	l.RemoveWhenEnded(d, Msg, q.ID)
	if len(contents) > 0 {
		d.AddBulk(ref, func(w *stream.Writer) error { return writeContents(w, ref, contents) })
	}
	return nil
}

// Check refuses what no queue can be.
func (q *MsgQueue) Check() error {
	if err := q.Perm.Check(); err != nil {
		return err
	}
	if len(q.Types) != len(q.Sizes) || len(q.Types) > maxMessages || q.bytes() > maxMessageBytes || len(q.Types) > 0 && !q.Sent ||
		q.Sender < 0 || q.Receiver < 0 || q.MaxBytes > 1<<40 {
		return object.BadImagef("a message queue of %d messages with %d sizes and %d bytes", len(q.Types), len(q.Sizes), q.bytes())
	}
	for i, t := range q.Types {
		if t <= 0 {
			return object.BadImagef("message %d has the type %d", i, t)
		}
	}
	return nil
}

func (q *MsgQueue) bytes() (sum uint64) {
	for _, n := range q.Sizes {
		sum += uint64(n)
	}
	return sum
}

// Room is what msg_qbytes must be while the messages are sent and one more of no bytes: the kernel bounds their bytes and their number by it.
func (q *MsgQueue) Room() uint64 { return max(q.MaxBytes, q.bytes(), uint64(len(q.Types)+1)) }

// Fill returns who takes the contents of the queue: it gathers them, and send is called on a thread in the tree's namespace when they are
// all there.
func (q *MsgQueue) Fill() (take object.ContentFunc, send func() error) {
	contents := make([]byte, 0, min(q.bytes(), 1<<20))
	take = func(meta *object.Data, data []byte) error {
		if meta.Offset != uint64(len(contents)) || uint64(len(data)) > q.bytes()-meta.Offset {
			return object.BadImagef("contents at %d of a message queue of %d bytes, of which %d are there", meta.Offset, q.bytes(), len(contents))
		}
		contents = append(contents, data...)
		return nil
	}
	send = func() error {
		if uint64(len(contents)) != q.bytes() {
			return object.BadImagef("a message queue has %d of its %d bytes", len(contents), q.bytes())
		}
		at := 0
		for i, typ := range q.Types {
			n := int(q.Sizes[i])
			buf := make([]byte, sys.MsgWord+n)
			copy(buf[sys.MsgWord:], contents[at:at+n])
			at += n
			if err := sys.MsgSend(q.Perm.ID, typ, buf); err != nil {
				return fmt.Errorf("%s %d: sending message %d of %d, %d bytes: %w", Msg.What(), q.Perm.ID, i+1, len(q.Types), n, err)
			}
		}
		return nil
	}
	return take, send
}

// spare is a type that no message of the queue has.
func (q *MsgQueue) spare() int64 {
	used := map[int64]bool{}
	for _, t := range q.Types {
		used[t] = true
	}
	for t := int64(maxType); ; t-- {
		if !used[t] {
			return t
		}
	}
}

// SendCall adds the sending of a message that ReceiveCall takes away again, by the processes that are to be the last to have sent and
// received. Both only where there was a receiver.
func (q *MsgQueue) SendCall(b *tracee.Batch) {
	if q.Received {
		msg := make([]byte, 8)
		b.Arch().Order.PutUint64(msg, uint64(q.spare()))
		b.Call(b.Sys().Msgsnd, q.Perm.ID, b.Data(msg), 0, unix.O_NONBLOCK).Note("message queue %d", q.Perm.ID)
	}
}

// ReceiveCall is the other half of SendCall.
func (q *MsgQueue) ReceiveCall(b *tracee.Batch) {
	if q.Received {
		b.Call(b.Sys().Msgrcv, q.Perm.ID, b.Space(8), 0, q.spare(), unix.O_NONBLOCK).Note("message queue %d", q.Perm.ID)
	}
}
