package freezer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/procfs"
)

// needRoot skips a test that cannot use the cgroups of this machine.
func needRoot(t testing.TB, way Way) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if way == WaySigstop {
		return
	}
	h, err := openHierarchy(way)
	if err != nil {
		t.Skip(err)
	}
	defer h.Close()
	if err := unix.Faccessat(unix.AT_FDCWD, h.mount.Point, unix.W_OK, 0); err != nil {
		t.Skipf("%s cannot be written: %v", h.mount.Point, err)
	}
}

// build compiles a C program of testdata once.
func build(t testing.TB, name string) string {
	t.Helper()
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc")
	}
	programsMu.Lock()
	defer programsMu.Unlock()
	if path, ok := programs[name]; ok {
		return path
	}
	path := filepath.Join(programDir, name)
	out, err := exec.Command(cc, "-O1", "-Wall", "-pthread", "-o", path, filepath.Join("testdata", name+".c")).CombinedOutput()
	if err != nil {
		t.Fatalf("compiling %s: %v\n%s", name, err, out)
	}
	programs[name] = path
	return path
}

var (
	programsMu sync.Mutex
	programs   = map[string]string{}
	programDir string
)

func TestMain(m *testing.M) {
	if os.Getenv("FREEZER_TEST_CHILD") != "" {
		childMain()
		return
	}
	dir, err := os.MkdirTemp("", "freezer-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programDir = dir
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}

// target is a running test program.
type target struct {
	cmd   *exec.Cmd
	pid   int
	log   string
	beats string
}

// start runs a program in a session of its own and kills its whole tree at the
// end of the test. It is started in cgroup, a directory, unless that is empty.
func start(t testing.TB, cgroup, path string, args ...string) *target {
	t.Helper()
	dir := t.TempDir()
	g := &target{log: filepath.Join(dir, "log"), beats: filepath.Join(dir, "beats")}
	for i, a := range args {
		args[i] = strings.NewReplacer("LOG", g.log, "BEATS", g.beats).Replace(a)
	}
	if cgroup != "" { // join before the program runs
		args = append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec "$@"`, cgroup, path}, args...)
		path = "/bin/sh"
	}
	g.cmd = exec.Command(path, args...)
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	g.cmd.Stderr = os.Stderr
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.pid = g.cmd.Process.Pid
	scanner := bufio.NewScanner(out)
	t.Cleanup(func() {
		killSession(t, g.pid)
		_ = g.cmd.Wait()
	})
	if !scanner.Scan() {
		t.Fatal("the program did not start")
	}
	if f := strings.Fields(scanner.Text()); len(f) == 4 && f[0] == "sem" {
		t.Cleanup(func() { _ = exec.Command("ipcrm", "-s", f[1], "-q", f[3]).Run() })
	}
	return g
}

// killSession ends every process of one session, by exact pids.
func killSession(t testing.TB, sid int) {
	t.Helper()
	for range 100 {
		pids, err := procfs.Processes()
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, pid := range pids {
			st, err := procfs.ReadStat(pid)
			if err == nil && st.Session == sid && sid > 1 && st.State != 'Z' {
				_ = unix.Kill(pid, unix.SIGKILL)
				thawV1(pid) // a failed test left it frozen, and so it cannot die
				left++
			}
		}
		if left == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// mkcgroup makes a cgroup for the test and returns its directory.
func mkcgroup(t testing.TB, way Way) string {
	t.Helper()
	h, err := openHierarchy(way)
	if err != nil {
		t.Skip(err)
	}
	defer h.Close()
	dir := filepath.Join(h.mount.Point, "w3test-"+strconv.Itoa(os.Getpid())+"-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		for range 500 {
			if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
		t.Errorf("cgroup %s cannot be removed", dir)
	})
	return dir
}

// counts reads the two counters of the program.
func (g *target) counts(t testing.TB) (wakes, spins uint64) {
	t.Helper()
	b, err := os.ReadFile(g.beats)
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:])
}

// mustRun waits until both counters have advanced.
func (g *target) mustRun(t testing.TB) {
	t.Helper()
	w, s := g.counts(t)
	for range 2000 {
		time.Sleep(5 * time.Millisecond)
		if w2, s2 := g.counts(t); w2 > w && s2 > s {
			return
		}
	}
	t.Fatal("the program does not run")
}

// mustStand checks that nothing advances.
func (g *target) mustStand(t testing.TB) {
	t.Helper()
	w, s := g.counts(t)
	time.Sleep(20 * time.Millisecond)
	if w2, s2 := g.counts(t); w2 != w || s2 != s {
		t.Fatalf("the program runs while it is frozen: %d+%d became %d+%d", w, s, w2, s2)
	}
}

// mustBeSilent checks that no call of the program was interrupted.
func (g *target) mustBeSilent(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile(g.log)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 {
		t.Errorf("the program saw:\n%s", b)
	}
}

// cgroupsOf reads the cgroups of all threads of a tree.
func cgroupsOf(t testing.TB, pids []int) map[int]string {
	t.Helper()
	out := map[int]string{}
	for _, pid := range pids {
		tids, err := procfs.Threads(pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			b, err := os.ReadFile(procfs.ThreadPath(pid, tid, "cgroup"))
			if err != nil {
				t.Fatal(err)
			}
			out[tid] = string(b)
		}
	}
	return out
}

// thawV1 thaws the transient v1 cgroup of a process.
func thawV1(pid int) {
	h, err := openHierarchy(WayV1)
	if err != nil {
		return
	}
	defer h.Close()
	cgroup, err := h.of(pid, pid)
	if err != nil || !strings.Contains(cgroup, "/"+transientPrefix) {
		return
	}
	if dir, err := h.dir(cgroup); err == nil {
		_ = h.setFrozen(dir, false)
		_ = dir.Close()
	}
}
