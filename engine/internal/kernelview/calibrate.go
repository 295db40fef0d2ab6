package kernelview

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
)

// errNoField says that a fact cannot be found because this kernel has no such
// field: it will be no better next time.
var errNoField = errors.New("this kernel has no such field")

// calibrate finds the facts: a helper makes the call that sets a bit, and the
// bit is what differs before and after. A fact that cannot be found so stays
// unknown, and with it the values that need it. It runs once for each kernel
// build; the cache keeps what it found, if nothing went wrong that may go right
// the next time (complete).
func (v *bpfView) calibrate() (complete bool) {
	complete = true
	for _, part := range []func(*calibration) error{
		(*calibration).task, (*calibration).space, (*calibration).mdwe,
		(*calibration).mdweNoInherit, (*calibration).onFault, (*calibration).speculation,
		(*calibration).stops, (*calibration).futexes, (*calibration).pipes, (*calibration).areas, (*calibration).tmpfiles, (*calibration).unseen,
		(*calibration).registers, (*calibration).queues,
		(*calibration).landlock,
	} {
		err := withHelper(func(h *helper) error { return part(&calibration{v, h}) })
		if err != nil && !errors.Is(err, errNoField) && !errors.Is(err, errNoHelper) {
			complete = false
		}
	}
	v.knownVersions()
	return complete
}

type calibration struct {
	v *bpfView
	h *helper
}

// word reads an integer of the helper's task, or of a structure that a pointer
// in its task leads to.
func (c *calibration) word(through, f field) (uint64, error) {
	b, err := c.asleep()
	if err != nil {
		return 0, err
	}
	if through != noField {
		addr, ok := c.v.l.uint(b, through)
		if !ok {
			return 0, errNoField
		}
		structure, _, _ := strings.Cut(fieldPaths[f], ".")
		if b, err = c.v.mem.peek(addr, c.v.l.span[structure]); err != nil {
			return 0, err
		}
	}
	w, ok := c.v.l.uint(b, f)
	if !ok {
		return 0, errNoField
	}
	return w, nil
}

// asleep reads the helper's task once it is off its CPU, waiting for the next
// request: a running one has bits that come and go.
func (c *calibration) asleep() ([]byte, error) {
	for range 5000 {
		tasks, err := c.v.tasks([]int{c.h.pid()})
		if err != nil {
			return nil, err
		}
		onCPU, ok1 := c.v.l.uint(tasks[0].b, fTOnCPU)
		state, ok2 := c.v.l.uint(tasks[0].b, fTState)
		if !ok1 || !ok2 {
			return nil, errNoField
		}
		if onCPU == 0 && state != 0 { // TASK_RUNNING
			return tasks[0].b, nil
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil, fmt.Errorf("waiting for a helper process: %w", unix.ETIMEDOUT)
}

// noField: the word is in the task itself.
const noField = ^field(0)

// A setting is a call that sets a bit, and one that clears it again if there
// is one: [number, arguments...]. A machine that has no call to set it cannot
// have the bit.
type setting struct {
	fact       factName
	through, f field
	set, clear []uint64
}

// find makes the calls. A kernel that does not know the call (EINVAL), or a
// machine without what it is about (ENODEV), cannot have the bit: then the
// constant is no bit at all. Other failures say nothing.
func (c *calibration) find(s setting) error {
	before, err := c.word(s.through, s.f)
	if err != nil {
		return err
	}
	if s.set == nil {
		c.v.l.facts[s.fact] = fact{known: true}
		return nil
	}
	if _, err := c.h.call(uintptr(s.set[0]), s.set[1:]...); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			c.v.l.facts[s.fact] = fact{known: true}
		}
		return nil
	}
	after, err := c.word(s.through, s.f)
	if err != nil {
		return err
	}
	again := before
	if s.clear != nil {
		if _, err := c.h.call(uintptr(s.clear[0]), s.clear[1:]...); err != nil {
			return nil
		}
		if again, err = c.word(s.through, s.f); err != nil {
			return err
		}
	}
	bit := after &^ before
	if bits.OnesCount64(bit) == 1 && again&bit == 0 {
		c.v.l.facts[s.fact] = fact{known: true, value: bit}
	}
	return nil
}

func (c *calibration) findAll(all []setting) error {
	for _, s := range all {
		if err := c.find(s); err != nil {
			return err
		}
	}
	return nil
}

func prctl(option int, args ...uint64) []uint64 {
	return append([]uint64{unix.SYS_PRCTL, uint64(option)}, args...)
}

// Of arch_prctl(2) (asm/prctl.h).
const (
	getCPUID = 0x1011 // ARCH_GET_CPUID
	setCPUID = 0x1012 // ARCH_SET_CPUID
)

// archPrctl is nil where there is no such call.
func archPrctl(option int, arg uint64) []uint64 {
	a, err := arch.Native()
	if err != nil || a.Sys.ArchPrctl == arch.NoSyscall {
		return nil
	}
	return []uint64{uint64(a.Sys.ArchPrctl), uint64(option), arg}
}

// task finds the bits of the task.
func (c *calibration) task() error {
	const everything = 1<<47 - 1 // all code may call: the dispatch is on and does nothing
	err := c.findAll([]setting{
		{factTSCFaults, noField, fTIFlags, prctl(unix.PR_SET_TSC, unix.PR_TSC_SIGSEGV), prctl(unix.PR_SET_TSC, unix.PR_TSC_ENABLE)},
		{factMCEProcess, noField, fTFlags, prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, unix.PR_MCE_KILL_LATE), prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_CLEAR)},
		{factDispatch, noField, fTSyscallWork, prctl(unix.PR_SET_SYSCALL_USER_DISPATCH, unix.PR_SYS_DISPATCH_ON, 0, everything), prctl(unix.PR_SET_SYSCALL_USER_DISPATCH, unix.PR_SYS_DISPATCH_OFF)},
		{factCPUIDFaults, noField, fTIFlags, archPrctl(setCPUID, 0), archPrctl(setCPUID, 1)},
		{factNoNewPrivs, noField, fTAtomicFlags, prctl(unix.PR_SET_NO_NEW_PRIVS, 1), nil},
	})
	if err != nil {
		return err
	}
	// Early is a second bit beside that of the process.
	late := prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, unix.PR_MCE_KILL_LATE)
	if _, err := c.h.call(uintptr(late[0]), late[1:]...); err == nil {
		if err := c.find(setting{factMCEEarly, noField, fTFlags, prctl(unix.PR_MCE_KILL, unix.PR_MCE_KILL_SET, unix.PR_MCE_KILL_EARLY), late}); err != nil {
			return err
		}
	}
	// This one sets two bits together.
	before, err := c.word(noField, fTFlags)
	if err != nil {
		return err
	}
	set, unset := prctl(unix.PR_SET_IO_FLUSHER, 1), prctl(unix.PR_SET_IO_FLUSHER, 0)
	if _, err := c.h.call(uintptr(set[0]), set[1:]...); err != nil {
		if errors.Is(err, unix.EINVAL) {
			c.v.l.facts[factIOFlusher] = fact{known: true}
		}
		return nil
	}
	after, err := c.word(noField, fTFlags)
	if err != nil {
		return err
	}
	if _, err := c.h.call(uintptr(unset[0]), unset[1:]...); err != nil {
		return nil
	}
	again, err := c.word(noField, fTFlags)
	if err != nil {
		return err
	}
	if mask := after &^ before; mask != 0 && again&mask == 0 {
		c.v.l.facts[factIOFlusher] = fact{known: true, value: mask}
	}
	return nil
}

// space finds the bits of the address space.
func (c *calibration) space() error {
	barrier := func(command uint64) []uint64 { return []uint64{unix.SYS_MEMBARRIER, command, 0, 0} }
	if err := c.dumpable(); err != nil {
		return err
	}
	if err := c.coreFilter(); err != nil {
		return err
	}
	// A registration sets two bits, "asked for" and "ready"; what is asked for is
	// the higher of them (include/linux/sched/mm.h).
	for _, r := range []struct {
		name    factName
		command uint64
	}{
		{factBarrierGlobal, barrierGlobal},
		{factBarrierPrivate, barrierPrivate},
		{factBarrierSync, barrierSync},
		{factBarrierRseq, barrierRseq},
	} {
		before, err := c.word(fTMM, fMMembarrier)
		if err != nil {
			return err
		}
		call := barrier(r.command)
		if _, err := c.h.call(uintptr(call[0]), call[1:]...); err != nil {
			if errors.Is(err, unix.EINVAL) {
				c.v.l.facts[r.name] = fact{known: true}
			}
			continue
		}
		after, err := c.word(fTMM, fMMembarrier)
		if err != nil {
			return err
		}
		if both := after &^ before; bits.OnesCount64(both) == 2 {
			c.v.l.facts[r.name] = fact{known: true, value: both & (both - 1)}
		}
	}
	return c.findAll([]setting{
		{factTHPDisable, fTMM, fMFlags, prctl(unix.PR_SET_THP_DISABLE, 1), prctl(unix.PR_SET_THP_DISABLE, 0)},
		{factTHPAdvised, fTMM, fMFlags, prctl(unix.PR_SET_THP_DISABLE, 1, thpExceptAdvised), prctl(unix.PR_SET_THP_DISABLE, 0)},
		{factKSMMerge, fTMM, fMFlags, prctl(unix.PR_SET_MEMORY_MERGE, 1), prctl(unix.PR_SET_MEMORY_MERGE, 0)},
		{factLockFuture, fTMM, fMDefFlags, []uint64{unix.SYS_MLOCKALL, unix.MCL_FUTURE}, []uint64{unix.SYS_MUNLOCKALL}},
	})
}

// thpExceptAdvised is PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18.
const thpExceptAdvised = 2

// dumpable checks that the value is where it has always been, in the two
// lowest bits.
func (c *calibration) dumpable() error {
	for _, value := range []uint64{0, 1} {
		set := prctl(unix.PR_SET_DUMPABLE, value)
		if _, err := c.h.call(uintptr(set[0]), set[1:]...); err != nil {
			return nil
		}
		w, err := c.word(fTMM, fMFlags)
		if err != nil {
			return err
		}
		if w&3 != value {
			return nil
		}
	}
	c.v.l.facts[factDumpable] = fact{known: true, value: 3}
	return nil
}

// coreFilter finds the bits that /proc/PID/coredump_filter sets and clears.
func (c *calibration) coreFilter() error {
	path := fmt.Sprintf("/proc/%d/coredump_filter", c.h.pid())
	var w [2]uint64
	for i, value := range []string{"0", "0xffffffff"} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return nil
		}
		var err error
		if w[i], err = c.word(fTMM, fMFlags); err != nil {
			return err
		}
	}
	// The bits lie side by side.
	mask := w[1] &^ w[0]
	if mask != 0 && (mask>>bits.TrailingZeros64(mask)+1)&(mask>>bits.TrailingZeros64(mask)) == 0 {
		c.v.l.facts[factCoreFilter] = fact{known: true, value: mask}
	}
	return nil
}

// mdwe and mdweNoInherit set what cannot be cleared again, so each has its own
// helper.
func (c *calibration) mdwe() error {
	return c.find(setting{factMDWE, fTMM, fMFlags, prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN), nil})
}

func (c *calibration) mdweNoInherit() error {
	before, err := c.word(fTMM, fMFlags)
	if err != nil {
		return err
	}
	set := prctl(unix.PR_SET_MDWE, unix.PR_MDWE_REFUSE_EXEC_GAIN|unix.PR_MDWE_NO_INHERIT)
	if _, err := c.h.call(uintptr(set[0]), set[1:]...); err != nil {
		if errors.Is(err, unix.EINVAL) {
			c.v.l.facts[factMDWENoInherit] = fact{known: true}
		}
		return nil
	}
	after, err := c.word(fTMM, fMFlags)
	if err != nil {
		return err
	}
	refuse := c.v.l.facts[factMDWE]
	bit := after &^ before &^ refuse.value
	if refuse.known && bits.OnesCount64(bit) == 1 {
		c.v.l.facts[factMDWENoInherit] = fact{known: true, value: bit}
	}
	return nil
}

func (c *calibration) onFault() error {
	future := c.v.l.facts[factLockFuture]
	if !future.known {
		return nil
	}
	before, err := c.word(fTMM, fMDefFlags)
	if err != nil {
		return err
	}
	if _, err := c.h.call(unix.SYS_MLOCKALL, unix.MCL_FUTURE|unix.MCL_ONFAULT); err != nil {
		return nil
	}
	after, err := c.word(fTMM, fMDefFlags)
	if err != nil {
		return err
	}
	if bit := after &^ before &^ future.value; bits.OnesCount64(bit) == 1 {
		c.v.l.facts[factLockOnFault] = fact{known: true, value: bit}
	}
	return nil
}

// speculation finds the bits of PR_SET_SPECULATION_CTRL, on a machine where a
// task can set them.
func (c *calibration) speculation() error {
	control := func(which, value uint64) []uint64 {
		return prctl(unix.PR_SET_SPECULATION_CTRL, which, value)
	}
	const ssb, ib = unix.PR_SPEC_STORE_BYPASS, unix.PR_SPEC_INDIRECT_BRANCH
	return c.findAll([]setting{
		{factSSBNoexec, noField, fTAtomicFlags, control(ssb, unix.PR_SPEC_DISABLE_NOEXEC), control(ssb, unix.PR_SPEC_ENABLE)},
		{factSSBDisable, noField, fTAtomicFlags, control(ssb, unix.PR_SPEC_DISABLE), control(ssb, unix.PR_SPEC_ENABLE)},
		{factIBDisable, noField, fTAtomicFlags, control(ib, unix.PR_SPEC_DISABLE), control(ib, unix.PR_SPEC_ENABLE)},
		// These stay set, and set the bit above as well.
		{factSSBDisable, noField, fTAtomicFlags, control(ssb, unix.PR_SPEC_DISABLE), nil},
		{factSSBForce, noField, fTAtomicFlags, control(ssb, unix.PR_SPEC_FORCE_DISABLE), nil},
		{factIBDisable, noField, fTAtomicFlags, control(ib, unix.PR_SPEC_DISABLE), nil},
		{factIBForce, noField, fTAtomicFlags, control(ib, unix.PR_SPEC_FORCE_DISABLE), nil},
	})
}

// speculationControlled tells whether this machine lets a task set any of the
// speculation controls at all. It depends on the boot's command line, so it is
// asked each time.
func speculationControlled() bool {
	for _, which := range []uintptr{unix.PR_SPEC_STORE_BYPASS, unix.PR_SPEC_INDIRECT_BRANCH} {
		r, err := unix.PrctlRetInt(unix.PR_GET_SPECULATION_CTRL, which, 0, 0, 0)
		if err == nil && r&unix.PR_SPEC_PRCTL != 0 {
			return true
		}
	}
	return false
}

// knownVersions fills in what cannot be calibrated without rights that even
// root may lack (PR_SET_IO_FLUSHER, PR_SET_MEMORY_MERGE need CAP_SYS_RESOURCE),
// for the kernel versions whose values have been checked.
func (v *bpfView) knownVersions() {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return
	}
	var major, minor int
	if n, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); n != 2 || err != nil {
		return
	}
	if major != 6 || (minor != 1 && minor != 12 && minor != 18) {
		return
	}
	set := func(x factName, value uint64) {
		if !v.l.facts[x].known {
			v.l.facts[x] = fact{known: true, value: value}
		}
	}
	set(factIOFlusher, 0x180000) // PF_MEMALLOC_NOIO, PF_LOCAL_THROTTLE
	if minor >= 12 {
		set(factKSMMerge, 1<<30) // MMF_VM_MERGE_ANY
	} else {
		set(factKSMMerge, 0)
	}
}
