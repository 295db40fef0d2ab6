package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slots limits how many jobs run at a time: the machine has two cores, and waits are timed.
var slots = make(chan struct{}, 2)

var jobs atomic.Int64

// Options say how a job is started.
type Options struct {
	Name    string   // what messages call it; the program's name when empty
	Before  []string // arguments before the directory
	Args    []string // arguments behind the directory
	PidNS   bool     // as init of a pid namespace of its own: unshare -pf --mount-proc
	Env     []string // more of the environment
	Stdin   *os.File // /dev/null when nil
	Stdout  *os.File // a file in the job's directory when nil
	Stderr  *os.File
	Shell   string // a bash script to run instead of the program; its directory is the first argument
	Compat  bool   // as a 32-bit program (Prog32)
	Cgroup  bool   // in cgroups of its own (v2 and v1 freezer), alone
	Overlay bool   // its directory lies on overlayfs: the test must run alone, since all namespaces see the mount
	User    int    // uid and gid that the program runs as, without supplementary groups; 0: as the test
	AsUser  bool   // the commands run as that user too
	Linger  bool   // the program does not end by itself: Finish does not wait for that
}

// Job is a tree of processes under test.
type Job struct {
	T       testing.TB
	Name    string
	Dir     string // the program's directory: ready, check, report, done
	Aux     string // the harness's: images, tickets, errors of commands
	Pid     int    // the root's pid as we see it
	Restore int    // how many times it was restored

	mark    string // in the environment of its tasks
	cmdMark string // in the environment of the commands that work on it
	opts    Options
	started *exec.Cmd
	exited  chan struct{} // closed when the first incarnation of the root was reaped

	lock    sync.Mutex
	known   map[int]bool // every process that belonged to it
	cgroups []string
	away    []away // lines of DIR/downtime
	frozen  int64  // when it was frozen, before the dump; 0: the dump freezes it
	status  *int   // exit status of the restored root
	before  cgroupView
}

// Start runs a program as a job: a session of its own, standard output and error into files, environment reduced to
// a mark that restored tasks carry too. The test gets one of two slots and cleans up after itself.
func Start(t testing.TB, prog string, o Options) *Job {
	t.Helper()
	slots <- struct{}{}
	dir, err := os.MkdirTemp(RunDir(t), "job-")
	if err != nil {
		t.Fatal(err)
	}
	name := o.Name
	if name == "" {
		name = filepath.Base(prog)
	}
	j := &Job{T: t, Name: name, Dir: filepath.Join(dir, "d"), Aux: filepath.Join(dir, "aux"), opts: o, known: map[int]bool{}, exited: make(chan struct{}),
		before: viewCgroups()}
	n := jobs.Add(1)
	j.mark, j.cmdMark = fmt.Sprintf("CR_TEST_JOB=%d.%d.", os.Getpid(), n), fmt.Sprintf("CR_TEST_CMD=%d.%d.", os.Getpid(), n)
	t.Cleanup(j.cleanup)
	for _, d := range []string{dir, j.Dir, j.Aux, j.tmp()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if o.User != 0 {
		prog = j.ofUser(prog)
	}
	if o.Overlay {
		j.overlay()
	}
	argv := append(append(append([]string{prog}, o.Before...), j.Dir), o.Args...)
	if o.Shell != "" {
		argv = append([]string{"/bin/bash", "-c", o.Shell, name, j.Dir}, o.Args...)
	}
	if o.PidNS {
		argv = append([]string{"/usr/bin/unshare", "-pf", "--mount-proc", "--"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", fmt.Sprintf("CR_TEST_SLOW=%d", Slow()), j.mark}, o.Env...)
	cmd.SysProcAttr = j.attributes(true)
	if o.Stdin != nil {
		cmd.Stdin = o.Stdin // else /dev/null
	}
	cmd.Stdout, cmd.Stderr = j.output(o.Stdout, "stdout"), j.output(o.Stderr, "stderr")
	if o.Cgroup {
		j.makeCgroups(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	for _, f := range []any{cmd.Stdout, cmd.Stderr} {
		if f, ok := f.(*os.File); ok && f != o.Stdout && f != o.Stderr {
			_ = f.Close() // the program has its own
		}
	}
	j.started, j.Pid = cmd, cmd.Process.Pid
	go func() {
		_ = cmd.Wait() // its status is in DIR/done; a killed one is no error here
		close(j.exited)
	}()
	if o.Cgroup {
		j.joinV1()
	}
	if o.PidNS {
		outer := j.Pid
		if !eventually(10*time.Second, func() bool {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", outer, outer))
			_, err2 := fmt.Sscan(string(data), &j.Pid)
			return err == nil && err2 == nil
		}) {
			t.Fatal("unshare made no child")
		}
	}
	return j
}

// StartFixture starts a fixture and waits until it is ready.
func StartFixture(t testing.TB, name string, o Options) *Job {
	t.Helper()
	if name == "hugetlb" {
		hugePages(t, 256)
	}
	prog := Prog
	if o.Compat {
		prog = Prog32
	}
	j := Start(t, prog(t, name), o)
	j.WaitFile("ready", 30*time.Second)
	return j
}

// overlay mounts an overlay of two empty directories on the job's.
func (j *Job) overlay() {
	j.T.Helper()
	layers := map[string]string{}
	for _, name := range []string{"lower", "upper", "work"} {
		layers[name] = filepath.Join(filepath.Dir(j.Dir), name)
		if err := os.Mkdir(layers[name], 0o755); err != nil {
			j.T.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", layers["lower"], layers["upper"], layers["work"])
	if err := unix.Mount("overlay", j.Dir, "overlay", 0, options); err != nil {
		j.T.Skipf("mounting an overlay: %v", err)
	}
	j.T.Cleanup(func() {
		if err := unix.Unmount(j.Dir, unix.MNT_DETACH); err != nil {
			j.T.Errorf("unmounting the overlay: %v", err)
		}
	})
}

// ofUser gives the job's directories to its user, and a copy of a program that is where he cannot reach it.
func (j *Job) ofUser(prog string) string {
	j.T.Helper()
	data, err := os.ReadFile(prog)
	if err != nil {
		j.T.Fatal(err)
	}
	top := filepath.Dir(j.Dir)
	reachable := filepath.Join(top, filepath.Base(prog))
	if name := filepath.Base(prog); strings.Contains(name, "-") { // the cache's name of it has a hash behind it
		reachable = filepath.Join(top, j.Name)
	}
	if err := os.WriteFile(reachable, data, 0o755); err != nil { //nolint:gosec // a program
		j.T.Fatal(err)
	}
	for _, d := range []string{top, j.Dir, j.Aux, j.tmp()} {
		if err := os.Chown(d, j.opts.User, j.opts.User); err != nil {
			j.T.Fatal(err)
		}
	}
	return reachable
}

// attributes are those of processes that the job or a command on it begin with.
func (j *Job) attributes(program bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if j.opts.User != 0 && (program || j.opts.AsUser) {
		a.Credential = &syscall.Credential{Uid: uint32(j.opts.User), Gid: uint32(j.opts.User)}
	}
	return a
}

func (j *Job) output(given *os.File, name string) *os.File {
	if given != nil {
		return given
	}
	// O_APPEND: two writers of one file must not write over each other, as in a shell's 2>>
	f, err := os.OpenFile(filepath.Join(j.Aux, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		j.T.Fatal(err)
	}
	if j.opts.User != 0 {
		if err := f.Chown(j.opts.User, j.opts.User); err != nil {
			j.T.Fatal(err)
		}
	}
	return f
}

func (j *Job) tmp() string { return filepath.Join(filepath.Dir(j.Dir), "tmp") }

// Image is the path of an image or ticket of this job.
func (j *Job) Image(name string) string { return filepath.Join(j.Aux, name) }

// Tasks are the processes of the job that live now, by descent and by the mark in their environment.
func (j *Job) Tasks() []int {
	all := map[int]bool{}
	for _, p := range marked(j.mark) {
		all[p] = true
	}
	if all[j.Pid] {
		for _, p := range Tree(j.Pid) {
			all[p] = true
		}
	}
	j.lock.Lock()
	defer j.lock.Unlock()
	var pids []int
	for p := range all {
		if j.started != nil && p == j.started.Process.Pid && p != j.Pid {
			continue // the unshare around a pid namespace
		}
		j.known[p] = true
		pids = append(pids, p)
	}
	return pids
}

// Alive says whether the root runs (a zombie does not, unless only its first thread has ended).
func (j *Job) Alive() bool {
	s := State(j.Pid)
	return s != 0 && s != 'X' && (s != 'Z' || len(Threads(j.Pid)) > 1)
}

// WaitFile waits until DIR/name exists.
func (j *Job) WaitFile(name string, limit time.Duration) {
	j.T.Helper()
	dead := 0
	ok := eventually(limit, func() bool {
		if _, err := os.Stat(filepath.Join(j.Dir, name)); err == nil {
			return true
		}
		if j.reapRoot(); !j.Alive() {
			dead++ // give a program that has just ended the time to be seen with its file
		}
		return dead > 40
	})
	if _, err := os.Stat(filepath.Join(j.Dir, name)); err != nil {
		state := "still runs"
		if !ok {
			state = fmt.Sprintf("still runs after %v", limit)
		}
		if dead > 40 {
			state = "is dead"
			if j.status != nil {
				state += fmt.Sprintf(" (wait status 0x%x)", *j.status)
			}
		}
		j.T.Fatalf("%s: no file %q: pid %d %s%s", j.Name, name, j.Pid, state, j.Evidence())
	}
}

// Evidence is all that can explain a failure: the report, the program's output, the state of its tasks.
func (j *Job) Evidence() string {
	var b strings.Builder
	for _, f := range []string{filepath.Join(j.Dir, "report"), filepath.Join(j.Aux, "stdout"), filepath.Join(j.Aux, "stderr")} {
		if data, err := os.ReadFile(f); err == nil && len(data) > 0 {
			if len(data) > 3000 { // the end says most
				data = append([]byte("..."), data[len(data)-3000:]...)
			}
			fmt.Fprintf(&b, "\n--- %s:\n%s", filepath.Base(f), strings.TrimRight(string(data), "\n"))
		}
	}
	for _, pid := range j.Tasks() {
		for _, tid := range Threads(pid) {
			wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", tid))
			sys, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", tid))
			fmt.Fprintf(&b, "\n--- task %d/%d (%s): state %c, tracer %s, in %s, call %s", pid, tid, Comm(tid), State(tid), StatusLine(tid, "TracerPid"), wchan, strings.TrimSpace(string(sys)))
		}
	}
	return b.String()
}

// Finish tells the program that it is time to look at itself, waits for what it says and for the end of its tasks.
func (j *Job) Finish() {
	j.T.Helper()
	j.Tasks()
	if err := os.WriteFile(filepath.Join(j.Dir, "downtime"), j.downtime(), 0o644); err != nil {
		j.T.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(j.Dir, "check"), nil, 0o644); err != nil {
		j.T.Fatal(err)
	}
	j.Verdict(60 * time.Second)
}

// Verdict waits for DIR/done and for the end of all tasks. The file must say "ok".
func (j *Job) Verdict(limit time.Duration) {
	j.T.Helper()
	j.WaitFile("done", limit)
	data, err := os.ReadFile(filepath.Join(j.Dir, "done"))
	if err != nil {
		j.T.Fatal(err)
	}
	if strings.TrimSpace(string(data)) != "ok" {
		j.T.Fatalf("%s says %q%s", j.Name, strings.TrimSpace(string(data)), j.Evidence())
	}
	if !eventually(20*time.Second, func() bool { j.reap(); return len(j.Tasks()) == 0 }) {
		j.T.Fatalf("%s: tasks left after its end%s", j.Name, j.Evidence())
	}
}

// reapRoot takes the exit status of a restored root, which is our child once cr-restore has ended.
func (j *Job) reapRoot() {
	if j.Restore == 0 || j.Pid <= 1 {
		return
	}
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(j.Pid, &ws, unix.WNOHANG, nil); err == nil && pid == j.Pid {
		st := int(ws)
		j.status = &st
	}
}

// reap waits for every process of the job that became our child and has ended.
func (j *Job) reap() {
	j.reapRoot()
	j.lock.Lock()
	defer j.lock.Unlock()
	// A task that was made and killed while nobody looked became our child as well: it is known by its session.
	for _, pid := range children() {
		if s, err := readStat(pid); err == nil && s.state == 'Z' && s.sid == j.session() {
			j.known[pid] = true
		}
	}
	for pid := range j.known {
		if j.started != nil && pid == j.started.Process.Pid && j.Restore == 0 {
			continue // os/exec waits for that one
		}
		if pid > 1 {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // not ours, or not ended: fine
		}
	}
}

// session is the session that the job was started in.
func (j *Job) session() int {
	if j.started == nil || j.started.Process == nil {
		return -1
	}
	return j.started.Process.Pid
}

// WaitGone waits until the whole tree has been killed and reaped, so that its pids are free.
func (j *Job) WaitGone() {
	j.T.Helper()
	if !eventually(20*time.Second, func() bool {
		j.reap()
		j.lock.Lock()
		defer j.lock.Unlock()
		for pid := range j.known {
			if State(pid) != 0 {
				return false
			}
		}
		return true
	}) {
		j.T.Fatalf("%s: tasks live after the kill%s", j.Name, j.Evidence())
	}
	if j.Restore == 0 {
		<-j.exited
	}
}

// cleanup ends what is left, and fails the test for it unless the test has failed already.
func (j *Job) cleanup() {
	defer func() { <-slots }()
	t := j.T
	left := j.Tasks()
	var commands []int
	if !eventually(Patience, func() bool { commands = marked(j.cmdMark); return len(commands) == 0 }) && !t.Failed() {
		t.Errorf("%s: commands still running: %v", j.Name, commands)
	}
	for range 50 {
		tasks := append(marked(j.mark), marked(j.cmdMark)...)
		for _, pid := range tasks {
			_ = Kill(pid, syscall.SIGKILL)
		}
		j.reap()
		if len(tasks) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if len(left) > 0 && !t.Failed() && !j.opts.Linger {
		t.Errorf("%s: stray tasks %v", j.Name, left)
	}
	if still := marked(j.mark); len(still) > 0 {
		t.Errorf("%s: tasks that cannot be killed: %v%s", j.Name, still, j.Evidence())
	}
	j.checkCgroups()
	if entries, err := os.ReadDir(j.tmp()); err == nil && len(entries) > 0 {
		for _, e := range entries {
			t.Errorf("%s: temporary file left: %s", j.Name, e.Name())
		}
	}
	if t.Failed() && os.Getenv("CR_TEST_KEEP") != "" {
		t.Logf("kept: %s", filepath.Dir(j.Dir))
		return
	}
	if err := os.RemoveAll(filepath.Dir(j.Dir)); err != nil {
		t.Errorf("removing the job's directory: %v", err)
	}
}
