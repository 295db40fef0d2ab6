package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crpipe/arch"
	"crpipe/engine/files"
	"crpipe/engine/internal/procfs"
	"crpipe/engine/memory"
	"crpipe/engine/signals"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// rec is one record of an image under construction; meta is a value tree, so that a test can put into it what no dump
// would.
type rec struct {
	typ     stream.Type
	ref     uint32
	meta    stream.Map
	payload []byte
}

type image []rec

func tree(t testing.TB, state any) stream.Map {
	t.Helper()
	b, err := stream.EncodeMeta(state)
	if err != nil {
		t.Fatal(err)
	}
	v, err := stream.DecodeValue(b)
	if err != nil {
		t.Fatal(err)
	}
	return v.(stream.Map)
}

func (im *image) add(t testing.TB, typ stream.Type, defines bool, state any, payload []byte) stream.Ref {
	t.Helper()
	r := rec{typ: typ, meta: tree(t, state), payload: payload}
	if defines {
		r.ref = uint32(len(*im) + 1)
	}
	*im = append(*im, r)
	return stream.Ref{ID: r.ref, Class: typ.Class()}
}

// encode writes the image. It fails where the writer itself refuses it.
func (im image) encode(h stream.Header) ([]byte, error) {
	var out bytes.Buffer
	w, err := stream.NewWriter(&out, h)
	for _, r := range im {
		if err == nil {
			err = w.Put(r.typ, r.ref, r.meta, r.payload)
		}
	}
	if err == nil {
		err = w.End()
	}
	return out.Bytes(), err
}

func (im image) clone(t testing.TB) image {
	t.Helper()
	out := slices.Clone(im)
	for i := range out {
		out[i].meta = copyTree(out[i].meta).(stream.Map)
	}
	return out
}

func copyTree(v any) any {
	switch v := v.(type) {
	case stream.Map:
		out := make(stream.Map, len(v))
		for i := range v {
			out[i] = stream.Field{Name: v[i].Name, Value: copyTree(v[i].Value)}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = copyTree(v[i])
		}
		return out
	}
	return v
}

// find returns the n-th record of a type.
func (im image) find(t testing.TB, typ stream.Type, n int) *rec {
	t.Helper()
	for i := range im {
		if im[i].typ == typ {
			if n == 0 {
				return &im[i]
			}
			n--
		}
	}
	t.Fatalf("no such record: %s", typ)
	return nil
}

// set sets a field, whose name may lead through maps: "creds.uid".
func set(m *stream.Map, path string, value any) {
	name, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		m.Set(name, value)
		return
	}
	v, _ := m.Get(name)
	below, _ := v.(stream.Map)
	set(&below, rest, value)
	m.Set(name, below)
}

func header() stream.Header {
	return stream.Header{Content: stream.ContentImage, Arch: "amd64", PageSize: 4096, Kernel: "test"}
}

// The code of the synthetic processes: pause(2) for ever.
var pauseLoop = []byte{0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7} // mov $34,%eax; syscall; jmp .

const codeAt, dataAt = 0x400000, 0x500000

func synthRegs(t testing.TB, a *arch.Arch) []tasks.Regset {
	t.Helper()
	gp := make([]byte, a.PRStatusSize)
	a.SetPC(gp, codeAt)
	a.SetSP(gp, dataAt+4096-64)
	// struct user_regs_struct (sys/user.h): cs, flags and ss follow rip.
	for i, v := range map[int]uint64{15: ^uint64(0), 17: 0x33, 18: 0x202, 20: 0x2b} {
		binary.LittleEndian.PutUint64(gp[8*i:], v)
	}
	fp := make([]byte, 576)
	binary.LittleEndian.PutUint16(fp, 0x37f)
	binary.LittleEndian.PutUint32(fp[24:], 0x1f80)
	binary.LittleEndian.PutUint64(fp[464:], 3) // the features that the area has room for: x87 and SSE
	return []tasks.Regset{{Note: arch.NTPRStatus, Data: gp}, {Note: arch.NTX86XState, Data: fp}}
}

// synth builds an image of a session leader with two threads, its child, which shares its descriptors and directories,
// and a zombie. Numbers begin at pid.
func synth(t testing.TB, pid int32) image {
	t.Helper()
	a, err := arch.For("amd64")
	if err != nil {
		t.Fatal(err)
	}
	var have initialState
	if err := have.read(unix.Gettid()); err != nil {
		t.Fatal(err)
	}
	limits := make(tasks.Limits, 0, 32)
	for i := range 16 {
		var l unix.Rlimit
		if err := unix.Getrlimit(i, &l); err != nil {
			t.Fatal(err)
		}
		limits = append(limits, l.Cur, l.Max)
	}
	var im image
	table := im.add(t, "fdtable", true, &files.TableState{}, nil)
	dirs := im.add(t, "fs", true, &files.FSState{Root: "/", Cwd: "/", Umask: 0o27}, nil)
	var st unix.Stat_t
	if err := unix.Stat("/bin/sh", &st); err != nil {
		t.Fatal(err)
	}
	exe := im.add(t, "mapfile", true, &memory.File{Path: "/bin/sh", Size: uint64(st.Size)}, nil)
	var mms []stream.Ref
	var procs []tasks.Process
	for range 2 {
		mm := im.add(t, "mm", true, &memory.MM{Exe: exe, StartCode: codeAt, EndCode: codeAt + 4096, StartData: dataAt, EndData: dataAt + 4096,
			StartBrk: 0x600000, Brk: 0x600000, StartStack: dataAt + 4000, ArgStart: dataAt, ArgEnd: dataAt, EnvStart: dataAt, EnvEnd: dataAt,
			Dumpable: 1, CoreFilter: 0x33}, nil)
		mms = append(mms, mm)
		im.add(t, "mm.areas", false, &memory.Areas{MM: mm, Areas: []memory.Area{
			{Start: codeAt, End: codeAt + 4096, Perms: "r-xp"}, {Start: dataAt, End: dataAt + 4096, Perms: "rw-p"}}}, nil)
		act := im.add(t, "sighand", true, &signals.Sighand{Actions: []signals.Action{{Signal: 10, Handler: 1}, {Signal: 12, Handler: codeAt, Flags: 0x4000000, Restorer: codeAt}}}, nil)
		procs = append(procs, tasks.Process{ExitSignal: 17, MM: mm, Files: table, FS: dirs, Sighand: act, Limits: limits})
	}
	procs[0].PID, procs[0].Group, procs[0].Session = pid, pid, pid
	procs[1].PID, procs[1].Parent, procs[1].Group, procs[1].Session = pid+2, pid, pid+2, pid
	procs[1].Signals = signals.Process{
		Itimers: []signals.Itimer{{Left: 1e15, Interval: 1e15}, {}, {}},
		Timers:  []signals.Timer{{ID: 3, Clock: unix.CLOCK_MONOTONIC, Signal: 10, Value: 7, Armed: true, Left: 1e15, Interval: 1e9}},
	}
	thread := func(ref stream.Ref, tid int32) {
		have.creds.UID, have.creds.GID = slices.Clone(have.creds.UID), slices.Clone(have.creds.GID)
		im.add(t, "thread", false, &tasks.Thread{Process: ref, TID: tid, Comm: "synth", Regs: synthRegs(t, a), Creds: have.creds,
			Sched: tasks.Scheduling{Nice: have.sched.Nice}, Prctls: tasks.Prctls{TimerSlack: 50000, DefaultSlack: 50000}}, nil)
	}
	ref := im.add(t, "process", true, &procs[0], nil)
	thread(ref, pid)
	thread(ref, pid+1)
	thread(im.add(t, "process", true, &procs[1], nil), pid+2)
	im.add(t, "process", true, &tasks.Process{PID: pid + 3, Parent: pid, Group: pid, Session: pid, ExitSignal: 17, Zombie: true,
		WaitStatus: 7 << 8, Comm: "dead", UID: have.creds.UID[0], GID: have.creds.GID[0]}, nil)
	page := make([]byte, 4096)
	copy(page, pauseLoop)
	for _, mm := range mms {
		im.add(t, "pages", false, &memory.Pages{Of: mm, Addr: codeAt}, page)
	}
	return im
}

// nextPID is where freePIDs looks on; each answer is given once, because the numbers of tasks that were killed stay taken
// until init has buried them.
var nextPID = int32(20000 + os.Getpid()%5000)

// freePIDs finds a number with 63 free ones behind it.
func freePIDs(t *testing.T) int32 {
	t.Helper()
next:
	for ; nextPID < 32000; nextPID += 64 {
		for i := range int32(64) {
			if unix.Kill(int(nextPID+i), 0) != unix.ESRCH {
				continue next
			}
		}
		nextPID += 64
		return nextPID - 64
	}
	t.Skip("no 64 numbers in a row are free")
	return 0
}

func children(t *testing.T) []int {
	t.Helper()
	var all []int
	tids, err := procfs.Threads(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range tids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", tid))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, pid)
		}
	}
	return all
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func needRoot(t *testing.T) {
	t.Helper()
	if _, err := arch.Native(); err != nil {
		t.Skip(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("clone3 with chosen numbers needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE")
	}
}
