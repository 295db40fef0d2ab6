package kernelview

// factName numbers a constant that BTF does not name because the kernel has it
// as a macro. Each is found by calibration: a child makes the call, and the
// bit that changes in its structure is the constant.
type factName uint8

const (
	factTSCFaults      factName = iota // thread_info.flags: TIF_NOTSC
	factMCEProcess                     // task_struct.flags: PF_MCE_PROCESS
	factMCEEarly                       // task_struct.flags: PF_MCE_EARLY
	factIOFlusher                      // task_struct.flags: PR_IO_FLUSHER
	factNoNewPrivs                     // task_struct.atomic_flags
	factSSBDisable                     // the same: PR_SET_SPECULATION_CTRL
	factSSBForce                       //
	factSSBNoexec                      //
	factIBDisable                      //
	factIBForce                        //
	factDispatch                       // thread_info.syscall_work: syscall user dispatch
	factDumpable                       // mm_struct.flags: all bits of the value, which are the lowest
	factCoreFilter                     // mm_struct.flags: all bits of the filter
	factTHPDisable                     // mm_struct.flags
	factKSMMerge                       // mm_struct.flags
	factMDWE                           // mm_struct.flags
	factMDWENoInherit                  // mm_struct.flags
	factLockFuture                     // mm_struct.def_flags: VM_LOCKED
	factLockOnFault                    // mm_struct.def_flags: VM_LOCKONFAULT
	factBarrierGlobal                  // mm_struct.membarrier_state: the registrations
	factBarrierPrivate                 //
	factBarrierSync                    //
	factBarrierRseq                    //
	factStopped                        // signal_struct.flags: SIGNAL_STOP_STOPPED
	factContinued                      // signal_struct.flags: SIGNAL_STOP_CONTINUED
	factFutexShared                    // restart_block.futex.flags
	factFutexRealtime                  //
	factPacket                         // pipe_buffer.flags: PIPE_BUF_FLAG_PACKET
	factStackTop                       // end of struct pt_regs from task_struct.stack on
	factFPSize                         // fpstate.size of a thread that uses nothing unusual
	factXState                         // bytes of NT_X86_XSTATE
	factXFeatures                      // its software-reserved word: the features that the kernel has enabled
	factXVerified                      // the features whose registers were found to be read right
	factMXCSRMask                      // of the initial state
	factQueues                         // queues of signals and masks are read right (1)
	factRseqLen                        // length of a registration where the task does not keep it; 0: it does
	factLinkable                       // inode.i_state: I_LINKABLE
	factLandlock                       // where in cred.security the part of Landlock begins
	factTHPAdvised                     // mm_struct.flags: PR_THP_DISABLE_EXCEPT_ADVISED
	factCPUIDFaults                    // thread_info.flags: TIF_NOCPUID
	factUnseenMask                     // file.f_mode: the bits that tell who is told of its use
	factUnseen                         // their value when nobody is (FMODE_NONOTIFY)
	firstVMCode                        // vm_area_struct.vm_flags: the bit of vmCodes[0], and so on
)

const factCount = firstVMCode + factName(len(vmCodes))

// factNames go into the key of the cache: a cache of other facts is not used.
var factNames = nameFacts([firstVMCode]string{
	"tsc", "mce process", "mce early", "io flusher", "no new privs",
	"ssb disable", "ssb force", "ssb noexec", "ib disable", "ib force",
	"dispatch", "dumpable", "core filter", "thp", "ksm", "mdwe", "mdwe no inherit",
	"lock future", "lock on fault",
	"membarrier global", "membarrier private", "membarrier sync", "membarrier rseq",
	"stopped", "continued", "futex shared", "futex realtime", "packet",
	"stack top", "fpstate", "xstate", "xfeatures", "xfeatures verified", "mxcsr mask", "signal queues", "rseq length",
	"linkable",
	"landlock", "thp advised", "cpuid faults", "unseen mask", "unseen",
})

// nameFacts adds the names of the facts that are codes of mappings.
func nameFacts(names [firstVMCode]string) (all [factCount]string) {
	copy(all[:], names[:])
	for i, code := range vmCodes {
		all[int(firstVMCode)+i] = "vm " + code
	}
	return all
}
