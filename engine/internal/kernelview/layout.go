package kernelview

import (
	"encoding/binary"
	"strings"
)

// A field names a member of a kernel structure that the BPF source reads, e.g.
// "task_struct.signal" or "task_struct.restart_block.poll.ufds". Where it lies
// comes from the running kernel's BTF. A field that this kernel lacks makes
// the value that is read from it unknown.
type field uint16

// fieldPaths holds the path of every field; want appends to it while the
// package's variables are initialised.
var fieldPaths []string

func want(path string) field {
	fieldPaths = append(fieldPaths, path)
	return field(len(fieldPaths) - 1)
}

// What a field is made of.
const (
	locMissing  = iota // this kernel has no such member
	locValue           // integer, enum, or a small structure that wraps one
	locPointer         //
	locArray           // count elements of size/count bytes
	locCompound        // structure or union
	locLast
)

// location is where a field lies in its structure.
type location struct {
	kind    uint8
	bit     uint8  // first bit of a bit field within the byte at off
	bits    uint8  // width of a bit field, 0: none
	offset  uint32 // bytes from the start of the structure
	size    uint32 // bytes; of a bit field those that hold it
	count   uint32 // elements of an array
	element uint32 // bytes of one element of an array
}

// layout is what was learned of one kernel build. Everything in it depends on
// the build alone, not on the boot, so it can be kept in a file.
type layout struct {
	fields  []location    // by field
	symbols []symbolPlace // by symbol
	facts   [factCount]fact

	span map[string]int // bytes of a structure that its fields need, by its name
}

// symbolPlace is a function's distance from _stext.
type symbolPlace struct {
	known  bool
	offset uint64
}

// A fact is a constant that BTF does not name, found by calibration.
type fact struct {
	known bool
	value uint64
}

// prepare computes what follows from the fields.
func (l *layout) prepare() {
	l.span = make(map[string]int)
	for i, loc := range l.fields {
		name, _, isMember := strings.Cut(fieldPaths[i], ".")
		if isMember && loc.kind != locMissing {
			l.span[name] = max(l.span[name], int(loc.offset+loc.size))
		}
	}
}

// has tells whether this kernel has the field.
func (l *layout) has(f field) bool { return l.fields[f].kind != locMissing }

// off is the field's offset, for a field that has been checked with has.
func (l *layout) off(f field) uint64 { return uint64(l.fields[f].offset) }

// uint reads an integer (sign bits as they are in its own width), a pointer or
// a bit field out of the structure b.
func (l *layout) uint(b []byte, f field) (uint64, bool) {
	loc := &l.fields[f]
	if loc.kind == locMissing || uint64(loc.offset)+uint64(loc.size) > uint64(len(b)) {
		return 0, false
	}
	b = b[loc.offset : loc.offset+loc.size]
	if loc.bits == 0 {
		return word(b)
	}
	// BTF counts the bits of a bit field from the least significant one of the
	// first byte, on a big-endian machine from the most significant one.
	big := binary.NativeEndian.Uint16([]byte{0, 1}) == 1
	var v uint64
	for i := range b {
		if big {
			v = v<<8 | uint64(b[i])
		} else {
			v |= uint64(b[i]) << (8 * i)
		}
	}
	shift := uint(loc.bit)
	if big {
		shift = uint(8*len(b)) - uint(loc.bit) - uint(loc.bits)
	}
	return v >> shift & (1<<loc.bits - 1), true
}

// word reads an integer of 1, 2, 4 or 8 bytes.
func word(b []byte) (uint64, bool) {
	switch len(b) {
	case 1:
		return uint64(b[0]), true
	case 2:
		return uint64(binary.NativeEndian.Uint16(b)), true
	case 4:
		return uint64(binary.NativeEndian.Uint32(b)), true
	case 8:
		return binary.NativeEndian.Uint64(b), true
	}
	return 0, false
}

// bytes returns the part of the structure b that is the field.
func (l *layout) bytes(b []byte, f field) ([]byte, bool) {
	loc := &l.fields[f]
	if loc.kind == locMissing || uint64(loc.offset)+uint64(loc.size) > uint64(len(b)) {
		return nil, false
	}
	return b[loc.offset : loc.offset+loc.size], true
}

// num reads an integer field as a T.
func num[T ~int8 | ~int16 | ~int32 | ~int64 | ~uint8 | ~uint16 | ~uint32 | ~uint64](l *layout, b []byte, f field) Maybe[T] {
	v, ok := l.uint(b, f)
	if !ok {
		return Maybe[T]{}
	}
	return Is(T(v))
}

// flag reads a field that is true when it is not zero.
func flag(l *layout, b []byte, f field) Maybe[bool] {
	v, ok := l.uint(b, f)
	if !ok {
		return Maybe[bool]{}
	}
	return Is(v != 0)
}

// bitsSet tells whether all bits of a fact are set in a field. A fact of no
// bits says that this kernel cannot have it.
func bitsSet(l *layout, b []byte, f field, x factName) Maybe[bool] {
	v, ok := l.uint(b, f)
	if !ok || !l.facts[x].known {
		return Maybe[bool]{}
	}
	mask := l.facts[x].value
	return Is(mask != 0 && v&mask == mask)
}

// The fields. What the value means is said where it is read; the paths are
// those of Linux 6.1 to 6.18, with another field where these differ.
var (
	fTIFlags       = want("task_struct.thread_info.flags")
	fTState        = want("task_struct.__state")
	fTFlags        = want("task_struct.flags")
	fTOnCPU        = want("task_struct.on_cpu")
	fTMM           = want("task_struct.mm")
	fTExitState    = want("task_struct.exit_state")
	fTExitCode     = want("task_struct.exit_code")
	fTExitSignal   = want("task_struct.exit_signal")
	fTPdeath       = want("task_struct.pdeath_signal")
	fTJobctl       = want("task_struct.jobctl")
	fTPersonality  = want("task_struct.personality")
	fTResetOnFork  = want("task_struct.sched_reset_on_fork")
	fTRestoreMask  = want("task_struct.restore_sigmask")
	fTFrozen       = want("task_struct.frozen")
	fCSSCgroup     = want("css_set.dfl_cgrp")
	fCgroupFrozen  = want("cgroup.freezer.freeze_start_nsec")
	fTAtomicFlags  = want("task_struct.atomic_flags")
	fTPid          = want("task_struct.pid")
	fTTgid         = want("task_struct.tgid")
	fTThreadPid    = want("task_struct.thread_pid")
	fTRealParent   = want("task_struct.real_parent")
	fTPidLinks     = want("task_struct.pid_links")
	fTThreadNode   = want("task_struct.thread_node")
	fTVforkDone    = want("task_struct.vfork_done")
	fTSetChild     = want("task_struct.set_child_tid")
	fTClearChild   = want("task_struct.clear_child_tid")
	fTCred         = want("task_struct.cred")
	fTUndoList     = want("task_struct.sysvsem.undo_list")
	fUndoProc      = want("sem_undo_list.list_proc")
	fTFS           = want("task_struct.fs")
	fTFiles        = want("task_struct.files")
	fTSignal       = want("task_struct.signal")
	fTSighand      = want("task_struct.sighand")
	fTBlocked      = want("task_struct.blocked")
	fTRealBlocked  = want("task_struct.real_blocked")
	fTSavedMask    = want("task_struct.saved_sigmask")
	fTAltSP        = want("task_struct.sas_ss_sp")
	fTAltSize      = want("task_struct.sas_ss_size")
	fTAltFlags     = want("task_struct.sas_ss_flags")
	fTSeccompMode  = want("task_struct.seccomp.mode")
	fTSeccompCount = want("task_struct.seccomp.filter_count")
	fTDispatchSel  = want("task_struct.syscall_dispatch.selector")
	fTDispatchOff  = want("task_struct.syscall_dispatch.offset")
	fTDispatchLen  = want("task_struct.syscall_dispatch.len")
	fTSyscallWork  = want("task_struct.thread_info.syscall_work")
	fTIOContext    = want("task_struct.io_context")
	fTRobust       = want("task_struct.robust_list")
	fTCompatRobust = want("task_struct.compat_robust_list")
	fTMempolicy    = want("task_struct.mempolicy")
	fTRseq         = want("task_struct.rseq")
	fTRseqLen      = want("task_struct.rseq_len")
	fTRseqSig      = want("task_struct.rseq_sig")
	fTSlack        = want("task_struct.timer_slack_ns")
	fTDefaultSlack = want("task_struct.default_timer_slack_ns")
	fTSlice        = want("task_struct.se.slice")
	fTCustomSlice  = want("task_struct.se.custom_slice")
	fTExecRuntime  = want("task_struct.se.sum_exec_runtime")
	fTUtime        = want("task_struct.utime")
	fTStime        = want("task_struct.stime")
	fTUserCPUs     = want("task_struct.user_cpus_ptr")
	fTBreakpoints  = want("task_struct.thread.ptrace_bps")
	fTIOBitmap     = want("task_struct.thread.io_bitmap")
	fTIOPL         = want("task_struct.thread.iopl_emul")
	fTTLS          = want("task_struct.thread.tls_array")

	fRBFn           = want("task_struct.restart_block.fn")
	fRBSleepClock   = want("task_struct.restart_block.nanosleep.clockid")
	fRBSleepType    = want("task_struct.restart_block.nanosleep.type")
	fRBSleepRemain  = want("task_struct.restart_block.nanosleep.rmtp")
	fRBSleepExpires = want("task_struct.restart_block.nanosleep.expires")
	fRBPollFds      = want("task_struct.restart_block.poll.ufds")
	fRBPollN        = want("task_struct.restart_block.poll.nfds")
	fRBPollHas      = want("task_struct.restart_block.poll.has_timeout")
	fRBPollSec      = want("task_struct.restart_block.poll.tv_sec")
	fRBPollNsec     = want("task_struct.restart_block.poll.tv_nsec")
	fRBFutexAddr    = want("task_struct.restart_block.futex.uaddr")
	fRBFutexVal     = want("task_struct.restart_block.futex.val")
	fRBFutexFlags   = want("task_struct.restart_block.futex.flags")
	fRBFutexBitset  = want("task_struct.restart_block.futex.bitset")
	fRBFutexTime    = want("task_struct.restart_block.futex.time")

	fCredSecurebits = want("cred.securebits")
	fIOCIoprio      = want("io_context.ioprio")
	fPolMode        = want("mempolicy.mode")
	fPolFlags       = want("mempolicy.flags")
	fPolNodes       = want("mempolicy.nodes")
	fPolHome        = want("mempolicy.home_node")
	fPolUserNodes   = want("mempolicy.w.user_nodemask")

	fPidLevel   = want("pid.level")
	fPidTasks   = want("pid.tasks")
	fPidNumbers = want("pid.numbers")
	fUpidNr     = want("upid.nr")
	fUpidNS     = want("upid.ns")
	fUpidSize   = want("upid")
	fNSHead     = want("pid_namespace.idr.idr_rt.xa_head")
	fNSBase     = want("pid_namespace.idr.idr_base")
	fNodeShift  = want("xa_node.shift")
	fNodeSlots  = want("xa_node.slots")

	fHandAction  = want("sighand_struct.action")
	fActSize     = want("k_sigaction")
	fActHandler  = want("k_sigaction.sa.sa_handler")
	fActFlags    = want("k_sigaction.sa.sa_flags")
	fActRestorer = want("k_sigaction.sa.sa_restorer")
	fActMask     = want("k_sigaction.sa.sa_mask")

	fSNThreads    = want("signal_struct.nr_threads")
	fSThreadHead  = want("signal_struct.thread_head")
	fSExitCode    = want("signal_struct.group_exit_code")
	fSFlags       = want("signal_struct.flags")
	fSSubreaper   = want("signal_struct.is_child_subreaper")
	fSHasSub      = want("signal_struct.has_child_subreaper")
	fSRestoreIDs  = want("signal_struct.timer_create_restore_ids")
	fSNextTimer   = want("signal_struct.next_posix_timer_id")
	fSTimers      = want("signal_struct.posix_timers")
	fSRealState   = want("signal_struct.real_timer.state")
	fSRealExpires = want("signal_struct.real_timer.node.expires")
	fSRealIncr    = want("signal_struct.it_real_incr")
	fSIt          = want("signal_struct.it")
	fSCPUUtime    = want("signal_struct.cputimer.cputime_atomic.utime")
	fSCPUStime    = want("signal_struct.cputimer.cputime_atomic.stime")
	fSCPURuntime  = want("signal_struct.cputimer.cputime_atomic.sum_exec_runtime")
	fSCPUActive   = want("signal_struct.posix_cputimers.timers_active")
	fSPids        = want("signal_struct.pids")
	fSUtime       = want("signal_struct.utime")
	fSStime       = want("signal_struct.stime")
	fSRuntime     = want("signal_struct.sum_sched_runtime")
	fSRlim        = want("signal_struct.rlim")
	fSOOM         = want("signal_struct.oom_score_adj")
	fSOOMMin      = want("signal_struct.oom_score_adj_min")
	fItExpires    = want("cpu_itimer.expires")
	fItIncr       = want("cpu_itimer.incr")
	fRlimCur      = want("rlimit.rlim_cur")
	fRlimMax      = want("rlimit.rlim_max")

	fKList        = want("k_itimer.list")
	fKID          = want("k_itimer.it_id")
	fKClock       = want("k_itimer.it_clock")
	fKNotify      = want("k_itimer.it_sigev_notify")
	fKInterval    = want("k_itimer.it_interval")
	fKOverrun     = want("k_itimer.it_overrun")
	fKOverrunLast = want("k_itimer.it_overrun_last")
	fKPid         = want("k_itimer.it_pid")
	fKSigq        = want("k_itimer.sigq")
	fKRealExpires = want("k_itimer.it.real.timer.node.expires")
	fKRealState   = want("k_itimer.it.real.timer.state")
	fKRealBase    = want("k_itimer.it.real.timer.base")
	fKAlarmExpire = want("k_itimer.it.alarm.alarmtimer.node.expires")
	fKAlarmState  = want("k_itimer.it.alarm.alarmtimer.state")
	fKCPUExpires  = want("k_itimer.it.cpu.node.expires")
	fKCPUHead     = want("k_itimer.it.cpu.head")
	fKCPUPid      = want("k_itimer.it.cpu.pid")
	fQList        = want("sigqueue.list")
	fQSigno       = want("sigqueue.info.si_signo")
	fQValue       = want("sigqueue.info._sifields._timer._sigval")
	fBaseClock    = want("hrtimer_clock_base.clockid")

	fMUsers      = want("mm_struct.mm_users")
	fMFlags      = want("mm_struct.flags")
	fMDefFlags   = want("mm_struct.def_flags")
	fMMembarrier = want("mm_struct.membarrier_state")
	fMAuxv       = want("mm_struct.saved_auxv")
	fMTaskSize   = want("mm_struct.task_size")
	fMStartCode  = want("mm_struct.start_code")
	fMEndCode    = want("mm_struct.end_code")
	fMStartData  = want("mm_struct.start_data")
	fMEndData    = want("mm_struct.end_data")
	fMStartBrk   = want("mm_struct.start_brk")
	fMBrk        = want("mm_struct.brk")
	fMStartStack = want("mm_struct.start_stack")
	fMArgStart   = want("mm_struct.arg_start")
	fMArgEnd     = want("mm_struct.arg_end")
	fMEnvStart   = want("mm_struct.env_start")
	fMEnvEnd     = want("mm_struct.env_end")
	fMIoctx      = want("mm_struct.ioctx_table")
	fMExe        = want("mm_struct.exe_file")
	fMLDT        = want("mm_struct.context.ldt")
	fLDTEntries  = want("ldt_struct.entries")
	fLDTCount    = want("ldt_struct.nr_entries")
	fIoctxNr     = want("kioctx_table.nr")
	fIoctxTable  = want("kioctx_table.table")
	fMRoot       = want("mm_struct.mm_mt.ma_root")
	fMMapCount   = want("mm_struct.map_count")

	fRange64Pivot  = want("maple_range_64.pivot")
	fRange64Slot   = want("maple_range_64.slot")
	fArange64Pivot = want("maple_arange_64.pivot")
	fArange64Slot  = want("maple_arange_64.slot")
	fVStart        = want("vm_area_struct.vm_start")
	fVEnd          = want("vm_area_struct.vm_end")
	fVMM           = want("vm_area_struct.vm_mm")
	fVFlags        = want("vm_area_struct.vm_flags")
	fVPgoff        = want("vm_area_struct.vm_pgoff")
	fVFile         = want("vm_area_struct.vm_file")
	fVOps          = want("vm_area_struct.vm_ops")
	fVPolicy       = want("vm_area_struct.vm_policy")
	fVName         = want("vm_area_struct.anon_name")
	fVUserfault    = want("vm_area_struct.vm_userfaultfd_ctx.ctx")
	fVOpsPolicy    = want("vm_operations_struct.get_policy")
	fShmInode      = want("shmem_inode_info.vfs_inode")
	fShmPolicy     = want("shmem_inode_info.policy.root.rb_node")

	fFSCount   = want("files_struct.count")
	fFSFdt     = want("files_struct.fdt")
	fFdtMax    = want("fdtable.max_fds")
	fFdtFD     = want("fdtable.fd")
	fFdtCloexe = want("fdtable.close_on_exec")
	fFdtOpen   = want("fdtable.open_fds")

	fFOp      = want("file.f_op")
	fFPrivate = want("file.private_data")
	fFInode   = want("file.f_inode")
	fFFlags   = want("file.f_flags")
	fFMode    = want("file.f_mode")
	fFPos     = want("file.f_pos")
	fFRef     = want("file.f_ref.refcnt")
	fFCount   = want("file.f_count")
	fFOwner   = want("file.f_owner")
	fFMount   = want("file.f_path.mnt")
	fFDentry  = want("file.f_path.dentry")
	fDCount   = want("dentry.d_lockref.count")
	fOpRead   = want("file_operations.read")
	fOpRel    = want("file_operations.release")
	fOwnPid   = want("fown_struct.pid")
	fOwnType  = want("fown_struct.pid_type")
	fOwnUID   = want("fown_struct.uid")
	fOwnEUID  = want("fown_struct.euid")
	fOwnSig   = want("fown_struct.signum")
	fIMode    = want("inode.i_mode")
	fISB      = want("inode.i_sb")
	fIIno     = want("inode.i_ino")
	fINlink   = want("inode.i_nlink")
	fIRdev    = want("inode.i_rdev")
	fISize    = want("inode.i_size")
	fIFlctx   = want("inode.i_flctx")
	fSBDev    = want("super_block.s_dev")
	fSBMagic  = want("super_block.s_magic")
	fLockF    = want("file_lock_context.flc_flock")
	fLockP    = want("file_lock_context.flc_posix")
	fLockL    = want("file_lock_context.flc_lease")
	fIState   = want("inode.i_state")
	fIHint    = want("inode.i_write_hint")

	fCoreList  = want("file_lock_core.flc_list") // since 6.9, before it:
	fCoreOwner = want("file_lock_core.flc_owner")
	fCoreType  = want("file_lock_core.flc_type")
	fOldList   = want("file_lock.fl_list")
	fOldOwner  = want("file_lock.fl_owner")
	fOldType   = want("file_lock.fl_type")
	fMntMnt    = want("mount.mnt")
	fMntID     = want("mount.mnt_id")

	fEvCount = want("eventfd_ctx.count")
	fEvFlags = want("eventfd_ctx.flags")
	fEpRoot  = want("eventpoll.rbr.rb_root.rb_node")
	fRbLeft  = want("rb_node.rb_left")
	fRbRight = want("rb_node.rb_right")
	fItemRbn = want("epitem.rbn")
	fItemRdl = want("epitem.rdllink")
	fItemFFD = want("epitem.ffd.file")
	fItemFD  = want("epitem.ffd.fd")
	fItemEv  = want("epitem.event.events")
	fItemDat = want("epitem.event.data")
	fItemDie = want("epitem.dying")
	fSigMask = want("signalfd_ctx.sigmask")

	fTfExpires   = want("timerfd_ctx.t.tmr.node.expires")
	fTfState     = want("timerfd_ctx.t.tmr.state")
	fTfBase      = want("timerfd_ctx.t.tmr.base")
	fTfAExpires  = want("timerfd_ctx.t.alarm.node.expires")
	fTfAState    = want("timerfd_ctx.t.alarm.state")
	fTfInterval  = want("timerfd_ctx.tintv")
	fTfMoffs     = want("timerfd_ctx.moffs")
	fTfTicks     = want("timerfd_ctx.ticks")
	fTfClock     = want("timerfd_ctx.clockid")
	fTfExpired   = want("timerfd_ctx.expired")
	fTfFlags     = want("timerfd_ctx.settime_flags")
	fTfMayCancel = want("timerfd_ctx.might_cancel")

	fPipeHead    = want("pipe_inode_info.head")
	fPipeTail    = want("pipe_inode_info.tail")
	fPipeRing    = want("pipe_inode_info.ring_size")
	fPipeReaders = want("pipe_inode_info.readers")
	fPipeWriters = want("pipe_inode_info.writers")
	fPipeFiles   = want("pipe_inode_info.files")
	fPipeBufs    = want("pipe_inode_info.bufs")
	fPipeWatch   = want("pipe_inode_info.watch_queue") // with CONFIG_WATCH_QUEUE only
	fPipeAsyncR  = want("pipe_inode_info.fasync_readers")
	fPipeAsyncW  = want("pipe_inode_info.fasync_writers")
	fAsyncNext   = want("fasync_struct.fa_next")
	fAsyncFile   = want("fasync_struct.fa_file")
	fAsyncFD     = want("fasync_struct.fa_fd")
	fBufSize     = want("pipe_buffer")
	fBufLen      = want("pipe_buffer.len")
	fBufFlags    = want("pipe_buffer.flags")
	fBufPage     = want("pipe_buffer.page")
	fBufOffset   = want("pipe_buffer.offset")
)

// symbol numbers a kernel function that is recognised by its address.
type symbol uint8

const (
	symNoRestart symbol = iota
	symNanosleep
	symCPUNanosleep
	symAlarmNanosleep
	symPoll
	symFutex
	symFirstFile // the release functions of open files, in the order of fileSymbols
)

// symbolNames are the names of the symbols, in the order of their numbers.
var symbolNames = []string{
	"do_no_restart_syscall",
	"hrtimer_nanosleep_restart",
	"posix_cpu_nsleep_restart",
	"alarm_timer_nsleep_restart",
	"do_restart_poll",
	"futex_wait_restart",

	"eventfd_release",
	"ep_eventpoll_release",
	"signalfd_release",
	"timerfd_release",
	"inotify_release",
	"fanotify_release",
	"pipe_release",
	"sock_close",
	"tty_release",
	"io_uring_release",
	"userfaultfd_release",
	"perf_release",
	"bpf_prog_release",
	"bpf_map_release",
	"bpf_link_release",
	"btf_release",
	"pidfd_release",
	"mqueue_read_file",
}

// fileKinds are the kinds of the symbols from symFirstFile on. All are release
// functions except the last, the read function of a file without a release.
var fileKinds = []Kind{
	KindEventfd, KindEpoll, KindSignalfd, KindTimerfd, KindInotify, KindFanotify,
	KindPipe, KindSocket, KindTTY, KindIOUring, KindUserfaultfd, KindPerf,
	KindBPF, KindBPF, KindBPF, KindBPF, KindPidfd, KindMqueue,
}
