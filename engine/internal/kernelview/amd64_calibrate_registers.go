//go:build amd64

package kernelview

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// hold stops the helper by ptrace. The caller's thread is locked to it.
func (h *helper) hold() error {
	if err := sys.PtraceInterrupt(h.pid()); err != nil {
		return err
	}
	for {
		_, status, err := sys.Wait(h.pid(), 0)
		switch {
		case err != nil:
			return err
		case status.EventStop():
			return nil
		case !status.Stopped():
			return unix.ESRCH
		}
		if err := sys.PtraceCont(h.pid(), 0); err != nil {
			return err
		}
	}
}

// again lets a held helper run, make a call, and be held again.
func (c *calibration) again() error {
	if err := sys.PtraceCont(c.h.pid(), 0); err != nil {
		return err
	}
	if _, err := c.h.call(unix.SYS_SCHED_YIELD); err != nil {
		return err
	}
	if _, err := c.asleep(); err != nil {
		return err
	}
	return c.h.hold()
}

func (c *calibration) regset(note uint32) ([]byte, error) {
	buf := make([]byte, 16<<10)
	n, err := sys.PtraceGetRegset(c.h.pid(), note, buf)
	return buf[:n], err
}

// registers finds where the kernel keeps them, and compares what is made of it
// with what ptrace says: of a helper that has never used the FPU, and with
// every single feature and all of them in use, set by ptrace and saved by the
// processor. What differs once is not known.
func (c *calibration) registers() error {
	l := c.v.l
	if err := sys.PtraceSeize(c.h.pid(), 0); err != nil {
		return fmt.Errorf("tracing a helper process: %w", err)
	}
	if _, err := c.asleep(); err != nil {
		return err
	}
	if err := c.h.hold(); err != nil {
		return err
	}
	fresh, err := c.regset(arch.NTX86XState)
	if err != nil {
		return err
	}
	right, err := c.general()
	if err != nil || !right {
		l.facts[factStackTop] = fact{}
		return err
	}
	if len(fresh) < xExtended {
		return nil
	}
	right, err = c.fpu(fresh)
	if err != nil || !right {
		for _, x := range []factName{factFPSize, factXState, factXFeatures, factXVerified, factMXCSRMask} {
			l.facts[x] = fact{}
		}
	}
	return err
}

// general finds the frame on the kernel stack, and compares NT_PRSTATUS with
// other values in every register that a call leaves alone.
func (c *calibration) general() (bool, error) {
	l := c.v.l
	want, err := c.regset(arch.NTPRStatus)
	if err != nil || len(want) != userRegsWords*8 {
		return false, err
	}
	same := func() (bool, error) {
		calls, err := c.v.Calls([]int{c.h.pid()})
		return err == nil && bytes.Equal(calls[0].PRStatus.V, want), err
	}
	found := false
	// THREAD_SIZE depends on the build, the room above the frame on FRED.
search:
	for _, size := range []uint64{16 << 10, 32 << 10, 8 << 10, 64 << 10} {
		for _, room := range []uint64{0, 16} {
			l.facts[factStackTop] = fact{known: true, value: size - room}
			if found, err = same(); err != nil || found {
				break search
			}
		}
	}
	if err != nil || !found {
		return false, err
	}
	// rbx, rbp, r12 to r15 and the bases survive the helper's loop.
	set := bytes.Clone(want)
	for i, w := range []int{0, 1, 2, 3, 4, 5} {
		binary.LittleEndian.PutUint64(set[w*8:], 0x0123456789abcdef*uint64(i+3))
	}
	binary.LittleEndian.PutUint64(set[wordFSBase*8:], 0x123456789000)
	binary.LittleEndian.PutUint64(set[(wordFSBase+1)*8:], 0x234567891000)
	if err := sys.PtraceSetRegset(c.h.pid(), arch.NTPRStatus, set); err != nil {
		return false, err
	}
	for range 2 {
		if want, err = c.regset(arch.NTPRStatus); err != nil {
			return false, err
		}
		if right, err := same(); err != nil || !right {
			return false, err
		}
		if err := c.again(); err != nil {
			return false, err
		}
	}
	want, err = c.regset(arch.NTPRStatus)
	if err != nil {
		return false, err
	}
	return same()
}

// fpu learns the constants from a fresh helper and compares.
func (c *calibration) fpu(fresh []byte) (bool, error) {
	l, le := c.v.l, binary.LittleEndian
	enabled := le.Uint64(fresh[xReserved:])
	l.facts[factFPSize] = fact{known: true, value: 0}
	l.facts[factXState] = fact{known: true, value: uint64(len(fresh))}
	l.facts[factXFeatures] = fact{known: true, value: enabled}
	l.facts[factMXCSRMask] = fact{known: true, value: uint64(le.Uint32(fresh[xMXCSR+4:]))}
	l.facts[factXVerified] = fact{known: true, value: ^uint64(0)} // while it is being found out
	raws, err := c.v.raws([]int{c.h.pid()})
	if err != nil {
		return false, err
	}
	if err := c.v.readFP(raws); err != nil || raws[0].fp == nil {
		return false, err
	}
	size, _ := l.uint(raws[0].fp, fFpSize)
	user, _ := l.uint(raws[0].fp, fFpUser)
	l.facts[factFPSize].value = size

	if right, _, err := c.sameFPU(); err != nil || !right {
		return false, err
	}
	states := []uint64{0, 1 << xFP, 1 << xSSE, 1<<xSSE | 1<<xAVX, 1 << xAVX, user}
	for bit := range 64 {
		if bit > xAVX && user>>bit&1 != 0 {
			states = append(states, 1<<bit)
		}
	}
	verified := uint64(0)
	for _, want := range states {
		if err := sys.PtraceSetRegset(c.h.pid(), arch.NTX86XState, c.fpuState(fresh, want&user)); err != nil {
			if errors.Is(err, unix.EINVAL) {
				continue // not a state that this processor allows
			}
			return false, err
		}
		for range 2 {
			right, use, err := c.sameFPU()
			if err != nil || !right {
				return false, err
			}
			verified |= use
			if err := c.again(); err != nil {
				return false, err
			}
		}
		// The processor itself has saved it now.
		if right, _, err := c.sameFPU(); err != nil || !right {
			return false, err
		}
	}
	l.facts[factXVerified].value = verified
	return true, nil
}

// sameFPU compares once; use are the features in use.
func (c *calibration) sameFPU() (right bool, use uint64, err error) {
	want, err := c.regset(arch.NTX86XState)
	if err != nil {
		return false, 0, err
	}
	all, err := c.v.Registers([]int{c.h.pid()})
	if err != nil {
		return false, 0, err
	}
	sets := all[0].Sets
	right = sets.Known && len(sets.V) == 1 && bytes.Equal(sets.V[0].Data, want)
	return right, binary.LittleEndian.Uint64(want[xHeader:]), nil
}

// fpuState makes registers with these features in use and a pattern in each.
func (c *calibration) fpuState(fresh []byte, use uint64) []byte {
	le := binary.LittleEndian
	b := bytes.Clone(fresh)
	pattern := func(from, n uint32) {
		for i := from; i < from+n && i < uint32(len(b)); i++ {
			b[i] = byte(i*7 + i>>8 + 1)
		}
	}
	if use>>xFP&1 != 0 {
		le.PutUint16(b, 0x27f)
		le.PutUint16(b[2:], 0x3800)
		b[4] = 0xff
		for i := range uint32(8) {
			pattern(xST+16*i, 10)
		}
	}
	if use&(1<<xSSE|1<<xAVX) != 0 {
		le.PutUint32(b[xMXCSR:], 0x1fa0)
	}
	if use>>xSSE&1 != 0 {
		pattern(xXMM, xPadding-xXMM)
	}
	for bit := xAVX; bit < 63; bit++ {
		if use>>bit&1 == 0 {
			continue
		}
		switch bit {
		case xPKRU:
			le.PutUint32(b[c.v.components[bit].offset:], 0x55555550)
		case 17: // AMX's configuration: with no tile it is in its initial state
		default:
			pattern(c.v.components[bit].offset, c.v.components[bit].size)
		}
	}
	le.PutUint64(b[xHeader:], use)
	return b
}

// queues compares the queues of signals, the masks and the registration of
// rseq with what ptrace says of a helper in which all kinds of signals wait.
func (c *calibration) queues() error {
	l, pid := c.v.l, c.h.pid()
	if err := sys.PtraceSeize(pid, 0); err != nil {
		return fmt.Errorf("tracing a helper process: %w", err)
	}
	mmap := []uint64{unix.SYS_MMAP, 0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, ^uint64(0), 0}
	r, err := c.h.call(uintptr(mmap[0]), mmap[1:]...)
	if err != nil {
		return err
	}
	page := uint64(r)
	const how = 2 // SIG_SETMASK
	var calls [][]uint64
	add := func(words ...uint64) { calls = append(calls, words) }
	// At page: a mask of all; at 64: a siginfo with a value; at 256: a sigevent; at 512: a timer's number;
	// at 576: an itimerspec of the shortest time; at 1024: a struct rseq.
	memory := bytes.Repeat([]byte{0xff}, 8)
	memory = append(memory, make([]byte, 1024-8)...)
	ne := binary.NativeEndian
	ne.PutUint32(memory[64:], 36)                    // si_signo
	ne.PutUint32(memory[64+8:], uint32(0xffffffff))  // SI_QUEUE
	ne.PutUint32(memory[64+16:], uint32(pid))        // si_pid
	ne.PutUint64(memory[64+24:], 0x1122334455667788) // si_value
	ne.PutUint64(memory[256:], 0x99)                 // sigev_value
	ne.PutUint32(memory[256+8:], 40)                 // sigev_signo, and SIGEV_SIGNAL
	ne.PutUint64(memory[576+24:], 1)                 // it_value, ns
	if err := c.h.write(page, memory); err != nil {
		return err
	}
	p := uint64(pid)
	add(unix.SYS_RT_SIGPROCMASK, how, page, 0, 8)
	add(unix.SYS_RT_SIGQUEUEINFO, p, 36, page+64)
	add(unix.SYS_KILL, p, uint64(unix.SIGUSR1))
	add(unix.SYS_RT_TGSIGQUEUEINFO, p, p, 36, page+64)
	add(unix.SYS_TGKILL, p, p, uint64(unix.SIGSEGV))
	add(unix.SYS_TGKILL, p, p, uint64(unix.SIGUSR2))
	add(unix.SYS_RT_SIGQUEUEINFO, p, 36, page+64)
	add(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, page+256, page+512)
	add(unix.SYS_TIMER_SETTIME, 0, 0, page+576, 0)
	for _, call := range calls {
		if _, err := c.h.call(uintptr(call[0]), call[1:]...); err != nil {
			return err
		}
	}
	if _, err := c.asleep(); err != nil {
		return err
	}
	if err := c.h.hold(); err != nil {
		return err
	}
	// A timer of the shortest time is an interrupt's to end, which a busy virtual machine gets when its host gives it.
	for range 5000 {
		if sent, err := sys.PtracePeekSiginfo(pid, true); err != nil || len(sent) == 4 {
			break // an error is said below
		}
		time.Sleep(100 * time.Microsecond)
	}
	l.facts[factQueues] = fact{known: true, value: 1}
	right, err := c.sameQueues(4, 3) // the timer's signal is sent to the process
	if err == nil && right {
		right, err = c.swapped(page)
	}
	if err != nil || !right {
		l.facts[factQueues] = fact{}
		return err
	}
	return c.rseq(page + 1024)
}

// sameQueues compares, and wants as many signals as have been sent.
func (c *calibration) sameQueues(shared, own int) (bool, error) {
	pid := c.h.pid()
	all, err := c.v.Registers([]int{pid})
	if err != nil {
		return false, err
	}
	k := &all[0]
	for _, q := range []struct {
		shared bool
		n      int
		got    Maybe[[]Siginfo]
		set    Maybe[uint64]
	}{{true, shared, k.SharedQueue, k.SharedPending}, {false, own, k.Queue, k.Pending}} {
		want, err := sys.PtracePeekSiginfo(pid, q.shared)
		if err != nil {
			return false, err
		}
		if !q.got.Known || !q.set.Known || len(q.got.V) != len(want) || len(want) != q.n {
			return false, nil
		}
		set := uint64(0)
		for i := range want {
			if want[i] != q.got.V[i] {
				return false, nil
			}
			set |= 1 << (binary.NativeEndian.Uint32(want[i][:]) - 1)
		}
		if set != q.set.V {
			return false, nil
		}
	}
	mask, err := sys.PtraceGetSigmask(pid)
	return err == nil && k.Mask == Is(mask), err
}

// swapped compares the mask inside of a call that has put another in force.
func (c *calibration) swapped(page uint64) (bool, error) {
	if err := sys.PtraceCont(c.h.pid(), 0); err != nil {
		return false, err
	}
	if err := c.h.write(page+64, bytes.Repeat([]byte{0xff}, 7)); err != nil { // all but the topmost eight
		return false, err
	}
	if err := c.h.write(page+64+7, []byte{0}); err != nil {
		return false, err
	}
	if err := c.h.send(unix.SYS_PPOLL, 0, 0, 0, page+64, 8); err != nil {
		return false, err
	}
	for range 100 {
		if _, err := c.asleep(); err != nil {
			return false, err
		}
		if err := c.h.hold(); err != nil {
			return false, err
		}
		all, err := c.v.Registers([]int{c.h.pid()})
		if err != nil {
			return false, err
		}
		k := &all[0]
		if k.Blocked.Known && k.Mask.Known && bits.OnesCount64(k.Blocked.V) < 60 {
			mask, err := sys.PtraceGetSigmask(c.h.pid())
			return k.Mask.V == mask && k.Mask.V != k.Blocked.V, err
		}
		if err := sys.PtraceCont(c.h.pid(), 0); err != nil { // it was not waiting yet
			return false, err
		}
	}
	return false, nil
}

// rseq compares the registration. The helper is held, inside of a call that
// does not end, so another one makes it.
func (c *calibration) rseq(_ uint64) error {
	return withHelper(func(h *helper) error {
		l, pid := c.v.l, h.pid()
		other := &calibration{c.v, h}
		r, err := h.call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
		if err != nil {
			return err
		}
		const length, signature = 32, 0x53053053
		registered := true
		if _, err := h.call(unix.SYS_RSEQ, uint64(r), length, 0, signature); errors.Is(err, unix.ENOSYS) {
			registered = false // ptrace says EIO then, and the task has no field
		} else if err != nil {
			return err
		}
		if err := sys.PtraceSeize(pid, 0); err != nil {
			return fmt.Errorf("tracing a helper process: %w", err)
		}
		if _, err := other.asleep(); err != nil {
			return err
		}
		if err := h.hold(); err != nil {
			return err
		}
		want, err := sys.PtraceGetRseqConfiguration(pid)
		if err != nil || !registered {
			return nil
		}
		x := fact{known: true}
		if !l.has(fTRseqLen) {
			x.value = uint64(want.Size) // before 6.3 there is only one
		}
		l.facts[factRseqLen] = x
		all, err := c.v.Registers([]int{pid})
		if err != nil {
			return err
		}
		got := all[0].Rseq.V
		if !all[0].Rseq.Known || uint64(got.Addr) != want.Pointer || got.Len.V != want.Size || got.Sig != want.Signature || want.Flags != 0 {
			l.facts[factRseqLen] = fact{}
		}
		return nil
	})
}
