package procfs

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseStat(t *testing.T) {
	s, err := ParseStat(testdata(t, "stat-6.18.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Comm != "sleep" || s.State != 'S' || s.NumThreads != 1 || s.ExitSignal != 17 || s.Starttime == 0 || s.EnvEnd < s.EnvStart || s.EnvStart == 0 {
		t.Errorf("%+v", s)
	}
	rest := " S 1 2 3 -1 -1 4194560 1 2 3 4 5 6 -7 -8 20 -5 9 0 11 12 13 18446744073709551615 1 2 3 4 5 6 7 8 9 10 0 0 17 1 50 2 0 0 0 1 2 3 4 5 6 7 -9\n"
	for _, comm := range []string{"", "(", ")", ") R 1 (", "a b", "a\nb", "))((", "\xff"} {
		s, err := ParseStat([]byte("42 (" + comm + ")" + rest))
		if err != nil || s.Comm != comm || s.PID != 42 || s.PPID != 1 || s.Nice != -5 || s.RSSLim != Unlimited || s.ExitCode != -9 || s.Policy != 2 {
			t.Errorf("%q: %+v, %v", comm, s, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (x", "x (y)" + rest, "42 (x) S 1 2", "42 (x) SS" + rest[2:], "42 (x)" + strings.Replace(rest, "20", "2x", 1)} {
		if _, err := ParseStat([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseStatus(t *testing.T) {
	s, err := ParseStatus(testdata(t, "status-6.18.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "sleep" || s.Umask != 0o22 || s.State != 'S' || s.Threads != 1 || len(s.NSpid) != 1 || s.THPEnabled == nil || !*s.THPEnabled || s.CapEff == 0 || s.UntagMask != ^uint64(0) {
		t.Errorf("%+v", s)
	}
	if len(s.Other) != 0 {
		t.Errorf("lines of this kernel that the parser does not know: %v", s.Other)
	}
	s, err = ParseStatus([]byte("Name:\t a\\nb\\\\c \nPid:\t7\nGroups:\t4 24 \nNSpid:\t7\t1\nSigQ:\t3/9\nFuture:\tx y\nVmRSS:\t   12 kB\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Status{Name: " a\nb\\c ", Umask: -1, PID: 7, Groups: []uint32{4, 24}, NSpid: []int{7, 1}, SigQ: 3, SigQLimit: 9,
		Other: []StatusLine{{"Future", "x y"}}, Memory: []StatusLine{{"VmRSS", "12 kB"}}}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "Pid", "Pid:\tx", "Name:\tx\n", "Pid:\t1\nUid:\t1 2 3\n", "Pid:\t1\nSigBlk:\tzz\n", "Pid:\t1\nNoNewPrivs:\t2\n"} {
		if _, err := ParseStatus([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseMaps(t *testing.T) {
	text := string(testdata(t, "maps-6.18.txt"))
	v, err := ParseMaps([]byte(text), nil)
	if err != nil || len(v) != strings.Count(text, "\n") || v[0].Path != "/usr/bin/sleep" {
		t.Fatalf("%+v, %v", v, err)
	}
	text = "7f00-8f00 rwxs 00001000 fe:10 12                       /a b (deleted)\n8f00-9f00 ---p 00000000 00:00 0 \nffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
	v, err = ParseMaps([]byte(text), nil)
	want := []VMA{
		{Start: 0x7f00, End: 0x8f00, Prot: ProtRead | ProtWrite | ProtExec | ProtShared, Offset: 4096, Major: 0xfe, Minor: 0x10, Inode: 12, Path: "/a b (deleted)"},
		{Start: 0x8f00, End: 0x9f00},
		{Start: 0xffffffffff600000, End: 0xffffffffff601000, Prot: ProtExec, Path: "[vsyscall]"},
	}
	if diff := cmp.Diff(want, v); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, bad := range []string{"\n", "1-2", "2-1 rwxp 0 00:00 0 \n", "1-2 rwx 0 00:00 0 \n", "1-2 rwxq 0 00:00 0 \n", "1-2 rwxp 0 0000 0 \n", "1-2 rwxp 0 00:00 z \n"} {
		if _, err := ParseMaps([]byte(bad), nil); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseSmaps(t *testing.T) {
	v, err := ParseSmaps(testdata(t, "smaps-6.18.txt"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseMaps(testdata(t, "maps-6.18.txt"), nil)
	if err != nil || len(m) != len(v) {
		t.Fatalf("%d mappings in maps, %d in smaps, %v", len(m), len(v), err)
	}
	for i := range v {
		if v[i].VMA != m[i] {
			t.Errorf("smaps %+v, maps %+v", v[i].VMA, m[i])
		}
		if v[i].Flags.Has("rd") != (m[i].Prot&ProtRead != 0) || v[i].Flags.Has("ex") != (m[i].Prot&ProtExec != 0) {
			t.Errorf("%s: flags %q, prot %s", m[i].Path, v[i].Flags, m[i].Prot)
		}
	}
}

func TestParseFdinfo(t *testing.T) {
	mask := uint64(0x200)
	for name, want := range map[string]*Fdinfo{
		"eventfd": {Flags: 2, MntID: 17, Ino: 1038, Eventfd: &EventfdInfo{Count: 5, ID: 8, Semaphore: 1}},
		"epoll": {Flags: 0o2000002, MntID: 17, Ino: 1038, Epoll: []EpollTarget{
			{FD: 3, Events: 0x80000019, Data: 3, Ino: 0x40e, Dev: 0x10}, {FD: 5, Events: 0x19, Data: 0x7f3800000005, Ino: 0x6bcdac, Dev: 0xf}}},
		"inotify": {MntID: 17, Ino: 1038, Inotify: []InotifyWatch{
			{WD: 2, Ino: 0x3c4a3, Dev: 0xfe00000, Mask: 0x100, HandleType: 1, Handle: []byte{0xa3, 0xc4, 3, 0, 0, 0, 0, 0}},
			{WD: 1, Ino: 0x13, Dev: 0xfe00000, Mask: 2, HandleType: 1, Handle: []byte{0x13, 0, 0, 0, 0, 0, 0, 0}}}},
		"fanotify": {Flags: 2, MntID: 17, Ino: 1038, Fanotify: &FanotifyInfo{Flags: 0xe07, EventFlags: 0x48002, Marks: []FanotifyMark{
			{On: OnMountNamespace, ID: 4026531841, Mask: 0x3000000},
			{On: OnMount, ID: 0x17, Mask: 8},
			{On: OnFilesystem, Dev: 6, Mask: 0x58000100},
			{On: OnInode, Ino: 0x98a0a7, Dev: 0xfe00000, Flags: 0x640, Ignored: 0x48000100, HandleType: 1, Handle: []byte{0xa7, 0xa0, 0x98, 0, 0xad, 0xca, 0x44, 0x13}}}}},
		"lock": {Pos: 123, Flags: 0o2100002, MntID: 27, Ino: 9978808, Locks: []Lock{
			{Kind: "FLOCK", Mode: "ADVISORY", Type: "WRITE", PID: 24066, Major: 0xfe, Ino: 9978808, ToEOF: true},
			{Kind: "POSIX", Mode: "ADVISORY", Type: "WRITE", PID: 24066, Major: 0xfe, Ino: 9978808, Start: 5, End: 14}}},
		"pidfd":    {Flags: 0o2000002, MntID: 4, Ino: 1351286, Pidfd: &PidfdInfo{PID: 24066, NSpid: []int{24066}}},
		"signalfd": {Flags: 2, MntID: 17, Ino: 1038, Signalfd: &mask},
		"timerfd":  {Flags: 2, MntID: 17, Ino: 1038, Timerfd: &TimerfdInfo{ClockID: 1, Value: 99_999911692, Interval: 1_000000500}},
	} {
		f, err := ParseFdinfo(testdata(t, "fdinfo-"+name+".txt"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, f); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	f, err := ParseFdinfo([]byte("pos:\t0\nflags:\t02\nmnt_id:\t1\nio_uring-thing: 3\n"))
	if err != nil || len(f.Other) != 1 || f.Other[0] != (StatusLine{"io_uring-thing", "3"}) {
		t.Errorf("an unknown line: %+v, %v", f, err)
	}
	for _, bad := range []string{"", "hello", "pos:\tx\n", "flags:\t9\n", "inotify wd:1 fhandle-bytes:4 f_handle:00\n", "fanotify mnt_id:1\n", "fanotify flags:0 event-flags:x\n", "fanotify flags:0\nfanotify mask:1\n", "it_value: (1, 2\n", "tfd: x\n", "lock:\t1: FLOCK\n"} {
		if _, err := ParseFdinfo([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseLimits(t *testing.T) {
	l, err := ParseLimits(testdata(t, "limits-6.18.txt"))
	if err != nil {
		t.Fatal(err)
	}
	// The numbering of this package is the kernel's: compare with getrlimit of a limit whose values differ from all others.
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_STACK, &r); err != nil {
		t.Fatal(err)
	}
	own, err := ReadLimits(os.Getpid())
	if err != nil || own[unix.RLIMIT_STACK].Soft != r.Cur || own[unix.RLIMIT_STACK].Hard != r.Max {
		t.Errorf("stack %+v, getrlimit %+v, %v", own[unix.RLIMIT_STACK], r, err)
	}
	if l[0].Hard != Unlimited || l[13] != (Limit{0, 0}) {
		t.Errorf("%v", l)
	}
	if _, err := ParseLimits([]byte("Limit\nMax cpu time  1  2\n")); !errors.Is(err, ErrFormat) {
		t.Errorf("limits missing: %v", err)
	}
}

func TestParseSmall(t *testing.T) {
	c, err := ParseCgroups([]byte("9:name=systemd:/a\n3:cpu,cpuacct:/b:c\n0::/\n"))
	if err != nil || len(c) != 3 || !c[1].Has("cpuacct") || c[1].Has("pu") || c[1].Path != "/b:c" || !c[0].Has("name=systemd") {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := ParseCgroups(testdata(t, "cgroup-6.18.txt")); err != nil {
		t.Error(err)
	}
	timers, err := ParseTimers([]byte("ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\nID: 2\nsignal: 0/(null)\nnotify: thread/tid.7\nClockID: -6\n"))
	want := []Timer{{ID: 1, Signal: 60, Value: 0x7fff86e452a8, Notify: "signal", Target: 2634}, {ID: 2, Notify: "thread", ToTID: true, Target: 7, ClockID: -6}}
	if diff := cmp.Diff(want, timers); diff != "" || err != nil {
		t.Error(diff, err)
	}
	kids, err := ParseChildren([]byte("1 22 333 "))
	if diff := cmp.Diff([]int{1, 22, 333}, kids); diff != "" || err != nil {
		t.Error(diff, err)
	}
	args, err := ParseCmdline([]byte("a\x00\x00b c\x00"))
	if diff := cmp.Diff([]string{"a", "", "b c"}, args); diff != "" || err != nil {
		t.Error(diff, err)
	}
	aux, err := ParseAuxv([]byte{3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, binary.LittleEndian, 4)
	if diff := cmp.Diff([]AuxEntry{{3, 9}}, aux); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := ParseAuxv([]byte{1, 0, 0, 0, 0, 0, 0, 1}, binary.BigEndian, 4); !errors.Is(err, ErrFormat) {
		t.Errorf("no end: %v", err)
	}
}

func TestParseMountinfo(t *testing.T) {
	m, err := ParseMountinfo(testdata(t, "mountinfo-6.18.txt"))
	if err != nil || len(m) == 0 {
		t.Fatal(m, err)
	}
	m, err = ParseMountinfo([]byte("36 35 98:0 /m\\0401 /m\\134\\012 rw,noatime master:1 shared:2 - ext3.sub  rw,a=b c\n"))
	want := []Mount{{ID: 36, Parent: 35, Major: 98, Root: "/m 1", Point: "/m\\\n", Options: "rw,noatime", Optional: []string{"master:1", "shared:2"}, FSType: "ext3.sub", Super: "rw,a=b c"}}
	if diff := cmp.Diff(want, m); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, bad := range []string{"\n", "36 35 98:0 / / rw", "36 35 98:0 / / rw - ext4\n", "x 35 98:0 / / rw - a b c\n", "36 35 98 / / rw - a b c\n"} {
		if _, err := ParseMountinfo([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTimeOffsets(t *testing.T) {
	o, err := ParseTimeOffsets([]byte("monotonic           1       000000005\nboottime          -20       000000007\n"))
	if err != nil || o != (TimeOffsets{1e9 + 5, -20e9 + 7}) {
		t.Errorf("%+v, %v", o, err)
	}
	for clock, want := range map[int32]int64{0: 0, 1: 1e9 + 5, 2: 0, 6: 1e9 + 5, 7: -20e9 + 7, 8: 0, 9: -20e9 + 7, 11: 0} {
		if have := o.Of(clock); have != want {
			t.Errorf("clock %d is %d ns ahead, not %d", clock, have, want)
		}
	}
	for _, bad := range []string{"monotonic 1\n", "monotonic 1 x\n", "monotonic 99999999999 0\n", "boottime 1 1000000000\n", "boottime 1 -1\n"} {
		if o, err := ParseTimeOffsets([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, o)
		}
	}
}

// TestReadSelf reads every file of this process.
func TestReadSelf(t *testing.T) {
	pid := os.Getpid()
	for name, read := range map[string]func() error{
		"stat":      func() error { _, err := ReadStat(pid); return err },
		"status":    func() error { _, err := ReadStatus(pid); return err },
		"maps":      func() error { _, err := ReadMaps(pid); return err },
		"smaps":     func() error { _, err := ReadSmaps(pid); return err },
		"limits":    func() error { _, err := ReadLimits(pid); return err },
		"mountinfo": func() error { _, err := ReadMountinfo(pid); return err },
		"cgroup":    func() error { _, err := ReadCgroups(pid); return err },
		"timens":    func() error { _, err := ReadTimeOffsets("self"); return err },
		"cmdline":   func() error { _, err := ReadCmdline(pid); return err },
		"boot":      func() error { _, err := BootID(); return err },
		"fdinfo":    func() error { _, err := ReadFdinfo(pid, 0); return err },
		"namespace": func() error { _, err := Namespace(pid, "pid"); return err },
	} {
		if err := read(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	tids, err := Threads(pid)
	if err != nil || len(tids) < 2 {
		t.Errorf("threads %v, %v", tids, err)
	}
	if _, err := ReadStat(1 << 22); !IsGone(err) {
		t.Errorf("a process that does not exist: %v", err)
	}
}

func FuzzMaps(f *testing.F) {
	f.Add(testdata(f, "maps-6.18.txt"))
	f.Add([]byte("1-2 rwxp 0 00:00 0 [heap]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseMaps(b, nil)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
		for i := range v {
			if v[i].End < v[i].Start {
				t.Errorf("%+v", v[i])
			}
		}
		_, _ = ParseSmaps(b)
	})
}

func FuzzStatus(f *testing.F) {
	f.Add(testdata(f, "status-6.18.txt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseStatus(b); (err == nil) != (s != nil) || (err != nil && !errors.Is(err, ErrFormat)) {
			t.Error(s, err)
		}
	})
}

func FuzzStat(f *testing.F) {
	f.Add(testdata(f, "stat-6.18.txt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStat(b)
		if err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
		if err == nil && !strings.Contains(string(b), "("+s.Comm+")") {
			t.Errorf("name %q out of nothing", s.Comm)
		}
	})
}

func FuzzFdinfo(f *testing.F) {
	for _, n := range []string{"eventfd", "epoll", "fanotify", "inotify", "lock", "pidfd", "signalfd", "timerfd"} {
		f.Add(testdata(f, "fdinfo-"+n+".txt"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParseFdinfo(b); (err == nil) != (v != nil) || (err != nil && !errors.Is(err, ErrFormat)) {
			t.Error(v, err)
		}
	})
}

func FuzzMountinfo(f *testing.F) {
	f.Add(testdata(f, "mountinfo-6.18.txt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ParseMountinfo(b); err != nil && !errors.Is(err, ErrFormat) {
			t.Error(err)
		}
		for _, parse := range []func([]byte) error{
			func(b []byte) error { _, err := ParseCgroups(b); return err },
			func(b []byte) error { _, err := ParseTimers(b); return err },
			func(b []byte) error { _, err := ParseLimits(b); return err },
			func(b []byte) error { _, err := ParseChildren(b); return err },
			func(b []byte) error { _, err := ParseTimeOffsets(b); return err },
		} {
			if err := parse(b); err != nil && !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
		}
	})
}

// BenchmarkMaps parses 2000 mappings.
func BenchmarkMaps(b *testing.B) {
	text := []byte(strings.Repeat("7f4a1c000000-7f4a1c021000 rw-p 00000000 fe:00 1234                       /usr/lib/libc.so.6\n", 2000))
	var v []VMA
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if v, err = ParseMaps(text, v[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStat(b *testing.B) {
	text := testdata(b, "stat-6.18.txt")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseStat(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStatus(b *testing.B) {
	text := testdata(b, "status-6.18.txt")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseStatus(text); err != nil {
			b.Fatal(err)
		}
	}
}
