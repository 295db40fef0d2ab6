package kernelview

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A request is a struct io_kiocb. One that waits for a file is in a hash table,
// one that waits for its time in a list.
var (
	fURingHash     = want("io_ring_ctx.cancel_table.hbs")
	fURingHashBits = want("io_ring_ctx.cancel_table.hash_bits")
	fURingTimeouts = want("io_ring_ctx.timeout_list")
	fBucketSize    = want("io_hash_bucket")
	fBucketFirst   = want("io_hash_bucket.list.first")

	fReqFile     = want("io_kiocb.file")
	fReqCmd      = want("io_kiocb.cmd")
	fReqOp       = want("io_kiocb.opcode")
	fReqFlags    = want("io_kiocb.flags")
	fReqData     = want("io_kiocb.cqe.user_data")
	fReqCtx      = want("io_kiocb.ctx")
	fReqTctx     = want("io_kiocb.tctx")
	fReqNode     = want("io_kiocb.file_node")
	fReqHash     = want("io_kiocb.hash_node")
	fReqAsync    = want("io_kiocb.async_data")
	fReqPollRefs = want("io_kiocb.poll_refs")
	fReqLink     = want("io_kiocb.link")

	fIOPollEvents   = want("io_poll.events")
	fIOTimeoutList  = want("io_timeout.list")
	fIOTimeoutOff   = want("io_timeout.off")
	fIOTimeoutTimes = want("io_timeout.repeats")
	fIOTimerExpires = want("io_timeout_data.timer.node.expires")
	fIOTimerState   = want("io_timeout_data.timer.state")
	fIOTimerFlags   = want("io_timeout_data.flags")
	fIORWPos        = want("io_rw.kiocb.ki_pos")
	fIORWAddr       = want("io_rw.addr")
	fIORWLen        = want("io_rw.len")
	fIORWFlags      = want("io_rw.flags")
	fIORWDone       = want("io_async_rw.bytes_done")
	fIOMsgBuf       = want("io_sr_msg.buf")
	fIOMsgLen       = want("io_sr_msg.len")
	fIOMsgDone      = want("io_sr_msg.done_io")
	fIOMsgMsg       = want("io_sr_msg.msg_flags")
	fIOMsgFlags     = want("io_sr_msg.flags")
	fIOAcceptAddr   = want("io_accept.addr")
	fIOAcceptLen    = want("io_accept.addr_len")
	fIOAcceptFlags  = want("io_accept.flags")
	fIOAcceptIOU    = want("io_accept.iou_flags")
	fIOAcceptSlot   = want("io_accept.file_slot")

	fTctxTask = want("io_uring_task.task")
)

// Bits of the flags of a request (REQ_F_*) that follow from what it is and how
// it waits, by name: they move between releases. The lowest are those of its
// entry.
var uringKeptFlags = []field{
	want("enum .REQ_F_NOWAIT_BIT"), want("enum .REQ_F_NEED_CLEANUP_BIT"), want("enum .REQ_F_POLLED_BIT"), want("enum .REQ_F_REFCOUNT_BIT"),
	want("enum .REQ_F_ASYNC_DATA_BIT"), want("enum .REQ_F_SINGLE_POLL_BIT"), want("enum .REQ_F_DOUBLE_POLL_BIT"), want("enum .REQ_F_MULTISHOT_BIT"),
	want("enum .REQ_F_APOLL_MULTISHOT_BIT"), want("enum .REQ_F_SUPPORT_NOWAIT_BIT"), want("enum .REQ_F_POLL_NO_LAZY_BIT"),
	want("enum .REQ_F_CAN_POLL_BIT"), want("enum .REQ_F_SQE_COPIED_BIT"),
}

// fReqCurPos is of a read from where the file stands.
var fReqCurPos = want("enum .REQ_F_CUR_POS_BIT")

// Operations, and bits of what they are asked (linux/io_uring.h).
const (
	opPollAdd = 6
	opTimeout = 11
	opAccept  = 13
	opRead    = 22
	opRecv    = 27

	pollMulti, pollLevel = 1, 8
	timeoutBoot          = 1 << 2 // IORING_TIMEOUT_BOOTTIME
	timeoutETimeSuccess  = 1 << 5
	recvPollFirst        = 1
	acceptMax            = 7

	pollOneshot, pollEdge = 1 << 30, 1 << 31 // EPOLLONESHOT, EPOLLET

	sqeFixed, sqeSkip = 1, 1 << 6 // IOSQE_FIXED_FILE, IOSQE_CQE_SKIP_SUCCESS
)

// opNames are for messages.
var opNames = map[uint64]string{1: "readv", 2: "writev", 4: "a read into a registered buffer", 9: "sendmsg", 10: "recvmsg", 15: "a linked timeout", 16: "connect", 23: "write",
	26: "send", 46: "a command of a driver", 47: "send without a copy", 49: "a multishot read", 50: "waitid", 51: "a wait for a futex", 59: "epoll_wait"}

func opName(op uint64) string {
	switch op {
	case opPollAdd:
		return "poll"
	case opTimeout:
		return "a timeout"
	case opAccept:
		return "accept"
	case opRead:
		return "read"
	case opRecv:
		return "recv"
	}
	if name, ok := opNames[op]; ok {
		return name
	}
	return fmt.Sprintf("operation %d", op)
}

// uringRequests tells of the requests that wait.
func (v *bpfView) uringRequests(u *IOUring, b []byte, ctx uint64) error {
	l := v.l
	for f := fURingHash; f <= fTctxTask; f++ {
		if !l.has(f) {
			u.Unkept = "one that this kernel does not tell of"
			return nil
		}
	}
	list, err := v.uringWaiting(b, ctx)
	if err != nil {
		return err
	}
	if int64(len(list)) < u.InFlight {
		u.Unkept = "one that is being worked on"
	}
	for _, at := range list {
		b, err := v.mem.peek(at, l.span["io_kiocb"])
		if err != nil {
			return err
		}
		r, unkept, err := v.uringRequest(u, b, at, ctx)
		if err != nil {
			return err
		}
		if unkept != "" {
			u.Unkept = unkept
			continue
		}
		u.Requests = append(u.Requests, r)
	}
	return nil
}

// uringWaiting returns the addresses of the requests that wait, for their file and for their time.
func (v *bpfView) uringWaiting(b []byte, ctx uint64) ([]uint64, error) {
	l := v.l
	const most = 1 << 20
	var list []uint64
	bits, _ := l.uint(b, fURingHashBits)
	buckets, _ := l.uint(b, fURingHash)
	if bits > 16 {
		return nil, errFault
	}
	size := uint64(l.fields[fBucketSize].size)
	table, err := v.mem.peek(buckets, int(size<<bits))
	if err != nil {
		return nil, err
	}
	for i := range uint64(1) << bits {
		next, _ := l.uint(table[i*size:(i+1)*size], fBucketFirst)
		for next != 0 {
			if len(list) == most {
				return nil, errFault
			}
			list = append(list, next-l.off(fReqHash))
			node, err := v.mem.peek(next, 8) // struct hlist_node
			if err != nil {
				return nil, err
			}
			next = binary.NativeEndian.Uint64(node)
		}
	}
	head := ctx + l.off(fURingTimeouts)
	node, _ := l.bytes(b, fURingTimeouts)
	for {
		next := binary.NativeEndian.Uint64(node)
		if next == head {
			return list, nil
		}
		if len(list) == most {
			return nil, errFault
		}
		list = append(list, next-l.off(fIOTimeoutList)-l.off(fReqCmd))
		if node, err = v.mem.peek(next, 8); err != nil { // struct list_head
			return nil, err
		}
	}
}

// uringRequest makes the entry of a request; unkept says why that is not possible.
func (v *bpfView) uringRequest(u *IOUring, b []byte, at, ctx uint64) (r IOURequest, unkept string, err error) {
	l := v.l
	get := func(f field) uint64 { n, _ := l.uint(b, f); return n }
	op, flags := get(fReqOp), get(fReqFlags)
	if get(fReqCtx) != ctx {
		return r, "", errFault
	}
	known := uint64(sqeFixed | sqeSkip)
	for _, f := range uringKeptFlags {
		if l.has(f) {
			known |= 1 << l.off(f)
		}
	}
	current := op == opRead && l.has(fReqCurPos) && flags>>l.off(fReqCurPos)&1 != 0
	if current {
		known |= 1 << l.off(fReqCurPos)
	}
	refs, _ := l.bytes(b, fReqPollRefs)
	switch {
	case get(fReqLink) != 0:
		return r, opName(op) + " with others linked to it", nil
	case flags&^known != 0:
		return r, opName(op) + " with flags that cannot be kept", nil
	case op != opTimeout && binary.NativeEndian.Uint32(refs) != 0:
		return r, opName(op) + ", which is completing", nil
	}
	r = IOURequest{Op: uint8(op), Data: get(fReqData), Slot: -1, Skip: flags&sqeSkip != 0}
	if unkept, err = v.uringCommand(&r, b); unkept != "" || err != nil {
		return r, unkept, err
	}
	if current {
		r.Offset = ^uint64(0)
	}
	if op != opTimeout {
		file := get(fReqFile)
		r.File = v.id(file)
		if flags&sqeFixed != 0 {
			if r.Slot = u.slotOf(get(fReqNode)); r.Slot < 0 || u.Files[r.Slot] != r.File {
				return r, opName(op) + " of a registered file that is registered no more", nil
			}
		}
	}
	tctx, err := v.mem.peek(get(fReqTctx), l.span["io_uring_task"])
	if err != nil {
		return r, "", err
	}
	task, _ := l.uint(tctx, fTctxTask)
	p, err := v.mem.peek(task+l.off(fTThreadPid), 8)
	if err != nil {
		return r, "", err
	}
	pid := binary.NativeEndian.Uint64(p)
	numbers, err := v.numbers([]uint64{pid})
	r.Tid = numbers[pid]
	return r, "", err
}

// uringCommand reads what an operation was asked.
func (v *bpfView) uringCommand(r *IOURequest, b []byte) (unkept string, err error) {
	l := v.l
	cmd, _ := l.bytes(b, fReqCmd)
	get := func(f field) uint64 { n, _ := l.uint(cmd, f); return n }
	name := opName(uint64(r.Op))
	async, _ := l.uint(b, fReqAsync)
	switch r.Op {
	case opPollAdd:
		events := get(fIOPollEvents)
		r.Flags = uint32(events) &^ (pollOneshot | pollEdge)
		if events&pollOneshot == 0 {
			r.Len |= pollMulti
		}
		if events&pollEdge == 0 {
			r.Len |= pollLevel
		}
	case opTimeout:
		data, err := v.mem.peek(async, l.span["io_timeout_data"])
		if err != nil {
			return "", err
		}
		flags, _ := l.uint(data, fIOTimerFlags)
		expires, _ := l.uint(data, fIOTimerExpires)
		state, _ := l.uint(data, fIOTimerState)
		switch {
		case get(fIOTimeoutOff) != 0 || get(fIOTimeoutTimes) != 0:
			return "a timeout that counts completions", nil
		case flags&^(timeoutBoot|timeoutETimeSuccess) != 0:
			return "a timeout of an absolute time, of CLOCK_REALTIME or one that repeats", nil
		case state&1 == 0: // HRTIMER_STATE_ENQUEUED
			return "a timeout that has just expired", nil
		}
		clock := int32(unix.CLOCK_MONOTONIC)
		if flags&timeoutBoot != 0 {
			clock = unix.CLOCK_BOOTTIME
		}
		now, ok := v.clocks.now(clock).Get()
		if !ok {
			return "a timeout of a clock that is not known", nil
		}
		r.Flags, r.Left, r.Len = uint32(flags), max(int64(expires)-now, 0), 1
	case opRead:
		r.Addr, r.Len, r.Flags, r.Offset = get(fIORWAddr), uint32(get(fIORWLen)), uint32(get(fIORWFlags)), get(fIORWPos)
		if async != 0 {
			data, err := v.mem.peek(async, l.span["io_async_rw"])
			if err != nil {
				return "", err
			}
			if done, _ := l.uint(data, fIORWDone); done != 0 {
				return name + " of which a part is done", nil
			}
		}
	case opRecv:
		r.Addr, r.Len, r.Flags, r.Prio = get(fIOMsgBuf), uint32(get(fIOMsgLen)), uint32(get(fIOMsgMsg)), uint16(get(fIOMsgFlags))
		if get(fIOMsgDone) != 0 || r.Prio&^recvPollFirst != 0 {
			return name + " of which a part is done, or in bundles, or a multishot one", nil
		}
	case opAccept:
		r.Addr, r.Offset, r.Flags, r.Prio = get(fIOAcceptAddr), get(fIOAcceptLen), uint32(get(fIOAcceptFlags)), uint16(get(fIOAcceptIOU))
		if get(fIOAcceptSlot) != 0 || r.Prio > acceptMax {
			return name + " that registers what it accepts", nil
		}
	default:
		return name, nil
	}
	return "", nil
}
