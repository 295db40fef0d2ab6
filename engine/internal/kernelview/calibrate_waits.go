package kernelview

import (
	"encoding/binary"
	"math/bits"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stops finds how a process is marked as stopped, and as continued.
func (c *calibration) stops() error {
	before, err := c.word(fTSignal, fSFlags)
	if err != nil {
		return err
	}
	if err := c.h.stop(); err != nil {
		return err
	}
	stopped, err := c.word(fTSignal, fSFlags)
	if err != nil {
		return err
	}
	if err := unix.Kill(c.h.pid(), unix.SIGCONT); err != nil {
		return err
	}
	if _, err := c.h.call(unix.SYS_GETPID); err != nil { // it has gone on
		return err
	}
	continued, err := c.word(fTSignal, fSFlags)
	if err != nil {
		return err
	}
	stop, cont := stopped&^before, continued&^before
	if bits.OnesCount64(stop) == 1 && bits.OnesCount64(cont) == 1 && stop != cont && (stop|cont)&signalGroupExit == 0 {
		c.v.l.facts[factStopped] = fact{known: true, value: stop}
		c.v.l.facts[factContinued] = fact{known: true, value: cont}
	}
	return nil
}

// futexes finds the flags of an interrupted futex wait: the same wait three
// times, with one difference each.
func (c *calibration) futexes() error {
	const private, bitset, realtime = 128, 9, 256 // FUTEX_PRIVATE_FLAG, FUTEX_WAIT_BITSET, FUTEX_CLOCK_REALTIME
	plain, err := c.futexFlags(bitset|private, unix.CLOCK_MONOTONIC)
	if err != nil {
		return err
	}
	for _, other := range []struct {
		name  factName
		op    uint64
		clock int32
	}{
		{factFutexShared, bitset, unix.CLOCK_MONOTONIC},
		{factFutexRealtime, bitset | private | realtime, unix.CLOCK_REALTIME},
	} {
		err := withHelper(func(h *helper) error {
			flags, err := (&calibration{c.v, h}).futexFlags(other.op, other.clock)
			if bit := flags &^ plain; err == nil && bits.OnesCount64(bit) == 1 && plain&^flags == 0 {
				c.v.l.facts[other.name] = fact{known: true, value: bit}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// futexFlags lets the helper wait for a futex, interrupts it by stopping it
// and reads the flags that its restart block then has.
func (c *calibration) futexFlags(op uint64, clock int32) (uint64, error) {
	page, err := c.h.call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return 0, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(clock, &now); err != nil {
		return 0, err
	}
	until := binary.NativeEndian.AppendUint64(nil, uint64(now.Sec)+1000)
	until = binary.NativeEndian.AppendUint64(until, 0)
	if err := c.h.write(uint64(page)+16, until); err != nil {
		return 0, err
	}
	if err := c.h.send(unix.SYS_FUTEX, uint64(page), op, 0, uint64(page)+16, 0, 0xffffffff); err != nil {
		return 0, err
	}
	for range 100 {
		if err := c.h.stop(); err != nil {
			return 0, err
		}
		fn, err := c.word(noField, fRBFn)
		if err != nil {
			return 0, err
		}
		if which, ok := c.v.fnNames[fn]; ok && which == symFutex {
			return c.word(noField, fRBFutexFlags)
		}
		// It was not waiting yet.
		if err := unix.Kill(c.h.pid(), unix.SIGCONT); err != nil {
			return 0, err
		}
		time.Sleep(time.Millisecond)
	}
	return 0, errFault
}

// pipes finds the mark of a packet by writing one, and the same without.
func (c *calibration) pipes() error {
	page, err := c.h.call(unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return err
	}
	var flags [2]uint64
	var at [2]int
	for i, mode := range []uint64{0, unix.O_DIRECT} {
		if _, err := c.h.call(unix.SYS_PIPE2, uint64(page), mode); err != nil {
			return nil
		}
		// The lowest free numbers: 2 and 3, then 4 and 5.
		at[i] = 2 + 2*i
		if _, err := c.h.call(unix.SYS_WRITE, uint64(at[i]+1), uint64(page), 1); err != nil {
			return nil
		}
	}
	tables, err := c.v.Files([]int{c.h.pid()})
	if err != nil {
		return err
	}
	for i := range flags {
		for _, fd := range tables[0].FDs {
			if fd.FD != at[i] || fd.File.Kind != KindPipe {
				continue
			}
			b, _, err := c.v.content(fd.File.ID, KindPipe, "pipe_inode_info")
			if err != nil {
				return err
			}
			bufs, _ := c.v.l.uint(b, fPipeBufs)
			buf, err := c.v.mem.peek(bufs, int(c.v.l.fields[fBufSize].size))
			if err != nil {
				return err
			}
			flags[i], _ = c.v.l.uint(buf, fBufFlags)
		}
	}
	if bit := flags[1] &^ flags[0]; bits.OnesCount64(bit) == 1 {
		c.v.l.facts[factPacket] = fact{known: true, value: bit}
	}
	return nil
}

// tmpfiles finds what tells a file of O_TMPFILE that may be given a name from one
// that may not (O_EXCL): two files of our own without a name, that are closed at
// once.
func (c *calibration) tmpfiles() error {
	if !c.v.l.has(fIState) {
		return errNoField
	}
	for _, dir := range []string{"/dev/shm", os.TempDir(), "/var/tmp", "/run"} {
		var states [2]uint64
		err := error(nil)
		for i, flags := range []int{unix.O_EXCL, 0} {
			if states[i], err = c.tmpfileState(dir, flags); err != nil {
				break
			}
		}
		if bit := states[1] &^ states[0]; err == nil && bits.OnesCount64(bit) == 1 && states[0]&^states[1] == 0 {
			c.v.l.facts[factLinkable] = fact{known: true, value: bit}
			return nil
		}
	}
	return errNoField
}

func (c *calibration) tmpfileState(dir string, flags int) (uint64, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	tables, err := c.v.Files([]int{os.Getpid()})
	if err != nil {
		return 0, err
	}
	for _, d := range tables[0].FDs {
		if d.FD != fd {
			continue
		}
		for addr, id := range c.v.ids {
			if id != d.File.Inode.V {
				continue
			}
			b, err := c.v.mem.peek(addr, c.v.l.span["inode"])
			if err != nil {
				return 0, err
			}
			state, _ := c.v.l.uint(b, fIState)
			return state, nil
		}
	}
	return 0, errFault
}
