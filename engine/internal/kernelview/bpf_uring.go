package kernelview

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The structures of include/linux/io_uring_types.h.
var (
	fURingFlags      = want("io_ring_ctx.flags")
	fURingRestricted = want("io_ring_ctx.restricted")
	fURingDrain      = want("io_ring_ctx.drain_active")
	fURingCompat     = want("io_ring_ctx.compat")
	fURingNoDrain    = want("io_ring_ctx.drain_disabled")
	fURingWQLimits   = want("io_ring_ctx.iowq_limits_set")
	fURingSubmitter  = want("io_ring_ctx.submitter_task")
	fURingRings      = want("io_ring_ctx.rings")
	fURingClock      = want("io_ring_ctx.clockid") // since 6.12
	fURingArray      = want("io_ring_ctx.sq_array")
	fURingSQEs       = want("io_ring_ctx.sq_sqes")
	fURingSQHead     = want("io_ring_ctx.cached_sq_head")
	fURingSQEntries  = want("io_ring_ctx.sq_entries")
	fURingFiles      = want("io_ring_ctx.file_table.data") // since 6.13
	fURingFileFrom   = want("io_ring_ctx.file_alloc_start")
	fURingFileTo     = want("io_ring_ctx.file_alloc_end")
	fURingBuffers    = want("io_ring_ctx.buf_table")
	fURingFree       = want("io_ring_ctx.submit_state.free_list.next")
	fURingGroups     = want("io_ring_ctx.io_bl_xa.xa_head")
	fURingCQTail     = want("io_ring_ctx.cached_cq_tail")
	fURingCQEntries  = want("io_ring_ctx.cq_entries")
	fURingEventfd    = want("io_ring_ctx.io_ev_fd")
	fURingWork       = want("io_ring_ctx.work_llist.first")
	fURingRetry      = want("io_ring_ctx.retry_llist.first")
	fURingFallback   = want("io_ring_ctx.fallback_llist.first")
	fURingCheck      = want("io_ring_ctx.check_cq")
	fURingOverflow   = want("io_ring_ctx.cq_overflow_list")
	fURingPolling    = want("io_ring_ctx.sq_data")
	fURingZcrx       = want("io_ring_ctx.zcrx_ctxs.xa_head")
	fURingPersonas   = want("io_ring_ctx.personalities.xa_head")
	fURingAllocated  = want("io_ring_ctx.nr_req_allocated") // since 6.16; before it:
	fURingTasks      = want("io_ring_ctx.tctx_list")
	fURingOldFiles   = want("io_ring_ctx.nr_user_files") // before 6.13
	fURingOldBuffers = want("io_ring_ctx.nr_user_bufs")
	fURingOldGroups  = want("io_ring_ctx.io_bl") // before 6.9
	fURingParams     = want("io_ring_ctx.param_region.ptr")

	fRingsSQHead     = want("io_rings.sq.head")
	fRingsSQTail     = want("io_rings.sq.tail")
	fRingsCQHead     = want("io_rings.cq.head")
	fRingsCQTail     = want("io_rings.cq.tail")
	fRingsSQMask     = want("io_rings.sq_ring_mask")
	fRingsCQMask     = want("io_rings.cq_ring_mask")
	fRingsSQEntries  = want("io_rings.sq_ring_entries")
	fRingsCQEntries  = want("io_rings.cq_ring_entries")
	fRingsSQDropped  = want("io_rings.sq_dropped")
	fRingsSQFlags    = want("io_rings.sq_flags")
	fRingsCQFlags    = want("io_rings.cq_flags")
	fRingsCQOverflow = want("io_rings.cq_overflow")
	fRingsCQEs       = want("io_rings.cqes")

	fRsrcCount = want("io_rsrc_data.nr")
	fRsrcNodes = want("io_rsrc_data.nodes")
	fNodeTag   = want("io_rsrc_node.tag")
	fNodeFile  = want("io_rsrc_node.file_ptr")
	fEvfdCtx   = want("io_ev_fd.cq_ev_fd")
	fEvfdAsync = want("io_ev_fd.eventfd_async")

	fTIOUring  = want("task_struct.io_uring")
	fTctxRings = want("io_uring_task.registered_rings")
	fTctxRefs  = want("io_uring_task.cached_refs")
	fTctxCount = want("io_uring_task.inflight.count")
	fTctxCPU   = want("io_uring_task.inflight.counters")
	fNodeList  = want("io_tctx_node.ctx_node")
	fNodeTask  = want("io_tctx_node.task")
)

// What io_uring_setup(2) allows at most, and flags of it (linux/io_uring.h).
const (
	maxURingSQ = 1 << 15
	maxURingCQ = 1 << 16

	uringCQE32     = 1 << 11 // IORING_SETUP_CQE32
	uringSQE128    = 1 << 10 // IORING_SETUP_SQE128
	uringNoSQArray = 1 << 16 // IORING_SETUP_NO_SQARRAY

	maxURingFiles = 1 << 20 // IORING_MAX_FIXED_FILES
)

// IOUring is documented with IOUringView.
func (v *bpfView) IOUring(file ID, tids []int) (IOUring, error) {
	l := v.l
	b, ctx, err := v.content(file, KindIOUring, "io_ring_ctx")
	if err != nil {
		return IOUring{}, err
	}
	for _, f := range []field{fURingFlags, fURingRestricted, fURingDrain, fURingNoDrain, fURingSubmitter, fURingRings, fURingArray, fURingSQEs,
		fURingSQHead, fURingSQEntries, fURingFileFrom, fURingFileTo, fURingFree, fURingGroups, fURingCQTail, fURingCQEntries, fURingEventfd,
		fURingWork, fURingFallback, fURingCheck, fURingOverflow, fURingPolling, fURingPersonas, fURingTasks, fRingsCQEs, fEvfdCtx, fEvfdAsync,
		fTIOUring, fTctxRings, fTctxRefs, fTctxCount, fTctxCPU, fNodeList, fNodeTask} {
		if !l.has(f) {
			return IOUring{}, missingField(KindIOUring)
		}
	}
	get := func(f field) uint64 { n, _ := l.uint(b, f); return n }
	u := IOUring{Setup: uint32(get(fURingFlags)), SQEntries: uint32(get(fURingSQEntries)), CQEntries: uint32(get(fURingCQEntries)),
		SQHead: uint32(get(fURingSQHead)), CQTail: uint32(get(fURingCQTail)), NoDrain: get(fURingNoDrain) != 0}
	if err := v.uringMemory(&u, get(fURingRings), get(fURingSQEs), get(fURingArray)); err != nil {
		return IOUring{}, fmt.Errorf("reading an io_uring instance: %w", err)
	}
	if u.InFlight, err = v.uringInFlight(b, ctx); err != nil {
		return IOUring{}, fmt.Errorf("reading an io_uring instance: %w", err)
	}
	overflow, _ := l.bytes(b, fURingOverflow)
	odd := func(is bool, what string) {
		if is {
			u.Odd = append(u.Odd, what)
		}
	}
	odd(get(fURingCompat) != 0, "entries of a 32-bit program")
	odd(get(fURingRestricted) != 0, "restrictions (IORING_REGISTER_RESTRICTIONS)")
	odd(get(fURingDrain) != 0, "a drain under way (IOSQE_IO_DRAIN)")
	odd(get(fURingWQLimits) != 0, "limits of its workers (IORING_REGISTER_IOWQ_MAX_WORKERS)")
	odd(l.has(fURingClock) && get(fURingClock) != unix.CLOCK_MONOTONIC, "a clock of its own (IORING_REGISTER_CLOCK)")
	odd(get(fURingGroups) != 0 || get(fURingOldGroups) != 0, "provided buffers (IORING_REGISTER_PBUF_RING)")
	odd(get(fURingWork) != 0 || get(fURingFallback) != 0 || l.has(fURingRetry) && get(fURingRetry) != 0, "work that its tasks have not done yet")
	odd(get(fURingCheck) != 0 || binary.NativeEndian.Uint64(overflow) != ctx+l.off(fURingOverflow), "completions for which there was no room")
	odd(get(fURingPolling) != 0, "a kernel thread that polls it (IORING_SETUP_SQPOLL)")
	odd(l.has(fURingZcrx) && get(fURingZcrx) != 0, "network queues (IORING_REGISTER_ZCRX_IFQ)")
	odd(get(fURingPersonas) != 0, "personalities (IORING_REGISTER_PERSONALITY)")
	odd(l.has(fURingParams) && get(fURingParams) != 0, "a region of arguments (IORING_REGISTER_MEM_REGION)")

	if err := v.uringFiles(&u, b); err != nil {
		return IOUring{}, fmt.Errorf("reading the registered files of an io_uring instance: %w", err)
	}
	if u.InFlight > 0 {
		if err := v.uringRequests(&u, b, ctx); err != nil {
			return IOUring{}, fmt.Errorf("reading the requests of an io_uring instance: %w", err)
		}
	}
	if err := v.uringEventfd(&u, get(fURingEventfd)); err != nil {
		return IOUring{}, fmt.Errorf("reading an io_uring instance: %w", err)
	}
	return u, v.uringTasks(&u, get(fURingSubmitter), v.files[file].addr, tids)
}

// uringMemory reads what a program maps of an instance.
func (v *bpfView) uringMemory(u *IOUring, rings, sqes, array uint64) error {
	l := v.l
	if rings == 0 || sqes == 0 || u.SQEntries == 0 || u.SQEntries > maxURingSQ || u.CQEntries < u.SQEntries || u.CQEntries > maxURingCQ {
		return errFault
	}
	for i, f := range [IOUringCounters]field{fRingsSQHead, fRingsSQTail, fRingsSQMask, fRingsSQEntries, fRingsSQFlags, fRingsSQDropped,
		fRingsCQHead, fRingsCQTail, fRingsCQMask, fRingsCQEntries, fRingsCQOverflow, fRingsCQFlags} {
		if !l.has(f) {
			return missingField(KindIOUring)
		}
		u.Counters[i] = uint32(l.off(f))
	}
	cqe, sqe := uint64(16), uint64(64)
	if u.Setup&uringCQE32 != 0 {
		cqe *= 2
	}
	if u.Setup&uringSQE128 != 0 {
		sqe *= 2
	}
	u.CQEs = uint32(l.off(fRingsCQEs))
	size := uint64(u.CQEs) + uint64(u.CQEntries)*cqe
	if u.Setup&uringNoSQArray == 0 {
		if array < rings+size || array > rings+size+4096 {
			return errFault
		}
		u.Array = uint32(array - rings)
		size = array - rings + uint64(u.SQEntries)*4
	}
	page := uint64(unix.Getpagesize())
	up := func(n uint64) int { return int((n + page - 1) / page * page) }
	var err error
	if u.Rings, err = v.mem.peek(rings, up(size)); err != nil {
		return err
	}
	u.SQEs, err = v.mem.peek(sqes, up(uint64(u.SQEntries)*sqe))
	return err
}

// uringInFlight counts the requests of an instance: those that were allocated,
// less those that wait to be used again. Before Linux 6.16 only the requests of
// its tasks are counted, be they of this instance or of another.
func (v *bpfView) uringInFlight(b []byte, ctx uint64) (int64, error) {
	if !v.l.has(fURingAllocated) {
		return v.uringTasksInFlight(ctx)
	}
	allocated, _ := v.l.uint(b, fURingAllocated)
	n := int64(allocated)
	next, _ := v.l.uint(b, fURingFree)
	for next != 0 && n >= 0 {
		n--
		node, err := v.mem.peek(next, 8) // struct io_wq_work_node
		if err != nil {
			return 0, err
		}
		next = binary.NativeEndian.Uint64(node)
	}
	if n < 0 {
		return 0, errFault
	}
	return n, nil
}

// uringTasksInFlight counts the requests of the tasks that have used an
// instance. A task takes a stock of references at once, which it has not used.
func (v *bpfView) uringTasksInFlight(ctx uint64) (int64, error) {
	l := v.l
	places, err := v.perCPU()
	if err != nil || places == nil {
		return 0, errors.Join(err, missingField(KindIOUring))
	}
	n := int64(0)
	head := ctx + l.off(fURingTasks)
	list, err := v.mem.peek(head, 8)
	const most = 1 << 20 // tasks
	for range most {
		if err != nil {
			return 0, err
		}
		next := binary.NativeEndian.Uint64(list)
		if next == head {
			return n, nil
		}
		node, err := v.mem.peek(next-l.off(fNodeList), l.span["io_tctx_node"])
		if err != nil {
			return 0, err
		}
		task, _ := l.uint(node, fNodeTask)
		p, err := v.mem.peek(task+l.off(fTIOUring), 8)
		if err != nil {
			return 0, err
		}
		b, err := v.mem.peek(binary.NativeEndian.Uint64(p), l.span["io_uring_task"])
		if err != nil {
			return 0, err
		}
		count, _ := l.uint(b, fTctxCount)
		stock, _ := l.uint(b, fTctxRefs)
		counters, _ := l.uint(b, fTctxCPU)
		n += int64(count) - int64(int32(stock))
		for _, place := range places {
			own, err := v.mem.peek(counters+place, 4)
			if err != nil {
				return 0, err
			}
			n += int64(int32(binary.NativeEndian.Uint32(own)))
		}
		list, _ = l.bytes(node, fNodeList)
	}
	return 0, errFault
}

// rsrcTable reads a table of registered resources: pointers to its nodes.
func (v *bpfView) rsrcTable(b []byte, f field) ([]uint64, error) {
	table, _ := v.l.bytes(b, f)
	n, _ := v.l.uint(table, fRsrcCount)
	nodes, _ := v.l.uint(table, fRsrcNodes)
	if n == 0 {
		return nil, nil
	}
	if n > maxURingFiles {
		return nil, errFault
	}
	pointers, err := v.mem.peek(nodes, int(n)*8)
	return words(pointers), err
}

func (v *bpfView) uringFiles(u *IOUring, b []byte) error {
	l := v.l
	if !l.has(fURingFiles) || !l.has(fURingBuffers) || !l.has(fNodeTag) || !l.has(fNodeFile) {
		files, known := l.uint(b, fURingOldFiles)
		buffers, alsoKnown := l.uint(b, fURingOldBuffers)
		if !known || !alsoKnown {
			return missingField(KindIOUring)
		}
		if files != 0 || buffers != 0 {
			u.Odd = append(u.Odd, "registered files or buffers on a kernel before 6.13")
		}
		return nil
	}
	buffers, err := v.rsrcTable(b, fURingBuffers)
	if err != nil {
		return err
	}
	if len(buffers) != 0 {
		u.Odd = append(u.Odd, "registered buffers (IORING_REGISTER_BUFFERS)")
	}
	table, err := v.rsrcTable(b, fURingFiles)
	if err != nil {
		return err
	}
	nodes, err := v.gatherMap(table, l.span["io_rsrc_node"])
	if err != nil {
		return err
	}
	u.Files, u.nodes = make([]ID, len(table)), table
	tagged := false
	for i, at := range table {
		if at == 0 {
			continue
		}
		node, ok := nodes[at]
		if !ok {
			return errFault
		}
		tag, _ := l.uint(node, fNodeTag)
		file, _ := l.uint(node, fNodeFile)
		tagged = tagged || tag != 0
		const flags = 7 // FFS_MASK
		u.Files[i] = v.id(file &^ flags)
	}
	if tagged {
		u.Odd = append(u.Odd, "registered files with tags (IORING_REGISTER_FILES2)")
	}
	from, _ := l.uint(b, fURingFileFrom)
	to, _ := l.uint(b, fURingFileTo)
	if len(table) > 0 && (from != 0 || to != uint64(len(table))) {
		u.Odd = append(u.Odd, "a range for new registered files (IORING_REGISTER_FILE_ALLOC_RANGE)")
	}
	return nil
}

func (v *bpfView) uringEventfd(u *IOUring, at uint64) error {
	if at == 0 {
		return nil
	}
	b, err := v.mem.peek(at, v.l.span["io_ev_fd"])
	if err != nil {
		return err
	}
	ctx, _ := v.l.uint(b, fEvfdCtx)
	async, _ := v.l.uint(b, fEvfdAsync)
	u.HasEventfd, u.EventfdAsync = true, async&1 != 0
	for id := range v.files {
		if f := &v.files[id]; f.kind == KindEventfd && f.private == ctx {
			u.Eventfd = ID(id)
			break
		}
	}
	return nil
}

// uringTasks finds the submitter, and the file at an address among the registered rings of threads.
func (v *bpfView) uringTasks(u *IOUring, submitter, file uint64, tids []int) error {
	l := v.l
	if submitter != 0 {
		b, err := v.mem.peek(submitter, l.span["task_struct"])
		if err != nil {
			return err
		}
		pid, _ := l.uint(b, fTThreadPid)
		numbers, err := v.numbers([]uint64{pid})
		if err != nil {
			return err
		}
		if u.Submitter = numbers[pid]; u.Submitter == 0 {
			u.Odd = append(u.Odd, "a submitter that has ended (IORING_SETUP_SINGLE_ISSUER)")
		}
	}
	tasks, err := v.tasks(tids)
	if err != nil {
		return err
	}
	at := v.pointers(tasks, fTIOUring)
	contexts, err := v.gatherMap(at, l.span["io_uring_task"])
	if err != nil {
		return err
	}
	for i := range tasks {
		b := contexts[at[i]]
		if b == nil {
			continue
		}
		rings, _ := l.bytes(b, fTctxRings)
		for k, p := range words(rings) {
			if p == file {
				u.Registered = append(u.Registered, IOUringPlace{tasks[i].tid, k})
			}
		}
	}
	return nil
}
