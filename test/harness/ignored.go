package harness

import "slices"

// What by nature cannot be kept, or is not the task's own, each with the reason. These lists are the only differences
// that the comparison before and after lets pass; crpipe(7) tells users the same.

var ignoredStatus = map[string]string{
	"voluntary_ctxt_switches":    "how often the scheduler was entered: history of the old task",
	"nonvoluntary_ctxt_switches": "as above",
	"VmPeak":                     "the highest size ever: history; no call sets it",
	"VmHWM":                      "the highest resident size ever: history; no call sets it",
	"VmRSS":                      "clean file pages and zero pages come back when they are touched",
	"RssAnon":                    "as VmRSS: pages of zeros are not stored",
	"RssFile":                    "as VmRSS",
	"RssShmem":                   "as VmRSS",
	"VmPTE":                      "page tables follow what is resident",
	"VmSwap":                     "what is swapped out is the kernel's choice",
	"FDSize":                     "slots allocated in the table: it never shrinks, and the restore may have needed more",
	"SigQ":                       "signals queued by all of the user's processes",
	"TracerPid":                  "a frozen task may be held by its dumper; that nobody traces afterwards has its own test",
}

var ignoredStat = map[string]string{
	"minflt": "faults: history", "cminflt": "faults: history", "majflt": "faults: history", "cmajflt": "faults: history",
	"utime": "CPU time used: no call sets it", "stime": "CPU time used", "cutime": "CPU time of reaped children", "cstime": "CPU time of reaped children",
	"starttime": "the new task starts when it starts",
	"rss":       "as VmRSS in status",
	"vsize":     "the same as VmSize in status, which is compared",
	"kstkesp":   "0 for a live task unless it dumps core", "kstkeip": "as kstkesp",
	"wchan": "1 or 0, whether it waits in the kernel just now", "processor": "the CPU it last ran on",
	"delayacct_blkio_ticks": "time waited for disks: history", "guest_time": "history", "cguest_time": "history",
	"flags": "the kernel's own bits (forked but not executed, used the FPU, dumped core); what matters of them has lines of its own in status",
}

// ignoredTask are files of a task.
var ignoredTask = map[string]string{
	"arch_status": "its one line on x86 is the time since the task last used AVX-512: history",
	"sessionid":   "the number of an audit session is given out by the kernel; loginuid is compared",
	"sched":       "statistics: history", "schedstat": "history", "io": "bytes read and written: history",
	"oom_score": "follows the memory in use", "stack": "where it waits in the kernel just now", "syscall": "as stack", "wchan": "as stack",
	"statm": "as VmRSS in status", "numa_maps": "where its pages lie", "ksm_stat": "pages that are merged just now", "ksm_merging_pages": "as ksm_stat",
}

// IgnoredNames are all names in these lists, which crpipe(7) has to mention.
func IgnoredNames() []string {
	var all []string
	for _, list := range []map[string]string{ignoredStatus, ignoredStat, ignoredTask, ignoredFdinfo, ignoredVMFlags, ignoredFcntl, ignoredSockopt} {
		for name := range list {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// ignoredZombie is what the kernel still shows of a dead task although nothing can use it any more.
var ignoredZombie = map[string]string{
	"SigBlk": "nothing is delivered to the dead", "SigIgn": "as SigBlk", "SigCgt": "as SigBlk", "SigPnd": "as SigBlk", "ShdPnd": "as SigBlk",
	"blocked": "as SigBlk", "sigignore": "as SigBlk", "sigcatch": "as SigBlk", "signal": "as SigBlk",
	"rsslim": "a limit of the dead",
}

// Not compared either: the former name of a deleted file (who shares the file is), inode numbers of /proc (made when it is looked at), and the
// number of the scheduler's autogroup.

var ignoredFdinfo = map[string]string{
	"eventfd-id": "a number that the kernel gives at birth",
	"ticks":      "a periodic timer goes on ticking between the two looks",
}

var ignoredVMFlags = map[string]string{
	"sd": "soft-dirty: set by the restore's own writing",
}

// ignoredFcntl are getters of fcntl(2).
var ignoredFcntl = map[string]string{
	"F_CREATED_QUERY": "whether the opening made the file: it is there now",
}
