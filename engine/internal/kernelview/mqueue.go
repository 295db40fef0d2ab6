package kernelview

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"
)

// MqueueView is a View that can read POSIX message queues (mq_overview(7)) without taking anything out of them, which no call can.
type MqueueView interface {
	// Mqueue tells the content of the queue behind an open file of KindMqueue. It may hold memory in the order of the queue's own.
	Mqueue(file ID) (Mqueue, error)
}

// Mqueue is the content of a POSIX message queue.
type Mqueue struct {
	MaxMessages, MessageSize int64           // mq_maxmsg, mq_msgsize
	Messages                 []MqueueMessage // in the order in which they are received
	Notify                   MqueueNotify
}

// MqueueMessage is one message.
type MqueueMessage struct {
	Priority uint32
	Data     []byte
}

// MqueueNotify is who is told of the next message (mq_notify(3)).
type MqueueNotify struct {
	Set    bool
	PID    int   // in the caller's pid namespace; 0: outside of it
	How    int32 // SIGEV_SIGNAL 0, SIGEV_NONE 1, SIGEV_THREAD 2
	Signal int32
	Value  uint64
}

var (
	fMqInode    = want("mqueue_inode_info.vfs_inode")
	fMqTree     = want("mqueue_inode_info.msg_tree.rb_node")
	fMqMax      = want("mqueue_inode_info.attr.mq_maxmsg")
	fMqSize     = want("mqueue_inode_info.attr.mq_msgsize")
	fMqCount    = want("mqueue_inode_info.attr.mq_curmsgs")
	fMqOwner    = want("mqueue_inode_info.notify_owner")
	fMqHow      = want("mqueue_inode_info.notify.sigev_notify")
	fMqSignal   = want("mqueue_inode_info.notify.sigev_signo")
	fMqValue    = want("mqueue_inode_info.notify.sigev_value")
	fMqNode     = want("posix_msg_tree_node.rb_node")
	fMqList     = want("posix_msg_tree_node.msg_list")
	fMqPriority = want("posix_msg_tree_node.priority")
	fMsgList    = want("msg_msg.m_list")
	fMsgSize    = want("msg_msg.m_ts")
	fMsgNext    = want("msg_msg.next")
	fMsgWhole   = want("msg_msg")
	fSegWhole   = want("msg_msgseg")
	fSegNext    = want("msg_msgseg.next")
)

const (
	maxMqueueMessages = 1 << 16   // HARD_MSGMAX, linux/ipc_namespace.h
	maxMqueueSize     = 1 << 24   // HARD_MSGSIZEMAX
	maxMqueueBytes    = 256 << 20 // of what is read at a time
)

// Mqueue is documented with MqueueView.
func (v *bpfView) Mqueue(file ID) (Mqueue, error) {
	l := v.l
	for _, f := range []field{fMqInode, fMqTree, fMqMax, fMqSize, fMqCount, fMqOwner, fMqHow, fMqSignal, fMqValue, fMqNode, fMqList, fMqPriority, fMsgList, fMsgSize, fMsgNext,
		fMsgWhole, fSegWhole, fSegNext, fRbLeft, fRbRight} {
		if !l.has(f) {
			return Mqueue{}, missingField(KindMqueue)
		}
	}
	if file >= ID(len(v.files)) || v.files[file].kind != KindMqueue || v.files[file].private == 0 {
		return Mqueue{}, fmt.Errorf("reading %s content: %w", KindMqueue, ErrKind)
	}
	b, err := v.mem.peek(v.files[file].private-l.off(fMqInode), l.span["mqueue_inode_info"])
	if err != nil {
		return Mqueue{}, err
	}
	q := Mqueue{MaxMessages: num[int64](l, b, fMqMax).V, MessageSize: num[int64](l, b, fMqSize).V}
	count := num[int64](l, b, fMqCount).V
	if owner, _ := l.uint(b, fMqOwner); owner != 0 {
		pids, err := v.numbers([]uint64{owner})
		if err != nil {
			return Mqueue{}, err
		}
		value, _ := l.bytes(b, fMqValue)
		if len(value) < 8 {
			return Mqueue{}, missingField(KindMqueue)
		}
		q.Notify = MqueueNotify{Set: true, PID: pids[owner], How: num[int32](l, b, fMqHow).V, Signal: num[int32](l, b, fMqSignal).V, Value: binary.NativeEndian.Uint64(value)}
	}
	root, _ := l.uint(b, fMqTree)
	if q.Messages, err = v.mqueueMessages(root); err != nil {
		return Mqueue{}, err
	}
	if int64(len(q.Messages)) != count {
		return Mqueue{}, fmt.Errorf("reading a message queue: it has %d messages, not %d: somebody uses it", len(q.Messages), count)
	}
	return q, nil
}

// mqueueMessages walks the tree of priorities.
func (v *bpfView) mqueueMessages(root uint64) (out []MqueueMessage, err error) {
	l := v.l
	var bytes uint64
	todo := []uint64{root}
	for nodes := 0; len(todo) > 0; nodes++ {
		node := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if node == 0 {
			continue
		}
		if nodes > 4*maxMqueueMessages {
			return nil, errFault
		}
		at := node - l.off(fMqNode)
		b, err := v.mem.peek(at, l.span["posix_msg_tree_node"])
		if err != nil {
			return nil, err
		}
		links, _ := l.bytes(b, fMqNode)
		left, ok1 := l.uint(links, fRbLeft)
		right, ok2 := l.uint(links, fRbRight)
		head, ok3 := l.bytes(b, fMqList)
		if !ok1 || !ok2 || !ok3 || len(head) < 8 {
			return nil, errFault
		}
		todo = append(todo, left, right)
		priority := num[uint32](l, b, fMqPriority)
		for next := binary.NativeEndian.Uint64(head); next != at+l.off(fMqList); {
			m, after, err := v.mqueueMessage(next - l.off(fMsgList))
			if err != nil {
				return nil, err
			}
			if bytes += uint64(len(m)); len(out) >= maxMqueueMessages || bytes > maxMqueueBytes {
				return nil, fmt.Errorf("reading a message queue: it has more than %d bytes of messages", uint64(maxMqueueBytes))
			}
			out = append(out, MqueueMessage{priority.V, m})
			next = after
		}
	}
	// Within one priority they are in order already.
	slices.SortStableFunc(out, func(a, b MqueueMessage) int { return int(int64(b.Priority) - int64(a.Priority)) })
	return out, nil
}

// mqueueMessage reads a message, which lies behind its head and, as far as it does not fit into a page, behind those of further segments
// (load_msg in ipc/msgutil.c).
func (v *bpfView) mqueueMessage(at uint64) (data []byte, after uint64, err error) {
	l := v.l
	b, err := v.mem.peek(at, l.span["msg_msg"])
	if err != nil {
		return nil, 0, err
	}
	link, ok := l.bytes(b, fMsgList)
	size, _ := l.uint(b, fMsgSize)
	next, _ := l.uint(b, fMsgNext)
	if !ok || len(link) < 8 || size > maxMqueueSize {
		return nil, 0, errFault
	}
	head := uint64(l.fields[fMsgWhole].size)
	page := uint64(os.Getpagesize())
	part, from := min(size, page-head), at+head
	data = make([]byte, 0, min(size, math.MaxInt32))
	for {
		p, err := v.mem.peek(from, int(part))
		if err != nil {
			return nil, 0, err
		}
		data = append(data, p...)
		left := size - uint64(len(data))
		if left == 0 {
			return data, binary.NativeEndian.Uint64(link), nil
		}
		seg, err := v.mem.peek(next, l.span["msg_msgseg"])
		if err != nil {
			return nil, 0, err
		}
		segment := uint64(l.fields[fSegWhole].size)
		from, part = next+segment, min(left, page-segment)
		next, _ = l.uint(seg, fSegNext)
	}
}
