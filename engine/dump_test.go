package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crpipe/engine/internal/kernelview"
	"crpipe/engine/object"
	"crpipe/engine/tasks"
	"crpipe/stream"
)

// python runs a script, whose first line of output it waits for and returns, in a session of its own, and kills all of that when
// the test ends.
func python(t *testing.T, script string) (pid int, said string) {
	t.Helper()
	needRoot(t)
	view, err := kernelview.Open(kernelview.Options{})
	if err != nil {
		t.Skipf("no kernel view: %v", err)
	}
	view.Close()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	// What whoever runs the tests has left open is not to be dumped.
	const prelude = "import ctypes, os, sys, time, signal\nos.closerange(3, 1000)\nlibc = ctypes.CDLL(None, use_errno=True)\n" +
		"def clone(flags): return libc.syscall(56, flags | 17, 0, 0, 0, 0)\n" +
		"def up(*a): print(*a, flush=True)\n"
	cmd := exec.Command(path, "-c", prelude+script+"\nwhile True: time.sleep(1000)\n")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = unix.Kill(-pid, unix.SIGKILL) // its process group, which its children are in
		_ = cmd.Wait()                    // the status says that it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return pid, strings.TrimSpace(line)
}

func dumpTree(pid int, w io.Writer, dry bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return Dump(ctx, w, DumpOptions{PIDs: []int{pid}, DryRun: dry, Plan: io.Discard})
}

// What two children share with each other and not with their creator any more is kept: a table, directories.
func TestDumpSharedByChildren(t *testing.T) {
	for name, flag := range map[string]string{"table": "0x400", "directories": "0x200"} {
		t.Run(name, func(t *testing.T) {
			pid, _ := python(t, `
kids = []
for i in range(2):
    kid = clone(`+flag+`)
    if kid == 0:
        while True: time.sleep(1000)
    kids.append(kid)
libc.unshare(`+flag+`)
up(*kids)`)
			var out bytes.Buffer
			if err := dumpTree(pid, &out, false); err != nil {
				t.Fatal(err)
			}
			procs := object.All[tasks.Process](readPlan(t, out.Bytes()))
			if len(procs) != 3 {
				t.Fatalf("%d processes", len(procs))
			}
			of := func(i int) stream.Ref {
				if name == "table" {
					return procs[i].State.Files
				}
				return procs[i].State.FS
			}
			if of(1) != of(2) || of(0) == of(1) {
				t.Errorf("the creator has %v, its children %v and %v", of(0), of(1), of(2))
			}
		})
	}
}

// A table that a child shares with its creator is kept.
func TestDumpSharedByCreator(t *testing.T) {
	pid, _ := python(t, `
if clone(0x600) == 0:
    while True: time.sleep(1000)
up("ready")`)
	var out bytes.Buffer
	if err := dumpTree(pid, &out, false); err != nil {
		t.Fatal(err)
	}
	procs := object.All[tasks.Process](readPlan(t, out.Bytes()))
	if len(procs) != 2 || procs[0].State.Files != procs[1].State.Files || procs[0].State.FS != procs[1].State.FS || procs[0].State.MM == procs[1].State.MM {
		t.Errorf("%+v", procs)
	}
}

func readPlan(t *testing.T, data []byte) *object.Plan {
	t.Helper()
	r, err := stream.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	plan, _, err := object.ReadPlan(r, allKinds())
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// A name is any bytes. That of a thread comes from /proc/PID/status, which escapes some of them.
func TestDumpNames(t *testing.T) {
	pid, _ := python(t, `
libc.prctl(15, b"\xff\x01 \n\\)\t", 0, 0, 0)
if clone(0) == 0:
    libc.prctl(15, b"z\xfe) (", 0, 0, 0)
    os._exit(3)
time.sleep(0.2)
up("ready")`)
	var out bytes.Buffer
	if err := dumpTree(pid, &out, false); err != nil {
		t.Fatal(err)
	}
	if err := plan(t, "odd names", out.Bytes()); err != nil {
		t.Error(err)
	}
	var text, back bytes.Buffer
	if err := stream.ToJSON(bytes.NewReader(out.Bytes()), &text); err != nil {
		t.Fatal(err)
	}
	if err := stream.FromJSON(&text, &back); err != nil || !bytes.Equal(back.Bytes(), out.Bytes()) {
		t.Errorf("the JSON form does not keep the names (%v)", err)
	}
	p := readPlan(t, out.Bytes())
	if th := object.All[tasks.Thread](p); len(th) != 1 || th[0].State.Comm != "\xff\x01 \n\\)\t" {
		t.Errorf("threads %+v", th)
	}
	for _, f := range object.All[tasks.Process](p) {
		if f.State.Zombie && (f.State.Comm != "z\xfe) (" || f.State.WaitStatus != 3<<8) {
			t.Errorf("the zombie is %q with status %#x", f.State.Comm, f.State.WaitStatus)
		}
	}
}

// A zombie alone is refused: nobody in the image could wait for it.
func TestDumpZombie(t *testing.T) {
	_, said := python(t, `
kid = clone(0)
if kid == 0: os._exit(3)
time.sleep(0.2)
up(kid)`)
	zombie, err := strconv.Atoi(said)
	if err != nil {
		t.Fatal(err)
	}
	if err := dumpTree(zombie, io.Discard, true); statusOf(err) != object.ExitUnsupported || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("%v, want a refusal that says that it has ended", err)
	}
}

// A signal that a restore could not queue again is refused by the dump, not only by the restore.
func TestDumpPendingTrap(t *testing.T) {
	pid, _ := python(t, `
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTRAP])
os.kill(os.getpid(), signal.SIGTRAP)
up("ready")`)
	err := dumpTree(pid, io.Discard, true)
	var u *object.Unsupported
	if !errors.As(err, &u) || !strings.Contains(u.What, "SIGTRAP") {
		t.Errorf("%v, want a refusal that names SIGTRAP", err)
	}
}
