package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
	"crpipe/engine/internal/sys"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// restoreImage restores an image and ends the tree, whose processes are given, when the test ends.
func restoreImage(t *testing.T, im image, pids ...int32) *Restored {
	t.Helper()
	data, err := im.encode(header())
	if err != nil {
		t.Fatal(err)
	}
	restored, err := Restore(context.Background(), bytes.NewReader(data), RestoreOptions{Warn: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range pids {
			_ = unix.Kill(int(pid), unix.SIGKILL) // a zombie among them may be gone
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(restored.Root, &ws, unix.WALL, nil); err != nil {
			t.Errorf("waiting for the root: %v", err)
		}
	})
	return restored
}

// What a tree has is what its image says, and nothing of the process that restored it.
func TestRestoreSynthetic(t *testing.T) {
	needRoot(t)
	// What must not be handed on. nohup(1) and ionice(1) are how a cr-restore comes by them.
	signal.Ignore(unix.SIGHUP, unix.SIGUSR2)
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR2)
	defer unix.Umask(unix.Umask(0o77))
	t.Setenv("SECRET", "x")

	pid := freePIDs(t)
	im := synth(t, pid)
	slack := &im.find(t, "thread", 1).meta
	set(slack, "prctl.timer_slack", 123456)
	set(slack, "prctl.default_slack", 234567)
	restored := restoreImage(t, im, pid+2, pid)
	if restored.Root != int(pid) {
		t.Fatalf("the root is %d, want %d", restored.Root, pid)
	}
	for i, want := range []struct{ parent, group, session, threads int }{
		0: {os.Getpid(), int(pid), int(pid), 2}, 2: {int(pid), int(pid) + 2, int(pid), 1}, 3: {int(pid), int(pid), int(pid), 1},
	} {
		if want.threads == 0 {
			continue
		}
		st, err := procfs.ReadStat(int(pid) + i)
		if err != nil {
			t.Fatal(err)
		}
		if st.PPID != want.parent || st.Pgrp != want.group || st.Session != want.session || int(st.NumThreads) != want.threads || st.TTYNr != 0 {
			t.Errorf("process %d: parent %d, group %d, session %d, %d threads, terminal %#x; want %+v", st.PID, st.PPID, st.Pgrp, st.Session, st.NumThreads, st.TTYNr, want)
		}
		if zombie := i == 3; (st.State == 'Z') != zombie {
			t.Errorf("process %d is in state %c", st.PID, st.State)
		}
	}
	for _, tid := range []int{int(pid), int(pid) + 1, int(pid) + 2} {
		s, err := procfs.ReadStatus(tid)
		if err != nil {
			t.Fatal(err)
		}
		if s.SigIgn != 1<<9 || s.SigCgt != 1<<11 || s.SigBlk != 0 || s.Umask != 0o27 || s.TracerPID != 0 || s.Name != "synth" {
			t.Errorf("task %d: ignores %#x, catches %#x, blocks %#x, umask %#o, traced by %d, called %q", tid, s.SigIgn, s.SigCgt, s.SigBlk, s.Umask, s.TracerPID, s.Name)
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", tid))
		if err != nil || len(env) != 0 {
			t.Errorf("task %d has the environment %q (%v)", tid, env, err)
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", tid))
		if err != nil || len(fds) != 0 {
			t.Errorf("task %d has %d descriptors (%v)", tid, len(fds), err)
		}
		want := "50000\n"
		if tid == int(pid)+1 {
			want = "123456\n"
		}
		if have, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid)); err != nil || string(have) != want {
			t.Errorf("task %d has the timer slack %q (%v), want %q", tid, have, err, want)
		}
	}
	if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err != nil || bytes.Count(maps, []byte{'\n'})-bytes.Count(maps, []byte("[vsyscall]")) != 2 { // code and data
		t.Errorf("mappings:\n%s(%v)", maps, err)
	}
	timers, err := os.ReadFile(fmt.Sprintf("/proc/%d/timers", pid+2))
	if err != nil || !bytes.HasPrefix(timers, []byte("ID: 3\nsignal: 10/0000000000000007\nnotify: signal/pid")) {
		t.Errorf("timers:\n%s(%v)", timers, err)
	}
}

// Credentials of every sort, a different one for each of many threads, come out as they were said, and the process is as
// dumpable as it was, though every change of credentials makes it undumpable.
func TestRestoreCredentials(t *testing.T) {
	needRoot(t)
	var own initialState
	if err := own.read(unix.Gettid()); err != nil {
		t.Fatal(err)
	}
	all := own.creds.Permitted
	const chown, kill, setpcap, raw, bind, nice = 1 << 0, 1 << 5, 1 << 8, 1 << 13, 1 << 10, 1 << 23
	if lacks := uint64(chown|kill|setpcap|raw|bind|nice) &^ (all & own.creds.Bounding); lacks != 0 || own.creds.NoNewPrivs {
		t.Skipf("this test lacks %s", tasks.CapNames(lacks))
	}
	ids := func(a, b, c, d uint32) []uint32 { return []uint32{a, b, c, d} }
	base := own.creds
	cases := map[string]tasks.Credentials{
		"dropped wholly":                    {UID: ids(7000, 7000, 7000, 7000), GID: ids(7001, 7001, 7001, 7001), Bounding: base.Bounding},
		"odd ids":                           {UID: ids(8001, 8002, 8003, 8001), GID: ids(8004, 8005, 8006, 8005), Groups: []uint32{5, 65533, 70000}, Bounding: base.Bounding},
		"root with few capabilities":        {UID: ids(0, 0, 0, 0), GID: ids(0, 0, 0, 0), Permitted: chown | kill, Effective: kill, Bounding: base.Bounding},
		"a user with capabilities":          {UID: ids(7000, 7000, 7000, 7000), GID: ids(0, 0, 0, 0), Permitted: chown | raw, Effective: raw, Inheritable: nice, Bounding: base.Bounding},
		"inheritable beyond the bounding":   {UID: ids(0, 0, 0, 0), GID: ids(0, 0, 0, 0), Permitted: all, Effective: all, Inheritable: nice | kill, Bounding: base.Bounding &^ (nice | raw)},
		"nothing in the bounding set":       {UID: ids(0, 0, 0, 0), GID: ids(0, 0, 0, 0), Permitted: all, Effective: all, Bounding: 0},
		"ambient":                           {UID: ids(7000, 7000, 7000, 7000), GID: ids(7000, 7000, 7000, 7000), Permitted: bind | nice, Effective: bind, Inheritable: bind, Ambient: bind, Bounding: base.Bounding},
		"ambient of root, less effective":   {UID: base.UID, GID: base.GID, Groups: base.Groups, Permitted: all, Effective: all &^ kill, Inheritable: bind, Ambient: bind, Bounding: base.Bounding},
		"locked securebits":                 {UID: ids(7000, 0, 0, 0), GID: ids(0, 0, 0, 0), Permitted: all, Effective: all, Bounding: base.Bounding, Securebits: 0xef},
		"no ambient may be raised any more": {UID: ids(0, 0, 0, 0), GID: ids(0, 0, 0, 0), Permitted: all, Inheritable: bind, Ambient: bind, Bounding: base.Bounding &^ bind, Securebits: 1<<6 | 1<<7},
		"no_new_privs":                      {UID: ids(7000, 7000, 7000, 7000), GID: ids(7000, 7000, 7000, 7000), Bounding: 1, NoNewPrivs: true},
	}
	var names []string
	for name := range cases {
		names = append(names, name)
	}
	slices.Sort(names)
	names = slices.Repeat(names, 3)

	pid := freePIDs(t)
	im := synth(t, pid)
	more := *im.find(t, "thread", 1)
	im = slices.DeleteFunc(im, func(r rec) bool { tid, _ := r.meta.Get("tid"); return tid == uint64(pid+1) })
	at := slices.IndexFunc(im, func(r rec) bool { return r.typ == "thread" }) + 1
	first := tree(t, cases["dropped wholly"])
	im.find(t, "thread", 0).meta.Set("creds", first)
	for i, name := range names {
		c := cases[name]
		th := rec{typ: "thread", meta: copyTree(more.meta).(stream.Map)}
		th.meta.Set("tid", pid+4+int32(i))
		th.meta.Set("creds", tree(t, c))
		th.meta.Set("prctl", tree(t, &tasks.Prctls{PdeathSignal: 10, TimerSlack: 50000}))
		im = slices.Insert(im, at+i, th)
	}
	restoreImage(t, im, pid+2, pid)
	for i, name := range names {
		tid := int(pid) + 4 + i
		s, err := procfs.ReadThreadStatus(int(pid), tid)
		if err != nil {
			t.Fatal(err)
		}
		have := tasks.Credentials{UID: s.UID[:], GID: s.GID[:], Groups: s.Groups, Inheritable: s.CapInh, Permitted: s.CapPrm, Effective: s.CapEff,
			Bounding: s.CapBnd, Ambient: s.CapAmb, NoNewPrivs: s.NoNewPrivs}
		want := cases[name]
		want.Securebits = 0 // /proc does not show them
		if len(have.Groups) == 0 {
			have.Groups = nil
		}
		if len(want.Groups) == 0 {
			want.Groups = nil
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("thread %d, %s:\n%s", tid, name, diff)
		}
	}
	// The owner of /proc/PID is the process's effective user only while it is dumpable (proc_pid_inode_update in fs/proc/base.c).
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/maps", pid), &st); err != nil || st.Uid != 7000 {
		t.Errorf("/proc/%d belongs to %d: the process is not dumpable (%v)", pid, st.Uid, err)
	}
}

// A cr-restore that lacks what the image needs says so by name, before it makes anything.
func TestReach(t *testing.T) {
	have := tasks.Credentials{Permitted: 3, Bounding: 7}
	for name, c := range map[string]struct {
		want    tasks.Credentials
		have    tasks.Credentials
		missing uint64
		text    string
	}{
		"equal":                  {tasks.Credentials{Permitted: 3, Bounding: 7}, have, 0, ""},
		"less":                   {tasks.Credentials{Permitted: 1, Bounding: 1, NoNewPrivs: true}, have, 0, ""},
		"a capability more":      {tasks.Credentials{Permitted: 7, Bounding: 7}, have, 0, "cap_dac_read_search"},
		"an unknown one more":    {tasks.Credentials{Permitted: 1 << 63}, have, 0, "capability 63"},
		"inheritable":            {tasks.Credentials{Inheritable: 8}, have, 0, "cap_fowner"},
		"inheritable, bounded":   {tasks.Credentials{Inheritable: 4}, have, 0, ""},
		"a larger bounding set":  {tasks.Credentials{Bounding: 15}, have, 8, ""},
		"fewer rights than here": {tasks.Credentials{}, tasks.Credentials{NoNewPrivs: true}, 0, "no_new_privs"},
	} {
		missing, err := c.want.Reach(&c.have)
		if missing != c.missing || (err == nil) != (c.text == "") || err != nil && (!bytes.Contains([]byte(err.Error()), []byte(c.text)) || statusOf(err) != object.ExitSystem) {
			t.Errorf("%s: %#x, %v; want %#x, %q", name, missing, err, c.missing, c.text)
		}
	}
}

// What an ionice(1)d cr-restore has must not go to the tree.
func TestRestoreIoprio(t *testing.T) {
	needRoot(t)
	const who, bestEffort7 = 1, 2<<13 | 7
	before, err := sys.IoprioGet(unix.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, tid := range mustThreads(t) {
		if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, who, uintptr(tid), bestEffort7); errno != 0 && errno != unix.ESRCH {
			t.Fatal(errno)
		}
	}
	defer func() {
		for _, tid := range mustThreads(t) {
			_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, who, uintptr(tid), uintptr(before)) // of the test itself
		}
	}()
	pid := freePIDs(t)
	restoreImage(t, synth(t, pid), pid+2, pid)
	for _, tid := range []int{int(pid), int(pid) + 1, int(pid) + 2} {
		if have, err := sys.IoprioGet(tid); err != nil || have == bestEffort7 {
			t.Errorf("task %d has the I/O priority %#x of its restorer (%v)", tid, have, err)
		}
	}
}

func mustThreads(t *testing.T) []int {
	t.Helper()
	tids, err := procfs.Threads(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return tids
}

// A process that job control had stopped is so again, frozen or not, and its ticket says it.
func TestRestoreStopped(t *testing.T) {
	needRoot(t)
	for _, frozen := range []bool{false, true} {
		for _, unwaited := range []bool{false, true} {
			t.Run(fmt.Sprintf("frozen=%v,unwaited=%v", frozen, unwaited), func(t *testing.T) {
				pid := freePIDs(t)
				im := synth(t, pid)
				edit(t, im.find(t, "process", 1), func(p *tasks.Process) { p.StopSignal, p.Unwaited = int32(unix.SIGTSTP), unwaited })
				data, err := im.encode(header())
				if err != nil {
					t.Fatal(err)
				}
				restored, err := Restore(context.Background(), bytes.NewReader(data), RestoreOptions{Frozen: frozen})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_, _ = unix.Kill(int(pid+2), unix.SIGKILL), unix.Kill(int(pid), unix.SIGKILL)
					if _, err := unix.Wait4(int(pid), nil, unix.WALL, nil); err != nil {
						t.Errorf("waiting for the root: %v", err)
					}
				})
				if frozen {
					for _, task := range restored.Ticket.state.Tasks {
						if (string(task.Before) == "stopped") != (task.PID == int(pid+2)) && task.PID != int(pid+3) {
							t.Errorf("task %d is %q before the freeze", task.PID, task.Before)
						}
					}
					if err := Thaw(restored.Ticket, ThawOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				for i, want := range map[int]byte{0: 'S', 2: 'T', 3: 'Z'} {
					if have := settled(t, int(pid)+i, want); have != want {
						t.Errorf("process %d is in state %c, want %c", int(pid)+i, have, want)
					}
				}
				st, err := procfs.ReadStatus(int(pid))
				if err != nil || st.ShdPnd|st.SigPnd != 0 {
					t.Errorf("the parent has %#x pending (%v)", st.ShdPnd|st.SigPnd, err)
				}
			})
		}
	}
}

// settled waits for a task to come into a state, which a task that was let go needs moments for, and returns the last seen.
func settled(t *testing.T, pid int, want byte) byte {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		st, err := procfs.ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		if st.State == want || time.Now().After(deadline) {
			return st.State
		}
	}
}

// A tree whose cgroup is frozen, or gone, is made all the same, elsewhere, and that is said.
func TestRestoreCgroup(t *testing.T) {
	needRoot(t)
	mounts, err := procfs.ReadSelfMountinfo()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("/crpipe-w9-%d", os.Getpid())
	for _, c := range []struct{ controllers, file, freeze, thaw string }{{"", "cgroup.freeze", "1", "0"}, {"freezer", "freezer.state", "FROZEN", "THAWED"}} {
		root := cgroupRoot(mounts, c.controllers)
		if root == "" {
			t.Logf("no hierarchy %q here", c.controllers)
			continue
		}
		dir := root + name
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skip(err)
		}
		for _, state := range []string{c.thaw, c.freeze, "gone"} {
			if state == "gone" {
				_ = os.WriteFile(dir+"/"+c.file, []byte(c.thaw), 0) // it is removed next
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			} else if err := os.WriteFile(dir+"/"+c.file, []byte(state), 0); err != nil {
				t.Fatal(err)
			}
			t.Run(c.file+"="+state, func(t *testing.T) {
				pid := freePIDs(t)
				im := synth(t, pid)
				for i := range 2 {
					edit(t, im.find(t, "process", i), func(p *tasks.Process) { p.Cgroups = []tasks.Cgroup{{Controllers: c.controllers, Path: name}} })
				}
				data, err := im.encode(header())
				if err != nil {
					t.Fatal(err)
				}
				var warned []string
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				restored, err := Restore(ctx, bytes.NewReader(data), RestoreOptions{Warn: func(s string) { warned = append(warned, s) }})
				if err != nil {
					t.Fatal(err)
				}
				lines, err := procfs.ReadCgroups(restored.Root)
				if err != nil {
					t.Error(err)
				}
				in := slices.ContainsFunc(lines, func(l procfs.Cgroup) bool { return l.Path == name })
				if in != (state == c.thaw) || (len(warned) == 0) != in {
					t.Errorf("in its cgroup: %v, warnings: %q", in, warned)
				}
				_, _ = unix.Kill(int(pid+2), unix.SIGKILL), unix.Kill(int(pid), unix.SIGKILL)
				if _, err := unix.Wait4(int(pid), nil, unix.WALL, nil); err != nil {
					t.Error(err)
				}
				for deadline := time.Now().Add(10 * time.Second); state == c.thaw && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
					if procs, err := os.ReadFile(dir + "/cgroup.procs"); err != nil || len(procs) == 0 {
						break // its zombies are buried, so that it can be frozen and removed
					}
				}
			})
		}
	}
}

// The root's parent is cr-restore, and gone in a moment: a wish to die with it would be the end of what was restored.
func TestRestoreParentDeath(t *testing.T) {
	needRoot(t)
	pid := freePIDs(t)
	im := synth(t, pid)
	for i := range 3 {
		edit(t, im.find(t, "thread", i), func(th *tasks.Thread) { th.Prctls.PdeathSignal = int32(unix.SIGKILL) })
	}
	restoreImage(t, im, pid)
	if have := settled(t, int(pid), 'S'); have != 'S' {
		t.Fatalf("the root is in state %c", have)
	}
	if have := settled(t, int(pid)+2, 'S'); have != 'S' {
		t.Fatalf("the child is in state %c", have)
	}
	// The child's parent is in the image: when that dies, so does the child.
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if st, err := procfs.ReadStat(int(pid) + 2); err != nil || st.State == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			_ = unix.Kill(int(pid)+2, unix.SIGKILL)
			t.Fatal("the child has outlived its parent")
		}
	}
}
