//go:build amd64

package kernelview

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"crpipe/arch"

	"golang.org/x/sys/unix"
)

func TestActions(t *testing.T) {
	v, c := view(t), newChild(t)
	set := map[int]Action{
		int(unix.SIGUSR1): {Handler: 0x401000, Flags: 0x04000000 | 0x10000000, Restorer: 0x402000, Mask: 1 << 9},
		int(unix.SIGCHLD): {Handler: 1},
		40:                {Handler: 0x403000, Flags: 4 | 0x08000000, Mask: 1<<63 | 1},
		64:                {Handler: 0x404000, Flags: 0x40000000},
	}
	for sig, a := range set {
		c.must(unix.SYS_RT_SIGACTION, uint64(sig), c.putWords(0, uint64(a.Handler), a.Flags, uint64(a.Restorer), a.Mask), 0, 8)
	}
	p := oneProcess(t, v, c.pid())
	if !p.Actions.Known {
		t.Fatal("signal actions unknown")
	}
	for sig := 1; sig <= 64; sig++ {
		c.must(unix.SYS_RT_SIGACTION, uint64(sig), 0, c.page+0x100, 8)
		w := c.get(0x100, 4)
		own := Action{Handler: arch.Addr(w[0]), Flags: w[1], Restorer: arch.Addr(w[2]), Mask: w[3]}
		if got := p.Actions.V[sig-1]; got != own {
			t.Errorf("signal %d: %+v, its own sigaction says %+v", sig, got, own)
		}
		// What was ignored where this test was started is not ours to judge.
		if want, ours := set[sig]; ours && (own.Handler != want.Handler || own.Mask != want.Mask) {
			t.Errorf("signal %d: sigaction says %+v, want %+v", sig, own, want)
		}
	}
}

// gettime runs a getter of {interval, value} before and after fn, and returns
// both, as ns. unit is the ns in the second word of a time.
func gettime(c *child, unit int64, nr uintptr, id uint64, fn func()) (before, after, interval int64) {
	c.t.Helper()
	read := func() (int64, int64) {
		c.must(nr, id, c.page+0x700)
		w := c.get(0x700, 4)
		return int64(w[2])*1e9 + int64(w[3])*unit, int64(w[0])*1e9 + int64(w[1])*unit
	}
	before, interval = read()
	fn()
	after, _ = read()
	return before, after, interval
}

func TestItimers(t *testing.T) {
	v, c := view(t), newChild(t)
	of := func(p *Process) []Maybe[Itimer] { return []Maybe[Itimer]{p.ItimerReal, p.ItimerVirtual, p.ItimerProf} }
	for which, i := range of(oneProcess(t, v, c.pid())) {
		same(t, fmt.Sprintf("itimer %d before", which), i, Itimer{})
	}
	for which := range uint64(3) {
		// {interval, value} of {seconds, microseconds}
		c.must(unix.SYS_SETITIMER, which, c.putWords(0, 3+which, 5, 1000+which, 250000), 0)
		var got Maybe[Itimer]
		before, after, interval := gettime(c, 1000, unix.SYS_GETITIMER, which, func() { got = of(oneProcess(t, v, c.pid()))[which] })
		// The child's answer is cut to microseconds.
		if !got.Known || !got.V.Armed || got.V.Interval != interval || got.V.Left > before+1000 || got.V.Left < after {
			t.Errorf("itimer %d: %+v, its own getitimer says %d, then %d, interval %d", which, got, before, after, interval)
		}
		if got.V.Left < 999e9 {
			t.Errorf("itimer %d: left %d of 1000 s", which, got.V.Left)
		}
	}
}

func TestFiredItimer(t *testing.T) {
	v, c := view(t), newChild(t)
	c.must(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, c.putWords(0, 1<<(unix.SIGALRM-1)), 0, 8)
	c.must(unix.SYS_SETITIMER, 0, c.putWords(0, 1000, 0, 0, 1), 0)
	for {
		c.must(unix.SYS_RT_SIGPENDING, c.page, 8)
		if c.get(0, 1)[0] != 0 {
			break
		}
	}
	got := oneProcess(t, v, c.pid()).ItimerReal
	if !got.Known || got.V.Armed || got.V.Interval != 1000e9 || got.V.Left <= 900e9 || got.V.Left > 1000e9 {
		t.Errorf("a fired periodic timer whose signal is blocked: %+v", got)
	}
}

func TestProcessState(t *testing.T) {
	v, c := view(t), newChild(t)
	pid := c.pid()
	prctlOf(c, unix.PR_SET_CHILD_SUBREAPER, 1)
	c.must(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, c.putWords(0, 321, 654), 0)
	c.must(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, c.putWords(0, 0, ^uint64(0)), 0)
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("77"), 0); err != nil {
		t.Fatal(err)
	}
	p := oneProcess(t, v, pid)
	same(t, "subreaper", p.Subreaper, true)
	same(t, "ancestor is a subreaper", oneProcess(t, v, c.cloneCopy(0)).HasSubreaper, true)
	same(t, "oom score", p.OOMScoreAdj, 77)
	if !p.Rlimits.Known {
		t.Fatal("limits unknown")
	}
	for i, got := range p.Rlimits.V {
		c.must(unix.SYS_PRLIMIT64, 0, uint64(i), 0, c.page)
		w := c.get(0, 2)
		if got.Cur != w[0] || got.Max != w[1] {
			t.Errorf("limit %d: %+v, its own getrlimit says %d %d", i, got, w[0], w[1])
		}
	}
	if l := p.Rlimits.V[unix.RLIMIT_NOFILE]; l.Cur != 321 || l.Max != 654 {
		t.Errorf("limit of descriptors %+v", l)
	}
	same(t, "users of the address space", p.MM.V.Users, 1)
}

func TestAddressSpace(t *testing.T) {
	v, c := view(t), newChild(t)
	pid := c.pid()
	space := func() *AddressSpace {
		t.Helper()
		p := oneProcess(t, v, pid)
		if !p.MM.Known {
			t.Fatal("address space unknown")
		}
		return &p.MM.V
	}

	// What prctl and /proc can change and say.
	filter := fmt.Sprintf("/proc/%d/coredump_filter", pid)
	for _, value := range []uint32{0, 0x33, 0x1ff, 0x101} {
		if err := os.WriteFile(filter, fmt.Appendf(nil, "%#x", value), 0); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filter)
		if err != nil {
			t.Fatal(err)
		}
		own, err := strconv.ParseUint(strings.TrimSpace(string(b)), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "core filter", space().CoreFilter, uint32(own))
		same(t, "core filter", space().CoreFilter, value)
	}
	for _, on := range []uint64{1, 0} {
		prctlOf(c, unix.PR_SET_DUMPABLE, on)
		same(t, "dumpable", space().Dumpable, uint8(prctlOf(c, unix.PR_GET_DUMPABLE)))
		prctlOf(c, unix.PR_SET_THP_DISABLE, on)
		same(t, "THP disabled", space().THPDisable, prctlOf(c, unix.PR_GET_THP_DISABLE) == 1)
		same(t, "THP disabled", space().THPDisable, on == 1)
		set := prctl(unix.PR_SET_MEMORY_MERGE, on)
		if _, err := c.call(uintptr(set[0]), set[1:]...); err == nil {
			same(t, "KSM merge", space().KSMMerge, prctlOf(c, unix.PR_GET_MEMORY_MERGE) == 1)
		} else {
			same(t, "KSM merge", space().KSMMerge, false)
		}
	}
	prctlOf(c, unix.PR_SET_DUMPABLE, 1)

	same(t, "memory locked in future", space().LockFuture, false)
	c.must(unix.SYS_MLOCKALL, unix.MCL_FUTURE)
	same(t, "memory locked in future", space().LockFuture, true)
	same(t, "memory locked on fault", space().LockOnFault, false)
	c.must(unix.SYS_MLOCKALL, unix.MCL_FUTURE|unix.MCL_ONFAULT)
	same(t, "memory locked in future", space().LockFuture, true)
	same(t, "memory locked on fault", space().LockOnFault, true)
	c.must(unix.SYS_MUNLOCKALL)
	same(t, "memory locked in future", space().LockFuture, false)

	const registrations = 1 << 9 // MEMBARRIER_CMD_GET_REGISTRATIONS, since 6.3
	var made uint32
	same(t, "membarrier", space().Membarrier, 0)
	for _, cmd := range []uint64{barrierPrivate, barrierGlobal, barrierSync, barrierRseq} {
		c.must(unix.SYS_MEMBARRIER, cmd, 0, 0)
		made |= uint32(cmd)
		same(t, "membarrier", space().Membarrier, made)
		if own, err := c.call(unix.SYS_MEMBARRIER, registrations, 0, 0); err == nil && uint32(own) != made {
			t.Errorf("its own call says it has registered %x, not %x", own, made)
		}
	}

	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	if err != nil {
		t.Fatal(err)
	}
	if got := space().Auxv; !got.Known || !slices.Equal(got.V, words(auxv)) {
		t.Errorf("auxiliary vector %v, /proc says %x", got, words(auxv))
	}

	c.must(unix.SYS_BRK, uint64(c.must(unix.SYS_BRK, 0))+0x5000)
	got := space().Layout
	stat := procStat(t, pid)
	for _, f := range []struct {
		field int // of proc_pid_stat(5), less one
		value arch.Addr
	}{
		{25, got.V.StartCode}, {26, got.V.EndCode}, {27, got.V.StartStack}, {44, got.V.StartData}, {45, got.V.EndData},
		{46, got.V.StartBrk}, {47, got.V.ArgStart}, {48, got.V.ArgEnd}, {49, got.V.EnvStart}, {50, got.V.EnvEnd},
	} {
		if want, _ := strconv.ParseUint(stat[f.field], 10, 64); uint64(f.value) != want || !got.Known {
			t.Errorf("field %d of stat: %#x, want %#x", f.field+1, f.value, want)
		}
	}
	if brk := c.must(unix.SYS_BRK, 0); got.V.Brk != arch.Addr(brk) {
		t.Errorf("brk %#x, its own call says %#x", got.V.Brk, brk)
	}

	same(t, "AIO contexts", space().AIOContexts, 0)
	c.putWords(0x100, 0)
	if _, err := c.call(unix.SYS_IO_SETUP, 8, c.page+0x100); err == nil {
		same(t, "AIO contexts", space().AIOContexts, 1)
		testAIO(t, c, func() AIOContext {
			t.Helper()
			all, ok := space().AIO.Get()
			if !ok || len(all) != 1 {
				t.Fatalf("AIO contexts %+v, want one", all)
			}
			return all[0]
		})
		c.must(unix.SYS_IO_DESTROY, c.get(0x100, 1)[0])
		same(t, "AIO contexts", space().AIOContexts, 0)
	}
	exe := space().ExeFile
	if !exe.Known || exe.V == 0 {
		t.Errorf("executable %v", exe)
	}
	// Another process made from the same open file has another one of its own.
	other := newChild(t)
	if o := oneProcess(t, v, other.pid()).MM.V.ExeFile; o.V == exe.V {
		t.Error("two executions share an open file")
	}
}

func TestMDWE(t *testing.T) {
	v := view(t)
	for _, flags := range []uint64{unix.PR_MDWE_REFUSE_EXEC_GAIN, unix.PR_MDWE_REFUSE_EXEC_GAIN | unix.PR_MDWE_NO_INHERIT} {
		c := newChild(t)
		same(t, "MDWE", oneProcess(t, v, c.pid()).MM.V.MDWE, false)
		set := prctl(unix.PR_SET_MDWE, flags)
		if _, err := c.call(uintptr(set[0]), set[1:]...); err != nil {
			t.Skipf("needs PR_SET_MDWE: %v", err)
		}
		own := uint64(prctlOf(c, unix.PR_GET_MDWE))
		m := oneProcess(t, v, c.pid()).MM.V
		same(t, "MDWE", m.MDWE, own&unix.PR_MDWE_REFUSE_EXEC_GAIN != 0)
		same(t, "MDWE not inherited", m.MDWENoInherit, own&unix.PR_MDWE_NO_INHERIT != 0)
		if own != flags {
			t.Errorf("MDWE %x, its own call says %x", flags, own)
		}
	}
}

func TestLDT(t *testing.T) {
	v, c := view(t), newChild(t)
	got := oneProcess(t, v, c.pid()).MM.V.LDT
	if !got.Known || got.V != nil {
		t.Fatalf("LDT %v before any call", got)
	}
	// struct user_desc {entry 2, base, limit, 32-bit data segment, usable}
	desc := c.putWords(0, 2|0x12340000<<32, 0xfffff|(1|1<<4|1<<6)<<32)
	if r, err := c.call(unix.SYS_MODIFY_LDT, 0x11, desc, 16); err != nil || r != 0 {
		t.Skipf("needs modify_ldt: %d %v", r, err)
	}
	got = oneProcess(t, v, c.pid()).MM.V.LDT
	if !got.Known || len(got.V) != 3*8 {
		t.Fatalf("LDT %v, want 3 entries", got)
	}
	c.must(unix.SYS_MODIFY_LDT, 0, c.page+0x100, 3*8)
	if own := c.bytes(c.page+0x100, 3*8); !bytes.Equal(own, got.V) || allZero(own) {
		t.Errorf("LDT %x, its own modify_ldt says %x", got.V, own)
	}
}
