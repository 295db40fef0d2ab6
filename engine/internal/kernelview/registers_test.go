//go:build amd64

package kernelview

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/internal/sys"
)

// compareWithPtrace reads a child that SIGSTOP has stopped, and then, attached, what
// ptrace says of the same.
func compareWithPtrace(t *testing.T, v *bpfView, c *child) *Registers {
	t.Helper()
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	awaitStill(t, v, c.pid())
	all, err := v.Registers([]int{c.pid()})
	if err != nil {
		t.Fatal(err)
	}
	k := &all[0]
	if err := sys.PtraceSeize(c.pid(), 0); err != nil {
		t.Skipf("needs ptrace: %v", err)
	}
	if err := c.hold(); err != nil {
		t.Fatal(err)
	}
	regset := func(note uint32) []byte {
		buf := make([]byte, 16<<10)
		n, err := sys.PtraceGetRegset(c.pid(), note, buf)
		if err != nil {
			t.Fatal(err)
		}
		return buf[:n]
	}
	if !k.PRStatus.Known || !bytes.Equal(k.PRStatus.V, regset(arch.NTPRStatus)) {
		t.Errorf("general registers: known %v\n%x\nptrace says\n%x", k.PRStatus.Known, k.PRStatus.V, regset(arch.NTPRStatus))
	}
	if !k.Sets.Known || len(k.Sets.V) != 1 || k.Sets.V[0].Note != arch.NTX86XState || !bytes.Equal(k.Sets.V[0].Data, regset(arch.NTX86XState)) {
		t.Errorf("xsave area: known %v\n%x\nptrace says\n%x", k.Sets.Known, k.Sets.V, regset(arch.NTX86XState))
	}
	for _, shared := range []bool{false, true} {
		want, err := sys.PtracePeekSiginfo(c.pid(), shared)
		if err != nil {
			t.Fatal(err)
		}
		got := k.Queue
		if shared {
			got = k.SharedQueue
		}
		if !got.Known || len(got.V) != len(want) {
			t.Fatalf("queue (shared %v): %d signals (known %v), ptrace says %d", shared, len(got.V), got.Known, len(want))
		}
		for i := range want {
			if got.V[i] != want[i] {
				t.Errorf("signal %d (shared %v): %x, ptrace says %x", i, shared, got.V[i], want[i])
			}
		}
	}
	mask, err := sys.PtraceGetSigmask(c.pid())
	if err != nil {
		t.Fatal(err)
	}
	same(t, "mask", k.Mask, mask)
	rseq, err := sys.PtraceGetRseqConfiguration(c.pid())
	if err != nil {
		t.Fatal(err)
	}
	if r := k.Rseq.V; !k.Rseq.Known || uint64(r.Addr) != rseq.Pointer || rseq.Pointer != 0 && (r.Len.V != rseq.Size || r.Sig != rseq.Signature) {
		t.Errorf("rseq: %+v, ptrace says %+v", k.Rseq, rseq)
	}
	return k
}

// awaitStill waits until a thread that has been told to stop is off its processor.
func awaitStill(t *testing.T, v *bpfView, tid int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if m, err := v.Marks([]int{tid}); err == nil && m[0].Known {
			return
		}
	}
	t.Fatal("it does not come to rest")
}

// In every kind of call, and with an FPU that was used by instructions of the
// child's own, the view says what ptrace says.
func TestRegistersAreThoseOfPtrace(t *testing.T) {
	v := view(t)
	t.Logf("features of the FPU found equal: %#x of %#x", v.l.facts[factXVerified].value, v.l.facts[factXFeatures].value)
	for _, x := range []factName{factStackTop, factXState, factQueues, factRseqLen} {
		if !v.l.facts[x].known {
			t.Errorf("not found out: %s", factNames[x])
		}
	}
	for _, one := range []struct {
		name   string
		begin  func(c *child)
		result int64
	}{
		{"idle", func(*child) {}, -512},
		{"pause", func(c *child) { _ = c.send(unix.SYS_PAUSE) }, -514},
		{"sleep", func(c *child) { _ = c.send(unix.SYS_NANOSLEEP, c.putWords(0, 1000, 0), 0) }, -516},
		{"epoll", func(c *child) {
			fd := uint64(c.must(unix.SYS_EPOLL_CREATE1, 0))
			_ = c.send(unix.SYS_EPOLL_WAIT, fd, c.page, 1, ^uint64(0))
		}, -4},
		{"ppoll with a mask", func(c *child) { _ = c.send(unix.SYS_PPOLL, 0, 0, 0, c.putWords(0, 0xf0f0f0f0f0), 8) }, -514},
		{"rseq", func(c *child) { c.must(unix.SYS_RSEQ, c.page+1024, 32, 0, 0x1234) }, -512},
	} {
		t.Run(one.name, func(t *testing.T) {
			c := newChild(t)
			one.begin(c)
			waitState(t, c.pid(), "S")
			k := compareWithPtrace(t, v, c)
			if t.Failed() {
				return
			}
			if ax := int64(binary.LittleEndian.Uint64(k.PRStatus.V[10*8:])); ax != one.result {
				t.Errorf("result register %d, want %d", ax, one.result)
			}
		})
	}
}

func TestQueuesAreThoseOfPtrace(t *testing.T) {
	v, c := view(t), newChild(t)
	c.must(unix.SYS_RT_SIGPROCMASK, 2, c.putWords(0, ^uint64(0)), 0, 8)
	for i := range 70 {
		info := make([]byte, 128)
		binary.NativeEndian.PutUint32(info, uint32(34+i%20))
		binary.NativeEndian.PutUint32(info[8:], ^uint32(0))
		binary.NativeEndian.PutUint64(info[24:], uint64(i)<<32|0xabc)
		at := c.put(256, info)
		if i%3 == 0 {
			c.must(unix.SYS_RT_TGSIGQUEUEINFO, uint64(c.pid()), uint64(c.pid()), uint64(34+i%20), at)
		} else {
			c.must(unix.SYS_RT_SIGQUEUEINFO, uint64(c.pid()), uint64(34+i%20), at)
		}
	}
	c.must(unix.SYS_KILL, uint64(c.pid()), uint64(unix.SIGCHLD))
	k := compareWithPtrace(t, v, c)
	if len(k.Queue.V) != 24 || len(k.SharedQueue.V) < 46 {
		t.Errorf("%d own and %d shared signals", len(k.Queue.V), len(k.SharedQueue.V))
	}
	want := procStatus(t, c.pid(), "SigPnd")
	if got := fmt.Sprintf("%016x", k.Pending.V); got != want {
		t.Errorf("pending %s, want %s", got, want)
	}
	for name, got := range map[string]Maybe[uint64]{"ShdPnd": k.SharedPending, "SigBlk": k.Blocked, "SigIgn": k.Ignored, "SigCgt": k.Caught} {
		if s := fmt.Sprintf("%016x", got.V); !got.Known || s != procStatus(t, c.pid(), name) {
			t.Errorf("%s %s (known %v), want %s", name, s, got.Known, procStatus(t, c.pid(), name))
		}
	}
}

// A thread that runs for one call, and stands again where it stood, has
// another mark; one that stood still has the same.
func TestMarks(t *testing.T) {
	v, c := view(t), newChild(t)
	mark := func() Mark {
		t.Helper()
		all, err := v.Marks([]int{c.pid()})
		if err != nil {
			t.Fatal(err)
		}
		if !all[0].Known || all[0].Dead {
			t.Fatalf("mark %+v", all[0])
		}
		return all[0]
	}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	before := mark()
	if again := mark(); again != before {
		t.Errorf("stood still: %+v, then %+v", before, again)
	}
	if err := unix.Kill(c.pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.must(unix.SYS_GETPID)
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	after := mark()
	if after == before {
		t.Errorf("ran: still %+v", after)
	}
	if after.Group != before.Group || after.Switches <= before.Switches || after.Runtime <= before.Runtime {
		t.Errorf("ran in the same cgroup: %+v, then %+v", before, after)
	}
	if before.Traced {
		t.Error("traced before anybody attached")
	}
	if err := sys.PtraceSeize(c.pid(), 0); err != nil {
		t.Skipf("needs ptrace: %v", err)
	}
	if err := c.hold(); err != nil {
		t.Fatal(err)
	}
	if !mark().Traced {
		t.Error("not traced with a tracer attached")
	}
}

// The processor is in the name of the cache: what was learned on another one
// is of no use.
func TestProcessorIsKnown(t *testing.T) {
	a, b := processor(), processor()
	if !bytes.Equal(a, b) || len(a) == 0 || bytes.Equal(a, make([]byte, len(a))) {
		t.Errorf("%x, then %x", a, b)
	}
}
